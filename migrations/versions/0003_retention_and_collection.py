"""Retention and collection"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "condemned_blobs",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("condemned_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_index("condemned_blobs_by_time", "condemned_blobs", ["condemned_at"])
    op.create_index("jobs_by_finish", "jobs", ["finished_at"])
    op.create_index("networks_by_sha256", "networks", ["sha256"])
    op.create_index("datasets_by_sha256", "datasets", ["sha256"])
    op.create_index("artifacts_by_sha256", "artifacts", ["sha256"])
    op.create_index("checkpoints_by_sha256", "checkpoints", ["sha256"])
    op.create_index("uploads_by_sha256", "uploads", ["sha256"])
    op.create_index("checkpoints_by_time", "checkpoints", ["created_at"])
    op.create_index("idempotency_by_time", "idempotency", ["created_at"])


def downgrade() -> None:
    op.drop_index("idempotency_by_time", "idempotency")
    op.drop_index("checkpoints_by_time", "checkpoints")
    op.drop_index("uploads_by_sha256", "uploads")
    op.drop_index("checkpoints_by_sha256", "checkpoints")
    op.drop_index("artifacts_by_sha256", "artifacts")
    op.drop_index("datasets_by_sha256", "datasets")
    op.drop_index("networks_by_sha256", "networks")
    op.drop_index("jobs_by_finish", "jobs")
    op.drop_table("condemned_blobs")
