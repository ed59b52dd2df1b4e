"""One attempt at one job, from its claim to its end: inputs in, engine watched, files out, one last transaction."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from pydantic import ValidationError
from sqlalchemy.orm import Session

from models import attempts, transitions
from models.attempts import PublishedArtifact
from models.checkpoints import checkpoint_keys, in_order, inside_key
from models.database import Database, now
from models.errors import Code, Failure, JobError
from models.events import ArtifactEvent, CheckpointEvent, EngineEvent, FailedEvent, FinishedEvent, PhaseEvent
from models.inspections import read_options_of
from models.messages import CompressRequest, InputFile, NetworkFile
from models.reading import ReadOptions
from models.report import Report
from models.settings import Settings
from models.spec import Spec
from models.spec_train import teacher_ids
from models.statuses import JobStatus, Phase
from models.tables import Checkpoint, Dataset, Job, Network
from worker.files import bring_in, publish
from worker.journal import Journal, Write
from worker.supervisor import Supervisor
from worker.watch import Stop, Watched
from worker.workplace import RunFolder, take_out

MAX_ARTIFACTS = 200
MAX_REPORT_BYTES = 64 << 20
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assignment:
    """A claimed job and what it needs; `checkpoint` is the furthest state that is kept of it, `teachers` are the
    networks beside its own that it learns from: digest and how to read it, by id."""

    job: Job
    spec: Spec
    network_sha256: str
    read_options: ReadOptions
    dataset_sha256: str | None
    checkpoint: Checkpoint | None
    teachers: Mapping[str, tuple[str, ReadOptions]]

    def keys(self) -> list[str]:
        taught_by = {each: options.identify(sha256) for each, (sha256, options) in self.teachers.items()}
        identity = self.read_options.identify(self.network_sha256)
        return checkpoint_keys(identity, self.dataset_sha256, self.spec, taught_by)


def claim_job(database: Database, settings: Settings, worker_id: str) -> Assignment | None:
    """Take the job whose turn it is on this worker's device class; `None`: none waits."""
    while True:
        with database.transaction() as session:
            moment = now(session)
            lease = moment + timedelta(seconds=settings.scaled(settings.lease_seconds))
            job = transitions.claim(
                session,
                device_class=settings.device_class,
                worker_id=worker_id,
                lease_until=lease,
                now=moment,
                max_running=settings.max_running_jobs,
            )
            if job is None:
                return None
            try:
                return _assignment(session, job)
            except ValidationError:
                message = "the stored spec is not one this version understands; submit the job again"
                error = Failure(Code.INTERNAL, message).as_error()
                transitions.fail(session, job.id, job.attempt, error, moment)


def _assignment(session: Session, job: Job) -> Assignment:
    spec = Spec.model_validate(job.resolved_spec)
    network = session.get_one(Network, job.network_id)
    dataset_sha256 = session.get_one(Dataset, job.dataset_id).sha256 if job.dataset_id else None
    taught_by = {each: session.get_one(Network, each) for each in teacher_ids(spec.steps or ())}
    teachers = {each: (row.sha256, read_options_of(row)) for each, row in taught_by.items()}
    assignment = Assignment(job, spec, network.sha256, read_options_of(network), dataset_sha256, None, teachers)
    keys = in_order(assignment.keys())
    found = attempts.checkpoints(session, job.tenant, keys)
    furthest = max(found, key=lambda checkpoint: keys.index(checkpoint.key), default=None)
    return replace(assignment, checkpoint=furthest)


def run_job(supervisor: Supervisor, assignment: Assignment) -> None:
    """Returns when the attempt has ended, one way or another, and nothing of the engine is left."""
    job, settings = assignment.job, supervisor.settings
    heartbeat = settings.scaled(settings.heartbeat_seconds)
    lease = settings.scaled(settings.lease_seconds)
    with Journal(supervisor.database, job.id, job.attempt, heartbeat=heartbeat, lease=lease) as journal:
        attempt = _Attempt(supervisor, assignment, journal)
        for change in attempt.run():
            if journal.settle(change, give_up=supervisor.draining.is_set) is not False:
                break


class _Attempt:
    """What one attempt knows while it runs."""

    def __init__(self, supervisor: Supervisor, assignment: Assignment, journal: Journal) -> None:
        self._supervisor, self._assignment, self._journal = supervisor, assignment, journal
        self._settings = supervisor.settings
        self._id, self._number = assignment.job.id, assignment.job.attempt
        self._keys = assignment.keys()
        self._profile = supervisor.profile(assignment.spec)
        self._artifacts: dict[str, PublishedArtifact] = {}
        self._phase: Phase | None = None
        self._folder: RunFolder | None = None

    def run(self) -> list[Write]:
        """Run the engine to its end. Returns the last change to make, and what to try where that is refused."""
        try:
            with self._supervisor.workplace.run_folder() as folder:
                self._folder = folder
                self._prepare(folder)
                watched = self._supervisor.watch(
                    folder,
                    self._run_seconds(),
                    self._profile,
                    on_event=self._on_event,
                    on_log=self._journal.log,
                    must_stop=self._must_stop,
                    may_read=lambda: not self._journal.is_full,
                )
                return self._end(watched)
        except Failure as failure:
            return self._end_with(failure)
        except OSError as error:
            _logger.exception("job %s, attempt %d", self._id, self._number)
            return self._end_with(os_failure(error))

    def _end_with(self, failure: Failure) -> list[Write]:
        """What a failure means: another attempt where that may help, else the end of the job."""
        error = failure.as_error(self._phase)
        if failure.retryable:
            return [partial(self._strike, error=error)]
        return [partial(self._fail, error=error), self._cancelled]

    def _prepare(self, folder: RunFolder) -> None:
        given, blobs = self._assignment, self._supervisor.blobs
        network = bring_in(blobs, given.network_sha256, folder.inputs / "network")
        dataset = given.dataset_sha256 and bring_in(blobs, given.dataset_sha256, folder.inputs / "dataset")
        teachers = {
            each: NetworkFile(
                path=bring_in(blobs, sha256, folder.inputs / f"teacher-{number}"), sha256=sha256, read=options
            )
            for number, (each, (sha256, options)) in enumerate(given.teachers.items())
        }
        checkpoints = []
        if given.checkpoint is not None:
            try:
                checkpoints.append(
                    bring_in(blobs, given.checkpoint.sha256, folder.inputs / f"{given.checkpoint.key}.safetensors")
                )
            except Failure as failure:
                self._journal.log(f"the checkpoint of step {given.checkpoint.step_index} is gone: {failure.message}\n")
        request = CompressRequest(
            network=NetworkFile(path=network, sha256=given.network_sha256, read=given.read_options),
            dataset=InputFile(path=dataset, sha256=given.dataset_sha256) if dataset else None,
            teachers=teachers,
            spec=given.spec.model_copy(update={"webhook": None}),  # no concern of the engine's, nor of its files
            folder=folder.job,
            device="cuda" if self._settings.device_class == "cuda" else "cpu",
            threads=self._settings.engine_threads,
            checkpoints=checkpoints,
            checkpoint_seconds=self._settings.scaled(self._settings.checkpoint_seconds),
            talks=self._profile.network,
        )
        folder.request.write_text(request.model_dump_json())

    def _run_seconds(self) -> float:
        """Until the engine is ended. One that is to deliver the best so far looks at the clock itself."""
        limits = self._assignment.spec.limits
        return limits.timeout_s + (self._settings.deliver_seconds if limits.on_timeout == "best_so_far" else 0.0)

    def _must_stop(self) -> Stop | None:
        if self._journal.error is not None:
            raise Failure(Code.INTERNAL, f"the events could not be stored: {type(self._journal.error).__name__}")
        if self._journal.status is None:
            return Stop.LOST
        if self._journal.status is JobStatus.CANCELLING:
            return Stop.CANCELLED
        return Stop.DRAINING if self._supervisor.draining.is_set() else None

    def _on_event(self, event: EngineEvent) -> None:
        assert self._folder is not None
        if isinstance(event, PhaseEvent):
            self._phase = event.phase
        elif isinstance(event, CheckpointEvent):
            self._keep_checkpoint(event, self._folder)
        elif isinstance(event, ArtifactEvent):
            self._keep_artifact(event, self._folder)
        self._journal.record(event)

    def _keep_checkpoint(self, event: CheckpointEvent, folder: RunFolder) -> None:
        what = f"the checkpoint of step {event.step_index}"
        ends = {key: inside_key(key) for key in self._keys}
        if event.key not in ends and event.key not in ends.values():
            # Not for this job, whatever the engine says; so another version of it runs than this worker knows.
            self._journal.log(f"{what} is not kept: its key is not this job's\n")
            return
        if event.epoch is not None and not os.path.lexists(folder.job / event.path):
            return  # newer ones were written while nobody could listen
        try:
            blob = publish(self._supervisor.blobs, folder.job, event.path)
        except Failure as failure:
            if failure.code is not Code.DISK_FULL:
                raise
            self._journal.log(f"{what} is not kept: {failure.message}\n")
            return
        self._journal.write(
            lambda session, moment: attempts.add_checkpoint(
                session,
                self._id,
                self._number,
                key=event.key,
                step_index=in_order(self._keys).index(event.key) // 2,
                supersedes=ends.get(event.key),
                sha256=blob.sha256,
                size_bytes=blob.size_bytes,
                now=moment,
            )
        )

    def _keep_artifact(self, event: ArtifactEvent, folder: RunFolder) -> None:
        if len(self._artifacts) >= MAX_ARTIFACTS or len(event.name) > 255 or "/" in event.name:
            raise Failure(Code.ENGINE_CRASHED, "the engine gave too many files, or a bad name", where=event.name[:255])
        blob = publish(self._supervisor.blobs, folder.job, event.path)
        self._artifacts[event.name] = PublishedArtifact(
            event.name, event.kind, event.content_type, blob.size_bytes, blob.sha256, event.partial
        )

    def _end(self, watched: Watched) -> list[Write]:
        if watched.failure is not None:
            return self._end_with(watched.failure)
        match watched.stop, watched.last:
            case Stop.CANCELLED, _:
                return [self._cancelled]
            case Stop.DRAINING, _:
                return [self._give_back, self._cancelled]
            case Stop.LOST, _:
                return []
            case _, FinishedEvent() as finished:
                return [partial(self._succeed, report=self._report(finished)), self._cancelled]
            case _, FailedEvent() as failed:
                return [partial(self._fail, error=failed.error), self._cancelled]
        return self._end_with(Failure(Code.ENGINE_CRASHED, "the engine inspected a file instead of running the job"))

    def _report(self, finished: FinishedEvent) -> Report:
        assert self._folder is not None
        with take_out(self._folder.job, finished.report, MAX_REPORT_BYTES) as file:
            try:
                return Report.model_validate_json(file.read())
            except ValidationError as error:
                message = f"the engine's report has {error.error_count()} wrong fields"
                raise Failure(Code.ENGINE_CRASHED, message) from error

    def _succeed(self, session: Session, moment: datetime, *, report: Report) -> bool:
        artifacts = list(self._artifacts.values())
        return transitions.succeed(session, self._id, self._number, report, artifacts, moment)

    def _fail(self, session: Session, moment: datetime, *, error: JobError) -> bool:
        self._keep_what_is_finished(session)
        return transitions.fail(session, self._id, self._number, error, moment)

    def _strike(self, session: Session, moment: datetime, *, error: JobError) -> bool:
        self._keep_what_is_finished(session)
        return (
            transitions.strike(session, self._id, self._number, error, self._settings.max_strikes, moment) is not None
        )

    def _give_back(self, session: Session, moment: datetime) -> bool:
        return transitions.give_back(session, self._id, self._number, moment)

    def _cancelled(self, session: Session, moment: datetime) -> bool:
        return transitions.mark_cancelled(session, self._id, self._number, moment)

    def _keep_what_is_finished(self, session: Session) -> None:
        for artifact in self._artifacts.values():
            attempts.add_artifact(session, self._id, self._number, replace(artifact, partial=True))


def os_failure(error: OSError) -> Failure:
    """What the worker's own trouble with files means for what it runs."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(Code.DISK_FULL, "the worker's disk is full")
    return Failure(Code.INTERNAL, f"the worker could not go on: {error.strerror}", retryable=True)
