"""An index that answers a claim"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("jobs_to_claim", "jobs")
    op.create_index("jobs_to_claim", "jobs", ["status", "device", "tenant", "created_at", "id"])


def downgrade() -> None:
    op.drop_index("jobs_to_claim", "jobs")
    op.create_index("jobs_to_claim", "jobs", ["status", "device", "id"])
