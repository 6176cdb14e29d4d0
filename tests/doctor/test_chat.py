"""The sockets for chat as doctor finds them."""

from __future__ import annotations

import pytest

from tests.rigs.commands import Home
from tests.rigs.filling import worker
from tests.rigs.workers import settings_in
from vbatch.doctor.checks import chat
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level
from vbatch.store import Store
from vbatch.system import processes, sockets

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def found(home: Home, store: Store, *, on: bool) -> dict[str, Finding]:
    facts = Facts(settings=settings_in(home.path, chat=on, database_url=None))
    facts.__dict__["records"] = store
    return {finding.id: finding for finding in chat.CHECKS[0].run(facts)}


def test_sockets_that_are_stale_open_or_missing(home: Home, store: Store) -> None:
    """Mutants: no look at the mode; a socket of another host is removed; the repair removes one that answers."""
    assert found(home, store, on=False) == {}
    here = worker(store, identity=processes.current())
    assert found(home, store, on=True)["service.chat_missing"].level is Level.WARN
    with sockets.listen(home.path, here):
        findings = found(home, store, on=True)
        assert list(findings) == ["service.chat"]
        assert findings["service.chat"].level is Level.OK
        sockets.path_of(home.path, here).chmod(0o666)
        assert list(found(home, store, on=True)) == ["service.chat"], "the folder is closed to others"
        (home.path / sockets.FOLDER).chmod(0o755)
        assert "666" in found(home, store, on=True)["service.chat_open"].what
    stale = found(home, store, on=True)["service.chat_stale"]
    assert stale.repair is not None
    assert stale.repair.carry_out() == "removed"
    assert sockets.found(home.path) == []
    sockets.listen(home.path, worker(store, pid=7)).close()  # of a worker on another machine
    assert "service.chat_stale" not in found(home, store, on=True)
