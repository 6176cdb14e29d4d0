"""A model that is not there: named at submit, its requests wait with the reason, and every door shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.commands import Home, chat, chats
from vbatch.errors import ExitCode


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """A file alone: what differs between databases is tested in tests/store."""
    return f"sqlite:///{tmp_path / 'vbatch.db'}"


@pytest.fixture
def offline(home: Home) -> Home:
    """A machine that has one model, ``Qwen3-8B``, and cannot download another."""
    home.extra["HF_HUB_OFFLINE"] = "1"
    (home.path / "cache" / "vbatch" / "models" / "Qwen3-8B").mkdir(parents=True)
    config = home.path / "config" / "vbatch" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[models."Qwen3-8B"]\npath = "{home.path}/cache/vbatch/models/Qwen3-8B"\n')
    return home


@pytest.fixture
def blocked(offline: Home) -> str:
    """A batch for a model that a worker could not load."""
    batch = offline.submit(chats(3, model="qwen-8b"))
    ended = offline.run("run-worker", "--drain", check=False)
    assert ended.returncode == ExitCode.ENGINE_UNAVAILABLE, ended.stderr
    assert "qwen-8b is not on this machine" in ended.stderr
    assert "did you mean Qwen3-8B?" in ended.stderr
    return batch


def test_submit_names_a_model_that_is_not_there_and_the_nearest(offline: Home) -> None:
    """Mutant: submit that says nothing; a night is spent on a typing error."""
    source = offline.write("typo", chats(2, model="qwen-8b"))
    done = offline.run("submit", source, "--json")
    (warning,) = json.loads(done.stdout)["warnings"]
    assert "qwen-8b is not on this machine" in warning
    assert "did you mean Qwen3-8B?" in warning
    shown = offline.run("submit", source, "-o", offline.path / "other.jsonl").stderr
    assert "warning: qwen-8b is not on this machine" in shown
    right = offline.run("submit", offline.write("right", chats(2, model="Qwen3-8B"))).stderr
    assert "is not on this machine" not in right


def test_submit_names_a_model_without_an_owner_that_the_hub_must_know(home: Home) -> None:
    """The hub may have it, but has few such names. Mutant: silence where no model is like it."""
    source = home.write("short", [*chats(1, model="tiny-one"), *chats(1, model="owner/tiny", prefix="o")])
    (warning,) = json.loads(home.run("submit", source, "--json").stdout)["warnings"]
    assert "tiny-one is not on this machine; the first load tries to download it" in warning
    assert "OWNER/NAME" in warning
    dry = home.run("submit", source, "--dry-run").stderr
    assert dry.count("is not on this machine") == dry.count("warning: tiny-one is not") == 1


def test_a_warning_is_printed_once(home: Home) -> None:
    """Mutant: one for each time that a command reads the settings."""
    home.extra["VBATCH_GPUU"] = "1"
    shown = home.run("submit", home.write("one", chats(1))).stderr
    assert shown.count("VBATCH_GPUU is not a setting of vbatch") == 1
    assert "no batch matches" in home.run("list", "--name", "other").stderr


def test_a_blocked_batch_is_shown_as_that_after_its_worker(offline: Home, blocked: str) -> None:
    """Mutants: a reason that ends with the worker; requests that are failed."""
    document: dict[str, Any] = offline.batch(blocked)
    assert document["status"] == "in_progress"
    assert document["request_counts"] == {"total": 3, "completed": 0, "failed": 0}
    found = document["blocked"]
    assert (found["model"], found["requests"], found["endpoint"]) == ("qwen-8b", 3, None)
    assert "not on this machine" in found["reason"]
    assert found["since"].endswith("Z")
    shown = offline.run("status", blocked).stdout
    for expected in (
        "blocked",
        "3 requests cannot run: qwen-8b",
        "not on this machine",
        "did you mean Qwen3-8B?",
    ):
        assert expected in shown
    assert "blocked" in offline.run("list").stdout
    assert offline.run("list", "--status", "blocked", "-q").stdout.split() == [blocked]
    assert json.loads(offline.run("list", "--json").stdout)["data"][0]["blocked"] == found
    doctor = json.loads(offline.run("doctor", "queue.blocked", "--json", check=False).stdout)
    (finding,) = [each for each in doctor["findings"] if each["id"] == "queue.blocked"]
    assert finding["level"] == "fail"


def test_who_waits_for_blocked_requests_does_not_wait_for_ever(offline: Home, blocked: str) -> None:
    """Mutant: no --blocked-limit."""
    limit = ("--blocked-limit", "1s")
    waited = offline.run("watch", blocked, "--exit-status", *limit, check=False)
    assert waited.returncode == ExitCode.ENGINE_UNAVAILABLE
    assert "qwen-8b" in waited.stderr
    source = offline.write("again", chats(2, model="qwen-8b"))
    waited = offline.run("submit", source, "--wait", *limit, check=False)
    assert waited.returncode == ExitCode.ENGINE_UNAVAILABLE


def test_blocked_requests_are_run_with_another_model(offline: Home, blocked: str) -> None:
    """In one step: nothing is lost or doubled. Mutant: a new batch whose old one keeps its requests."""
    made = offline.run("retry", blocked, "-m", "echo", "-q").stdout.strip()
    old, new = offline.batch(blocked), offline.batch(made)
    assert (old["status"], old["blocked"]) == ("completed", None)
    assert old["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    assert (offline.path / "prompts.errors.jsonl").read_text().count("submitted_again") == 3
    assert (new["model"], new["request_counts"]) == ("echo", {"total": 3, "completed": 0, "failed": 0})
    offline.run("run-worker", "--engine", "echo", "--drain")
    assert offline.batch(made)["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    refused = offline.run("retry", blocked, "-m", "echo", check=False)
    assert "no request" in refused.stderr, "they are in the other batch"


def test_only_the_blocked_requests_of_a_batch_wait(offline: Home) -> None:
    batch = offline.submit([chat("a", "x", model="echo"), chat("b", "x", model="qwen-8b")])
    offline.run("run-worker", "--drain", check=False)
    document: dict[str, Any] = offline.batch(batch)
    assert [block["requests"] for block in document["blocked_models"]] == [1]
    offline.run("run-worker", "--engine", "echo", "--drain")
    assert offline.run("list", "--status", "blocked", "-q").stdout.split() == [batch]


def test_a_drain_names_each_blocked_model_with_what_to_do(offline: Home) -> None:
    """Mutant: the hint of the first alone."""
    offline.submit([chat("a", "x", model="qwen-8b"), chat("b", "x", model="mistral")])
    ended = offline.run("run-worker", "--drain", check=False)
    shown = ended.stderr.splitlines()
    error, hint = [line for line in shown if line.startswith(("error: ", "hint: "))]
    for words in (
        "qwen-8b is not on this machine, and nothing can be downloaded (did you mean Qwen3-8B?)",
        "mistral is not on this machine, and nothing can be downloaded (hf download mistral)",
    ):
        assert words in error
    assert hint == "hint: vbatch doctor queue.blocked", ended.stderr


def test_a_name_that_no_file_can_have_is_only_a_missing_model(offline: Home) -> None:
    """Mutant: ``Path.is_dir``, which raises; the command then fails after the batch was accepted."""
    done = offline.run("submit", offline.write("long", chats(1, model="m" * 300)))
    assert "warning: mmmm" in done.stderr
    assert "cannot be a name on the Hugging Face hub" in done.stderr.replace("\n", " ")
    ended = offline.run("run-worker", "--drain", check=False)
    assert ended.returncode == ExitCode.ENGINE_UNAVAILABLE, ended.stderr
    assert offline.run("doctor", "engine.model", check=False).returncode == ExitCode.FAILED


def test_a_folder_that_is_not_there_is_named(offline: Home) -> None:
    gone = Path("/nowhere/model")
    offline.submit(chats(1, model=str(gone)))
    ended = offline.run("run-worker", "--drain", check=False)
    assert ended.returncode == ExitCode.ENGINE_UNAVAILABLE
    assert "there is no model folder /nowhere/model" in ended.stderr
