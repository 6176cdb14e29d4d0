"""What a connection to SQLite must not do to the others of its process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Never

import pytest
from sqlalchemy import Connection, text

from tests.rigs.filling import rows
from tests.rigs.waiting import SILENCE
from vbatch.errors import StoreDefect
from vbatch.store import COMMAND_PATIENCE, NO_PATIENCE, Store
from vbatch.store.database.backends.inserting import BULK_ROWS
from vbatch.store.database.backends.protocol import BulkInsert, Row
from vbatch.store.tables import REQUEST

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


def _request(number: int) -> Row:
    return 1, number, number, f"r-{number}", b"{}"


class Slow:
    """A store whose transactions begin when they may."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.may, self.begun, self.ended = threading.Event(), threading.Event(), 0

    def write(self, work: Callable[[Connection], Any]) -> None:
        self.begun.set()
        assert self.may.wait(SILENCE)
        self._store.write(work)
        self.ended += 1


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    store = Store(f"sqlite:///{tmp_path / 'vbatch.db'}", patience=NO_PATIENCE)
    store.prepare()
    yield Slow(store)
    store.close()


def inserting(slow: Slow) -> AbstractContextManager[BulkInsert]:
    return slow._store.backend.bulk_insert(slow._store._engine, slow.write, REQUEST)


def test_rows_are_inserted_beside_what_makes_them_and_are_durable_when_it_is_closed(slow: Slow) -> None:
    """Also those beyond full statements. Mutants: ``close`` that does not wait; only full statements are executed."""
    many = BULK_ROWS * 2 + 3
    with inserting(slow) as insert:
        insert.write([_request(number) for number in range(many)])
        assert slow.begun.wait(SILENCE)
        assert slow.ended == 0
        threading.Timer(0.1, slow.may.set).start()
        insert.close()
        assert slow.ended == 1
        insert.write([_request(many)])
        insert.write([_request(many), _request(many + 1)])  # one of them again
        insert.close()
    assert rows(slow._store, "SELECT count(*), min(seq), max(seq) FROM request") == [(many + 2, 0, many + 1)]


def test_nothing_is_inserted_once_an_error_has_left_it(slow: Slow) -> None:
    """Else rows could come in after their batch was taken back. Mutant: ``shutdown(wait=False)``."""
    with pytest.raises(KeyboardInterrupt), inserting(slow) as insert:  # noqa: PT012
        insert.write([_request(1)])
        assert slow.begun.wait(SILENCE)
        threading.Timer(0.1, slow.may.set).start()
        raise KeyboardInterrupt
    assert slow.ended == 1


@pytest.mark.parametrize("at", ["write", "close"])
def test_what_the_database_refuses_is_raised_by_the_next_call(slow: Slow, at: str) -> None:
    """Mutant: the outcome of a transaction is not asked for."""
    slow.may.set()
    with pytest.raises(StoreDefect), inserting(slow) as insert:  # noqa: PT012
        insert.write([(1, 1)])
        insert.write([_request(2)]) if at == "write" else insert.close()
