"""Which chunks of a batch have requests that begin alike, so that a worker can continue with what its cache has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply: no row is written again, and the index is empty."""
    op.add_column("chunk", sa.Column("alike", sa.BigInteger(), nullable=True))
    ready = sa.text("state = 'ready' AND alike IS NOT NULL")
    op.create_index(
        "ix_chunk_alike", "chunk", ["batch", "alike", "number"], sqlite_where=ready, postgresql_where=ready
    )
