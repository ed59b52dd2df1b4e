"""What Alembic runs: on the connection that `models.database.migrate` hands over, or on the deployment's database."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection

from models.database import Database
from models.settings import settings
from models.tables import Base, UtcDateTime


def rendered(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Migrations outlive the code, so they name no type of ours."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, render_item=rendered)
    context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    database = Database(settings().database_url)
    with database.engine.begin() as opened:
        run(opened)
    database.close()
