"""Which device workers are alive."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.orm import Session

from models import workers
from models.database import now
from models.settings import Settings
from models.tables import Worker


def live(session: Session, settings: Settings) -> list[Worker]:
    """Workers heard within one lease."""
    silence = timedelta(seconds=settings.scaled(settings.lease_seconds))
    return workers.live(session, heard_since=now(session) - silence)


def device_classes(session: Session, settings: Settings) -> list[str]:
    """The device classes that live workers offer, by name."""
    return sorted({worker.device_class for worker in live(session, settings) if worker.device_class})
