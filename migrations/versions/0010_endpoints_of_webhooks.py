"""Endpoints of webhooks"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhook_endpoints",
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("endpoint"),
    )
    op.create_index("webhook_endpoints_by_delivery", "webhook_endpoints", ["delivered_at"])
    op.execute(
        "INSERT INTO webhook_endpoints (endpoint, delivered_at) "
        "SELECT endpoint, max(ended_at) FROM webhook_messages WHERE status = 'delivered' GROUP BY endpoint"
    )


def downgrade() -> None:
    op.drop_table("webhook_endpoints")
