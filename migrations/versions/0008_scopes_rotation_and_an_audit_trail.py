"""Scopes, rotation and an audit trail"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_ALL = "read upload submit delete"
_REFUSALS = {
    "sqlite": (
        "CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit "
        "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
    ),
    "postgresql": (
        "CREATE FUNCTION audit_never_changes() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$",
        "CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit FOR EACH ROW EXECUTE FUNCTION audit_never_changes()",
    ),
}


def upgrade() -> None:
    keys = sa.table("keys", sa.column("scopes", sa.String), sa.column("read_only", sa.Boolean))
    with op.batch_alter_table("keys") as table:
        table.add_column(sa.Column("scopes", sa.String(length=255), nullable=True))
        table.add_column(sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("successor_id", sa.String(length=255), nullable=True))
    op.execute(keys.update().values(scopes=sa.case((keys.c.read_only, "read"), else_=_ALL)))
    with op.batch_alter_table("keys") as table:
        table.alter_column("scopes", existing_type=sa.String(length=255), nullable=False)
        table.drop_column("read_only")
    op.create_table(
        "audit",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant", sa.String(length=255), nullable=False),
        sa.Column("key_id", sa.String(length=255), nullable=True),
        sa.Column("request_id", sa.String(length=255), nullable=True),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("object_id", sa.String(length=255), nullable=True),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("audit_by_tenant", "audit", ["tenant", "id"])
    op.create_index("audit_by_object", "audit", ["object_id"])
    op.create_index("audit_by_time", "audit", ["at"])
    for statement in _REFUSALS[op.get_bind().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    """A key with scopes between read-only and all becomes read-only; one that was to end is revoked."""
    op.drop_table("audit")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_never_changes()")
    keys = sa.table(
        "keys",
        sa.column("scopes", sa.String),
        sa.column("read_only", sa.Boolean),
        sa.column("expires_at", sa.DateTime(timezone=True)),
        sa.column("revoked_at", sa.DateTime(timezone=True)),
    )
    with op.batch_alter_table("keys") as table:
        table.add_column(sa.Column("read_only", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.execute(keys.update().where(keys.c.scopes == _ALL).values(read_only=False))
    op.execute(keys.update().where(keys.c.revoked_at.is_(None)).values(revoked_at=keys.c.expires_at))
    with op.batch_alter_table("keys") as table:
        table.alter_column("read_only", existing_type=sa.Boolean(), server_default=None)
        for name in ("scopes", "expires_at", "last_used_at", "successor_id"):
            table.drop_column(name)
