"""Upload one large file to ``vbatch serve``: its speed beside a plain copy, and the server's memory.

python -m tests.benchmarks.bench_serve [--gib N] [--folder PATH]
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

from tests.rigs.commands import Home
from tests.rigs.serving import KEY, Served, served

_BLOCK = 1 << 20
_HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="big.jsonl"\r\n\r\n'
_TAIL = b'\r\n--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'


def _memory(server: Served, name: str) -> float:
    """Return a figure of the server's memory in MB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1000


def _copy(source: Path, target: Path) -> float:
    """Copy a file to the disk as plainly as possible; return the seconds."""
    started = time.monotonic()
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(_BLOCK):
            writing.write(block)
        writing.flush()
        os.fsync(writing.fileno())
    seconds = time.monotonic() - started
    target.unlink()
    return seconds


def _upload(server: Served, source: Path) -> float:
    """Upload it as the official client does, in one stream; return the seconds."""
    size = len(_HEAD) + source.stat().st_size + len(_TAIL)
    started = time.monotonic()
    connection = HTTPConnection("127.0.0.1", server.port, timeout=3600)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Authorization", f"Bearer {KEY}")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    connection.send(_HEAD)
    with source.open("rb") as reading:
        while block := reading.read(_BLOCK):
            connection.send(block)
    connection.send(_TAIL)
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{answer.status}: {answer.read().decode()}")
    answer.read()
    return time.monotonic() - started


def main() -> None:
    """Measure, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the file")
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    asked = parser.parse_args()
    size = int(asked.gib * (1 << 30))
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        source = folder / "source"
        with source.open("wb") as file:
            block = os.urandom(_BLOCK)
            for _ in range(size // _BLOCK):
                file.write(block)
        home = Home(folder, f"sqlite:///{folder / 'vbatch.db'}")
        config = folder / "config.toml"
        config.write_text(f"[serve]\nmax_upload = {size + (1 << 20)}\n")
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.platform()}, {os.cpu_count()} cores, "
              f"load {os.getloadavg()[0]:.1f}, {asked.gib:g} GiB")  # fmt: skip
        copied = _copy(source, folder / "copy")
        print(f"plain copy with fsync   {copied:7.1f} s   {size / copied / 1e6:6.0f} MB/s")
        with served(home, VBATCH_CONFIG=str(config)) as server:
            before = _memory(server, "VmRSS")
            taken = _upload(server, source)
            print(f"upload                  {taken:7.1f} s   {size / taken / 1e6:6.0f} MB/s")
            print(
                f"memory of the server    {before:7.1f} MB before, {_memory(server, 'VmHWM'):.1f} MB at its peak"
            )


if __name__ == "__main__":
    main()
