"""Who asked for it is notified that a batch has ended or is blocked: at least once, and nothing waits for it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import openai
import pytest
from sqlalchemy import update

from tests.rigs.commands import Home, chat, chats
from tests.rigs.receiver import Receiver, receiver
from tests.rigs.waiting import until
from vbatch.cli.arguments import notify_names
from vbatch.errors import ExitCode
from vbatch.store import Store
from vbatch.store.tables import EVENT


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """A file alone: what differs between databases is tested in tests/store."""
    return f"sqlite:///{tmp_path / 'vbatch.db'}"


SECRET = "whsec_" + base64.b64encode(b"a key of thirty-two bytes or so!").decode()


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def ready(home: Home) -> Home:
    """A home whose configuration has a command ``note``, which writes what it gets, and a key for webhooks."""
    config = home.path / "config" / "vbatch" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        f'notify_private = true\nnotify_secret = "{SECRET}"\n'
        f'[notify.note]\ncommand = ["tee", "{home.path}/noted.json"]\n'
        '[notify.broken]\ncommand = ["false"]\n'
    )
    return home


def test_a_webhook_is_openais_and_signed(ready: Home, hook: Receiver) -> None:
    """As the official client checks it. Mutants: another body than the one that is signed; a time in milliseconds."""
    batch = ready.submit(chats(2), "--notify", hook.url())
    ready.run("run-worker", "--engine", "echo", "--drain")
    (seen,) = hook.requests
    event = openai.OpenAI(api_key="none", webhook_secret=SECRET).webhooks.unwrap(seen.body, seen.headers)
    assert event.type == "batch.completed"
    assert event.data.id == batch
    assert event.id == seen.headers["webhook-id"]


def test_a_command_gets_the_batch_and_no_shell(ready: Home) -> None:
    batch = ready.submit(chats(2), "--notify", "note")
    ready.run("run-worker", "--engine", "echo", "--drain")
    document = json.loads((ready.path / "noted.json").read_text())
    assert (document["id"], document["status"], document["event"]) == (batch, "completed", "batch.completed")


def test_the_default_of_the_configuration_is_used(ready: Home, hook: Receiver) -> None:
    ready.extra["VBATCH_NOTIFY_DEFAULT"] = hook.url()
    ready.submit(chats(1))
    ready.run("run-worker", "--engine", "echo", "--drain")
    assert len(hook.requests) == 1


def test_a_name_that_is_not_configured_is_refused_at_submit(ready: Home) -> None:
    refused = ready.run("submit", ready.write("a", chats(1)), "--notify", "nobody", check=False)
    assert refused.returncode == ExitCode.USAGE
    assert "it has note, broken" in refused.stderr
    assert ready.run("submit", ready.write("a", chats(1)), "--notify", "ftp://h", check=False).returncode == 2
    assert ready.run("list", "-q").stdout == ""


def test_a_batch_that_a_command_ends_is_notified_of_too(ready: Home, hook: Receiver) -> None:
    batch = ready.submit(chats(2), "--notify", hook.url())
    ready.run("cancel", batch)
    assert [json.loads(seen.body)["type"] for seen in hook.requests] == ["batch.cancelled"]


def test_a_blocked_batch_is_notified_of_once(ready: Home, hook: Receiver) -> None:
    """Mutant: an event at each try."""
    ready.extra["HF_HUB_OFFLINE"] = "1"
    ready.submit([chat("a", "x", model="none")], "--notify", hook.url())
    for _ in range(2):
        ready.run("run-worker", "--drain", check=False)
    assert [json.loads(seen.body)["type"] for seen in hook.requests] == ["vbatch.batch.blocked"]


def test_who_cannot_be_notified_holds_up_no_batch_and_is_reported(ready: Home) -> None:
    """Mutant: the failure of a command taken for the worker's."""
    batch = ready.submit(chats(2), "--notify", "broken")
    ready.run("run-worker", "--engine", "echo", "--drain")
    assert ready.batch(batch)["status"] == "completed"
    doctor = json.loads(ready.run("doctor", "queue.notify", "--json", check=False).stdout)
    (finding,) = [each for each in doctor["findings"] if each["id"] == "queue.notify"]
    assert finding["level"] == "warn"
    assert "false exited with 1" in finding["what"]
    ready.run("delete", batch)
    assert "could not be delivered" not in ready.run("doctor", "queue.notify", check=False).stdout


def test_a_worker_that_dies_before_it_could_notify_leaves_that_to_the_next(
    ready: Home, hook: Receiver
) -> None:
    """The event is in the store with the ending. Mutant: a notification from memory after the commit."""
    hook.delay = 600
    batch = ready.submit(chats(2), "--notify", hook.url())
    with ready.worker("--engine", "echo") as worker:
        until(lambda: hook.requests)
        assert ready.batch(batch)["status"] == "completed"
        worker.kill()
        worker.wait()
    hook.closing.set()
    hook.delay = 0
    all_due(ready)
    ready.run("run-worker", "--engine", "echo", "--drain")
    first, second = hook.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_a_target_that_fails_is_tried_again_under_the_same_id(ready: Home, hook: Receiver) -> None:
    """Mutants: what fails is forgotten; a new id, by which a receiver takes it for another event."""
    hook.status = 500
    ready.submit(chats(1), "--notify", hook.url("/hook?key=hunter2"))
    log = ready.run("run-worker", "--engine", "echo", "--drain").stderr
    assert "reason=HTTP 500" in log.replace('"', "")
    assert "hunter2" not in log
    hook.status = 200
    ready.run("run-worker", "--engine", "echo", "--drain")
    assert len(hook.requests) == 1  # not due yet
    all_due(ready)
    ready.run("run-worker", "--engine", "echo", "--drain")
    first, second = hook.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_a_name_that_a_worker_does_not_know_waits_for_one_that_does(ready: Home) -> None:
    """Mutant: the worker without the name takes the event, and who knows it has to wait."""
    batch = ready.submit(chats(1), "--notify", "note")
    other = ready.path / "other.toml"
    other.write_text("")
    ready.extra["VBATCH_CONFIG"] = str(other)
    log = ready.run("run-worker", "--engine", "echo", "--drain").stderr
    assert "notify.unknown_name" in log
    doctor = ready.run("doctor", "queue.notify", check=False).stdout
    assert "no process that knows this name ran yet" in " ".join(doctor.split())
    del ready.extra["VBATCH_CONFIG"]
    ready.run("run-worker", "--engine", "echo", "--drain")
    assert json.loads((ready.path / "noted.json").read_text())["id"] == batch


def test_a_command_that_ends_a_batch_waits_a_moment_at_most(ready: Home, hook: Receiver) -> None:
    """Mutant: the limit of a worker's delivery, 20 s."""
    hook.delay = 600
    batch = ready.submit(chats(1), "--notify", hook.url())
    started = time.monotonic()
    ready.run("cancel", batch)
    assert time.monotonic() - started < 15
    assert len(hook.requests) == 1


def test_a_worker_that_ends_waits_a_moment_at_most(ready: Home, hook: Receiver) -> None:
    """Mutant: it waits for each delivery; with four targets that hang, more than a minute."""
    hook.delay = 600
    for number in range(4):
        ready.submit(chats(1), "--notify", hook.url(), name=f"p{number}")
    with ready.worker("--engine", "echo") as worker:
        until(lambda: hook.requests)
        started = time.monotonic()
        worker.terminate()
        assert worker.wait() == 0
        assert time.monotonic() - started < 30


def test_a_command_learns_why_a_batch_is_blocked(ready: Home) -> None:
    """Mutant: the batch without what blocks it."""
    ready.extra["HF_HUB_OFFLINE"] = "1"
    ready.submit([chat("a", "x", model="none")], "--notify", "note")
    ready.run("run-worker", "--drain", check=False)
    document = json.loads((ready.path / "noted.json").read_text())
    assert (document["event"], document["blocked"]["model"]) == ("vbatch.batch.blocked", "none")
    assert document["blocked"]["reason"]


def test_a_retry_is_notified_of_like_its_batch(ready: Home, hook: Receiver) -> None:
    """Mutant: the new batch has nobody to notify."""
    first = ready.submit([chat("a", "x", echo="error400")], "--notify", hook.url())
    ready.run("run-worker", "--engine", "echo", "--drain")
    second = ready.run("retry", first, "-q").stdout.strip()
    ready.run("run-worker", "--engine", "echo", "--drain")
    assert [json.loads(seen.body)["data"]["id"] for seen in hook.requests] == [first, second]


def test_a_secret_that_is_none_is_refused_before_anything_is_lost(ready: Home) -> None:
    """Mutant: it is looked at when an event is delivered, and no event ever is."""
    for wrong in ("whsec_hunter2?", "whsec_", "aHVudGVyMg==", "whsec_hunter2ä"):
        ready.extra["VBATCH_NOTIFY_SECRET"] = wrong
        refused = ready.run("run-worker", "--drain", check=False)
        assert refused.returncode == ExitCode.MISCONFIGURED
        assert "VBATCH_NOTIFY_SECRET: it must be whsec_ and base64" in refused.stderr
        assert "hunter2" not in refused.stderr


def test_a_report_holds_no_secret_of_a_target(ready: Home) -> None:
    """Mutants: the settings as they are; the path of a webhook, which is often its only secret."""
    config = ready.path / "config" / "vbatch" / "config.toml"
    config.write_text(
        config.read_text() + '[notify.chat]\ncommand = ["curl", "https://hooks.example/services/hunter2"]\n'
    )
    ready.extra["VBATCH_NOTIFY_DEFAULT"] = "http://hunter2@127.0.0.1:9/hunter2?a=hunter2"
    ready.submit(chats(1))
    ready.run("run-worker", "--engine", "echo", "--drain")  # nothing listens there
    ready.run("doctor", "--report", "report.md", check=False)
    report = (ready.path / "report.md").read_text()
    assert "http://127.0.0.1:9/…" in report
    assert "'chat': 'curl'" in report
    assert "hunter2" not in report
    assert SECRET not in report


def test_tab_offers_the_names(ready: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ready.env.items():
        monkeypatch.setenv(name, value)
    assert notify_names("") == ["note", "broken"]
    assert notify_names("n") == ["note"]
    monkeypatch.setenv("VBATCH_CONFIG", "/nowhere")
    assert notify_names("") == []


def all_due(home: Home) -> None:
    """Let the time pass after which what failed, or was taken by a dead process, is due again."""
    store = Store(home.database_url)
    store.write(lambda connection: connection.execute(update(EVENT).values(next_at=datetime.now(UTC))))
    store.close()
