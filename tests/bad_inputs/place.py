"""Where bad inputs are sent: a served API, tenants at will, and inspections by the functions that a worker calls."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from api.auth import create_key
from models.errors import Code, Failure
from models.inspection import DatasetInspection, NetworkInspection
from models.inspections import Upload, accept_upload, read_options_of, reject_upload
from models.scopes import ALL, Scopes
from models.tables import Network
from tests.api import stories
from tests.api.serving import Api
from worker.engine.data.inspect import inspect_dataset
from worker.engine.inspect import inspect_network
from worker.files import bring_in
from worker.upload import claim_upload

_NUMBERS = count()


class Place:
    """For one test. `client` speaks for a tenant whom nobody spoke for before."""

    def __init__(self, api: Api, folder: Path, running: ExitStack) -> None:
        self.api = api
        self.folder = folder
        self._running = running
        self.tenant = f"tenant-{next(_NUMBERS)}"
        self.client = self.client_of(self.tenant)
        self.canary = folder / "canary"
        """Crafted files would make it if anything in them ran."""

    def client_of(self, tenant: str, scopes: Scopes = ALL) -> httpx.Client:
        with self.api.service.database.transaction() as session:
            secret = create_key(session, tenant, "a key", scopes=scopes)
        return self._running.enter_context(self.api.with_key(secret))

    def other(self) -> httpx.Client:
        """Another tenant."""
        return self.client_of(f"{self.tenant}-other")

    def inspected(self, kind: str, content: bytes, **params: Any) -> dict[str, Any]:
        """The row of an upload once its inspection has ended. Nothing but a `Failure` may leave the engine."""
        response = self.client.post(kind, content=content, params=params)
        assert response.status_code == 201, response.text
        self._inspect_all()
        row: dict[str, Any] = self.client.get(f"{kind}/{response.json()['id']}").json()
        return row

    def ready(self, kind: str, content: bytes, **params: Any) -> str:
        """The id of an upload that is accepted."""
        row = self.inspected(kind, content, **params)
        assert row["status"] == "ready", row["error"]
        return str(row["id"])

    def _inspect_all(self) -> None:
        service = self.api.service
        while (upload := claim_upload(service.database, service.settings)) is not None:
            path = bring_in(service.blobs, upload.sha256, self.folder / upload.id)
            found = _inspection(upload, path)
            path.unlink()
            with service.database.transaction() as session:
                if isinstance(found, Failure):
                    assert reject_upload(session, type(upload), upload.id, upload.attempt, found.as_error())
                else:
                    assert accept_upload(session, type(upload), upload.id, upload.attempt, found)

    def settle(self) -> None:
        """Leave nothing that waits for a worker to the next test."""
        database = self.api.service.database
        error = Failure(Code.INTERNAL, "left behind by a test").as_error()
        for job in iter(lambda: stories.claimed(database), None):
            stories.fail(database, job)
        while (upload := claim_upload(database, self.api.service.settings)) is not None:
            with database.transaction() as session:
                reject_upload(session, type(upload), upload.id, upload.attempt, error)


def _inspection(upload: Upload, path: Path) -> NetworkInspection | DatasetInspection | Failure:
    try:
        if isinstance(upload, Network):
            return inspect_network(path, read_options_of(upload))
        return inspect_dataset(path)
    except Failure as failure:
        return failure
