"""Webhooks: messages about the end of jobs, and the secrets that receivers verify them with."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from api.deps import After, CallerDep, Limit, ServiceDep
from api.errors import problems_of
from api.services import messages
from models.errors import Code
from models.statuses import MessageStatus
from models.webhook_views import (
    WebhookMessageBody,
    WebhookMessagePage,
    WebhookMessageView,
    WebhookSecretList,
    WebhookSecretView,
)

router = APIRouter(tags=["webhooks"])
outgoing = APIRouter()
"""What is sent to a job's webhook: the `webhooks` of the OpenAPI document. It is served nowhere."""

_NO_STORE = {"Cache-Control": "no-store"}


@router.get(
    "/jobs/{job_id}/webhook", operation_id="get_job_webhook", responses=problems_of(Code.NOT_FOUND, Code.NOT_READY)
)
def get_job_webhook(job_id: str, service: ServiceDep, caller: CallerDep) -> WebhookMessageView:
    """The message about the job's end, with every attempt to send it."""
    return messages.of_job(service, caller.tenant, job_id)


@router.post(
    "/jobs/{job_id}/webhook/redeliver",
    operation_id="redeliver_job_webhook",
    status_code=202,
    responses=problems_of(Code.NOT_FOUND, Code.NOT_READY, Code.UNSUPPORTED_HERE),
)
def redeliver_job_webhook(job_id: str, service: ServiceDep, caller: CallerDep) -> WebhookMessageView:
    """Send the message again, whatever became of it, under the same `webhook-id` and by a new schedule; one that is
    being sent right now, a minute later. Where it had disabled its URL, that may be used again."""
    return messages.redeliver(service, caller, job_id)


@router.get("/webhooks/messages", operation_id="list_webhook_messages", responses=problems_of(Code.BAD_REQUEST))
def list_webhook_messages(
    service: ServiceDep,
    caller: CallerDep,
    status: Annotated[MessageStatus | None, Query(description="Only these.")] = None,
    limit: Limit = 50,
    after: After = None,
) -> WebhookMessagePage:
    """Messages to your webhooks, newest first."""
    return messages.page(service, caller.tenant, status, limit, after)


@router.get("/webhooks/secrets", operation_id="list_webhook_secrets", responses=problems_of(Code.UNSUPPORTED_HERE))
def list_webhook_secrets(service: ServiceDep, caller: CallerDep, response: Response) -> WebhookSecretList:
    """What your messages are signed with, newest first; for keys that may submit, as who knows them can sign too. Made
    by `POST`, or with your first job that has a webhook."""
    response.headers.update(_NO_STORE)
    return messages.secrets(service, caller.tenant)


@router.post(
    "/webhooks/secrets",
    operation_id="rotate_webhook_secret",
    status_code=201,
    responses=problems_of(Code.UNSUPPORTED_HERE),
)
def rotate_webhook_secret(
    service: ServiceDep,
    caller: CallerDep,
    response: Response,
    overlap_hours: Annotated[
        int, Query(ge=0, le=168, description="How long earlier secrets sign beside it; 0 ends a stolen one at once.")
    ] = 24,
) -> WebhookSecretView:
    """Make a secret, the first or a new one. Until earlier ones have expired messages carry a signature of each;
    of more than five in all the oldest end at once."""
    response.headers.update(_NO_STORE)
    return messages.rotate(service, caller, timedelta(hours=overlap_hours))


def _ended(
    body: WebhookMessageBody,
    webhook_id: Annotated[str, Header(description="The same in every attempt: what was seen before may be ignored.")],
    webhook_timestamp: Annotated[int, Header(description="Seconds since 1970, of this attempt.")],
    webhook_signature: Annotated[
        str,
        Header(description="`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`; several between spaces."),
    ],
) -> None:
    """Sent once the job has ended. Any 2xx within 20 seconds is taken for delivered; 410 means never to send here
    again; everything else is tried again, ten times in three days."""


for _event in ("job.succeeded", "job.failed", "job.cancelled"):
    outgoing.post(_event, operation_id=_event.replace(".", "_"))(_ended)
