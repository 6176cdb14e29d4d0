"""``pause`` and ``resume``: what they print, what they refuse, and where a pause shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import chats
from vbatch import pausing

KEYS = {"object", "host", "paused", "file"}
PAUSE_KEYS = {"reason", "now", "since", "until", "by"}


@pytest.fixture(autouse=True)
def machine_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root's file, elsewhere."""
    file = tmp_path / "etc" / pausing.NAME
    monkeypatch.setattr(pausing, "MACHINE_FILE", file)
    return file


def test_the_keys_of_both_documents(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A contract. No store is needed: Mutant: a pause that opens the store."""
    monkeypatch.setenv("VBATCH_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    paused = cli("pause", "--now", "--json").document
    assert set(paused) == KEYS
    assert set(paused["paused"]) == PAUSE_KEYS
    assert (paused["object"], paused["paused"]["reason"], paused["paused"]["now"]) == (
        "pause",
        "account",
        True,
    )
    assert Path(paused["file"]).is_file()
    resumed = cli("resume", "--json").document
    assert set(resumed) == KEYS
    assert resumed["paused"] is None
    assert not Path(resumed["file"]).exists()


def test_what_they_say_and_where_it_shows(cli: Cli) -> None:
    batch_id = cli.submit("a.jsonl", chats(2))
    done = cli("pause")
    assert "your workers on this host finish their running requests and unload their models" in done.out
    assert "to continue: vbatch resume" in done.out
    shown = "workers are paused by"
    assert f"none is running; {shown}" in cli("status", batch_id).out
    assert shown in cli("list").err
    assert cli("list", "--json").document["paused"]["reason"] == "account"
    assert cli("status", batch_id, "--json").document["paused"]["reason"] == "account"
    assert shown in cli("submit", cli.file("b.jsonl", chats(3))).err
    drained = cli("run-worker", "--engine", "echo", "--drain")
    assert drained.code == 0
    assert "worker.drain_paused" in drained.err
    assert "2 requests saved" not in drained.err
    doctor = cli("doctor", "queue")
    assert "paused" in doctor.out
    assert doctor.code == 0
    for command in ("demo", "selftest"):
        refused = cli(command)
        assert (refused.code, "hint: vbatch resume" in refused.err) == (1, True)
    assert "your workers on this host continue" in cli("resume").out
    assert "were not paused" in cli("resume").out
    assert "paused" not in cli("list").err
    cli.drain()
    assert cli("status", batch_id, "--json").document["status"] == "completed"


def test_of_every_account(cli: Cli, machine_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: ``--all`` for anybody; a resume that hides what still pauses."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command in ("pause", "resume"):
        refused = cli(command, "--all")
        assert refused.code == 2
        assert "by root alone" in refused.err
        assert "hint: run the same command with sudo" in refused.err
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "the workers of every account" in cli("pause", "--all").out
    assert machine_file.is_file()
    still = cli("resume")
    assert "your workers are still paused by" in still.out
    assert "warning: this pause ends with: sudo vbatch resume --all" in still.err
    assert cli("resume", "--all", "--json").document["paused"] is None
    machine_file.parent.rmdir()
    machine_file.parent.write_text("no folder")
    refused = cli("pause", "--all")
    assert (refused.code, "cannot write" in refused.err) == (1, True)


def test_hours_remain_after_a_resume(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBATCH_PAUSE_HOURS", "00:00-12:00,12:00-23:59")
    done = cli("resume")
    assert "still paused until" in done.out or "not paused" in done.out  # at 23:59
    monkeypatch.setenv("VBATCH_PAUSE_HOURS", "noon")
    assert cli("pause").code == 78
