"""One inspection of an upload: the only time its bytes are opened before a job uses them, and in a child process."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from datetime import timedelta
from functools import partial

from sqlalchemy.orm import Session

from models import inspections
from models.database import Database, now
from models.errors import Code, Failure, JobError
from models.events import FailedEvent, InspectedEvent
from models.inspection import DatasetInspection, NetworkInspection
from models.inspections import Upload, UploadTable
from models.messages import EngineRequest, InputFile, InspectDatasetRequest, InspectNetworkRequest, NetworkFile
from models.settings import Settings
from models.statuses import Phase
from models.tables import Network
from worker.files import bring_in
from worker.job import os_failure
from worker.profiles import LOADER
from worker.supervisor import Supervisor
from worker.watch import Stop, Watched
from worker.workplace import RunFolder

_LOG_PIECES, _LOG_CHARACTERS = 20, 4000
Change = Callable[[Session], object]
_logger = logging.getLogger(__name__)


def claim_upload(database: Database, settings: Settings) -> Upload | None:
    """Take the upload that waited longest; `None`: none waits."""
    with database.transaction() as session:
        lease = now(session) + timedelta(seconds=settings.scaled(settings.lease_seconds))
        return inspections.claim_upload(session, lease_until=lease)


def inspect_upload(supervisor: Supervisor, upload: Upload) -> None:
    """Returns when the upload is ready, rejected, or waits again, and nothing of the engine is left."""
    with _Lease(supervisor, upload) as lease:
        try:
            with supervisor.workplace.run_folder() as folder:
                end = _end(lease, _watch(supervisor, upload, folder, lease))
        except Failure as failure:
            end = lease.end_with(failure)
        except OSError as error:
            _logger.exception("upload %s", upload.id)
            end = lease.end_with(os_failure(error))
        if end is not None:
            lease.settle(end)


def _watch(supervisor: Supervisor, upload: Upload, folder: RunFolder, lease: _Lease) -> Watched:
    path = bring_in(supervisor.blobs, upload.sha256, folder.inputs / "upload")
    request: EngineRequest
    if isinstance(upload, Network):
        network = NetworkFile(path=path, sha256=upload.sha256, read=inspections.read_options_of(upload))
        request = InspectNetworkRequest(kind="inspect_network", network=network)
    else:
        dataset = InputFile(path=path, sha256=upload.sha256)
        request = InspectDatasetRequest(kind="inspect_dataset", dataset=dataset)
    folder.request.write_text(request.model_dump_json())
    log: deque[str] = deque(maxlen=_LOG_PIECES)
    watched = supervisor.watch(
        folder,
        supervisor.settings.inspect_timeout_seconds,
        LOADER,
        on_event=lambda event: None,
        on_log=log.append,
        must_stop=lease.must_stop,
    )
    if watched.failure is not None:
        text = "".join(log)[-_LOG_CHARACTERS:]
        _logger.warning("upload %s: %s; the engine's log ends in:\n%s", upload.id, watched.failure.message, text)
    return watched


def _end(lease: _Lease, watched: Watched) -> Change | None:
    if watched.failure is not None:
        return lease.end_with(watched.failure)
    match watched.stop, watched.last:
        case Stop.DRAINING, _:
            return lease.give_back
        case Stop(), _:
            return None
        case _, FailedEvent(error=error):
            return partial(lease.reject, error=error)
        case _, InspectedEvent(inspection=inspection) if isinstance(inspection, lease.finding):
            return partial(lease.accept, inspection=inspection)
    return lease.end_with(Failure(Code.ENGINE_CRASHED, "the engine answered another question than it was asked"))


class _Lease:
    """Held by a thread of its own while the inspection runs."""

    def __init__(self, supervisor: Supervisor, upload: Upload) -> None:
        self.finding = NetworkInspection if isinstance(upload, Network) else DatasetInspection
        self._supervisor, self._settings, self._database = supervisor, supervisor.settings, supervisor.database
        self._table: UploadTable = type(upload)
        self._id, self._attempt = upload.id, upload.attempt
        self._held = True
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"lease {upload.id}", daemon=True
        )

    def __enter__(self) -> _Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    def must_stop(self) -> Stop | None:
        if not self._held:
            return Stop.LOST
        return Stop.DRAINING if self._supervisor.draining.is_set() else None

    def settle(self, change: Change) -> None:
        """Make the last change of this attempt. Tries until the database answers or the worker stops."""
        while True:
            try:
                with self._database.transaction() as session:
                    change(session)
                return
            except Failure as failure:
                if failure.code is not Code.UNAVAILABLE:
                    raise
            if self._supervisor.draining.wait(self._pause):
                return

    def end_with(self, failure: Failure) -> Change:
        error = failure.as_error(Phase.INSPECTING)
        return partial(self._strike if failure.retryable else self.reject, error=error)

    def accept(self, session: Session, *, inspection: NetworkInspection | DatasetInspection) -> object:
        return inspections.accept_upload(session, self._table, self._id, self._attempt, inspection)

    def reject(self, session: Session, *, error: JobError) -> object:
        return inspections.reject_upload(session, self._table, self._id, self._attempt, error)

    def give_back(self, session: Session) -> object:
        return inspections.give_back_upload(session, self._table, self._id, self._attempt)

    def _strike(self, session: Session, *, error: JobError) -> object:
        strikes = self._settings.max_strikes
        return inspections.strike_upload(session, self._table, self._id, self._attempt, error, strikes)

    @property
    def _pause(self) -> float:
        return self._settings.scaled(self._settings.heartbeat_seconds)

    def _run(self) -> None:
        lease = timedelta(seconds=self._settings.scaled(self._settings.lease_seconds))
        while self._held and not self._closing.wait(self._pause):
            try:
                with self._database.transaction() as session:
                    until = now(session) + lease
                    self._held = inspections.beat_upload(session, self._table, self._id, self._attempt, until)
            except Failure as failure:
                _logger.warning("upload %s: %s Trying again.", self._id, failure.message)
