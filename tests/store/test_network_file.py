"""A SQLite file on a network file system: refused for a second host, and where locks do not work."""

from __future__ import annotations

import errno
import fcntl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.rigs.filling import NOBODY, worker
from vbatch.batches import open_store
from vbatch.errors import ExitCode, StoreMisconfigured
from vbatch.store import Store, network_file
from vbatch.store.tables import WORKER
from vbatch.system import disks, processes
from vbatch.worker.registration import Registration


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store' / 'vbatch.db'}"


@pytest.fixture
def over_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the file system of the tests count as one of a network: its kind is all that vbatch goes by."""
    kind = disks.mount_of(tmp_path).kind
    monkeypatch.setattr(disks, "_NETWORK", disks._NETWORK | {kind})


@pytest.mark.usefixtures("over_network")
def test_a_second_host_is_refused_while_the_first_one_works(store: Store) -> None:
    """Mutants: any worker counts (this host's too); a worker that died long ago counts; only workers are refused,
    not a submit; a command that only reads is refused.
    """
    url = str(store.file and f"sqlite:///{store.file}")
    worker(store, identity=processes.current())
    Registration(store, engine="echo", gpus=())
    other = worker(store, identity=NOBODY)
    with pytest.raises(
        StoreMisconfigured, match="a network file system, and process 2 on elsewhere works with it"
    ):
        Registration(store, engine="echo", gpus=())
    with pytest.raises(StoreMisconfigured) as refused, open_store(url):
        pass
    assert refused.value.exit_code is ExitCode.MISCONFIGURED
    assert "PostgreSQL" in (refused.value.hint or "")
    with open_store(url, reads=True):
        pass
    long_ago = datetime.now(UTC) - network_file.FRESH - timedelta(seconds=5)
    store.write(
        lambda connection: connection.execute(
            update(WORKER).where(WORKER.c.id == other).values(heartbeat_at=long_ago)
        )
    )
    Registration(store, engine="echo", gpus=())


def test_a_local_disk_and_other_hosts_rows_are_fine(store: Store) -> None:
    """A store that was copied to another machine has rows of the old one. Mutant: no look at the file system."""
    worker(store, identity=NOBODY)
    Registration(store, engine="echo", gpus=())


@pytest.mark.usefixtures("over_network")
@pytest.mark.parametrize(
    "refusal", [errno.ENOLCK, errno.ENOTSUP, None], ids=["no locks", "unknown", "granted twice"]
)
def test_locks_that_do_not_work_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    """What nfs without lockd, a FUSE file system, and one mounted with local locks answer. Mutant: any error counts
    as a lock that holds.
    """
    assert store.file is not None
    assert network_file.locks_work(store.file.parent)

    def fcntl_there(*_: object) -> bytes:
        if refusal is not None:
            raise OSError(refusal, "not there")
        return b""

    monkeypatch.setattr(fcntl, "fcntl", fcntl_there)
    with pytest.raises(StoreMisconfigured, match="whose locks do not work") as refused:
        network_file.require_safe(store)
    assert refused.value.exit_code is ExitCode.MISCONFIGURED
