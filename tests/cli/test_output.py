"""Data goes to stdout, everything else to stderr, in the mode that was asked for."""

from __future__ import annotations

import errno
import json
import os
import sys

import pytest
import typer

from vbatch.cli import errors, main
from vbatch.cli.output import Mode, Output, Result
from vbatch.errors import ConfigError, ExitCode, NoSuchBatch, StoreUnreachable, UsageError

TWO = Result(
    ids=["a", "b"],
    document=lambda: {"name": "Grüße \x1b[2J\u202e \udcff"},
    screen=lambda: "two things",
)


@pytest.mark.parametrize(
    ("mode", "stdout"),
    [
        (Mode.QUIET, "a\nb\n"),
        (Mode.HUMAN, "two things\n"),
        (Mode.JSON, '{"name": "Grüße \\u001b[2J\\u202e \\udcff"}\n'),
    ],
)
def test_each_mode(mode: Mode, stdout: str, capsys: pytest.CaptureFixture[str]) -> None:
    Output(mode).show(TWO)
    captured = capsys.readouterr()
    assert captured.out == stdout
    assert captured.err == ""


def test_notes_go_to_stderr_and_not_into_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    Output().note("hello \x1b[2J")
    Output(Mode.QUIET).note("unheard")
    assert capsys.readouterr() == ("", "hello \\x1b[2J\n")


def test_json_and_quiet_exclude_each_other() -> None:
    with pytest.raises(UsageError):
        Output.of(json=True, quiet=True)


@pytest.mark.parametrize(
    ("error", "code", "exit_code", "words"),
    [
        (NoSuchBatch("no batch 'x'", hint="vbatch list"), "no_such_batch", 4, "no batch 'x'"),
        (StoreUnreachable(), "store_unreachable", 75, "the job store cannot be reached at the moment"),
        (ConfigError("bad"), "misconfigured", 78, "bad"),
        (KeyboardInterrupt(), "interrupted", 130, "interrupted"),
        (typer.Abort(), "interrupted", 130, "interrupted"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x\x1by"),
            "os_error",
            1,
            "x\x1by: No such file or directory",
        ),
        (typer.BadParameter("Not so."), "usage", 2, "invalid value: Not so"),
        (ZeroDivisionError("1/0"), "internal", 1, "unexpected ZeroDivisionError: 1/0"),
    ],
)
def test_an_error_in_words_and_as_a_document(
    error: BaseException, code: str, exit_code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors.report(error, ["status", "x", "--json"]) == exit_code
    captured = capsys.readouterr()
    document = json.loads(captured.out)["error"]
    assert document["code"] == code
    assert document["message"] == words
    assert set(document) == {"code", "message", "hint"}
    assert captured.err.startswith("error: ")
    assert "\x1b" not in captured.out + captured.err
    assert "Traceback" not in captured.err


def test_the_hint_follows_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    errors.report(NoSuchBatch("no batch 'x'", hint="vbatch list"), [])
    assert capsys.readouterr() == ("", "error: no batch 'x'\nhint: vbatch list\n")


def test_json_after_the_double_dash_is_vllms(capsys: pytest.CaptureFixture[str]) -> None:
    errors.report(ConfigError("bad"), ["run-worker", "--", "--json"])
    assert capsys.readouterr().out == ""


def test_the_journal_learns_how_grave_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    status = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with os.fdopen(reader) as journal:
        with os.fdopen(writer, "w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            errors.report(ConfigError("wrong password", hint="mend it"), ["run-worker"])
        assert journal.read() == "<3>error: wrong password\n<5>hint: mend it\n"


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VBATCH_DEBUG", "1")
    errors.report(ZeroDivisionError("1/0"), [])
    assert "ZeroDivisionError: 1/0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["no-such"], "no such command 'no-such'", "vbatch --help"),
        (["statsu"], "no such command 'statsu'; did you mean 'status'?", "vbatch --help"),
        (["results", "x", "--sample", "0"], "'--sample': it must be at least 1", "vbatch results --help"),
        (["status"], "missing argument 'ID'", "vbatch status --help"),
        (["status", "a", "b"], "unexpected extra argument", "vbatch status --help"),
        (
            ["submit", "x", "--priority", "high"],
            "'--priority': it must be a whole number",
            "vbatch submit --help",
        ),
        (["run-worker", "--gpu"], "option '--gpu' requires an argument", "vbatch run-worker --help"),
        (["run-worker", "--engine", "llama"], "invalid value for", "vbatch run-worker --help"),
        (
            ["run-worker", "--max-model-len", "8"],
            "no such option: --max-model-len",
            "vbatch run-worker -- --max-model-len 8",
        ),
        (["run-worker", "stray"], "unexpected argument 'stray'", "vbatch run-worker -- "),
        (["run-worker", "--max-inflight", "0"], "--max-inflight: it must be at least 1", None),
        (["list", "--json", "-q"], "--json and --quiet exclude each other", None),
    ],
)
def test_a_wrong_call(
    arguments: list[str], words: str, hint: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == ExitCode.USAGE
    first, _, second = capsys.readouterr().err.partition("\n")
    assert words in first
    assert (hint or "") in second
