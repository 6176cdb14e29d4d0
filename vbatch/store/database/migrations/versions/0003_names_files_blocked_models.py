"""Names that say what they mean, why workers crash, and what is coming: files, blocked models, why answers end."""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_RENAMED = {
    "chunk": {"n": "number", "crashes": "engine_crashes", "losses": "worker_crashes"},
    "worker": {"beat": "heartbeat", "beat_at": "heartbeat_at"},
}


def upgrade() -> None:
    """Apply."""
    for table, names in _RENAMED.items():
        for old, new in names.items():
            op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")

    op.add_column("batch", sa.Column("host", sa.Text(), nullable=True))
    op.add_column("batch", sa.Column("notify", sa.Text(), nullable=True))
    op.add_column("batch", sa.Column("input_file", sa.Text(), nullable=True))
    _drop("batch", "input_bytes")

    op.add_column("chunk", sa.Column("alone", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("chunk", sa.Column("crash_boot", sa.Text(), nullable=True))
    op.add_column("chunk", sa.Column("comparisons", sa.Integer(), server_default="0", nullable=False))
    op.add_column("chunk", sa.Column("cut_off", sa.Integer(), server_default="0", nullable=False))
    op.add_column("chunk", sa.Column("cached_tokens", sa.BigInteger(), server_default="0", nullable=False))
    # Until now a chunk ran alone because of its engine crashes.
    op.execute("UPDATE chunk SET alone = true WHERE state IN ('ready', 'running') AND engine_crashes >= 2")

    op.add_column("result", sa.Column("finish", sa.Text(), nullable=True))
    op.add_column("result", sa.Column("cached_tokens", sa.Integer(), server_default="0", nullable=False))

    op.add_column("worker", sa.Column("stopping_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("worker", sa.Column("gpus", sa.JSON(), nullable=True))
    op.add_column("worker", sa.Column("models", sa.JSON(), nullable=True))
    worker = sa.table("worker", sa.column("id"), sa.column("model"), sa.column("models", sa.JSON()))
    loaded = sa.select(worker.c.id, worker.c.model).where(worker.c.model.is_not(None))
    for row in op.get_bind().execute(loaded).all():
        op.execute(sa.update(worker).where(worker.c.id == row.id).values(models=[row.model]))
    _drop("worker", "gpu_uuid", "model")

    _drop("process", "cgroup")

    op.create_table(
        "blocked",
        sa.Column("configuration", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("configuration", "model"),
    )
    op.create_table(
        "file",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def _drop(table: str, *columns: str) -> None:
    """Drop columns of a table that has few rows.

    SQLite drops a column only from 3.35 on, and Enterprise Linux 9 has 3.34; so the table is copied there.
    """
    connection = op.get_bind()
    if connection.dialect.name != "sqlite":
        for column in columns:
            op.drop_column(table, column)
        return
    statement, indexes = _sqlite_statements(connection, table)
    for column in columns:
        statement = re.sub(rf"\s*\b{column} [^,]*,", "", statement, count=1)
    numbering = "WHERE name = 'sqlite_sequence'"
    numbered = connection.exec_driver_sql(f"SELECT count(*) FROM sqlite_master {numbering}").scalar()
    last = (
        numbered
        and connection.exec_driver_sql("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).scalar()
    )
    connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO old_{table}")
    connection.exec_driver_sql(statement)
    kept = ", ".join(row.name for row in connection.exec_driver_sql(f"PRAGMA table_info({table})"))
    connection.exec_driver_sql(f"INSERT INTO {table} ({kept}) SELECT {kept} FROM old_{table}")
    connection.exec_driver_sql(f"DROP TABLE old_{table}")
    for index in indexes:
        connection.exec_driver_sql(index)
    if last:  # the key of a deleted row is never given again
        connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last))


def _sqlite_statements(connection: sa.Connection, table: str) -> tuple[str, list[str]]:
    """Return the statements that make a table and its indexes."""
    rows = connection.exec_driver_sql(
        "SELECT type, sql FROM sqlite_master WHERE tbl_name = ? AND sql IS NOT NULL ORDER BY type DESC",
        (table,),
    ).all()
    return rows[0].sql, [row.sql for row in rows[1:]]
