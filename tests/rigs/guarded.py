"""A worker's family without vLLM, for the guard's tests: a child, its child, and one that ignores SIGTERM.

Run as ``python -m tests.rigs.guarded``; prints the pids of its descendants and waits to be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection

from vbatch.engine import guard

CONTEXT = multiprocessing.get_context("spawn")


def engine(pids: Connection) -> None:
    """Be an engine process: arm the guard, start a worker process of its own."""
    guard.arm()
    ours, theirs = CONTEXT.Pipe()
    CONTEXT.Process(target=stubborn, args=(theirs,)).start()
    pids.send([(os.getpid(), os.getpgrp()), ours.recv()])
    time.sleep(600)


def stubborn(pids: Connection) -> None:
    """Be a worker process that SIGTERM does not end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    guard.arm()
    pids.send((os.getpid(), os.getpgrp()))
    time.sleep(600)


def late(pids: Connection) -> None:
    """Be an engine process that arms only when its parent is dead."""
    pids.send([(os.getpid(), os.getpgrp())])
    time.sleep(3)
    guard.arm()
    time.sleep(600)


if __name__ == "__main__":
    if "unguarded" not in sys.argv:
        os.environ[guard.VARIABLE] = str(os.getpid())
    guard.arm()
    ours, theirs = CONTEXT.Pipe()
    CONTEXT.Process(target=late if "late" in sys.argv else engine, args=(theirs,)).start()
    print(*(f"{pid}:{group}" for pid, group in [(os.getpid(), os.getpgrp()), *ours.recv()]), flush=True)
    time.sleep(600)
