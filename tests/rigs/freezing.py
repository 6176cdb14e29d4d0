"""Freeze a worker between two transactions: with a lock of the database it would be in everybody's way."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path

from tests.rigs.filling import rows
from tests.rigs.waiting import until
from vbatch.store import Store

_BUSY = """SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"""


def freeze(pid: int, store: Store) -> None:
    """Stop this process at a moment at which nobody is in a transaction."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        if not _is_busy(store):
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)


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
