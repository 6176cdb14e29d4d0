"""What ``submit`` and ``retry`` leave behind when something comes in between."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest

from tests.batches.test_reuse import work
from tests.rigs.commands import chats
from tests.rigs.filling import new_batch
from tests.rigs.queued import queued
from vbatch import batches
from vbatch.batches import InputFile, RetryOptions, SubmitOptions
from vbatch.errors import InputUnreadable, StoreUnreachable
from vbatch.store import Store, catalog, ingest, staging
from vbatch.system import processes

LINE = b'{"custom_id": "r-%d", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\n'


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_file_that_grows_while_it_is_read_is_not_stored(
    store: Store, tmp_path: Path, dry_run: bool
) -> None:
    """Mutant: looking after the batch was accepted; the command says that nothing was stored, and it is."""
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"".join(LINE % number for number in range(2000)))

    whole = file.stat().st_size

    def write_on(_read: int) -> None:
        if file.stat().st_size == whole:
            with file.open("ab") as stream:
                stream.write(LINE % 2000)

    read = batches.check if dry_run else partial(batches.submit, store)
    with pytest.raises(InputUnreadable, match="was changed while it was being read; nothing was stored"):
        read(InputFile.at(file), SubmitOptions(), on_read=write_on)
    assert catalog.recent(store, limit=1) == []


class Outage:
    """The database goes away in the middle of the first reading."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, _read: int) -> None:
        self.seen += 1
        if self.seen == 1:
            raise StoreUnreachable


def test_a_file_is_read_again_after_an_outage(store: Store, tmp_path: Path) -> None:
    """Mutant: one try for every input."""
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(LINE % 1)
    done = batches.submit(store, InputFile.at(file), SubmitOptions(), on_read=Outage())
    assert done.batch.counts.total == 1
    assert batches.list_batches(store).batches == [done.batch]


def test_a_stream_cannot_be_read_again(store: Store, tmp_path: Path) -> None:
    """Mutant: as many tries as for a file; what is left of the stream would be stored as if it were the whole."""
    stream = InputFile.of(BytesIO(LINE % 1 + LINE % 2))
    output = SubmitOptions(output=tmp_path / "out.jsonl")
    with pytest.raises(StoreUnreachable):
        batches.submit(store, stream, output, on_read=Outage())
    assert batches.list_batches(store).batches == []


def test_a_retry_that_was_killed_can_be_repeated(store: Store, tmp_path: Path) -> None:
    """Mutant: no sweep before it; the paths are those of a submit that reads its file, for ever."""
    first = queued(store, tmp_path, chats(2))
    work(store, statuses=[200, 500])
    me = processes.current()
    dead = replace(me, start_ticks=me.start_ticks + 1)
    paths = {"output_path": f"{tmp_path}/again.jsonl", "error_path": f"{tmp_path}/again.errors.jsonl"}
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr(staging, "take_back", lambda *_args: None)
        with ingest.ingest(store, new=new_batch(**paths), submitter=dead):
            pass
    again = batches.retry(store, first.id, RetryOptions(output=tmp_path / "again.jsonl"))
    assert Path(again.output_path).name == "again.jsonl"
