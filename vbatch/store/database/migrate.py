"""Bring the schema up to date at start: nothing to do costs one query, and Alembic is not even imported."""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from vbatch.errors import StoreMisconfigured
from vbatch.store.database.backends.protocol import Backend

log = logging.getLogger(__name__)

# Oldest first; a test holds this in step with the scripts in migrations/versions.
REVISIONS = ("0001", "0002", "0003")
CURRENT = REVISIONS[-1]


def ensure_current(engine: Engine, backend: Backend) -> None:
    """Migrate if needed. Several processes may call this at once; one migrates, the others wait.

    Raises StoreMisconfigured when the schema is newer than this version of vbatch.
    """
    with engine.connect() as connection:
        if _is_current(connection):
            return
    with backend.migration(engine) as connection:
        if _is_current(connection):
            return
        backend.back_up()
        _upgrade(connection)


def revision(connection: Connection) -> str | None:
    """Return the schema's revision, None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _is_current(connection: Connection) -> bool:
    found = revision(connection)
    if found is not None and found not in REVISIONS:
        raise StoreMisconfigured(
            f"the store has schema {found}, which is newer than this vbatch supports ({CURRENT})",
            hint="pip install --upgrade vbatch",
            fault="schema_newer",
        )
    return found == CURRENT


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    log.info("store.migrated revision=%s", CURRENT)
