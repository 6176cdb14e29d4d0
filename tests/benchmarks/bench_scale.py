"""How fast vbatch takes a large batch in, writes its files, cancels, retries and deletes it, and with how much memory.

    python -m tests.benchmarks.bench_scale [--lines 1000000] [--before CHECKOUT] [--database sqlite|postgresql]

Lines have about 700 bytes, answers some 600. Each step is a real command on a store of its own:

* ``submit`` of the file;
* ``results -o`` of the batch once every request has its answer (written by the database itself);
* ``output file``: what ends that batch, as a worker would; here ``cancel`` has to do it;
* ``delete`` of it;
* ``cancel`` of a second batch of which nothing ran: every request gets a line of the error file;
* ``retry`` of all of it.

Beside them stand the limits of the same run: copying the file that is read or written to the disk, and inserting
its lines by the database's driver alone, with the same settings. With ``--before``, each step is done by another
checkout too, in turns. Printed are requests per second, the CPU of the command (of a server it is not known) and its
most memory; of the limits too. Other load of the machine changes the seconds, hardly the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psycopg
from sqlalchemy import Connection, text

from tests.rigs.postgres import Postgres
from vbatch.store.database.backends import sqlite
from vbatch.store.database.store import Store

MIB = 1 << 20
ROOT = Path(__file__).parent.parent.parent
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "An answer of some words. " * 16},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 60, "total_tokens": 160},
    },
    separators=(",", ":"),
).encode()
TRANSACTION = 32_000  # lines that are inserted at once


@dataclass(frozen=True)
class Cost:
    """What a step took: seconds, seconds of CPU, and bytes of memory, where they are known."""

    seconds: float
    cpu: float
    memory: int | None = None

    def words(self, lines: int) -> str:
        memory = f"{self.memory / MIB:5.0f} MiB" if self.memory else ""
        return f"{lines / self.seconds:10,.0f}/s {self.cpu / lines * 1e6:6.1f} µs of CPU each {memory}"


def write_input(path: Path, lines: int) -> None:
    """Write chat requests of about 700 bytes."""
    said = "The quick brown fox jumps over the lazy dog. " * 11
    with path.open("w") as file:
        for number in range(lines):
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": f"{number} {said}"}],
                "max_tokens": 64,
                "temperature": 0,
            }
            line = {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")


class Arm:
    """One vbatch, by its checkout, with a store and a folder of its own."""

    def __init__(self, name: str, checkout: Path, folder: Path, url: str) -> None:
        self.name = name
        self.folder = folder
        folder.mkdir()
        self._url = url
        self._environment = os.environ | {
            "PYTHONPATH": str(checkout),
            "VBATCH_DATABASE_URL": url,
            "VBATCH_STATE_DIR": str(folder / "state"),
            "VBATCH_CONFIG": os.devnull,
        }

    def run(self, *arguments: str) -> tuple[Cost, str]:
        """Run a command; return what it took and what it printed."""
        command = [sys.executable, "-m", "vbatch", *arguments]
        began = time.perf_counter()
        with (
            tempfile.TemporaryFile() as printed,
            subprocess.Popen(
                command, env=self._environment, stdout=printed, stderr=subprocess.PIPE, cwd=self.folder
            ) as process,
        ):
            assert process.stderr is not None
            complaint = process.stderr.read().decode()
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {complaint}")
            printed.seek(0)
            said = printed.read().decode().strip()
        return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024), said

    def answer(self, batch: str) -> None:
        """Give every request of a batch the same answer, as its worker would have saved it.

        One chunk stays open: nothing may write the files before that is measured.
        """
        results = (
            "INSERT INTO result (batch, seq, epoch, status_code, request_id, body, prompt_tokens, completion_tokens, "
            "attempts, finish) SELECT batch, seq, 1, 200, 'req-' || line, :answer, 100, 60, 1, 'stop' "
            "FROM request WHERE batch = :pk"
        )
        chunks = (
            "UPDATE chunk SET state = 'done', epoch = 1, completed = total WHERE batch = :pk "
            "AND number < (SELECT max(number) FROM chunk WHERE batch = :pk)"
        )

        def work(connection: Connection) -> None:
            found = connection.execute(text("SELECT pk FROM batch WHERE id = :id"), {"id": batch})
            pk = found.scalar_one()
            connection.execute(text(results), {"pk": pk, "answer": ANSWER})
            connection.execute(text(chunks), {"pk": pk})

        with closing(Store(self._url)) as store:
            store.write(work)

    def files(self) -> list[Path]:
        """What it has written."""
        return sorted(self.folder.glob("*.jsonl"))


@contextmanager
def measured(into: list[Cost]) -> Iterator[None]:
    """Measure what this process does itself."""
    before, began = time.process_time(), time.perf_counter()
    yield
    into.append(Cost(time.perf_counter() - began, time.process_time() - before))


def copied(path: Path) -> Cost:
    """Copy a file to the disk."""
    target = path.with_suffix(".copy")
    cost: list[Cost] = []
    with measured(cost), path.open("rb") as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, MIB)
        copy.flush()
        os.fsync(copy.fileno())
    target.unlink()
    return cost[0]


def inserted(source: Path, folder: Path, server: Postgres | None) -> Cost:
    """Insert the lines of a file into a table like that of the requests, by the driver alone."""
    insert = _into_sqlite if server is None else _into_postgresql
    cost: list[Cost] = []
    with source.open("rb") as file, measured(cost):
        insert(((1, number, number, f"r-{number}", line) for number, line in enumerate(file)), folder, server)
    return cost[0]


_COLUMNS = "batch BIGINT, seq BIGINT, line BIGINT NOT NULL, custom_id TEXT NOT NULL, body {} NOT NULL"
_Rows = Iterator[tuple[int, int, int, str, bytes]]


def _into_sqlite(rows: _Rows, folder: Path, _server: Postgres | None) -> None:
    file = folder / "bare.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={sqlite.PAGE_SIZE}")
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.execute(f"PRAGMA cache_size=-{sqlite.CACHE_KIB}")
        connection.execute(f"CREATE TABLE bare ({_COLUMNS.format('BLOB')}, PRIMARY KEY (batch, seq))")
        while part := list(islice(rows, TRANSACTION)):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO bare VALUES (?, ?, ?, ?, ?)", part)
            connection.execute("COMMIT")
    file.unlink()


def _into_postgresql(rows: _Rows, _folder: Path, server: Postgres | None) -> None:
    assert server is not None
    with psycopg.connect(server.url()) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE bare ({_COLUMNS.format('BYTEA')}, PRIMARY KEY (batch, seq))")
        with cursor.copy("COPY bare FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["bigint", "bigint", "bigint", "text", "bytea"])
            for row in rows:
                copy.write_row(row)
    server.execute("DROP TABLE bare")


def compare(kind: str, arms: list[Arm], source: Path, lines: int, server: Postgres | None) -> None:
    """Do every step with each of the arms in turn, beside the limits."""

    def show(what: str, cost: Cost) -> None:
        print(f"{kind:10} {what:24} {cost.words(lines)}", flush=True)

    def step(what: str, *arguments: Callable[[Arm], str]) -> dict[str, str]:
        printed = {}
        costs = {}
        for arm in arms:
            costs[arm.name], printed[arm.name] = arm.run(*(each(arm) for each in arguments))
            show(f"{what}, {arm.name}", costs[arm.name])
        if len(costs) > 1:
            first, second = costs.values()
            print(
                f"{kind:10} {what:24} {first.seconds / second.seconds:.2f} times as fast, "
                f"{second.cpu / first.cpu:.2f} times the CPU"
            )
        return printed

    def word(said: str) -> Callable[[Arm], str]:
        return lambda _arm: said

    def of(batches: dict[str, str]) -> Callable[[Arm], str]:
        return lambda arm: batches[arm.name]

    submit = (word("submit"), word(str(source)), word("--quiet"), word("-o"))
    show("copy of the input", copied(source))
    show("bare inserts", inserted(source, source.parent, server))
    for arm in arms:
        arm.run("list")  # makes the store, as on the first day
    done = step("submit", *submit, lambda arm: str(arm.folder / "answered.jsonl"))
    for arm in arms:
        arm.answer(done[arm.name])
    step("results", word("results"), of(done), word("-o"), word("results.jsonl"))
    step("output file", word("cancel"), of(done))
    show("copy of the output", copied(arms[-1].folder / "answered.jsonl"))
    step("delete", word("delete"), of(done))
    second = {
        arm.name: arm.run(*(each(arm) for each in submit), str(arm.folder / "second.jsonl"))[1]
        for arm in arms
    }
    step("cancel", word("cancel"), of(second))
    step("retry", word("retry"), of(second))


def main() -> None:
    """Print what every step costs, and the limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--before", type=Path, help="another checkout of vbatch to compare with")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], help="one of them alone")
    given = parser.parse_args()
    checkouts = {"before": given.before, "now": ROOT} if given.before else {"now": ROOT}
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        source = folder / "input.jsonl"
        write_input(source, given.lines)
        for kind in [given.database] if given.database else ["sqlite", "postgresql"]:
            server = None
            if kind == "postgresql":
                server = Postgres(folder / "server")
                server.start()
            arms = []
            for arm, checkout in checkouts.items():
                url = f"sqlite:///{folder / f'{arm}.db'}"
                if server is not None:
                    server.execute(f"CREATE DATABASE bench_{arm}")
                    url = server.url(f"bench_{arm}")
                arms.append(Arm(arm, checkout.resolve(), folder / f"{kind}-{arm}", url))
            compare(kind, arms, source, given.lines, server)
            if server is not None:
                server.stop()
            for made in (*folder.glob("*.db"), *(path for arm in arms for path in arm.files())):
                made.unlink()


if __name__ == "__main__":
    main()
