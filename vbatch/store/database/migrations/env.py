"""Run the migration scripts on the connection that ``vbatch.store.database.migrate`` hands in, under its lock."""

from __future__ import annotations

from alembic import context
from sqlmodel import SQLModel

from vbatch.store import tables  # noqa: F401  (fills the metadata)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    transactional_ddl=False,  # the transaction is the caller's
    render_as_batch=True,
)
context.run_migrations()
