"""A store for a trial, of the same kind and in the same place as the user's own, removed afterwards."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

from sqlalchemy import text

from vbatch.store.database import Store
from vbatch.store.database.url import is_sqlite, parse_url, sqlite_path


@contextmanager
def scratch_store(url: str) -> Iterator[str]:
    """Make an empty store beside the one of this URL, and yield its URL.

    For SQLite a folder on the same file system, for PostgreSQL a schema of its own in the same database: the
    user's batches are out of reach. Raises StoreUnreachable, StoreMisconfigured.
    """
    parsed = parse_url(url)
    if is_sqlite(parsed):
        place = sqlite_path(parsed).parent
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = tempfile.mkdtemp(prefix="vbatch-selftest-", dir=place)
        try:
            yield f"sqlite:///{quote(folder)}/vbatch.db"
        finally:
            shutil.rmtree(folder)
        return
    schema = f"vbatch_selftest_{secrets.token_hex(4)}"
    owner = Store(url)
    owner.write(lambda connection: connection.execute(text(f"CREATE SCHEMA {schema}")))
    try:
        inside = parsed.update_query_dict({"options": f"-csearch_path={schema}"})
        yield inside.render_as_string(hide_password=False)
    finally:
        owner.write(lambda connection: connection.execute(text(f"DROP SCHEMA {schema} CASCADE")))
        owner.close()
