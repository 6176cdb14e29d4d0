"""Count the deaths of workers with what tells whether a request is to blame."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("chunk", sa.Column("alone", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("chunk", sa.Column("lost_boot", sa.Text(), nullable=True))
    op.add_column("chunk", sa.Column("controls", sa.Integer(), server_default="0", nullable=False))
    op.add_column("worker", sa.Column("stopping_at", sa.DateTime(timezone=True), nullable=True))
    # Until now a chunk ran alone because of its engine deaths.
    op.execute("UPDATE chunk SET alone = true WHERE state IN ('ready', 'running') AND crashes >= 2")
