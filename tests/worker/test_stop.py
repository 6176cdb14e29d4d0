"""A stop ends the worker, whatever it waits for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.rigs.commands import Home
from tests.rigs.postgres import Postgres
from tests.rigs.proxy import Mood, Proxy, proxy
from tests.rigs.waiting import exit_code, until
from vbatch.worker import Stop


@pytest.fixture
def through(postgres: Postgres) -> Iterator[Proxy]:
    """A proxy before the server."""
    with proxy(postgres.socket) as running:
        yield running


def test_an_idle_worker_ends_while_the_database_is_away(
    through: Proxy, postgresql_url: str, tmp_path: Path
) -> None:
    """Mutant: WorkLoop without ``_limit_the_stop``; it then waits until the database is back."""
    database = make_url(postgresql_url).database
    url = f"postgresql://postgres@127.0.0.1:{through.port}/{database}?sslmode=disable"
    home = Home(tmp_path, url)
    with home.worker("--engine", "echo") as worker:
        until(lambda: "worker.ready" in home.worker_log)
        through.mood = Mood.ACCEPT_AND_CLOSE
        through.cut()
        until(lambda: "store.waiting" in home.worker_log)
        worker.send_signal(signal.SIGTERM)
        assert exit_code(worker) == 0
    assert "Traceback" not in home.worker_log


def test_a_signal_after_the_loop_has_ended_is_no_error() -> None:
    stop = Stop()
    loop = asyncio.new_event_loop()
    stop.attach(loop)
    loop.close()
    stop.request()
    assert stop.requested
