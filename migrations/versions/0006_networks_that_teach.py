"""Networks that teach"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job_teachers",
        sa.Column("job_id", sa.String(255), nullable=False),
        sa.Column("network_id", sa.String(255), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["network_id"], ["networks.id"]),
        sa.PrimaryKeyConstraint("job_id", "network_id"),
    )
    op.create_index("job_teachers_by_network", "job_teachers", ["network_id"])


def downgrade() -> None:
    op.drop_table("job_teachers")
