"""How fast results become a table, and how much memory that takes, beside pandas reading the same file.

    python -m tests.benchmarks.bench_tables [--rows 3000000] [--case csv] [--case parquet]

The results are put into a SQLite store by SQL: answers of 60 words, each with a number of its own. Each line that is
printed is one real process: rows per second of processor time, which includes the start of Python and which other work
on the machine does not change much; the time on the clock, and the peak of memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

VBATCH = [sys.executable, "-m", "vbatch"]
NAME = "bench"
MIB = 1 << 20
WORDS = "the answer of a model that was asked for an opinion about a review of a product " * 4

# What is measured: its name, the options after --to, and the file that is written.
CASES = {
    "csv": ("`--to csv`", ["csv"], "a.csv"),
    "join": ("`--to csv --join`, same order", ["csv", "--join", "table.csv"], "b.csv"),
    "index": ("`--to csv --join`, by an index", ["csv", "--join", "shuffled.csv", "--on", "id"], "c.csv"),
    "parquet": ("`--to parquet`", ["parquet"], "a.parquet"),
    "jsonl": ("`--to jsonl`", ["jsonl"], "a.jsonl"),
}

_RESULTS = """
INSERT INTO result (batch, seq, epoch, status_code, request_id, body, prompt_tokens, completion_tokens, attempts,
                    finish, cached_tokens)
SELECT batch, seq, 1, 200, 'r', CAST(
    '{"id":"c","object":"chat.completion","model":"echo","choices":[{"index":0,"message":{"role":"assistant",'
    || '"content":"' || custom_id || ' ' || :words || '"},"finish_reason":"stop"}],'
    || '"usage":{"prompt_tokens":12,"completion_tokens":60,"total_tokens":72}}' AS BLOB), 12, 60, 1, 'stop', 0
FROM request
"""


def prepare(folder: Path, rows: int) -> None:
    """Fill a store with one finished batch, and write the table that its requests are of."""
    from vbatch import batches
    from vbatch.batches import InputFile, SubmitOptions
    from vbatch.store import COMMAND_PATIENCE, Store

    store = Store(f"sqlite:///{folder / 'vbatch.db'}", patience=COMMAND_PATIENCE)
    store.prepare()
    source = folder / "prompts.jsonl"
    with source.open("w") as file:
        for number in range(1, rows + 1):
            file.write(
                f'{{"custom_id":"{number}","method":"POST","url":"/v1/chat/completions","body":{{"model":"echo",'
                f'"messages":[{{"role":"user","content":"Is review {number} good? Answer in 60 words."}}]}}}}\n'
            )
    batches.submit(store, InputFile.at(source), SubmitOptions(output=folder / "answers.jsonl", name=NAME))
    store.close()
    source.unlink()
    for name, order in (("table.csv", range(1, rows + 1)), ("shuffled.csv", range(rows, 0, -1))):
        with (folder / name).open("w") as table:
            table.write("id,review\n")
            table.writelines(f'{number},"good, ""very"" good: {number}"\n' for number in order)
    database = sqlite3.connect(folder / "vbatch.db")
    with database:
        database.execute(_RESULTS, {"words": WORDS})
        database.execute("UPDATE chunk SET state = 'done', completed = total")
    database.close()


def measure(what: str, command: list[str], rows: int, written: Path) -> None:
    """Run a command, and print rows per second and the peak of its memory."""
    began = time.monotonic()
    pid = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - began
    assert os.waitstatus_to_exitcode(status) == 0
    size = written.stat().st_size / MIB
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(
        f"| {what} | {rows / cpu:,.0f} | {cpu:.0f} s | {seconds:.0f} s | {peak:.0f} MiB | {size:,.0f} MiB |",
        flush=True,
    )


def main() -> None:
    """Print a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--case", action="append", choices=CASES)
    options = parser.parse_args()
    rows, chosen = options.rows, options.case or list(CASES)
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        folder = Path(name)
        # In a process of its own: the peak of a child is never below that of the process that starts it.
        filling = multiprocessing.get_context("spawn").Process(target=prepare, args=(folder, rows))
        filling.start()
        filling.join()
        os.environ["VBATCH_DATABASE_URL"] = f"sqlite:///{folder / 'vbatch.db'}"
        print(f"| {rows:,} rows | rows/s of CPU | CPU | time | peak of memory | file |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for case in chosen:
            what, to, path = CASES[case]
            arguments = [str(folder / each) if each.endswith(".csv") else each for each in to]
            command = [*VBATCH, "results", NAME, "--to", *arguments, "-o", str(folder / path)]
            measure(what, command, rows, folder / path)
        for reader in chosen:
            table = folder / CASES[reader][2]
            if reader in ("csv", "parquet"):
                code = f"import pandas; assert len(pandas.read_{reader}({str(table)!r})) == {rows}"
                measure(f"pandas reads the {reader}", [sys.executable, "-c", code], rows, table)


if __name__ == "__main__":
    main()
