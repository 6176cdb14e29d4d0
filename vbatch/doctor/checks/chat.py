"""Checks of the sockets at which workers answer chat: who may use them, and whether a worker listens."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from vbatch import recovery
from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Check, Entry, Finding, Repair
from vbatch.errors import VbatchError
from vbatch.store.records import Worker
from vbatch.system import processes, sockets
from vbatch.system.processes import Liveness
from vbatch.text import count

CHAT = Entry(
    id="service.chat",
    means="`vbatch serve` of this account passes chat on to the workers that answer at these sockets",
)
STALE = Entry(
    id="service.chat_stale",
    means="a worker that crashed left its socket behind; the next worker with chat removes it",
    commands=("rm {path}",),
)
OPEN = Entry(
    id="service.chat_open",
    means="other accounts of this machine can use the model without a key",
    commands=("chmod 600 {path}",),
)
MISSING = Entry(
    id="service.chat_missing",
    means="chat = true holds for workers that start after it was set; one that cannot make its socket logs why",
    advice="restart the worker, or read its log for chat.unavailable",
)


def _sockets(facts: Facts) -> Iterator[Finding]:
    workers = _workers(facts)
    elsewhere = {worker.id for worker in workers if _liveness(worker) is Liveness.UNKNOWN}
    answering = []
    for path in sockets.found(facts.settings.state_dir):
        if sockets.answers(path):
            answering.append(path)
            mode = stat.S_IMODE(path.lstat().st_mode)
            if mode & 0o022 and path.parent.stat().st_mode & 0o011:
                yield OPEN.warn(f"{path} has the mode {mode:o}", values={"path": path})
        elif sockets.worker_of(path) not in elsewhere:
            yield STALE.info(
                f"nothing answers at {path}",
                values={"path": path},
                repair=Repair(question=f"Remove {path}?", carry_out=partial(_remove, path)),
            )
    if answering:
        yield CHAT.ok(f"{count(len(answering), 'worker')} with chat", *map(str, answering))
    if facts.settings.chat:
        with_socket = {sockets.worker_of(path) for path in answering}
        here = [worker.id for worker in workers if _liveness(worker) is Liveness.ALIVE]
        for worker in here:
            if worker not in with_socket:
                yield MISSING.warn(f"the worker {worker} runs without chat")


def _remove(path: Path) -> str:
    if sockets.answers(path):
        return "a worker listens there now"
    path.unlink(missing_ok=True)
    return "removed"


def _workers(facts: Facts) -> list[Worker]:
    """Return the workers that may be alive; none while the store does not say so."""
    with suppress(VbatchError, NothingStored):
        return recovery.alive(facts.records)
    return []


def _liveness(worker: Worker) -> Liveness:
    return processes.liveness(worker.identity)


CHECKS = (
    Check(
        name="service.chat",
        finds=(CHAT, STALE, OPEN, MISSING),
        run=_sockets,
        after=("store.reach", "store.state"),
    ),
)
