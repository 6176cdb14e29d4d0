"""Several commands, or a command and a worker, that end the same batch: one writes its files, the others say so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.commands import VBATCH, Home, chats
from tests.rigs.filling import take_in, worker
from vbatch import batches
from vbatch.errors import WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import Store, finalization, registry
from vbatch.store.records import COMMAND, Batch
from vbatch.system import processes


@pytest.fixture
def other_command() -> Iterator[subprocess.Popen[bytes]]:
    """A live process that stands for a command that writes files."""
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield running
    running.kill()
    running.wait()


@pytest.fixture
def batch(store: Store, tmp_path: Path) -> Batch:
    return take_in(
        store, 3, output_path=str(tmp_path / "out.jsonl"), error_path=str(tmp_path / "errors.jsonl")
    )


def begin_to_write(store: Store, batch: Batch, process: subprocess.Popen[bytes]) -> str:
    """Have that process cancel the batch and begin to write its files."""
    identity = processes.identify(process.pid)
    assert identity is not None
    by = registry.register(store, identity=identity, engine=COMMAND)
    finalization.request_cancel(store, pk=batch.pk)
    assert finalization.start_finalizing(store, pk=batch.pk, by=by) is not None
    return by


def test_the_second_cancel_leaves_the_files_to_the_first(
    store: Store, batch: Batch, tmp_path: Path, other_command: subprocess.Popen[bytes]
) -> None:
    """Mutant: a command without an identity in the store; the second takes over, and the first ends nothing."""
    first = begin_to_write(store, batch, other_command)
    assert batches.cancel(store, batch.id).status is BatchStatus.CANCELLING
    assert list(tmp_path.glob("*.jsonl")) == []
    ended = finalization.finish(
        store, pk=batch.pk, by=first, output_path=batch.output_path, error_path=batch.error_path
    )
    assert ended.status is BatchStatus.CANCELLED


def test_a_worker_leaves_the_files_to_a_command(
    store: Store, batch: Batch, other_command: subprocess.Popen[bytes]
) -> None:
    begin_to_write(store, batch, other_command)
    assert finalization.to_finalize(store, by=worker(store, pid=2)) == []


@pytest.mark.parametrize("force", [False, True])
def test_a_batch_whose_files_are_being_written_is_not_deleted(
    store: Store, batch: Batch, other_command: subprocess.Popen[bytes], force: bool
) -> None:
    """It passes by itself. Mutant: a hint to ``delete --force``, after which the writer's work is for nothing."""
    begin_to_write(store, batch, other_command)
    with pytest.raises(WrongStatus, match="another process is writing the files") as refused:
        batches.delete(store, batch.id, force=force)
    assert refused.value.hint == f"vbatch watch {batch.id}"


def test_the_files_of_a_command_that_died_are_written_by_the_next(
    store: Store, batch: Batch, tmp_path: Path, other_command: subprocess.Popen[bytes]
) -> None:
    """Mutant: a dead command that keeps its batch."""
    begin_to_write(store, batch, other_command)
    other_command.kill()
    other_command.wait()
    assert batches.cancel(store, batch.id).status is BatchStatus.CANCELLED
    assert (tmp_path / "errors.jsonl").read_bytes().count(b"\n") == 3
    assert registry.commands(store) == []


def test_a_command_is_no_worker(store: Store, batch: Batch, other_command: subprocess.Popen[bytes]) -> None:
    """Mutant: a command among the workers; a batch would then wait for a command to answer it."""
    begin_to_write(store, batch, other_command)
    assert registry.live(store) == registry.recent(store, limit=9) == []


def test_five_cancels_at_once_end_the_batch_once(home: Home) -> None:
    """The real commands. Mutant: ``finalize_here`` that does not register."""
    reference = home.submit(chats(20_000), "-q")
    cancelling = [
        subprocess.Popen([*VBATCH, "cancel", reference], env=home.env, stderr=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    shown = [one.communicate()[1] for one in cancelling]
    for one, text in zip(cancelling, shown, strict=True):
        assert one.returncode == 0 or "already cancelled" in text, text
        assert "--force" not in text
    assert home.batch(reference)["status"] == "cancelled"
    assert (home.path / "prompts.errors.jsonl").read_bytes().count(b"\n") == 20_000
    assert not list(home.path.glob(".*"))
