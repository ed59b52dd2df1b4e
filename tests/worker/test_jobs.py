"""What becomes of a job, by what its engine does; with real processes, broker and database."""

from __future__ import annotations

from tests.worker.fleet import Fleet


def test_a_job_that_works_gives_artifacts_a_report_and_a_log(fleet: Fleet) -> None:
    fleet.start("device")
    job = fleet.wait(fleet.submit("finish"))
    assert job.status == "succeeded", job.error
    assert job.report is not None
