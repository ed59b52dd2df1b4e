"""Log lines: of one format, with the ids of what they are about, and nothing that a sender could forge."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextvars import copy_context

import pytest

from models import logs

logger = logging.getLogger("modelpress.test")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_json_line_has_the_ids_of_its_block_and_fields_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    with logs.about(request_id="r1"):
        with logs.about(job_id="job_1"):
            logger.info("queued %d", 3, extra={logs.FIELDS: {"seconds": 0.5}})
        logger.warning("line one\nline two")
    logger.info("outside")
    inside, after, outside = [json.loads(line) for line in lines(capsys)]
    assert inside.pop("at").endswith("Z")
    assert inside == {
        "level": "info",
        "logger": "modelpress.test",
        "message": "queued 3",
        "request_id": "r1",
        "job_id": "job_1",
        "seconds": 0.5,
    }
    assert (after["request_id"], "job_id" in after, after["message"]) == ("r1", False, "line one\nline two")
    assert "request_id" not in outside


def test_an_exception_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")
    [line] = [json.loads(line) for line in lines(capsys)]
    assert line["message"] == "it failed"
    assert line["exception"].endswith("ValueError: broken")


def test_a_line_for_people_ends_in_its_ids_and_is_never_two(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("human")
    with logs.about(request_id="r1", job_id="job_1"):
        logger.info("hello\n2026-01-01 00:00:00,000 INFO forged: yes")
    first, second = lines(capsys)
    assert first.endswith("INFO modelpress.test: hello")
    assert second == "    2026-01-01 00:00:00,000 INFO forged: yes request_id=r1 job_id=job_1"


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_keys_and_passwords_are_starred_out_wherever_they_came_from(
    log_format: logs.Format, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(log_format)
    key, url = "mp_" + "S3cret-_" * 5, "redis://:S3cret/S3cret@host:6379/0 whsec_S3cret+/S3cret+/S3cret="
    with logs.about(request_id=key):
        try:
            raise ValueError(f"postgresql://user:S3cret@host/{key}")
        except ValueError:
            logger.exception(
                "GET /jobs/%s %s Bearer%%20%s", key, url, key, extra={logs.FIELDS: {"path": f"/jobs/{key}"}}
            )
    said = "\n".join(lines(capsys))
    assert "S3cret" not in said
    for left in (
        "GET /jobs/mp_*** redis://:***@host:6379/0 whsec_*** Bearer%20mp_***",
        "postgresql://user:***@host/mp_***",
        "ValueError",
    ):
        assert left in said


def test_a_thread_has_the_ids_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    with logs.about(job_id="job_1"):
        thread = threading.Thread(target=copy_context().run, args=(logger.info, "from a thread"))
        thread.start()
        thread.join()
    [line] = [json.loads(line) for line in lines(capsys)]
    assert line["job_id"] == "job_1"
