"""Uploads are inspected by control workers, each in a child process, each to one end."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from models.inspections import Upload, UploadTable
from models.tables import Dataset, Network
from tests.worker.fleet import Fleet, until


@pytest.fixture
def control(fleet: Fleet) -> Iterator[Fleet]:
    fleet.start("control")
    yield fleet
    until(lambda: not fleet.runs_on_disk(), "no run folder to be left")
    assert not fleet.engines()


def _inspected(fleet: Fleet, table: UploadTable, content: bytes, *, nudge: bool = True) -> Upload:
    upload_id = fleet.upload(table, content)
    if nudge:
        fleet.nudge_inspection()
    until(lambda: fleet.uploaded(table, upload_id).status != "inspecting", f"{content!r} to be inspected")
    return fleet.uploaded(table, upload_id)


def test_a_good_network_and_a_good_data_set_become_ready(control: Fleet) -> None:
    network = _inspected(control, Network, b"good network")
    dataset = _inspected(control, Dataset, b"good data")
    assert network.status == dataset.status == "ready"
    assert network.inspection is not None
    assert network.inspection["parameters"] == 10
    assert dataset.inspection is not None
    assert dataset.inspection["samples"] == 3


def test_what_the_engine_refuses_is_rejected_with_its_words(control: Fleet) -> None:
    network = _inspected(control, Network, b"bad network")
    assert network.status == "rejected"
    assert network.error is not None
    assert (network.error["code"], network.error["message"]) == ("network_rejected", "it is bad")
    assert network.strikes == 0


def test_a_file_that_kills_the_engine_is_tried_three_times_and_rejected(control: Fleet) -> None:
    network = _inspected(control, Network, b"deadly network")
    assert network.status == "rejected"
    assert network.error is not None
    assert network.error["code"] == "engine_crashed"
    assert "SIGSEGV" in network.error["message"]
    assert (network.attempt, network.strikes) == (3, 3)


def test_an_engine_that_answers_another_question_is_not_believed(control: Fleet) -> None:
    network = _inspected(control, Network, b"confused network")
    assert network.status == "rejected"
    assert network.error is not None
    assert "another question" in network.error["message"]


def test_an_upload_nobody_was_nudged_for_is_found_by_the_sweep(control: Fleet) -> None:
    assert _inspected(control, Network, b"good network", nudge=False).status == "ready"


def test_an_inspection_that_takes_too_long_is_a_timeout(fleet: Fleet) -> None:
    fleet.start("control", MODELPRESS_INSPECT_TIMEOUT_SECONDS="0.5")
    network = _inspected(fleet, Network, b"slow network")
    assert network.error is not None
    assert network.error["code"] == "timeout"


def test_slow_inspections_never_keep_the_sweep_from_running(control: Fleet) -> None:
    slow = [control.upload(Network, b"slow network") for _ in range(4)]
    for _ in slow:
        control.nudge_inspection()
    until(lambda: len(control.runs_on_disk()) == 2, "all slots for inspections to be taken")
    control.start("device")
    assert control.wait(control.submit("finish", nudge=False)).status == "succeeded"
    control.workers[0].send_signal(signal.SIGTERM)
    control.workers[0].wait(timeout=30)
    for upload_id in slow:
        row = control.uploaded(Network, upload_id)
        assert (row.status, row.strikes, row.lease_expires_at) == ("inspecting", 0, None)


def test_an_inspection_whose_worker_is_killed_happens_again(fleet: Fleet) -> None:
    first = fleet.start("control")
    upload_id = fleet.upload(Network, b"slow network")
    fleet.nudge_inspection()
    fleet.engine()
    first.kill()
    first.wait()
    fleet.start("control", MODELPRESS_INSPECT_TIMEOUT_SECONDS="0.5")
    until(lambda: fleet.uploaded(Network, upload_id).status == "rejected", "the second inspection")
    row = fleet.uploaded(Network, upload_id)
    assert (row.attempt, row.strikes) == (2, 1)
    until(lambda: not fleet.runs_on_disk(), "no run folder to be left")
