"""Freeze a worker between two transactions: with a lock of the database it would be in everybody's way."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

from tests.rigs.filling import rows
from tests.rigs.waiting import until
from vbatch.store import Store

_BUSY = """SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"""


def freeze(pid: int, store: Store, *, application: str | None = None, tries: int = sys.maxsize) -> bool:
    """Stop this process at a moment at which nobody is in a transaction; False where there was none.

    With its ``application`` name at the server, at a moment at which this process itself is in none.
    """
    for _ in range(tries):
        os.kill(pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        if not (_is_busy(store) if application is None else _is_in_transaction(pid, store, application)):
            return True
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)
    return False


def _is_in_transaction(pid: int, store: Store, application: str) -> bool:
    if store.file is None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND state <> 'idle'"
        return rows(store, query, name=application) != [(0,)]
    shared = Path(f"{store.file}-shm")
    inodes = {path.stat().st_ino for path in (store.file, shared) if path.exists()}
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, mode, holder, file, *_ = line.replace("-> ", "").split()
        mine = kind == "POSIX" and int(holder) == pid and int(file.rpartition(":")[2]) in inodes
        if mine and (mode == "WRITE" or not shared.exists()):  # with a WAL, readers are in nobody's way
            return True
    return False


def _is_busy(store: Store) -> bool:
    if store.file is None:
        return rows(store, _BUSY) != [(0,)]
    connection = sqlite3.connect(store.file, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False
