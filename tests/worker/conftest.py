"""What the tests of a worker in this process share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.parrot import PARROT
from tests.rigs.workers import settings_in
from vbatch.engine.kinds import KINDS
from vbatch.store import WORKER_PATIENCE, Store
from vbatch.worker import Stop, View
from vbatch.worker.context import Context
from vbatch.worker.heartbeat import Watchdog
from vbatch.worker.registration import Registration


@pytest.fixture
def context(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """A worker's surroundings, its settings those of a drain on an engine that echoes for any model."""
    monkeypatch.setitem(KINDS, PARROT.name, PARROT)
    context = Context(
        store=Store(store.url.render_as_string(hide_password=False), patience=WORKER_PATIENCE),
        settings=settings_in(tmp_path, engine=PARROT.name),
        drain=True,
        registration=Registration(store, engine=PARROT.name, gpus=()),
        view=View(),
        stop=Stop(),
        watchdog=Watchdog(),
    )
    yield context
    context.close()
    context.store.close()
