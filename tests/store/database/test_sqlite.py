"""What a connection to SQLite must not do to the others of its process."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Never

import pytest
from sqlalchemy import Connection, text

from tests.rigs.waiting import SILENCE
from vbatch.store import COMMAND_PATIENCE, NO_PATIENCE, Store

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
        assert connected.wait(SILENCE)
        done = subprocess.run(
            [sys.executable, "-c", _WRITE, tmp_path / "vbatch.db"], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def connect() -> None:
        assert in_transaction.wait(SILENCE)
        with store._engine.connect():  # a connection of its own: the pool's other one is in use
            connected.set()

    thread = threading.Thread(target=connect)
    thread.start()
    assert store.write(write) == "database is locked"
    thread.join()
    store.close()


class _CtrlC(tuple[object, ...]):
    """A row over which the person presses Ctrl-C."""

    def __getitem__(self, _index: object) -> Never:
        raise KeyboardInterrupt


def test_an_interrupted_write_gives_its_lock_back(tmp_path: Path) -> None:
    """Mutant: leaving that to the closing of the connection, which the traceback's cursor keeps half open."""
    store = Store(f"sqlite:///{tmp_path / 'vbatch.db'}", patience=NO_PATIENCE)
    store.prepare()
    store.write(lambda connection: connection.execute(text("CREATE TABLE scribble (n INTEGER)")))
    rows = [*((number,) for number in range(1000)), _CtrlC((1000,))]
    with pytest.raises(KeyboardInterrupt) as interrupt:
        store.write(lambda connection: connection.exec_driver_sql("INSERT INTO scribble VALUES (?)", rows))
    assert store.write(lambda connection: connection.execute(text("DELETE FROM scribble")).rowcount) == 0
    assert interrupt.traceback, "its frames live as long, and with them the cursor"
    store.close()


def test_the_file_is_private(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'new' / 'vbatch.db'}", patience=COMMAND_PATIENCE)
    store.prepare()
    assert (tmp_path / "new" / "vbatch.db").stat().st_mode & 0o777 == 0o600
    store.close()
