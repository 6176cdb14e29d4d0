"""Answers that are not what was asked for are counted and can be had apart: cut off, empty, failed by cause."""

from __future__ import annotations

import json

import pytest

from tests.rigs.commands import Home, chat
from vbatch.errors import ExitCode

# The operations behind these commands run on both databases in tests/batches and tests/store.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def limited(custom_id: str, text: str, **fields: object) -> dict[str, object]:
    line = chat(custom_id, text)
    body = line["body"]
    assert isinstance(body, dict)
    return line | {"body": body | fields}


@pytest.fixture
def answered(home: Home) -> str:
    """A batch of 4: one answer is whole, two are cut off, one is empty."""
    batch = home.submit(
        [
            limited("whole", "one two", max_tokens=5),
            limited("long", "one two three", max_tokens=1),
            limited("longer", "one two three four", max_completion_tokens=2),
            limited("nothing", ""),
        ],
        "--name",
        "small",
    )
    home.run("run-worker", "--engine", "echo", "--drain")
    return batch


def ids(lines: str) -> list[str]:
    return [json.loads(line)["custom_id"] for line in lines.splitlines()]


def test_cut_off_and_empty_answers_are_counted(home: Home, answered: str) -> None:
    """Mutants: only the status code looked at; a finish of another name."""
    batch = home.batch(answered)
    assert (batch["cut_off"], batch["empty"]) == (2, 1)
    shown = home.run("status", answered).stdout
    assert "4 answered · 0 failed · 2 cut off · 1 empty" in shown
    assert ids(home.run("results", answered, "--cut-off").stdout) == ["long", "longer"]


def test_cut_off_answers_are_run_again_with_another_limit(home: Home, answered: str) -> None:
    made = home.run("retry", answered, "--cut-off", "--set", "max_tokens=9", "-q").stdout.strip()
    home.run("run-worker", "--engine", "echo", "--drain")
    batch = home.batch(made)
    assert (batch["status"], batch["cut_off"]) == ("completed", 1), "its other limit still holds"
    made = home.run(
        "retry", made, "--cut-off", "--set", "max_completion_tokens=null", "--set", "max_tokens=9", "-q"
    ).stdout.strip()
    home.run("run-worker", "--engine", "echo", "--drain")
    (line,) = home.run("results", made).stdout.splitlines()
    assert json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] == "one two three four"


def test_what_was_not_cut_off_is_not_run_again(home: Home) -> None:
    batch = home.submit([chat("a", "b")])
    home.run("run-worker", "--engine", "echo", "--drain")
    refused = home.run("retry", batch, "--cut-off", check=False)
    assert refused.returncode == ExitCode.FAILED
    assert "was cut off" in refused.stderr


def test_only_one_kind_of_failure_is_run_again(home: Home) -> None:
    batch = home.submit([chat("a", "x", echo="error400"), chat("b", "x", echo="error500"), chat("c", "x")])
    home.run("run-worker", "--engine", "echo", "--drain")
    made = home.run("retry", batch, "--only", "http_400", "-q").stdout.strip()
    assert home.batch(made)["request_counts"]["total"] == 1  # type: ignore[index]  # a document
    shown = home.run("status", batch).stdout
    assert f"vbatch retry {batch}" in shown
    assert "--reuse last" in shown


def test_a_retry_is_proposed_only_for_what_can_succeed(home: Home) -> None:
    """What the engine refuses is refused again. Mutant: the same hint for every failure."""
    batch = home.submit([chat("a", "x", echo="error400"), chat("c", "x")])
    home.run("run-worker", "--engine", "echo", "--drain")
    shown = home.run("status", batch).stdout
    assert "vbatch retry" not in shown
    assert "--reuse last" in shown


@pytest.mark.parametrize("reference", ["last", "small", "id", "beginning", "ending"])
def test_a_batch_is_found_by_what_a_person_knows_of_it(home: Home, answered: str, reference: str) -> None:
    by = {"id": answered, "beginning": answered[:12], "ending": answered[-6:]}
    assert home.run("status", by.get(reference, reference), "-q").stdout.strip() == answered


def test_last_is_the_newest(home: Home, answered: str) -> None:
    newest = home.submit([chat("a", "b")], name="other")
    assert home.run("status", "last", "-q").stdout.strip() == newest != answered


def test_a_name_that_two_batches_have_names_both(home: Home, answered: str) -> None:
    other = home.submit([chat("a", "b")], "--name", "small", name="other")
    refused = home.run("status", "small", check=False)
    assert refused.returncode == ExitCode.NO_SUCH_BATCH
    assert answered in refused.stderr
    assert other in refused.stderr


def test_a_list_of_one_status_or_name(home: Home, answered: str) -> None:
    queued = home.submit([chat("a", "b")], "--name", "later", name="other")
    listed = {
        arguments: home.run("list", *arguments.split(), "-q").stdout.split()
        for arguments in ("--status completed", "--status queued", "--name later", "--status failed")
    }
    assert listed == {
        "--status completed": [answered],
        "--status queued": [queued],
        "--name later": [queued],
        "--status failed": [],
    }
    assert "queued" in home.run("list").stdout
    assert home.batch(queued)["status"] == "in_progress", "of OpenAI's words"
    refused = home.run("list", "--status", "done", check=False)
    assert refused.returncode == ExitCode.USAGE
    assert "completed" in refused.stderr


def test_one_request_is_shown_to_read(home: Home, answered: str) -> None:
    shown = home.run("show", "last", "long").stdout
    for expected in ("line 2 of", "user", "one two three", "answer", "finish reason: length"):
        assert expected in shown
    document = json.loads(home.run("show", answered, "long", "--json").stdout)
    assert document["request"]["max_tokens"] == 1
    assert document["result"]["response"]["status_code"] == 200
    refused = home.run("show", answered, "none", check=False)
    assert (refused.returncode, "no request" in refused.stderr) == (ExitCode.NO_SUCH_BATCH, True)


def test_a_request_that_has_not_run_is_shown_too(home: Home) -> None:
    home.submit([chat("a", "red \x1b[31m text", echo="error400"), chat("b", "b")])
    assert "not finished yet" in home.run("show", "last", "b").stdout
    assert "\x1b" not in home.run("show", "last", "a").stdout


def test_a_sample_keeps_the_order_of_the_file(home: Home) -> None:
    batch = home.submit([chat(f"r-{number:02}", "x") for number in range(50)])
    home.run("run-worker", "--engine", "echo", "--drain")
    found = ids(home.run("results", batch, "--sample", "7").stdout)
    assert len(set(found)) == 7
    assert found == sorted(found)
    assert len(ids(home.run("results", batch, "--sample", "99").stdout)) == 50


def test_the_answers_of_a_batch_and_its_retries_are_one_file(home: Home) -> None:
    """In the order of the file, each line once, the best answer of each. Mutant: the first kept."""
    batch = home.submit(
        [
            limited("a", "one two three", max_tokens=1),
            chat("b", "x", echo="error400"),
            chat("c", "x"),
            chat("d", "x", echo="error400"),
        ]
    )
    home.run("run-worker", "--engine", "echo", "--drain")
    changed = ("--set", 'metadata={"vbatch_echo": "slow:0"}')
    failed = home.run("retry", batch, "--only", "http_400", *changed)
    assert f"vbatch results {batch} --with-retries" in failed.stderr
    home.run("retry", batch, "--cut-off", "--set", "max_tokens=9")
    home.run("run-worker", "--engine", "echo", "--drain")
    home.run("results", batch, "--with-retries", "-o", "all.jsonl")
    merged = (home.path / "all.jsonl").read_text()
    assert ids(merged) == ["a", "b", "c", "d"]
    first = json.loads(merged.splitlines()[0])
    assert first["response"]["body"]["choices"][0]["message"]["content"] == "one two three"
    assert ids(home.run("results", batch).stdout) == ["a", "c"], "the batch itself stays as it is"
    assert home.run("results", batch, "--with-retries", "--errors").stdout == ""
