"""What each command does, prints and returns."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import openai.types
import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import chat, chats

BATCH_KEYS = {
    "id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status",
    "output_file_id", "error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at",
    "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage",
    "metadata", "name", "priority", "reused", "input_path", "output_path", "error_path", "times",
    "blocked", "blocked_models", "cut_off", "empty", "skipped", "ignored", "files_wait_for",
}  # fmt: skip
TIMES = {
    "created", "in_progress", "expires", "finalizing", "completed", "expired", "cancelling", "cancelled",
}  # fmt: skip


def failing(count: int) -> list[dict[str, object]]:
    return [chat(f"bad-{i}", "no", echo="error400") for i in range(count)]


def test_the_keys_of_every_document(cli: Cli) -> None:
    """A contract: keys are added, never renamed or dropped."""
    checked = cli("submit", cli.file("a.jsonl", chats(2)), "--dry-run", "--json").document
    assert set(checked) == {
        "object", "valid", "requests", "skipped", "ignored", "output_path", "error_path", "duplicates", "estimate",
    }  # fmt: skip
    submitted = cli("submit", cli.folder / "a.jsonl", "--json").document
    assert set(submitted) == BATCH_KEYS | {"warnings"}
    assert set(submitted["times"]) == TIMES
    batch_id = submitted["id"]
    status = cli("status", batch_id, "--json").document
    assert set(status) == BATCH_KEYS | {
        "requests_per_second", "tokens_per_second", "seconds_remaining", "failures", "workers",
        "paused", "duplicates",
    }  # fmt: skip
    assert set(cli("results", batch_id, "--json").document) == BATCH_KEYS
    listed = cli("list", "--json").document
    assert set(listed) == {"object", "data", "first_id", "last_id", "has_more", "paused", "workers"}
    assert set(listed["data"][0]) == BATCH_KEYS
    assert set(cli("cancel", batch_id, "--json").document) == BATCH_KEYS
    assert set(cli("retry", batch_id, "--json").document) == BATCH_KEYS
    assert set(cli("show", batch_id, "r-0", "--json").document) == {
        "batch_id", "custom_id", "line", "request", "result",
    }  # fmt: skip
    assert cli("delete", batch_id, "--json").document == {"id": batch_id, "object": "batch", "deleted": True}
    error = cli("status", batch_id, "--json")
    assert error.code == 4
    assert set(error.document) == {"error"}
    assert set(error.document["error"]) == {"code", "message", "hint"}
    refused = cli("submit", cli.file("b.jsonl", b"nonsense\n"), "--json")
    assert refused.code == 3
    assert set(refused.document["error"]) == {"code", "message", "hint", "errors", "errors_total"}
    assert set(refused.document["error"]["errors"]["data"][0]) == {"code", "message", "line", "param"}


def test_a_batch_parses_as_openais(cli: Cli) -> None:
    batch_id = cli.submit("a.jsonl", [*chats(2), *failing(1)], "--metadata", "run=17")
    cli.drain()
    document = cli("status", batch_id, "--json").document
    batch = openai.types.Batch.model_validate(document, strict=True)
    assert batch.status == "completed"
    assert batch.metadata == {"run": "17"}
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.failed) == (3, 1)
    assert document["times"]["completed"].endswith("Z")
    assert document["failures"][0]["count"] == 1


def test_the_life_of_a_batch(cli: Cli) -> None:
    batch_id = cli.submit("prompts.jsonl", [*chats(3), *failing(2)], "--name", "first run", "--priority", "4")
    screen = cli("status", batch_id)
    assert "queued" in screen.out
    assert "none is running; start one with: vbatch run-worker" in screen.out
    cli.drain()
    screen = cli("status", batch_id[6:14])
    for words in ("completed", "first run", "100 %", "3 answered · 2 failed", "http_400", "(first: bad-0)"):
        assert words in screen.out
    assert str(cli.folder / "prompts.output.jsonl") in screen.out
    table = cli("list").out.splitlines()
    assert table[0].split() == ["ID", "STATUS", "DONE", "FAILED", "CREATED", "MODEL", "NAME"]
    assert re.fullmatch(
        rf"{batch_id}  completed  5 / 5       2  (just now|\d+ s ago) +echo   first run",
        table[1],
    )
    answers = cli("results", batch_id)
    assert answers.out == (cli.folder / "prompts.output.jsonl").read_text()
    assert [json.loads(line)["custom_id"] for line in answers.out.splitlines()] == ["r-0", "r-1", "r-2"]
    assert cli("results", batch_id, "--errors").out == (cli.folder / "prompts.errors.jsonl").read_text()
    again = cli("retry", batch_id)
    assert again.out.strip() != batch_id
    assert "2 requests accepted" in again.err
    assert cli("list", "-q").out.split() == [again.out.strip(), batch_id]
    deleted = cli("delete", batch_id)
    assert deleted.out == f"{batch_id} is deleted; its files stay\n"
    assert (cli.folder / "prompts.output.jsonl").exists()


def test_submit_prints_the_id_alone(cli: Cli) -> None:
    done = cli("submit", cli.file("a.jsonl", chats(3)))
    assert done.out.startswith("batch_")
    assert done.out.count("\n") == 1
    assert f"3 requests accepted; the answers will be in {cli.folder / 'a.output.jsonl'}" in done.err
    assert "vbatch run-worker" in done.err
    quiet = cli("submit", cli.file("b.jsonl", chats(3)), "-q")
    assert quiet.out.startswith("batch_")
    assert quiet.err == ""


def test_the_same_file_twice_is_reported(cli: Cli) -> None:
    first = cli.submit("a.jsonl", chats(3))
    again = cli("submit", cli.folder / "a.jsonl", "-o", "other.jsonl")
    assert again.code == 0
    warning = rf"warning: the same file was submitted (just now|\d+ s ago) as {first} \(in progress\)"
    assert re.search(warning, again.err)


def test_stdin(cli: Cli) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in chats(2)).encode()
    done = cli("submit", "-", "-o", "answers.jsonl", stdin=lines)
    assert done.code == 0
    cli.drain()
    assert (cli.folder / "answers.jsonl").read_text().count("\n") == 2


def test_a_dry_run_needs_no_store(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBATCH_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    done = cli("submit", cli.file("a.jsonl", chats(3)), "--dry-run")
    assert done.code == 0
    assert done.out.startswith("3 requests, all valid; nothing was stored\n")


@pytest.mark.parametrize(("lines", "code"), [(chats(3), 0), ([*chats(3), *failing(1)], 5)])
def test_watch_waits_and_tells_how_it_ended(cli: Cli, lines: list[dict[str, object]], code: int) -> None:
    batch_id = cli.submit("a.jsonl", lines)
    cli.drain()
    assert cli("watch", batch_id).code == 0
    done = cli("watch", batch_id, "--exit-status")
    assert done.code == code
    assert "completed" in done.out
    assert cli("watch", batch_id, "--json").document["status"] == "completed"


def test_results_go_to_a_file_that_is_never_overwritten(cli: Cli) -> None:
    batch_id = cli.submit("a.jsonl", chats(3))
    cli.drain()
    done = cli("results", batch_id, "-o", "copy.jsonl")
    assert (done.code, done.out) == (0, "")
    assert "3 lines written to" in done.err
    assert (cli.folder / "copy.jsonl").read_bytes() == (cli.folder / "a.output.jsonl").read_bytes()
    again = cli("results", batch_id, "-o", "copy.jsonl")
    assert again.code == 2
    assert "already exists" in again.err


def test_a_batch_whose_folder_is_gone_can_be_read_and_removed(cli: Cli) -> None:
    """Mutant: a delete that takes ended batches alone; nothing then ever gets rid of this one."""
    (cli.folder / "out").mkdir()
    batch_id = cli.submit("a.jsonl", chats(3), "-o", "out/answers.jsonl")
    (cli.folder / "out").rmdir()
    refused = cli("cancel", batch_id)
    assert (refused.code, refused.out) == (1, "")
    assert f"is cancelled, but {cli.folder / 'out'} cannot be written: No such file" in refused.err
    assert "delete --force" in refused.err
    kept = cli("delete", batch_id)
    assert kept.code == 1
    assert "--force" in kept.err
    assert cli("results", batch_id, "--errors").out.count("batch_cancelled") == 3
    assert cli("delete", "--force", batch_id).code == 0
    assert cli("list", "-q").out == ""


def test_force_deletes_nothing_that_may_still_be_answered(cli: Cli) -> None:
    batch_id = cli.submit("a.jsonl", chats(3))
    assert cli("delete", "--force", batch_id).code == 1
    assert cli("status", batch_id, "-q").code == 0


def test_failed_requests_are_retried_more_than_once_at_a_time(cli: Cli) -> None:
    """Mutant: names that are free on the disk but promised to an unfinished retry."""
    batch_id = cli.submit("a.jsonl", [chat("bad", "x", echo="error400")])
    cli.drain()
    again = [cli("retry", batch_id, "--json").document["output_path"] for _ in range(2)]
    elsewhere = cli("retry", batch_id, "-o", "mine.jsonl", "--json").document["output_path"]
    assert [Path(path).name for path in (*again, elsewhere)] == [
        "a.output.retry.jsonl",
        "a.output.retry2.jsonl",
        "mine.jsonl",
    ]


def test_cancel_keeps_what_is_finished(cli: Cli) -> None:
    batch_id = cli.submit("a.jsonl", chats(3))
    done = cli("cancel", batch_id)
    assert done.out == f"{batch_id} is cancelled: 0 of 3 requests were finished and stay\n"
    assert (cli.folder / "a.errors.jsonl").read_text().count('"batch_cancelled"') == 3
    assert cli("watch", batch_id, "--exit-status").code == 5
    assert cli("cancel", batch_id).code == 1


def test_a_batch_may_have_a_deadline(cli: Cli) -> None:
    document = cli("submit", cli.file("a.jsonl", chats(3)), "--expires-in", "12h", "--json").document
    assert document["completion_window"] == "12h"
    assert document["expires_at"] == document["created_at"] + 12 * 3600
    assert "deadline" in cli("status", document["id"]).out


def test_an_empty_store(cli: Cli) -> None:
    done = cli("list")
    assert (done.code, done.out) == (0, "")
    assert "vbatch submit" in done.err
    assert cli("list", "--json").document == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
        "paused": None, "workers": [],
    }  # fmt: skip
    assert cli("list", "-q").out == ""


def test_a_selftest_finds_nothing_lost(cli: Cli) -> None:
    done = cli("selftest", "--for", "3s", "--json")
    assert done.code == 0, done.out
    assert set(done.document) == {
        "requests", "kills", "saved_under_fire", "lost", "doubled", "wrong", "seconds", "passed",
    }  # fmt: skip
    assert (done.document["lost"], done.document["doubled"], done.document["passed"]) == (0, 0, True)
    assert cli("list", "-q").out == ""


def test_names_cannot_steer_the_terminal(cli: Cli) -> None:
    evil = "a\x1b[2J\u202eb"
    batch_id = cli.submit("a.jsonl", [chat("id\x1b[31m", "x", echo="error400")], "--name", evil)
    cli.drain()
    for command in (["list"], ["status", batch_id], ["status", batch_id, "--json"], ["list", "--json"]):
        done = cli(*command)
        assert done.code == 0
        assert not {"\x1b", "\u202e"} & set(done.out + done.err)
    assert cli("status", batch_id, "--json").document["name"] == evil


def test_a_misspelt_variable_is_reported(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBATCH_DATABSE_URL", "x")
    assert cli("list", "-q").err == (
        "warning: VBATCH_DATABSE_URL is not a setting of vbatch; did you mean VBATCH_DATABASE_URL?\n"
    )


def test_a_worker_logs_one_event_a_line(cli: Cli) -> None:
    cli.submit("a.jsonl", chats(3))
    for line in cli.drain().err.splitlines():
        moment, level, event, *pairs = line.split(" ")
        assert moment.endswith("Z")
        assert level in {"info", "warning"}
        assert "." in event
        assert all("=" in pair for pair in pairs if '"' not in line)


# What people get wrong, with the exit code of the documentation and a word of what they are told.
MISTAKES: list[tuple[list[str], int, str]] = [
    (["submit", "none.jsonl"], 2, "No such file"),
    (["submit", "x" * 300], 2, "cannot be read: File name too long"),
    (["submit", "/proc/self/mem"], 2, "/proc/self/mem cannot be read beyond byte 0: Input/output error"),
    (["submit", "."], 2, "is a folder"),
    (["submit", "empty.jsonl"], 3, "holds no request"),
    (["submit", "binary.jsonl"], 3, "not UTF-8"),
    (["submit", "cut.jsonl"], 3, "cut off"),
    (["submit", "good.jsonl", "-o", "no/such/folder/x.jsonl"], 2, "no folder"),
    (["submit", "good.jsonl", "-o", "x" * 300], 2, "has 300 bytes; at most"),
    (["submit", "good.jsonl", "-o", f"{'x' * 300}/a"], 2, "no folder"),
    (["submit", "good.jsonl", "-o", "-"], 2, "hint: vbatch results ID"),
    (["submit", "good.jsonl", "-o", ""], 2, "-o names no file"),
    (["submit", "good.jsonl", "--error-file", "-"], 2, "hint: vbatch results ID"),
    (["submit", "good.jsonl", "-m", ""], 2, "--model names no model"),
    (["results", "batch_none", "-o", "-"], 2, "hint: vbatch results batch_none"),
    (["retry", "batch_none", "-o", "-"], 2, "hint: vbatch results ID"),
    (["submit", "good.jsonl", "-o", "good.jsonl"], 2, "input file itself"),
    (["submit", "good.jsonl", "-o", "taken.txt"], 2, "already exists"),
    (["submit", "good.jsonl", "--metadata", "novalue"], 2, "not of the form KEY=VALUE"),
    (["submit", "good.jsonl", "--wait", "--dry-run"], 2, "stores nothing"),
    (["submit", "good.jsonl", "--expires-in", "soon"], 2, "--expires-in: 'soon' is not a duration"),
    (["status", "batch_none"], 4, "no batch"),
    (["status", ""], 4, "no batch"),
    (["status", "%"], 4, "no batch"),
    (["results", "batch_none"], 4, "no batch"),
    (["watch", "batch_none"], 4, "no batch"),
    (["cancel", "batch_none"], 4, "no batch"),
    (["retry", "batch_none"], 4, "no batch"),
    (["delete", "batch_none"], 4, "no batch"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES)
def test_a_mistake_gets_its_exit_code_and_no_traceback(
    cli: Cli, arguments: list[str], code: int, words: str
) -> None:
    cli.file("good.jsonl", chats(1))
    cli.file("empty.jsonl", b"")
    cli.file("binary.jsonl", b"\xfe\xed\xfa\xce\n")
    cli.file("cut.jsonl", json.dumps(chat("a", "b")).encode()[:-5])
    cli.file("taken.txt", b"mine")
    done = cli(*arguments)
    assert done.code == code, done.err
    assert words in done.err
    assert done.err.startswith("error: ")
    assert cli("list", "-q").out == ""
    assert (cli.folder / "taken.txt").read_bytes() == b"mine"
    assert not (cli.folder / "-").exists()


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("mysql://h/d", 78, "supports sqlite and postgresql, not 'mysql'"),
        ("nonsense", 78, "cannot be understood"),
        ("sqlite:////proc/none/vbatch.db", 78, "cannot be opened"),
        ("sqlite://", 78, "names no file"),
        ("postgresql://me:hunter2@/none?host=/tmp", 75, "cannot be reached"),
    ],
)
def test_a_store_that_cannot_be_used(
    cli: Cli, url: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vbatch.batches.startup.COMMAND_PATIENCE", _short_patience())
    monkeypatch.setenv("VBATCH_DATABASE_URL", url)
    done = cli("list", "--json")
    assert done.code == code
    assert words in done.err
    assert "hunter2" not in done.err + done.out
    assert done.document["error"]["message"]


def _short_patience() -> object:
    from datetime import timedelta

    from vbatch.store import Patience

    return Patience(limit=timedelta(seconds=1), pause=timedelta(seconds=0.3))


def test_waiting_for_the_store_is_visible(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbatch.batches.startup.COMMAND_PATIENCE", _short_patience())
    monkeypatch.setenv("VBATCH_DATABASE_URL", "postgresql://me@127.0.0.1:1/none")
    started = time.monotonic()
    done = cli("list")
    assert "waiting for the store: no server listens there (connection refused)" in done.err
    assert time.monotonic() - started < 50, "it took the patience of a minute"


def test_a_wrong_configuration_file(cli: Cli) -> None:
    config = cli.folder.parent / "home" / "config" / "vbatch" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('engine = "echo"\ngpus = 1\n')
    done = cli("list")
    assert done.code == 78
    assert f"{config}: gpus is not a setting; did you mean gpu?" in done.err


def test_a_folder_that_is_read_only(cli: Cli) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    Path("locked").mkdir(mode=0o500)
    assert cli("submit", cli.file("a.jsonl", chats(1)), "-o", "locked/x.jsonl").code == 2
