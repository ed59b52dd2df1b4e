"""Answers of newer and older services, event streams, and what a report looks like to a person."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from modelpress import ApiError, Event, JobRecord, Network
from modelpress.comparison import rows
from modelpress.event_stream import parse_stream
from modelpress.outcomes import describe_error
from modelpress.progress import describe, note
from modelpress.sensitivity_table import sensitivity_rows
from modelpress.transport import problem_of


def test_a_status_this_client_does_not_know_is_kept_and_is_not_the_end() -> None:
    job = JobRecord.parse({"id": "job_1", "status": "hibernating", "phase": "dreaming", "mood": {"is": "good"}})
    assert (job.status, job.phase, job.is_finished) == ("hibernating", "dreaming", False)
    assert job.raw["mood"] == {"is": "good"}


def test_an_unknown_status_with_a_finish_time_is_the_end() -> None:
    assert JobRecord.parse({"status": "archived", "finished_at": "2026-01-01T00:00:00Z"}).is_finished


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_every_terminal_status_is_the_end(status: str) -> None:
    assert JobRecord.parse({"status": status}).is_finished


def test_missing_and_null_fields_are_the_default_and_are_not_shared() -> None:
    one, two = Network.parse({"id": "net_1", "layers": None}), Network.parse({"id": "net_2"})
    assert one.layers == two.layers == []
    assert one.layers is not two.layers


def test_a_newer_answer_replaces_the_older_one_whole() -> None:
    job = JobRecord.parse({"id": "job_1", "status": "queued", "queue_position": 3})
    job.update({"id": "job_1", "status": "running", "queue_position": None, "attempt": 1})
    assert (job.status, job.queue_position, job.attempt) == ("running", None, 1)


def test_a_stream_gives_events_and_passes_over_keep_alives_and_nonsense() -> None:
    text = (
        ": keep-alive\n\n"
        'id: 1\nevent: phase\ndata: {"id": 1, "data": {"type": "phase", "phase": "pruning", "step_count": 2}}\n\n'
        "id: 2\ndata: not json\n\n"
        "data: [1, 2]\n\n"
        'id:3\ndata: {"data":\ndata: {"type": "hologram", "colour": "blue"}}\n\n'
        "retry: 1000\n\n"
        'data: {"id": 4, "data": {"type": "cut off"'
    )
    events = list(parse_stream(text.split("\n")))
    assert [(event.id, event.type) for event in events] == [(1, "phase"), (3, "hologram")]


@pytest.mark.parametrize(
    "data", [{}, {"type": "hologram"}, {"type": "step"}, {"type": "warning"}, {"type": "status", "status": "asleep"}]
)
def test_no_event_however_odd_breaks_the_watching_person(data: dict[str, Any]) -> None:
    assert isinstance(describe(Event.parse({"data": data})), str)


def test_progress_is_said_in_words() -> None:
    progress = {"percent": 40.0, "step_index": 0, "step_count": 3, "epoch": 2, "epochs": 5, "eta_seconds": 12.3}
    assert note(progress) == "step 1/3, epoch 2/5, 12 s left"
    assert note({}) == ""


def test_a_problem_becomes_detail_pointers_and_remedy() -> None:
    body = {
        "title": "Invalid",
        "detail": "The spec has 1 mistake.",
        "code": "invalid_spec",
        "errors": [{"pointer": "/steps/0/amount", "message": "too much", "allowed": ["channels", "macs"]}],
        "request_id": "req_1",
        "hint": "See /schema/job.",
    }
    error = problem_of(httpx.Response(422, json=body, headers={"Retry-After": "2"}))
    assert (error.code, error.status, error.request_id, error.retry_after) == ("invalid_spec", 422, "req_1", 2.0)
    assert str(error).splitlines() == [
        "The spec has 1 mistake.",
        "  /steps/0/amount: too much (allowed: channels, macs)",
        "See /schema/job.",
    ]


@pytest.mark.parametrize(("allowed", "more"), [(None, []), (["l1", "l2"], ["  (allowed: l1, l2)"])])
def test_what_the_detail_says_is_not_said_again(allowed: list[str] | None, more: list[str]) -> None:
    errors = [{"pointer": "/steps/0/criterion", "message": "no such one", "allowed": allowed}]
    body = {"detail": "/steps/0/criterion: no such one", "code": "invalid_spec", "errors": errors}
    lines = str(problem_of(httpx.Response(422, json=body))).splitlines()
    assert lines == ["/steps/0/criterion: no such one", *more]


@pytest.mark.parametrize("body", [b"<html>Bad gateway</html>", b"", b"[1]", b'{"detail": null}'])
def test_an_error_that_is_no_problem_document_still_has_its_status(body: bytes) -> None:
    error = problem_of(httpx.Response(502, content=body))
    assert isinstance(error, ApiError)
    assert error.status == 502
    assert str(error)


def test_a_jobs_error_is_told_with_where_and_the_hint_once() -> None:
    error = {"code": "nan_loss", "message": "The loss became NaN.", "where": "step 1", "hint": "Lower the rate."}
    assert describe_error(error) == "The loss became NaN. (step 1)\nLower the rate."
    assert describe_error(None) == ""


def test_the_comparison_shows_what_was_measured_and_leaves_out_what_was_not() -> None:
    before = {"metrics": {"accuracy": {"value": 0.98, "n": 500, "split": "test"}}, "parameters": 1000, "macs": 4000}
    after = {"metrics": {"accuracy": {"value": 0.97, "n": 500, "split": "test"}}, "parameters": 250, "macs": 8000}
    before, after = before | {"nonzero_parameters": 1000}, after | {"nonzero_parameters": 50}
    assert rows({"original": before, "compressed": after | {"file_size_bytes": None}}) == [
        ("accuracy (test, n=500)", "0.9800", "0.9700", "-0.0100"),
        ("parameters", "1,000", "250", "4.00x less"),
        ("of these not zero", "1,000", "50", "20.00x less"),
        ("MACs per sample", "4,000", "8,000", "2.00x more"),
    ]


def test_sensitivity_shows_first_what_can_be_spared_least() -> None:
    def measured(value: float, **more: Any) -> dict[str, Any]:
        return {"metrics": {"accuracy": {"value": value, "n": 50, "split": "val"}}} | more

    first = {"layers": ["conv1", "bn1"], "units": 8, "points": [measured(0.9, removed=2), measured(0.7, removed=4)]}
    second = {"layers": ["conv2"], "units": 16, "points": [measured(0.8, removed=4), measured(0.2, removed=8)]}
    assert sensitivity_rows({"unchanged": measured(0.95), "groups": [first, second]}) == [
        ("conv2", "16", "4: 0.8000  8: 0.2000"),
        ("conv1, bn1", "8", "2: 0.9000  4: 0.7000"),
    ]
