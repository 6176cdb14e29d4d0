"""One SQLite store copied to another machine: both copies work, and neither harms the other."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.rigs.commands import chats
from tests.rigs.queued import Queued, queued
from tests.rigs.waiting import until
from tests.rigs.workers import drain, exit_code, kill, start_worker
from vbatch.store import Store


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("same_boot", [True, False], ids=["a-clone-that-was-running", "another-machine"])
def test_a_copied_store_ends_no_process_and_overwrites_nothing(
    store: Store, tmp_path: Path, same_boot: bool
) -> None:
    """The copy is taken while a worker runs; in it that worker is of another machine. Its answers differ.

    Mutants: files.atomic_file that renames over what is there; processes.liveness that compares pids alone.
    """
    expected = chats(600)
    batch = queued(store, tmp_path, expected)
    first = start_worker(batch.url, tmp_path, drain=True, max_inflight=16, echo_latency_ms=200)
    try:
        until(lambda: batch.batch.counts.completed > 16)
        other = tmp_path / "other"
        other.mkdir()
        path = other / "vbatch.db"
        with closing(sqlite3.connect(store.file or "")) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)
            if not same_boot:
                target.execute("UPDATE worker SET host = 'other/1', boot_id = 'of-another-machine'")
            target.execute(
                "UPDATE result SET body = CAST(replace(CAST(body AS TEXT), 'assistant', 'ASSISTANT') AS BLOB)"
            )
            target.commit()
        copy = Store(f"sqlite:///{path}")
        copied = Queued(copy, batch.id)
        if same_boot:  # the worker is taken for alive, so its chunks are left alone
            kill(start_worker(copied.url, other))
        else:
            drain(copied.url, other, lease=timedelta(seconds=2))
        assert first.exitcode in (None, 0), "it was ended"
        assert exit_code(first) == 0
        if same_boot:
            drain(copied.url, other)
    finally:
        kill(first)
    for one in (batch, copied):
        assert not one.lines().lost(expected)
        assert not one.lines().doubled
    paths = {batch.batch.output_path, copied.batch.output_path}
    assert len(paths) == 2
    copy.close()
