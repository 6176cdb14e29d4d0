"""What a batch's answers lack, whom to notify of its end, and models that are blocked for one endpoint."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("batch", sa.Column("ignored", sa.JSON(), nullable=True))
    op.add_column("batch", sa.Column("skipped", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("chunk", sa.Column("empty", sa.Integer(), server_default="0", nullable=False))

    op.drop_table("blocked")  # no version has written to it
    op.create_table(
        "blocked",
        sa.Column("configuration", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("configuration", "model", "url"),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    pending = sa.text("delivered_at IS NULL")
    op.create_index("ix_event_pending", "event", ["next_at"], sqlite_where=pending, postgresql_where=pending)
