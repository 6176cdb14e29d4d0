"""A script that starts a helper and becomes the worker by ``exec`` leaves it a child: every container's entry point
does, and ``ssh -N … & exec vbatch run-worker``. No worker ends such a child, and none takes it for an engine.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs import engines
from tests.rigs.commands import VBATCH, Home, chat
from tests.rigs.waiting import exit_code, until
from vbatch.engine import smollm
from vbatch.recovery import evidence
from vbatch.store import COMMAND_PATIENCE, Store, registry
from vbatch.system import descendants, processes
from vbatch.worker import models

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@contextlib.contextmanager
def worker_with_helper(
    home: Home, *options: str
) -> Iterator[tuple[subprocess.Popen[bytes], engines.Process]]:
    """Start a worker as a script does that has a helper; yield both."""
    noted = home.path / "helper.pid"
    script = f'sleep 600 & echo $! > "{noted}"; exec "$@"'
    command = ["bash", "-c", script, "bash", *VBATCH, "run-worker", *options]
    with (home.path / "worker.log").open("ab") as log:
        worker = subprocess.Popen(command, env=home.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    until(lambda: noted.exists() and noted.read_text().endswith("\n"))
    helper = engines.of(int(noted.read_text()))
    try:
        until(lambda: "worker.ready" in home.worker_log)
        assert processes.ancestors(helper.pid) is not None
        assert helper.pid in descendants.children(worker.pid)
        yield worker, helper
    finally:
        worker.kill()
        worker.wait()
        engines.end(helper)


@on_sqlite
def test_a_second_signal_does_not_end_it(home: Home) -> None:
    """Mutant: ``kill_children`` kills every child of the process."""
    home.submit([chat("hanging", "never", echo="hang")])
    with worker_with_helper(home, "--engine", "echo") as (worker, helper):
        until(lambda: "engine.loaded" in home.worker_log)
        worker.send_signal(signal.SIGTERM)
        until(lambda: "worker.draining" in home.worker_log)
        worker.send_signal(signal.SIGTERM)
        assert exit_code(worker) == 128 + signal.SIGTERM
        assert helper.alive()


@pytest.mark.vllm
@on_sqlite
def test_a_worker_that_is_killed_while_it_loads_leaves_it_to_itself(home: Home) -> None:
    """Mutant: every child of the worker is written into the ledger, and the next worker needs no token to end it."""
    home.extra |= smollm.ENVIRONMENT
    (home.path / "empty").mkdir()  # a model that is there, so that it is loaded, and is none
    home.submit([chat("r", "text", model=str(home.path / "empty"))])
    store = Store(home.database_url, patience=COMMAND_PATIENCE)
    with worker_with_helper(home, "--engine", "vllm") as (worker, helper):
        until(lambda: "engine.loading" in home.worker_log)
        with pytest.raises(TimeoutError):
            until(lambda: bool(registry.ledger(store)), silence=4)
        worker.kill()
        worker.wait()
        home.submit([chat("r", "text")], name="second")
        home.run("run-worker", "--engine", "echo", "--drain")
        assert helper.alive()
    store.close()


def test_only_what_carries_the_token_of_a_load_is_recorded(tmp_path: Path) -> None:
    """Mutants: recording all children, or those whose title any load of vbatch gave them."""
    token = evidence.leave(tmp_path, worker=processes.current())
    other = evidence.leave(tmp_path, worker=processes.current())
    titles = [
        f"{evidence.title_prefix(token)}::EngineCore",
        f"{evidence.title_prefix(other)}::EngineCore",
        "helper",
    ]
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(engines.child(*engines.command(title=title))) for title in titles]
        until(lambda: [processes.title(process.pid).split()[0] for process in children] == titles)
        assert models._carrying(token) == [children[0].pid]
