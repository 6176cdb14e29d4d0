"""What `vbatch serve` reports of this machine: that it runs, its live workers, the models that can be asked for."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vbatch import recovery
from vbatch.config import Settings, with_present_models
from vbatch.errors import ConfigError
from vbatch.store import Store, catalog
from vbatch.store.catalog import QueueProgress
from vbatch.store.records import Worker
from vbatch.system.files import locked, open_plain

LOCK = ".lock"
_PATIENCE = 8.0  # seconds; a server that waits for its store answers in half of it


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that a request may name. ``created`` is in Unix seconds, 0 where that is not known."""

    name: str
    created: int
    loaded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that runs: its address, and whether it asks for a key."""

    url: str
    asks_for_key: bool


@contextmanager
def held(folder: Path, running: Running) -> Iterator[None]:
    """Hold the folder of the files for this server alone. Raises ConfigError where another one has it."""
    try:
        with locked(folder / LOCK, wait=False) as handle:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(asdict(running)).encode(), 0)
            yield
    except BlockingIOError:
        raise ConfigError(
            f"another vbatch serve uses {folder}", hint="VBATCH_DATA_DIR=/another/folder vbatch serve"
        ) from None


def running(data_dir: Path) -> Running | None:
    """Return the server that uses this data folder now; None where none runs, or nothing can be read there."""
    path = data_dir / "files" / LOCK
    try:
        with open_plain(path) as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Running(**json.loads(stream.read(4096)))
    except (OSError, ValueError, TypeError):
        pass
    return None


def health(server: Running) -> str | None:
    """Return what a server says of itself: ``ok``, ``no_worker``, ``store_unreachable``; None where it says nothing."""
    from http.client import HTTPConnection, HTTPException

    parts = urlsplit(server.url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE)
    try:
        connection.request("GET", "/health")
        return str(json.loads(connection.getresponse().read(4096))["status"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def live_workers(store: Store) -> list[Worker]:
    """Return the workers that are alive, as far as that can be known from here."""
    return recovery.alive(store)


def queue_progress(store: Store) -> QueueProgress:
    """Return how far all unfinished batches are together."""
    return catalog.progress(store)


def known_models(store: Store, settings: Settings) -> list[KnownModel]:
    """Return the models of the configuration with their other names, of the models folder, and the loaded ones."""
    loaded = {model for worker in recovery.alive(store) for model in worker.models}
    found: dict[str, int] = {}
    for name, table in with_present_models(settings).models.items():
        for each in (name, *table.aliases, *table.adapters):
            found[each] = 0
    folder = settings.cache_dir / "models"
    with suppress(OSError):
        for path, _folders, files in os.walk(folder):  # `Qwen/Qwen3-8B` is a folder in a folder
            if "config.json" in files:
                place = os.path.relpath(path, folder)
                found[place] = int(os.stat(os.path.join(path, "config.json")).st_mtime)  # noqa: PTH116, PTH118
    for name in loaded:
        found.setdefault(name, 0)
    return [KnownModel(name=name, created=at, loaded=name in loaded) for name, at in sorted(found.items())]
