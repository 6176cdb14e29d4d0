"""The vLLM plugin that binds an engine process to its worker: Ctrl-C does not reach it, and it ends with the worker.

vLLM loads the plugin in each of its processes (entry point group ``vllm.general_plugins``) except the coordinator
of data-parallel ranks, which is started through ``run_coordinator``. The module imports only the standard library and
does nothing unless a vbatch worker started the process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

NAME = "vbatch_guard"  # of the entry point
VARIABLE = "VBATCH_GUARD"  # the pid of the process whose children are to be guarded
GRACE = 3.0  # seconds for an orderly shutdown; an engine needs 3 to 6 s, but no worker is left to wait for it
CHECK_INTERVAL = 2.0  # seconds between two checks of the parent's pid


def arm() -> None:
    """Guard this process if it is a child of the process that ``VBATCH_GUARD`` names.

    vLLM loads plugins in the worker itself too; the worker has another parent and stays as it is. Armed processes
    pass the guard on to their own children (the processes of a tensor-parallel engine).
    """
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(VARIABLE) != str(parent.pid):
        return
    os.environ[VARIABLE] = str(os.getpid())
    # A terminal's Ctrl-C and a service manager's group signal go to the worker, which drains; an engine in
    # the same process group would die under the running requests.
    with contextlib.suppress(PermissionError):  # it already leads a session
        os.setpgid(0, 0)
    threading.Thread(target=_end_with, args=(parent,), name="vbatch-guard", daemon=True).start()


def run_coordinator(*args: Any, **kwargs: Any) -> None:
    """Guard this process, then run vLLM's coordinator of data-parallel ranks in it. Takes the same arguments."""
    from vllm.v1.engine.coordinator import DPCoordinatorProc

    arm()
    DPCoordinatorProc.run_coordinator(*args, **kwargs)


class Unguarded(Exception):
    """The engine has no guard and would continue to run without its worker: vbatch is not installed as a package."""


def check(children: Iterable[BaseProcess]) -> None:
    """Raise Unguarded unless the plugin has armed itself in each of these processes."""
    for child in children:
        if child.pid is None or os.getpgid(child.pid) != child.pid:
            raise Unguarded(Unguarded.__doc__)


@contextlib.contextmanager
def guarding_children() -> Iterator[None]:
    """Have the plugin arm itself in the processes that are started inside the block."""
    os.environ[VARIABLE] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def _end_with(parent: BaseProcess) -> None:
    # PR_SET_PDEATHSIG would do it in one call, but it fires when the *thread* that started this process ends.
    # The sentinel is a pipe whose other end the parent holds; the pid is checked too, in case a process
    # that the parent forked has inherited that end.
    while os.getppid() == parent.pid:
        if multiprocessing.connection.wait([parent.sentinel], timeout=CHECK_INTERVAL):
            break
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # helpers that it started go with it
    os._exit(1)
