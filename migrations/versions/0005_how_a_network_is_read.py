"""How a network is read"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("networks", sa.Column("read_options", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("networks", "read_options")
