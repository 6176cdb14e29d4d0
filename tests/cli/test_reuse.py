"""``submit --reuse``: an edited file costs only what was edited."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import chat, chats


def outputs(cli: Cli, name: str) -> dict[str, str]:
    lines = map(json.loads, (cli.folder / name).read_text().splitlines())
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


def test_an_edited_file_runs_only_what_was_edited(cli: Cli) -> None:
    first = cli.submit("prompts.jsonl", chats(10))
    cli.drain()
    edited = [*chats(11), chat("new", "new")]
    edited[3] = chat("r-3", "changed")
    again = cli("submit", cli.file("prompts.jsonl", edited), "--reuse", "last", "-o", "second.jsonl")
    assert again.code == 0
    assert f"9 answers taken from {first}; 3 requests to run" in again.err
    status = cli("status", again.out.strip(), "--json").document
    assert status["request_counts"] == {"total": 12, "completed": 9, "failed": 0}
    assert status["reused"] == 9
    assert status["metadata"] == {"reuse_of": first}
    assert status["requests_per_second"] is None
    assert "reuse_of" in cli("status", again.out.strip()).out
    assert cli("results", again.out.strip()).out.count("\n") == 9
    drained = cli.drain()
    assert "engine died" not in drained.err
    expected = {f"r-{number}": f"r-{number}" for number in range(11)} | {"r-3": "changed", "new": "new"}
    assert outputs(cli, "second.jsonl") == expected
    before = (cli.folder / "prompts.output.jsonl").read_text().splitlines()
    after = (cli.folder / "second.jsonl").read_text().splitlines()
    assert json.loads(after[0])["response"] == json.loads(before[0])["response"], "the very same answer"


def test_nothing_changed_needs_no_worker(cli: Cli) -> None:
    """The files are there when submit returns. Mutant: submit without finalize_here."""
    first = cli.submit("prompts.jsonl", chats(5))
    cli.drain()
    again = cli(
        "submit", cli.folder / "prompts.jsonl", "--reuse", first[6:20], "-o", "second.jsonl", "--wait"
    )
    assert again.code == 0
    assert "5 answers taken" in again.err
    assert "run-worker" not in again.err
    assert "the same file" not in again.err
    assert outputs(cli, "second.jsonl") == {f"r-{number}": f"r-{number}" for number in range(5)}


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ("prompts.jsonl", "sub/../prompts.jsonl"),
        ("prompts.jsonl", "here/prompts.jsonl"),
        ("prompts.jsonl", "link.jsonl"),
        ("sub/../prompts.jsonl", "prompts.jsonl"),
        ("here/prompts.jsonl", "prompts.jsonl"),
    ],
)
def test_the_last_batch_is_found_however_the_file_is_called(cli: Cli, then: str, now: str) -> None:
    """Mutant: comparing paths as they were typed; the whole file runs again."""
    cli.file("prompts.jsonl", chats(5))
    (cli.folder / "sub").mkdir()
    (cli.folder / "here").symlink_to(".")
    (cli.folder / "link.jsonl").symlink_to("prompts.jsonl")
    first = cli("submit", then, "-o", "first.jsonl", "-q").out.strip()
    cli.drain()
    again = cli("submit", now, "--reuse", "last", "-o", "second.jsonl")
    assert f"5 answers taken from {first}" in again.err


def test_failed_requests_run_again(cli: Cli) -> None:
    """Mutant: reuse._SUCCEEDED always true."""
    cli.submit("prompts.jsonl", [*chats(4), chat("bad", "bad", echo="error400")])
    cli.drain()
    again = cli("submit", cli.folder / "prompts.jsonl", "--reuse", "last", "-o", "second.jsonl")
    assert "4 answers taken" in again.err
    assert "1 request to run" in again.err


def test_reuse_that_finds_nothing(cli: Cli) -> None:
    source = cli.file("prompts.jsonl", chats(3))
    first = cli("submit", source, "--reuse", "last")
    assert first.code == 0
    assert "no earlier batch was made of this file; every request runs" in first.err
    unknown = cli("submit", source, "--reuse", "nonsense", "-o", "x.jsonl")
    assert unknown.code == 4
    assert "nonsense" in unknown.err
    assert cli("list", "-q").out.split() == [first.out.strip()], "it was refused whole"


def test_reuse_where_it_means_nothing(cli: Cli) -> None:
    source = cli.file("prompts.jsonl", chats(3))
    assert cli("submit", source, "--reuse", "last", "--dry-run").code == 2
    stdin = source.read_bytes()
    named = cli("submit", "-", "--reuse", "last", stdin=stdin)
    assert named.code == 2
    assert "--reuse ID" in named.err
