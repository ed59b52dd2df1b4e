"""Webhooks on the wire: what receivers are sent, and what is told about messages, attempts and secrets."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.errors import JobError
from models.statuses import JobStatus, MessageStatus

EventType = Literal["job.succeeded", "job.failed", "job.cancelled"]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EndedJob(_View):
    """Enough to know which job it was and how it ended; `GET /jobs/{id}` has the rest."""

    id: str
    name: str | None
    status: JobStatus
    model: str
    metadata: dict[str, str]
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class WebhookMessageBody(_View):
    """The body of a message, the same to the byte in every attempt."""

    type: EventType
    timestamp: datetime = Field(description="When the job ended.")
    data: EndedJob


class AttemptView(_View):
    """One sending. Nothing is kept of what the receiver said beyond its status."""

    at: datetime
    status_code: int | None = Field(description="What was answered; `null`: there was no answer.")
    problem: str | None = Field(description="Why it did not count as delivered.")
    seconds: float


class JobWebhook(_View):
    """What became of the message about a job's end."""

    status: MessageStatus
    attempts: int = Field(description="Since it was last asked for.")
    next_attempt_at: datetime | None
    problem: str | None = Field(description="Why it was not delivered, so far.")


class WebhookMessageView(_View):
    """A message to a job's webhook."""

    id: str = Field(description="The `webhook-id`.")
    job_id: str
    url: str
    status: MessageStatus
    created_at: datetime
    next_attempt_at: datetime | None
    ended_at: datetime | None = Field(description="When it was delivered, or given up.")
    disabled_at: datetime | None = Field(
        description="Since when nothing more is sent to this URL, because of this message; sending it again ends that."
    )
    attempts: list[AttemptView] = Field(description="Newest last; of many, the last ones.")


class WebhookMessagePage(_View):
    data: list[WebhookMessageView]
    has_more: bool
    next_cursor: str | None


class WebhookSecretView(_View):
    id: str
    secret: str = Field(description="`whsec_` and 32 bytes in base64, as libraries of Standard Webhooks take it.")
    created_at: datetime
    expires_at: datetime | None = Field(description="After a rotation: until when it signs beside the new one.")


class WebhookSecretList(_View):
    data: list[WebhookSecretView]
