"""Making, showing and ending jobs. Each function is one request's work, in one or two transactions."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.auth import Caller
from api.deps import Service
from api.pages import cursor_of, id_of
from api.services import webhooks
from api.services.devices import device_classes
from api.services.preview import preview
from api.services.specs import CheckedSpec, check, merge
from models import audit, logs, queue, quotas, transitions
from models.audit import Action
from models.database import now
from models.errors import Code, Failure, FieldProblem, JobError
from models.ids import is_id
from models.retention import IDEMPOTENCY_LIFETIME, expiry_of
from models.settings import Settings
from models.statuses import TERMINAL, JobStatus, Phase
from models.tables import Idempotency, Job
from models.views import DryRun, JobPage, JobUrls, JobView, Progress
from models.webhook_views import JobWebhook

logger = logging.getLogger("modelpress.api")

MAX_KEY_LENGTH = 255
DEFAULT_DEVICE = "cpu"
"""Nudged for `auto` while no worker is alive."""


@dataclass(frozen=True)
class Submitted:
    """A job made now, or the one an earlier request with the same key made."""

    view: JobView
    replayed: bool


def no_such_job() -> Failure:
    """The same words for an unknown id, a malformed one and another tenant's."""
    return Failure(Code.NOT_FOUND, "There is no such job.")


def own_job(session: Session, tenant: str, job_id: str) -> Job:
    job = session.scalar(select(Job).where(Job.id == job_id, Job.tenant == tenant)) if is_id(job_id, "job") else None
    if job is None:
        raise no_such_job()
    return job


def whole(settings: Settings, session: Session, job: Job) -> JobView:
    """One job, with what is known of it elsewhere."""
    webhook = webhooks.states(session, [job]).get(job.id)
    return view_of(settings, job, queue.queue_position(session, job), webhook)


def view_of(settings: Settings, job: Job, queue_position: int | None, webhook: JobWebhook | None) -> JobView:
    path = f"/jobs/{job.id}"
    return JobView(
        id=job.id,
        name=job.name,
        status=JobStatus(job.status),
        phase=Phase(job.phase) if job.phase else None,
        attempt=job.attempt,
        spec=job.spec,
        resolved_spec=job.resolved_spec,
        progress=Progress(**job.progress),
        queue_position=queue_position,
        error=JobError(**job.error) if job.error else None,
        webhook=webhook,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        expires_at=expiry_of(job.finished_at, settings.keep_jobs_days),
        metadata=job.resolved_spec.get("metadata", {}),
        urls=JobUrls(
            self=path,
            events=f"{path}/events",
            log=f"{path}/log",
            artifacts=f"{path}/artifacts",
            bundle=f"{path}/bundle",
            report=f"{path}/report",
            cancel=f"{path}/cancel",
            clone=f"{path}/clone",
        ),
    )


def dry_run(service: Service, tenant: str, document: dict[str, Any]) -> DryRun:
    with service.database.read() as session:
        checked = check(session, service.settings, tenant, document)
    webhooks.resolve(service.settings, tenant, checked.spec)
    return preview(checked)


def submit(
    service: Service,
    caller: Caller,
    document: dict[str, Any],
    key: str | None,
    action: Action = Action.JOB_SUBMITTED,
) -> Submitted:
    """Queue a job, and nudge the workers that could take it.

    Raises `Failure` with `bad_request` for a key that is empty, longer than 255 or not printable ASCII, with
    `idempotency_in_flight` or `idempotency_mismatch` for one in use, with `too_many_jobs`, and as `specs.check` and
    `webhooks.resolve` do.
    """
    if key is None:
        return _submit(service, caller, document, None, action)
    if not 0 < len(key) <= MAX_KEY_LENGTH or not key.isascii() or not key.isprintable():
        problem = FieldProblem(pointer="/header/idempotency-key", message="1 to 255 printable ASCII characters")
        raise Failure(Code.BAD_REQUEST, "The Idempotency-Key is not valid.", problems=(problem,))
    with service.in_flight.hold(caller.tenant, key):
        return _submit(service, caller, document, key, action)


def clone(service: Service, caller: Caller, job_id: str, overrides: dict[str, Any], key: str | None) -> Submitted:
    with service.database.read() as session:
        original = own_job(session, caller.tenant, job_id).spec
    return submit(service, caller, merge(original, overrides), key, Action.JOB_CLONED)


def _submit(service: Service, caller: Caller, document: dict[str, Any], key: str | None, action: Action) -> Submitted:
    tenant = caller.tenant
    body_sha256 = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    with service.database.read() as session:
        earlier = _earlier(service, session, tenant, key, body_sha256)
        if earlier is not None:
            return earlier
        checked = check(session, service.settings, tenant, document)
        quotas.refuse_one_more_job(session, tenant, caller.limits.queued_jobs)
        alive = device_classes(session, service.settings)
    webhooks.resolve(service.settings, tenant, checked.spec)
    try:
        with service.database.transaction() as session:
            quotas.lock_tenant(session, tenant)
            quotas.refuse_one_more_job(session, tenant, caller.limits.queued_jobs)
            job = _insert(session, tenant, checked)
            audit.record(session, caller, action, job.id, job.created_at)
            if key is not None:
                _remember(session, tenant, key, body_sha256, job.id)
            view = whole(service.settings, session, job)
    except IntegrityError:
        # Another process was faster with the same key.
        with service.database.read() as session:
            earlier = _earlier(service, session, tenant, key, body_sha256)
        if earlier is None:
            raise
        return earlier
    with logs.about(job_id=job.id):
        logger.info("job %s is queued", job.id)
    for device in (alive or [DEFAULT_DEVICE]) if job.device == "auto" else [job.device]:
        service.nudger.job_queued(device)
    return Submitted(view, replayed=False)


def _insert(session: Session, tenant: str, checked: CheckedSpec) -> Job:
    spec = checked.resolved
    webhooks.prepare(session, tenant, spec)
    return transitions.submit(
        session,
        tenant=tenant,
        name=spec.name,
        network_id=spec.model,
        dataset_id=spec.data.dataset if spec.data else None,
        spec=checked.spec,
        resolved_spec=spec,
        device=spec.device,
        now=now(session),
    )


def _earlier(service: Service, session: Session, tenant: str, key: str | None, body_sha256: str) -> Submitted | None:
    if key is None:
        return None
    row = session.get(Idempotency, (tenant, key))
    if row is None or row.created_at < now(session) - IDEMPOTENCY_LIFETIME:
        return None
    if row.body_sha256 != body_sha256:
        raise Failure(Code.IDEMPOTENCY_MISMATCH, "This Idempotency-Key was used with another body.")
    job = session.get(Job, row.job_id)
    if job is None:
        raise Failure(Code.NOT_FOUND, "The job made with this Idempotency-Key was deleted; use a new key.")
    return Submitted(whole(service.settings, session, job), replayed=True)


def _remember(session: Session, tenant: str, key: str, body_sha256: str, job_id: str) -> None:
    moment = now(session)
    mine = (Idempotency.tenant == tenant, Idempotency.key == key)
    session.execute(delete(Idempotency).where(*mine, Idempotency.created_at < moment - IDEMPOTENCY_LIFETIME))
    session.add(Idempotency(tenant=tenant, key=key, body_sha256=body_sha256, job_id=job_id, created_at=moment))
    session.flush()


def get(service: Service, tenant: str, job_id: str) -> JobView:
    with service.database.read() as session:
        job = own_job(session, tenant, job_id)
        return whole(service.settings, session, job)


def page(service: Service, tenant: str, statuses: Sequence[JobStatus], limit: int, after: str | None) -> JobPage:
    behind = id_of(after, "job")
    query = select(Job).where(Job.tenant == tenant).order_by(Job.id.desc()).limit(limit + 1)
    if statuses:
        query = query.where(Job.status.in_(statuses))
    if behind is not None:
        query = query.where(Job.id < behind)
    with service.database.read() as session:
        jobs = session.scalars(query).all()
        shown, has_more = jobs[:limit], len(jobs) > limit
        positions, told = queue.queue_positions(session, shown), webhooks.states(session, shown)
        return JobPage(
            data=[view_of(service.settings, job, positions.get(job.id), told.get(job.id)) for job in shown],
            has_more=has_more,
            next_cursor=cursor_of(shown[-1].id) if has_more else None,
        )


def cancel(service: Service, caller: Caller, job_id: str) -> JobView:
    """Raises `Failure` with `already_finished` and the status once the job has succeeded or failed."""
    with service.database.transaction() as session:
        before, moment = own_job(session, caller.tenant, job_id).status, now(session)
        status = transitions.cancel(session, caller.tenant, job_id, moment)
        if status is None:
            raise no_such_job()
        if status in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            raise Failure(Code.ALREADY_FINISHED, f"The job has already {status}.", where=status)
        if status != before:
            audit.record(session, caller, Action.JOB_CANCELLED, job_id, moment)
        session.expire_all()
        view = whole(service.settings, session, own_job(session, caller.tenant, job_id))
    if view.webhook is not None:
        service.nudger.webhook_waits()
    return view


def remove(service: Service, caller: Caller, job_id: str) -> None:
    """Raises `Failure` with `in_use` while the job has not ended."""
    with service.database.transaction() as session:
        if not is_id(job_id, "job") or not transitions.delete_job(session, caller.tenant, job_id):
            raise no_such_job()
        audit.record(session, caller, Action.JOB_DELETED, job_id, now(session))


def report(service: Service, tenant: str, job_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report and the resolved spec, as they were stored."""
    with service.database.read() as session:
        job = own_job(session, tenant, job_id)
        if job.report is not None:
            return job.report, job.resolved_spec
        refuse_before_the_end(job, "report")
        raise Failure(Code.NOT_FOUND, f"The job has {job.status}: it has no report. Its log and events may tell why.")


def refuse_before_the_end(job: Job, what: str) -> None:
    if job.status not in TERMINAL:
        raise Failure(
            Code.NOT_READY, f"The job is {job.status}; its {what} exists once it has ended.", where=job.status
        )
