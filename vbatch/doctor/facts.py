"""What the checks of one run share: the settings, the store, the state of the GPUs, the ledger; each read once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from vbatch import gpu
from vbatch.config import Settings
from vbatch.engine import installed
from vbatch.engine.kinds import KINDS
from vbatch.errors import VbatchError
from vbatch.gpu import GpuReport
from vbatch.logs import is_journal
from vbatch.recovery import orphans
from vbatch.store import NO_PATIENCE, Store
from vbatch.store.database import migrate


class NothingStored(Exception):
    """There is no store yet: the next command or worker makes it."""


class OtherTables(NothingStored):
    """The store has the tables of another version, and cannot be read by this one."""


@dataclass(kw_only=True)
class Facts:
    """The surroundings of a run. A failed read raises; the check that needs it reports it.

    ``min_free_gb`` is the memory that must be free, in GiB; None derives it from the models.
    ``only_looks`` says that nothing may be changed: a SQLite file keeps its journal mode then.
    """

    settings: Settings
    min_free_gb: float | None = None
    only_looks: bool = True
    _began: float = field(default_factory=time.monotonic)
    _stores: list[Store] = field(default_factory=list)

    @cached_property
    def store(self) -> Store:
        """The configured store, connected to once and never waited for.

        Raises StoreMisconfigured for a bad URL, NothingStored where a SQLite file would have to be made.
        """
        store = Store(self.settings.store_url, patience=NO_PATIENCE, as_it_is=self.only_looks)
        if store.file is not None and not os.path.lexists(store.file):
            raise NothingStored
        self._stores.append(store)
        return store

    @cached_property
    def records(self) -> Store:
        """The store, where its tables can be read: they are those of this version.

        Raises NothingStored where there are none, OtherTables where they are not, and what the store raises.
        """
        revision = self.store.read(migrate.revision)
        if revision is None:
            raise NothingStored
        if revision != migrate.CURRENT:
            raise OtherTables
        return self.store

    @cached_property
    def of_service(self) -> bool:
        """Whether systemd runs doctor, before the start of a worker: then one is about to run."""
        return is_journal(sys.stderr)

    @property
    def needs_gpu(self) -> bool:
        """Whether a worker would compute on a GPU: not on the echo engine, nor on vLLM's build for CPUs."""
        return KINDS[self.settings.engine].needs_gpu and installed.computes_on_gpu()

    @cached_property
    def gpu(self) -> GpuReport:
        """What the driver reports."""
        return gpu.probe()

    @cached_property
    def suspects(self) -> Sequence[orphans.Suspect] | None:
        """The processes of the ledger that still run, each with its verdict; None if the ledger cannot be read."""
        try:
            return orphans.suspects(self.records, self.settings.state_dir)
        except (VbatchError, OtherTables):
            return None
        except NothingStored:
            return ()

    @property
    def looked(self) -> timedelta:
        """For how long this run has lasted."""
        return timedelta(seconds=time.monotonic() - self._began)

    def look_again(self) -> None:
        """Forget what may have changed: something was repaired, or time has passed."""
        for name in ("gpu", "suspects"):
            self.__dict__.pop(name, None)

    def close(self) -> None:
        """Close the store."""
        for store in self._stores:
            store.close()
