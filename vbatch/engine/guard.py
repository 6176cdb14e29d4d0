"""The vLLM plugin that ties an engine process to its worker: no Ctrl-C reaches it, and it ends with the worker.

vLLM loads the plugin in each of its processes (entry point group ``vllm.general_plugins``) but the coordinator of
data-parallel ranks, which is started through ``run_coordinator``. The module imports the standard library only and
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
from multiprocessing.process import BaseProcess
from typing import Any

NAME = "vbatch_guard"  # of the entry point
VARIABLE = "VBATCH_GUARD"  # the pid of the process whose children are to be guarded
GRACE = 3.0  # seconds for an orderly shutdown; an engine needs 3 to 6 s, but nobody is left to wait for it
ROUND = 2.0  # seconds between two looks at our parent's pid


def arm() -> None:
    """Guard this process if it is a child of the process that ``VBATCH_GUARD`` names.

    vLLM loads plugins in the worker itself as well: that one has another parent and stays as it is. Armed
    processes hand the guard on to their own children (the processes of a tensor-parallel engine).
    """
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(VARIABLE) != str(parent.pid):
        return
    os.environ[VARIABLE] = str(os.getpid())
    # A terminal's Ctrl-C and a service manager's group signal go to the worker, which drains; an engine in
    # the same process group would die under the running requests.
    with contextlib.suppress(PermissionError):  # we lead a session already
        os.setpgid(0, 0)
    threading.Thread(target=_outlive_never, args=(parent,), name="vbatch-guard", daemon=True).start()


def run_coordinator(*args: Any, **kwargs: Any) -> None:
    """Guard this process, then run vLLM's coordinator of data-parallel ranks in it. Takes what that takes."""
    from vllm.v1.engine.coordinator import DPCoordinatorProc

    arm()
    DPCoordinatorProc.run_coordinator(*args, **kwargs)


def _outlive_never(parent: BaseProcess) -> None:
    # PR_SET_PDEATHSIG would do it in one call, but it fires when the *thread* ends that started us.
    # The sentinel is a pipe whose other end the parent holds; the pid is looked at too, in case a process
    # that the parent forked has inherited that end.
    while os.getppid() == parent.pid:
        if multiprocessing.connection.wait([parent.sentinel], timeout=ROUND):
            break
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # helpers that it started go with it
    os._exit(1)
