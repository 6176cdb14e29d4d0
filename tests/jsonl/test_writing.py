"""A file that vbatch writes is whole under its name, or it is not there; and what was there stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from vbatch.jsonl import abandoned, atomic_file, temporary_name

_WRITER = """
import sys, time
from pathlib import Path
from vbatch.jsonl import atomic_file
with atomic_file(Path(sys.argv[1]), tag="batch_1") as file:
    file.write(b"half\\n" * 300_000)
    print("writing", flush=True)
    time.sleep(60)
"""


def write(path: Path, content: bytes, *, tag: str = "batch_1") -> Path:
    with atomic_file(path, tag=tag) as file:
        file.write(content)
    return file.path


def test_it_appears_whole(tmp_path: Path) -> None:
    assert write(tmp_path / "out.jsonl", b"line\n") == tmp_path / "out.jsonl"
    assert (tmp_path / "out.jsonl").read_bytes() == b"line\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]


def test_the_same_bytes_may_be_written_again(tmp_path: Path) -> None:
    for _ in range(2):
        assert write(tmp_path / "out.jsonl", b"line\n") == tmp_path / "out.jsonl"


def test_another_file_is_never_overwritten(tmp_path: Path) -> None:
    """Mutant: os.rename, which overwrites."""
    (tmp_path / "out.jsonl").write_bytes(b"mine\n")
    assert write(tmp_path / "out.jsonl", b"line\n") == tmp_path / "out.batch_1.jsonl"
    assert (tmp_path / "out.jsonl").read_bytes() == b"mine\n"
    assert (tmp_path / "out.batch_1.jsonl").read_bytes() == b"line\n"


def test_both_names_taken(tmp_path: Path) -> None:
    for name in ("out.jsonl", "out.batch_1.jsonl"):
        (tmp_path / name).write_bytes(b"mine\n")
    with pytest.raises(FileExistsError):
        write(tmp_path / "out.jsonl", b"line\n")
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"mine\n"}


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), atomic_file(tmp_path / "out.jsonl", tag="batch_1") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "out.jsonl", b"line\n")


def test_a_killed_writer_leaves_no_file_and_the_next_one_writes_it(tmp_path: Path) -> None:
    """Mutants: writing under the final name; no lock on the temporary file, so that two write it at once."""
    path = tmp_path / "out.jsonl"
    with subprocess.Popen([sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert not path.exists()
        with pytest.raises(BlockingIOError):
            write(path, b"line\n")
        assert abandoned(tmp_path) == []  # somebody writes it
        os.kill(writer.pid, signal.SIGKILL)
    assert not path.exists()
    assert abandoned(tmp_path) == [temporary_name(path, "batch_1")]
    write(path, b"line\n")
    assert path.read_bytes() == b"line\n"
    assert abandoned(tmp_path) == []


def test_a_name_of_any_length(tmp_path: Path) -> None:
    """Mutant: a temporary name that is made of the whole name."""
    path = tmp_path / ("名" * 85)  # 255 bytes
    with atomic_file(path, tag="batch_" + "0" * 24) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
