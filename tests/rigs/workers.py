"""Many short-lived worker processes: forked from one that has imported everything, killed without mercy.

Each is a real process with a store connection of its own; only the imports are shared, so that hundreds of
kills fit into a test run.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.rigs.commands import heed_hangups
from tests.rigs.misfortune import Misfortune, WallClock, preloaded
from tests.rigs.waiting import cpu_seconds, until
from vbatch.config import Settings

COMMAND_HEARTBEAT = timedelta(seconds=0.4)  # as short as the leases of the tests

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["vbatch.worker", "vbatch.batches", "vbatch.cli.machine", "sqlalchemy.dialects.sqlite"]
)


def _work(
    url: str, settings: Settings, misfortune: Misfortune | None, clock: WallClock | None, *, drain: bool
) -> None:
    from tests.rigs import parrot
    from vbatch.store import WORKER_PATIENCE, Store
    from vbatch.worker import Stop, View, loop, run

    folder = settings.state_dir
    logging.basicConfig(
        filename=f"{folder}/worker-{os.getpid()}.log", level=logging.INFO, format="%(asctime)s %(message)s"
    )
    if clock is not None:
        clock.show()
    if misfortune is not None:
        misfortune.arm()
    if settings.engine in (parrot.NAME, parrot.KILLED):
        parrot.let_in()
    loop.RELOAD_PAUSE = 0.02
    heed_hangups()
    stop = Stop()
    store = Store(url, patience=WORKER_PATIENCE, stop=stop.store)
    try:
        run(store, settings, view=View(), stop=stop, drain=drain)
    except Exception:
        logging.exception("worker.failed")
        raise


def _command(argv: Sequence[str], environment: Mapping[str, str], out: Path, errors: Path) -> None:
    from vbatch import cli

    for number, path in ((1, out), (2, errors)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.update(environment)
    importlib.import_module("vbatch.batches.finalize").HEARTBEAT = COMMAND_HEARTBEAT  # type: ignore[attr-defined]
    sys.exit(cli.main(argv))


def settings_in(folder: Path, *, engine: str = "echo", **changes: Any) -> Settings:
    """Return settings with all files in one folder; no variable and no file of the user is read.

    Nothing is validated: the engine may be a kind that only a test knows.
    """
    return Settings.model_construct(
        engine=engine, data_dir=folder, cache_dir=folder, state_dir=folder, **changes
    )


def start_worker(
    url: str,
    folder: Path,
    *,
    misfortune: Misfortune | None = None,
    clock: WallClock | None = None,
    drain: bool = False,
    **changes: Any,
) -> ForkServerProcess:
    """Start a worker on the echo engine; ``changes`` are fields of its settings."""
    _start_server()
    arguments = (url, settings_in(folder, **changes), misfortune, clock)
    process = _context.Process(target=_work, args=arguments, kwargs={"drain": drain}, daemon=True)
    with _polling:
        process.start()
    return process


def start_command(
    argv: Sequence[str], environment: Mapping[str, str], *, out: Path, errors: Path
) -> ForkServerProcess:
    """Start ``vbatch ARGV…`` as a process of its own, with its streams in files."""
    _start_server()
    process = _context.Process(target=_command, args=(argv, environment, out, errors), daemon=True)
    with _polling:
        process.start()
    return process


# Every start looks after all of our processes; of two threads that look at one, one alone learns how it ended.
_polling = threading.Lock()


def ended(process: ForkServerProcess, timeout: float | None = None) -> bool:
    """Wait until it ends; say whether it has. For tests that have workers in several threads."""
    wait([process.sentinel], timeout)
    with _polling:
        return not process.is_alive()


@cache
def _start_server() -> None:
    """Start the process that workers are forked from: they can have misfortunes."""
    with preloaded():
        forkserver.ensure_running()


def failures(folder: Path) -> list[str]:
    """Return what went wrong inside the workers of this folder, by their own logs."""
    logs = (path.read_text(errors="replace") for path in folder.glob("worker-*.log"))
    return [log[log.index("worker.failed") :][:3000] for log in logs if "worker.failed" in log]


def kill(process: ForkServerProcess) -> None:
    """End it as a power cut would: no handler runs, nothing is flushed."""
    assert process.pid is not None
    if not ended(process, 0):
        os.kill(process.pid, signal.SIGKILL)
    ended(process)


def exit_code(process: ForkServerProcess) -> int:
    """Return how a worker ended that is about to end, as long as it consumes CPU time. Raises TimeoutError."""
    until(lambda: ended(process, 0.2), progress=lambda: cpu_seconds(process.pid), pause=0)
    assert process.exitcode is not None
    return process.exitcode


def drain(url: str, folder: Path, **changes: Any) -> str:
    """Run a worker until the queue is empty; return what it logged."""
    process = start_worker(url, folder, drain=True, **changes)
    log = folder / f"worker-{process.pid}.log"
    try:
        code = exit_code(process)
    except TimeoutError:
        kill(process)
        raise AssertionError(f"the queue was not drained:\n{log.read_text()[-4000:]}") from None
    logged = log.read_text()
    assert code == 0, f"{code}: {logged[-4000:]}"
    return logged
