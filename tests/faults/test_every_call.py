"""A worker is killed, or refused, at each call of a small run that makes something durable.

Those are fsync, fdatasync, link and unlink, and COMMIT on PostgreSQL, counted in all its threads together. A run that
nothing befalls tells which there are. The batch has answers and a failed request, so that both files are written.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.rigs.commands import chat, chats
from tests.rigs.misfortune import Misfortune
from tests.rigs.nvml import COMPILER
from tests.rigs.postgres import Postgres
from tests.rigs.queued import Queued, queued
from tests.rigs.workers import drain, ended, failures, kill, start_worker
from vbatch.recovery import evidence
from vbatch.store import Store

pytestmark = pytest.mark.skipif(
    COMPILER is None, reason="needs a C compiler for the library that counts calls"
)

LINES = [*chats(299), chat("refused", "x", echo="error400")]
OF_THE_STORE = {"commit ", "unlink {folder}/store/vbatch.db-journal", "fdatasync {folder}/store/vbatch.db-journal",
                "fdatasync {folder}/store/vbatch.db", "fdatasync {folder}/store"}  # fmt: skip
OF_A_FILE = {"fsync {folder}/.*.vbatch-tmp", "fsync {folder}", "link {folder}/prompts.output.jsonl",
             "link {folder}/prompts.errors.jsonl"}  # fmt: skip
ONE_AFTER_THE_OTHER = threading.Lock()  # Alembic migrates in one thread of a process
AT_ONCE = 3  # runs beside each other: a worker that drains a queue sleeps most of the time


class Call(NamedTuple):
    """The n-th call of this kind."""

    kind: str
    nth: int


@dataclass(frozen=True)
class Run:
    """One small run: what befell it, and how it ended."""

    folder: Path
    misfortune: Misfortune
    exitcode: int | None
    batch: Queued

    @property
    def log(self) -> str:
        """What its workers logged."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))

    @property
    def calls(self) -> Counter[str]:
        """How often each kind of call was counted."""
        return Counter(_kind(call, self.folder) for call in self.misfortune.calls())


def _kind(call: str, folder: Path) -> str:
    """Return the pattern of all calls that do the same to the same file, whatever its name is in that run."""
    name, _, path = call.partition(" ")
    if path.endswith(".vbatch-tmp"):
        return f"{name} {{folder}}/.*.vbatch-tmp"
    if path.startswith(f"{folder}/{evidence.FOLDER}/"):
        return f"{name} {{folder}}/{evidence.FOLDER}/*"
    return f"{name} {path}".replace(str(folder), "{folder}")


def run_with(folder: Path, url: str, *, nth: int = 0, error: int = 0, only: str = "*") -> Run:
    """Submit the batch, and have a worker drain the queue under this misfortune."""
    folder.mkdir()
    store = Store(url.format(folder=folder))
    with ONE_AFTER_THE_OTHER:
        store.prepare()
    batch = queued(store, folder, LINES)
    misfortune = Misfortune(seen=folder / "calls", nth=nth, error=error, only=only.format(folder=folder))
    worker = start_worker(batch.url, folder, misfortune=misfortune, drain=True)
    ended(worker, 60)
    exitcode = worker.exitcode
    kill(worker)
    store.close()
    return Run(folder, misfortune, exitcode, batch)


def assert_whole(run: Run) -> None:
    """Every request has its one line, the files have no other name, and the database is sound."""
    what = f"{run.misfortune.nth}: {run.misfortune.befell}"
    lines = run.batch.lines()
    run.batch.store.close()
    assert not failures(run.folder), what
    assert not lines.lost(LINES), what
    assert not lines.doubled, what
    assert lines.errors.keys() == {"refused"}, what
    assert all(answer == custom_id for custom_id, answer in lines.answers.items()), what
    if run.batch.store.file is not None:
        with sqlite3.connect(run.batch.store.file) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",), what


def at_once(work: Callable[[int, Call], Run], calls: Iterable[Call]) -> list[Run]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, count(1), calls))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def new_url(request: pytest.FixtureRequest) -> Callable[[int], str]:
    """The URL of a fresh store for the run of this number."""
    if request.param == "sqlite":
        return lambda _: "sqlite:///{folder}/store/vbatch.db"
    server: Postgres = request.getfixturevalue("postgres")

    def database(number: int) -> str:
        server.execute(f"DROP DATABASE IF EXISTS call_{number} WITH (FORCE)")
        server.execute(f"CREATE DATABASE call_{number}")
        return server.url(f"call_{number}")

    return database


@pytest.mark.timeout(1200)
def test_killed_before_each_call_of_a_small_run(tmp_path: Path, new_url: Callable[[int], str]) -> None:
    """The next worker completes what the killed one left.

    Mutant: batches.finalize calls ``finish`` before ``_write``; the batch is then completed without its files.
    """

    def killed(number: int, call: Call) -> Run:
        run = run_with(tmp_path / str(number), new_url(number), only=call.kind, nth=call.nth)
        drain(run.batch.url, run.folder)
        assert_whole(run)
        assert not list(run.folder.glob(".*.vbatch-tmp")), call
        assert (run.exitcode == 0) is (run.misfortune.befell is None), call
        return run

    calm = run_with(tmp_path / "calm", new_url(0))
    assert_whole(calm)
    calls = [Call(kind, nth) for kind, times in calm.calls.items() for nth in range(1, times + 1)]
    runs = at_once(killed, calls)
    spared = [call for call, run in zip(calls, runs, strict=True) if run.misfortune.befell is None]
    print(f"killed before {len(calls) - len(spared)} calls: {dict(calm.calls)}")
    assert {call.kind for call in spared} <= OF_THE_STORE, "they differ by a look at the queue or two at most"
    assert len(spared) <= len(calls) // 10


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_each_kind_of_call_is_refused_once(tmp_path: Path, error: int) -> None:
    """The same worker completes the batch, and says so when it was refused the output or the error file.

    Mutants: ``finish`` before ``_write``, as above. atomic_file goes on after an error of fsync, of the file or of its
    folder; nothing is then refused. faults._SQLITE_PASSING without SQLITE_IOERR; the worker then fails.
    """

    def refused(number: int, call: Call) -> Run:
        run = run_with(
            tmp_path / str(number),
            "sqlite:///{folder}/store/vbatch.db",
            only=call.kind,
            nth=call.nth,
            error=error,
        )
        assert run.exitcode == 0, call
        assert_whole(run)
        return run

    calm = run_with(tmp_path / "calm", "sqlite:///{folder}/store/vbatch.db")
    assert_whole(calm)
    calls = [
        Call(kind, nth) for kind, times in calm.calls.items() for nth in sorted({1, times // 2, times} - {0})
    ]
    runs = at_once(refused, calls)
    of_the_output, of_the_store = (
        Counter(call.kind for call, run in zip(calls, runs, strict=True) if words in run.log)
        for words in ("batch.output_refused", "store.waiting")
    )
    print(f"{len(calls)} calls refused: {dict(of_the_output)}, {dict(of_the_store)}")
    assert of_the_output == Counter({kind: calm.calls[kind] for kind in OF_A_FILE})
    assert of_the_store.keys() == OF_THE_STORE & calm.calls.keys()
