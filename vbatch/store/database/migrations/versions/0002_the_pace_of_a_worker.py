"""Let a worker say how fast it is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("worker", sa.Column("requests_per_second", sa.Float(), nullable=True))
