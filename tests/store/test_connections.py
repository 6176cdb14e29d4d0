"""What a connection to SQLite must not do to the others of its process."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from sqlalchemy import Connection, text

from vbatch.store import COMMAND_PATIENCE, Store

_WRITE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error)
else:
    print("got the lock")
"""


def test_a_new_connection_takes_no_lock_from_the_others(tmp_path: Path) -> None:
    """Found by the kill loop as a damaged index, once in some hundred kills.

    Mutant: opening and closing the database file itself before each connection, which frees the locks of a
    transaction that another thread is in; another process then writes at the same time.
    """
    store = Store(f"sqlite:///{tmp_path / 'vbatch.db'}", patience=COMMAND_PATIENCE)
    store.prepare()
    in_transaction, connected = threading.Event(), threading.Event()

    def write(connection: Connection) -> str:
        connection.execute(text("CREATE TABLE scribble (n INTEGER)"))
        in_transaction.set()
        assert connected.wait(10)
        done = subprocess.run(
            [sys.executable, "-c", _WRITE, tmp_path / "vbatch.db"], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def connect() -> None:
        assert in_transaction.wait(10)
        with store._engine.connect():  # a connection of its own: the pool's other one is in use
            connected.set()

    thread = threading.Thread(target=connect)
    thread.start()
    assert store.write(write) == "database is locked"
    thread.join()
    store.close()


def test_the_file_is_private(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'new' / 'vbatch.db'}", patience=COMMAND_PATIENCE)
    store.prepare()
    assert (tmp_path / "new" / "vbatch.db").stat().st_mode & 0o777 == 0o600
    store.close()
