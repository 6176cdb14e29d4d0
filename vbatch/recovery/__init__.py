"""Recover from dead workers: return their chunks to the queue, and end the engine processes that they left behind."""

from __future__ import annotations

from collections.abc import Sequence

from vbatch.store import Store, registry
from vbatch.store.records import Worker
from vbatch.system import kernel_log, processes


def alive(store: Store) -> list[Worker]:
    """Return the workers that are alive, as far as that can be known from here: none that is provably gone."""
    return [worker for worker in registry.live(store) if not processes.is_gone(worker.identity)]


def forget_dead_commands(store: Store) -> None:
    """Let others write the files that a command has begun to write, where its process is provably gone."""
    for command in registry.commands(store):
        if processes.is_gone(command.identity):
            registry.stop(store, worker=command.id)


def dead(store: Store) -> list[Worker]:
    """Return the workers that crashed: they did not stop cleanly, and their processes are provably gone."""
    return [worker for worker in registry.live(store) if processes.is_gone(worker.identity)]


def killed_for_memory(dead: Sequence[Worker]) -> dict[str, str]:
    """Return those of these workers that the kernel ended for their memory, and what ran out of it, by their ids.

    The kernel's log has it for workers of this boot, and names them by their pids outside all containers.
    """
    here = processes.current()
    if not processes.among_all():
        return {}
    pids = {
        worker.identity.pid: worker.id
        for worker in dead
        if (worker.identity.boot_id, worker.identity.pid_namespace) == (here.boot_id, here.pid_namespace)
    }
    return {pids[pid]: what for pid, what in kernel_log.killed_for_memory(pids).items()}
