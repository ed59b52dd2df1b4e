"""What becomes of a job, by what its engine does; with real processes, broker and database."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from models.database import migrate
from models.errors import Code
from models.spec import Spec
from models.statuses import JobStatus
from models.tables import Artifact, Checkpoint
from tests.services import Valkey
from tests.worker.fleet import Fleet, until
from worker.child import Ending
from worker.watch import crash

STATE = b"the state after a step"
STATE_SHA256 = hashlib.sha256(STATE).hexdigest()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker for all these tests: how one job ends must not matter to the next."""
    folder, valkey = tmp_path_factory.mktemp("fleet"), Valkey()
    url = f"sqlite:///{folder}/modelpress.sqlite3"
    migrate(url)
    try:
        with Fleet(folder, url, valkey) as fleet:
            fleet.start("device", MODELPRESS_STALL_SECONDS="5")
            yield fleet
            assert [worker.poll() for worker in fleet.workers] == [None]
    finally:
        valkey.close()


@pytest.fixture
def device(served: Fleet) -> Iterator[Fleet]:
    yield served
    until(lambda: not served.runs_on_disk(), "no run folder to be left")
    assert not served.engines()


@pytest.mark.parametrize("in_time", [True, False])
def test_an_engine_may_deliver_the_best_so_far_after_its_time_but_not_for_ever(
    fleet: Fleet, tmp_path: Path, in_time: bool
) -> None:
    fleet.start("device", MODELPRESS_DELIVER_SECONDS="60" if in_time else "0.5")
    gate = tmp_path / "gate"
    document = {
        "model": fleet.network_id,
        "steps": [{"step": "prune", "amount": {"channels": 0.5}}],
        "limits": {"timeout_s": 1, "on_timeout": "best_so_far"},
        "metadata": {"do": "finish", "gate": str(gate)},
    }
    job_id = fleet.submit_spec(Spec.model_validate(document))
    if in_time:
        fleet.wait(job_id, JobStatus.RUNNING)
        time.sleep(2.0)
        gate.touch()
    job = fleet.wait(job_id)
    assert (job.status, job.error and job.error["code"]) == (("succeeded", None) if in_time else ("failed", "timeout"))


def test_a_job_that_works_gives_artifacts_a_report_and_a_log(device: Fleet) -> None:
    job = device.wait(device.submit("finish"))
    assert job.status == "succeeded", job.error
    assert job.report is not None
    assert job.report["compressed"]["parameters"] == 10
    assert device.log(job.id) == "the log of a good engine\n"
    assert device.statuses(job.id) == ["queued", "running", "succeeded"]
    with device.database.read() as session:
        artifact = session.scalars(select(Artifact).where(Artifact.job_id == job.id)).one()
        checkpoint = session.scalars(select(Checkpoint).where(Checkpoint.sha256 == STATE_SHA256)).first()
    assert (artifact.name, artifact.partial) == ("model.onnx", False)
    assert device.blobs.open(artifact.sha256).read() == b"a small network"
    assert checkpoint is not None
    assert device.blobs.open(checkpoint.sha256).read() == STATE


def test_a_second_job_with_the_same_steps_resumes_from_the_first_ones_checkpoint(device: Fleet) -> None:
    device.wait(device.submit("finish", seed=1000))
    second = device.wait(device.submit("finish", seed=1000, name="another"))
    assert second.status == "succeeded"
    assert "resumed from b'the state after a step'" in device.log(second.id)


def test_an_engine_sees_an_empty_environment_no_open_files_and_its_limits(fleet: Fleet) -> None:
    worker = fleet.start("device", AWS_SECRET_ACCESS_KEY="canary", PATH=os.environ["PATH"])
    job_id = fleet.submit("show_surroundings", timeout_s=100)
    seen = json.loads(until(lambda: fleet.log(job_id), "its log"))
    assert set(seen["environment"]) <= {
        "HOME",
        "TMPDIR",
        "LANG",
        "LC_CTYPE",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "CUDA_VISIBLE_DEVICES",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONHASHSEED",
    }
    assert "canary" not in json.dumps(seen)
    assert seen["files"] == []
    assert seen["folder"] == "/"
    assert seen["session"] != os.getsid(worker.pid)
    assert seen["no_new_privileges"]
    limits = {" ".join(line[:25].split()): line[25:].split() for line in seen["limits"].splitlines()}
    assert limits["Max core file size"][:2] == ["0", "0"]
    seconds = 100 * (1 + len(os.sched_getaffinity(0))) + 60  # of its one thread, and of compilers on all processors
    assert limits["Max cpu time"][:2] == [str(seconds), str(seconds + 5)]
    assert limits["Max open files"][0] == "4096"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crashing_engine_is_tried_three_times_and_then_named_with_signal_and_memory(
    device: Fleet, number: signal.Signals
) -> None:
    job = device.wait(device.submit("die", signal=str(int(number))))
    assert job.status == "failed"
    assert device.statuses(job.id) == ["queued", *["running", "queued"] * 2, "running", "failed"]
    assert job.error is not None
    assert job.error["code"] == "engine_crashed"
    assert job.error["phase"] == "pruning"
    assert number.name in job.error["message"]
    peak = int(job.error["message"].split()[-2])
    assert 64 <= peak < 1000
    with device.database.read() as session:
        artifact = session.scalars(select(Artifact).where(Artifact.job_id == job.id)).one()
    assert artifact.partial


def test_a_crash_that_does_not_come_again_costs_one_attempt_and_no_finished_step(device: Fleet) -> None:
    job = device.wait(device.submit("die_once", pause="0.6"))
    assert job.status == "succeeded", job.error
    assert (job.attempt, job.strikes) == (2, 1)
    assert "resumed from" in device.log(job.id)


@pytest.mark.parametrize(
    ("do", "code", "words"),
    [
        ("leave", "engine_crashed", "status 0 and no last word"),
        ("babble", "engine_crashed", "no event"),
        ("shout", "engine_crashed", "too long"),
        ("go_on", "engine_crashed", "after its last word"),
        ("misreport", "engine_crashed", "wrong fields"),
        ("hang", "stalled", "said nothing for 5 seconds"),
    ],
)
def test_an_engine_that_misbehaves_fails_with_what_it_did(device: Fleet, do: str, code: str, words: str) -> None:
    job = device.wait(device.submit(do))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == code
    assert words in job.error["message"]


def test_an_engine_over_its_time_is_ended(device: Fleet) -> None:
    job = device.wait(device.submit("spin", timeout_s=1))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "timeout"


def test_a_stopped_engine_is_found_stalled(device: Fleet) -> None:
    job_id = device.submit("spin")
    os.kill(device.engine().pid, signal.SIGSTOP)
    job = device.wait(job_id)
    assert job.error is not None
    assert job.error["code"] == "stalled"


def test_an_engine_that_will_not_go_after_its_last_word_is_ended_and_the_job_succeeds(device: Fleet) -> None:
    assert device.wait(device.submit("linger")).status == "succeeded"


def test_folders_that_nobody_may_enter_are_removed_too(device: Fleet) -> None:
    assert device.wait(device.submit("lock_up")).status == "succeeded"


@pytest.mark.parametrize(
    "what", ["symlink", "fifo", "hardlink", "folder", "linked folder", "outside", "absolute", "missing"]
)
def test_only_plain_files_of_the_job_folder_leave_it(device: Fleet, what: str) -> None:
    job = device.wait(device.submit("smuggle", what=what))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "engine_crashed"
    with device.database.read() as session:
        assert session.scalars(select(Artifact).where(Artifact.job_id == job.id)).all() == []


def test_a_damaged_upload_is_never_given_to_an_engine(fleet: Fleet) -> None:
    fleet.start("device")
    blob = next(path for path in (fleet.folder / "blobs").glob("??/??/*"))
    blob.chmod(0o600)
    blob.write_bytes(b"goof network")
    job = fleet.wait(fleet.submit("finish"))
    assert job.status == "failed"
    assert job.error is not None
    assert "damaged" in job.error["message"]


def test_a_queued_job_that_is_cancelled_never_starts(device: Fleet, tmp_path: Path) -> None:
    running = device.submit("finish", gate=str(tmp_path / "gate"))
    device.wait(running, JobStatus.RUNNING)
    waiting = device.submit("finish")
    assert device.cancel(waiting) is JobStatus.CANCELLED
    (tmp_path / "gate").touch()
    assert device.wait(running).status == "succeeded"
    last = device.wait(device.submit("finish"))
    assert last.status == "succeeded"
    assert device.statuses(waiting) == ["queued", "cancelled"]


def test_a_cancelled_engine_that_ignores_term_dies_with_children_that_left_its_session(device: Fleet) -> None:
    job_id = device.submit("defy")
    until(lambda: len(device.engines()) >= 4 and device.log(job_id).count("child") == 2, "guard, engine and children")
    assert device.cancel(job_id) is JobStatus.CANCELLING
    job = device.wait(job_id)
    assert job.status == "cancelled"
    assert not device.engines()
    assert device.statuses(job_id) == ["queued", "running", "cancelling", "cancelled"]


def test_a_cancel_that_races_the_end_leaves_one_terminal_status(device: Fleet, tmp_path: Path) -> None:
    ends = []
    for number in range(8):
        gate = tmp_path / f"gate-{number}"
        job_id = device.submit("finish", gate=str(gate))
        until(lambda job_id=job_id: len(device.events(job_id)) > 3, "its first events")  # type: ignore[misc]
        gate.touch()
        time.sleep(number * 0.03)
        answered = device.cancel(job_id)
        job = device.wait(job_id)
        ends.append(job.status)
        assert job.status == ("succeeded" if answered is JobStatus.SUCCEEDED else "cancelled")
        assert sum(JobStatus(status).is_terminal for status in device.statuses(job_id)) == 1
        assert (job.report is not None) == (job.status == "succeeded")
    assert "cancelled" in ends


def test_a_kill_for_want_of_memory_has_a_name_of_its_own() -> None:
    ending = Ending(code=-signal.SIGKILL, peak_memory_bytes=3 << 30)
    failure = crash(ending, out_of_memory=True)
    assert (failure.code, failure.retryable) == (Code.OUT_OF_MEMORY, True)
    assert "3072 MiB" in failure.message
    assert crash(ending, out_of_memory=False).code is Code.ENGINE_CRASHED
    assert crash(Ending(-signal.SIGSEGV, 0), out_of_memory=True).code is Code.ENGINE_CRASHED
    assert crash(Ending(-signal.SIGXCPU, 0), out_of_memory=False).code is Code.TIMEOUT
