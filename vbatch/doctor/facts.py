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
from vbatch.gpu import Gpu, GpuReport
from vbatch.gpu_memory import cards as gpu_cards
from vbatch.logs import is_journal
from vbatch.recovery import orphans
from vbatch.store import NO_PATIENCE, Store
from vbatch.store.database import migrate

SETTLES = timedelta(seconds=10)  # a driver frees the memory of a process that has ended within a few


class NothingStored(Exception):
    """There is no store yet: the next command or worker makes it."""


class OtherTables(NothingStored):
    """The store has the tables of another version, and cannot be read by this one."""


@dataclass(kw_only=True)
class Facts:
    """The surroundings of a run. A failed read raises; the check that needs it reports it.

    ``min_free_gb`` is the memory that must be free, in GiB; None derives it from the models.
    ``fresh`` repeats what an earlier run has found out about the engine.
    ``only_looks`` says that nothing may be changed: a SQLite file keeps its journal mode then.
    """

    settings: Settings
    min_free_gb: float | None = None
    only_looks: bool = True
    fresh: bool = False
    _began: float = field(default_factory=time.monotonic)
    _stores: list[Store] = field(default_factory=list)
    _free: dict[int, tuple[int, float]] = field(default_factory=dict)

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
        """Whether a worker would compute on a GPU of NVIDIA: not on the echo engine, nor on another build of vLLM."""
        return KINDS[self.settings.engine].needs_gpu and installed.has_nvml()

    @property
    def without_nvml(self) -> str | None:
        """The platform of the GPU that a worker would compute on, where its driver does not report to NVML."""
        return installed.without_nvml() if KINDS[self.settings.engine].needs_gpu else None

    @cached_property
    def gpu(self) -> GpuReport:
        """What the driver reports: nothing where a worker would compute on a GPU that is not NVML's."""
        return GpuReport() if self.without_nvml is not None else gpu.probe()

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

    def has_settled(self, card: Gpu) -> bool:
        """Whether a GPU's free memory has not changed for a while, as far as this run has looked."""
        free, since = self._free.get(card.index, (card.free, time.monotonic()))
        if abs(card.free - free) >= gpu.SETTLED:
            free, since = card.free, time.monotonic()
        self._free[card.index] = (free, since)
        return time.monotonic() - since >= SETTLES.total_seconds()

    def look_again(self) -> None:
        """Forget what may have changed: something was repaired, or time has passed."""
        for name in ("gpu", "suspects"):
            self.__dict__.pop(name, None)

    def close(self) -> None:
        """Close the store."""
        for store in self._stores:
            store.close()


def of_the_worker(facts: Facts) -> list[Gpu]:
    """Return the GPUs that ``run-worker`` computes on; another one may be small, or full of something else."""
    try:
        numbers = gpu_cards.of_workers(facts.settings, facts.gpu)
    except VbatchError:
        return []
    return [card for card in facts.gpu.gpus if card.index in numbers]
