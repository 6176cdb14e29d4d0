"""What a program asks for over HTTP: its batches are validated behind, and its files are on one host's disk."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("batch", sa.Column("asked", sa.JSON(), nullable=True))
    op.add_column("batch", sa.Column("errors", sa.JSON(), nullable=True))
    op.add_column("file", sa.Column("host", sa.Text(), nullable=True))
