"""How fast ``vbatch submit`` takes a file in, and with how much memory, whatever the file's size.

    python -m tests.benchmarks.bench_submit [--lines 1000000]

Lines have about 700 bytes. Each run is a real command into a fresh store; a tenth of the file and the whole file, so
that memory can be compared. PostgreSQL is the tests' own, with its settings as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.rigs.postgres import Postgres

MIB = 1 << 20


def write_input(path: Path, lines: int) -> None:
    """Write chat requests of about 700 bytes."""
    text = "The quick brown fox jumps over the lazy dog. " * 11
    with path.open("w") as file:
        for number in range(lines):
            body = {
                "model": "m",
                "messages": [{"role": "user", "content": f"{number} {text}"}],
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


def submit(source: Path, url: str) -> tuple[float, int]:
    """Return the seconds that the command took, and the most memory that it had, in bytes."""
    command = [sys.executable, "-m", "vbatch", "submit", str(source), "--quiet"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=os.environ | {"VBATCH_DATABASE_URL": url}, stdout=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    return seconds, usage.ru_maxrss * 1024


def main() -> None:
    """Print lines per second and peak memory of each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    lines = parser.parse_args().lines
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = Postgres(folder / "server")
        server.start()
        for count in (lines // 10, lines):
            source = folder / f"{count}.jsonl"
            write_input(source, count)
            server.execute(f"CREATE DATABASE bench_{count}")
            for kind, url in (
                ("SQLite", f"sqlite:///{folder / f'{count}.db'}"),
                ("PostgreSQL", server.url(f"bench_{count}")),
            ):
                seconds, memory = submit(source, url)
                rate = f"{count / seconds:10,.0f} lines/s"
                size = source.stat().st_size / count
                print(
                    f"{kind:10} {count:10,} lines of {size:.0f} bytes: {seconds:6.1f} s {rate}, {memory / MIB:.0f} MiB",
                    flush=True,
                )
            source.unlink()
        server.stop()


if __name__ == "__main__":
    main()
