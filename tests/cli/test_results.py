"""``results``: into a file or a pipe, while somebody else is at the batch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import chats
from vbatch.batches.results import output_line
from vbatch.store import Store, catalog, file_order
from vbatch.store.records import Answer

RESULTS = importlib.import_module("vbatch.batches.results")  # the package's attribute is its function


@pytest.fixture
def deleted_meanwhile(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> str:
    """A finished batch that somebody deletes as soon as its first line was read."""
    batch_id = cli.submit("a.jsonl", chats(300))
    cli.drain()
    monkeypatch.setattr(file_order, "PAGE", 10)
    monkeypatch.setattr(RESULTS, "output_line", _deleting(cli.folder.parent / "home" / "data" / "vbatch"))
    return batch_id


def _deleting(folder: Path) -> Callable[[str, Answer], bytes]:
    def line(batch_id: str, answer: Answer) -> bytes:
        store = Store(f"sqlite:///{folder}/vbatch.db")
        if found := catalog.recent(store, limit=1):
            catalog.delete_batch(store, pk=found[0].pk)
        store.close()
        return output_line(batch_id, answer)

    return line


@pytest.mark.parametrize("spelling", ["a.output.jsonl", "sub/../a.output.jsonl"])
def test_a_file_that_is_promised_to_a_batch(cli: Cli, spelling: str) -> None:
    """Mutant: writing it; the batch then has to give its answers another name, and who trusts the name has a part."""
    batch_id = cli.submit("a.jsonl", chats(3))
    (cli.folder / "sub").mkdir()
    refused = cli("results", batch_id, "-o", spelling)
    assert (refused.code, refused.out) == (2, "")
    assert f"{batch_id}, which is not finished yet, will write" in refused.err
    cli.drain()
    assert (cli.folder / "a.output.jsonl").read_text().count("\n") == 3


def test_a_batch_that_is_deleted_while_it_is_printed(cli: Cli, deleted_meanwhile: str) -> None:
    """Mutant: half of the lines and exit 0."""
    done = cli("results", deleted_meanwhile)
    assert done.code == 4
    assert 0 < done.out.count("\n") < 300
    assert "the batch was deleted meanwhile" in done.err


def test_a_batch_that_is_deleted_while_it_is_written(cli: Cli, deleted_meanwhile: str) -> None:
    """Mutant: a file that holds half of the lines under its name."""
    before = set(cli.folder.iterdir())
    done = cli("results", deleted_meanwhile, "-o", "copy.jsonl")
    assert (done.code, done.out) == (4, "")
    assert set(cli.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("x" * 300, "at most"),
        ("no/such/folder/x", "no folder"),
        (".", "is a folder"),
        ("", "no file"),
    ],
)
def test_a_file_that_cannot_be_made(cli: Cli, path: str, words: str) -> None:
    """Mutant: reading all lines before the name is looked at."""
    batch_id = cli.submit("a.jsonl", chats(3))
    done = cli("results", batch_id, "-o", path)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
