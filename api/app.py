"""The HTTP service: its parts are made when it starts, and closed when it stops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from api import errors, openapi
from api.access import AccessMiddleware
from api.auth import prepare_access
from api.buckets import Rate, SharedBuckets
from api.deps import Service
from api.guesses import WrongKeys
from api.in_flight import InFlight
from api.key_use import KeyUse
from api.metrics import Metrics
from api.nudge import Nudger
from api.readiness import ReadinessCheck
from api.routes import artifacts, datasets, events, jobs, meta, models, uploads, webhooks
from api.transfers import Transfers
from api.tus import TusMiddleware
from api.upload_sweep import UploadSweep
from api.verified import VerifiedBlobs
from api.watch import Watch
from models.database import Database
from models.incoming import Incoming, incoming_folder
from models.settings import Settings
from models.storage import open_blobs

ROUTERS = (
    models.router,
    datasets.router,
    uploads.router,
    jobs.router,
    events.router,
    artifacts.router,
    webhooks.router,
    meta.router,
)

DESCRIPTION = """Send a trained network and say how small or how fast; get back a smaller, faster one with a report.

Errors are RFC 9457 problem documents with a `code`, a `hint` that says what to do, and JSON pointers to what is wrong.
"""


def create_app(settings: Settings) -> FastAPI:
    """The application. The database must have its schema (`models.database.migrate`).

    Starting raises `auth.NotStarting` when nobody, or everybody, could use it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        database = Database(settings.database_url)
        await run_in_threadpool(prepare_access, settings, database)
        blobs = open_blobs(settings)
        incoming = Incoming(incoming_folder(settings))
        upload_sweep = UploadSweep(settings, database, incoming)
        nudger = Nudger(settings.broker_url)
        watch = Watch(database)
        key_use = KeyUse(database)
        buckets = SharedBuckets(settings.broker_url)
        app.state.service = Service(
            settings=settings,
            database=database,
            blobs=blobs,
            transfers=Transfers(incoming),
            nudger=nudger,
            watch=watch,
            in_flight=InFlight(),
            verified=VerifiedBlobs(),
            key_use=key_use,
            wrong_keys=WrongKeys(Rate(1.0, settings.max_wrong_keys)),
            buckets=buckets,
            readiness=ReadinessCheck(database, blobs, settings.broker_url),
            metrics=Metrics(settings, database),
        )
        watch.start()
        upload_sweep.start()
        key_use.start()
        try:
            yield
        finally:
            await watch.close()
            await upload_sweep.close()
            await key_use.close()
            await run_in_threadpool(nudger.close)
            buckets.close()
            database.close()

    app = FastAPI(
        title="modelpress",
        version=version("modelpress"),
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        webhooks=webhooks.outgoing,
    )
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(TusMiddleware)
    app.add_middleware(AccessMiddleware)
    app.openapi = lambda: openapi.build(app)  # type: ignore[method-assign]
    return app
