"""What systemd hears from a worker, and when: by the datagrams themselves."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest

from tests.rigs.commands import Home, chats
from tests.rigs.waiting import SILENCE, exit_code
from vbatch.worker import systemd as notifications
from vbatch.worker.progress import View
from vbatch.worker.systemd import announced

PAUSE = timedelta(milliseconds=5)
FOREVER = timedelta(hours=1)


class Listener:
    """A service manager's end of NOTIFY_SOCKET."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.heard: list[str] = []

    def next(self) -> str:
        """Return the next assignment; fails after a few seconds of silence."""
        self.heard.append(self._channel.recv(4096).decode())
        return self.heard[-1]

    def until_silent(self, *, messages: int) -> None:
        """Read until nothing is said any more; fails at more messages than that."""
        self._channel.settimeout(0.5)
        with suppress(TimeoutError):
            for _ in range(messages + 1):
                self.next()
            raise AssertionError(f"it does not fall silent: {self.heard}")


@contextmanager
def listening(folder: Path) -> Iterator[tuple[str, Listener]]:
    address = str(folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address)
        channel.settimeout(SILENCE)
        yield address, Listener(channel)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    with listening(tmp_path) as (address, listener):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setattr(notifications, "PAUSE", PAUSE)
        yield listener


def test_a_start_is_extended_while_it_lasts(systemd: Listener) -> None:
    """Mutant: without EXTEND_TIMEOUT_USEC a database that is late, or a migration, is cut off."""
    view = View()
    with announced(view, stopping=lambda: False, drain_limit=FOREVER):
        assert [systemd.next(), systemd.next()] == ["EXTEND_TIMEOUT_USEC=60000000", "STATUS=starting"]
        assert systemd.next() == "EXTEND_TIMEOUT_USEC=60000000"
        view.update(state="idle")
        while systemd.next() != "STATUS=idle: no batch is waiting":
            pass
        systemd.until_silent(messages=0)


def test_a_start_that_says_nothing_for_too_long_is_not(
    systemd: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "LONGEST_MIGRATION", 3 * PAUSE)
    with announced(View(), stopping=lambda: False, drain_limit=FOREVER):
        systemd.until_silent(messages=10)
    assert len(systemd.heard) == 3  # two extensions and one status


def test_a_stop_is_extended_up_to_the_drain_limit_and_the_last_writes(
    systemd: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutants: no extension at a stop: the unit's TimeoutStopSec, of the drain limit at its installation,
    cuts a longer one off. An extension without end: a worker that hangs in its stop is never ended.
    """
    monkeypatch.setattr(notifications, "AFTER_DRAIN", 4 * PAUSE)
    view = View()
    view.update(state="working")
    with announced(view, stopping=lambda: True, drain_limit=6 * PAUSE):
        systemd.until_silent(messages=20)
    assert systemd.heard.count("EXTEND_TIMEOUT_USEC=60000000") == 9
    assert systemd.heard[-1] != "STATUS=working"


def test_a_worker_says_that_it_is_ready_and_that_it_stops(tmp_path: Path) -> None:
    """Mutants: without READY=1 a start never ends; without STOPPING=1 systemd knows of no stop of its own."""
    home = Home(tmp_path, f"sqlite:///{tmp_path}/vbatch.db")
    home.submit(chats(2))
    with (
        listening(tmp_path) as (address, systemd),
        home.worker("--engine", "echo", "--drain", NOTIFY_SOCKET=address) as worker,
    ):
        while systemd.next() != "STOPPING=1":
            pass
        assert exit_code(worker) == 0
    assert "READY=1\nSTATUS=ready" in systemd.heard
