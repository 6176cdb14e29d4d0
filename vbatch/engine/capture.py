"""Send what an engine prints to a log file instead of the worker's terminal.

vLLM logs, warns and draws progress bars through ``sys.stdout`` and ``sys.stderr``, and its processes inherit file
descriptors 1 and 2. While an engine is loaded, both write to the log. Code that took a stream before that (a logging
handler, a console) still writes to the terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import multiprocessing.util
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from vbatch.engine import Blame, EngineStartFailed
from vbatch.system import files

KEPT = 20  # logs of earlier engines that stay in the folder
TAIL = 256 * 1024  # bytes of a log that are read to find a cause


class EngineLog:
    """The log of one engine. A process has at most one open log: opening the next one closes the last one."""

    def __init__(self, folder: Path, model: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(folder)
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = re.sub(r"[^\w.-]+", "-", model)[-60:].strip("-.")
        self.path = folder / f"engine-{moment}-{os.getpid()}-{name}.log"
        self._marked = 0
        # Private: an engine that fails dumps the requests that it was working on.
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # The lock marks it as in use, here and by the processes that inherit it. A disk without locks keeps old logs.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._stream = _log_stream_to(handle)

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Send to this log what Python code prints, and all output of the processes that are spawned meanwhile."""
        stream = self._stream
        with (
            redirect_stdout(stream),
            redirect_stderr(stream),
            _spawning_into(stream),
            _keeping_vbatchs_logging(),
        ):
            yield

    def write(self, text: str) -> None:
        """Add text of vbatch's own."""
        self._stream.write(text)
        self._stream.flush()

    def mark(self) -> None:
        """Have ``tail`` begin here, not with what is already in the log."""
        self._marked = self.path.stat().st_size

    def tail(self) -> str:
        """Return the end of the log as text; an empty text if the file was removed."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(self._marked, os.fstat(file.fileno()).st_size - TAIL))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""


@contextlib.contextmanager
def _keeping_vbatchs_logging() -> Iterator[None]:
    """Undo what libraries do to the root logger when they are imported, and keep vLLM away from it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # vLLM does this itself, but some of its modules log a warning before it does.
    logging.getLogger("vllm").propagate = False
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


_stream: TextIO | None = None


def _log_stream_to(descriptor: int) -> TextIO:
    """Return the one log stream of this process, after pointing it at this file.

    Libraries keep the stream that they found when they were imported, so the same stream must serve every log.
    """
    global _stream  # noqa: PLW0603
    if _stream is None:
        _stream = os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    else:
        _stream.flush()
        os.dup2(descriptor, _stream.fileno(), inheritable=False)
        os.close(descriptor)
    return _stream


_spawn_lock = threading.Lock()


@contextlib.contextmanager
def _spawning_into(stream: TextIO) -> Iterator[None]:
    """Give processes that multiprocessing spawns this file as their standard output and error.

    Standard descriptors cannot be passed to multiprocessing, only inherited, so they are swapped for the millisecond
    of each spawn. A line that another thread writes in that millisecond ends up in the log.
    """
    spawn = multiprocessing.util.spawnv_passfds

    def spawn_into_log(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        with _spawn_lock:
            saved = {number: os.dup(number) for number in (1, 2)}
            try:
                for number in saved:
                    os.dup2(stream.fileno(), number)
                return spawn(path, args, passfds)
            finally:
                for number, descriptor in saved.items():
                    os.dup2(descriptor, number)
                    os.close(descriptor)

    multiprocessing.util.spawnv_passfds = spawn_into_log
    try:
        yield
    finally:
        multiprocessing.util.spawnv_passfds = spawn


def _prune(folder: Path) -> None:
    """Remove the oldest logs that are no longer in use; another worker may do the same at the same time."""
    logs = sorted(folder.glob("engine-*.log"))
    for path in logs[: max(0, len(logs) - KEPT)]:
        with contextlib.suppress(OSError):  # another user's
            files.remove_unless_locked(path)


def open_log(folder: Path, model: str) -> EngineLog:
    """Open the log of a load. Raises EngineStartFailed, which passes, where the folder cannot be written."""
    try:
        return EngineLog(folder, model)
    except OSError as error:
        raise EngineStartFailed(
            f"its log cannot be written in {folder}: {error.strerror}",
            transient=True,
            blame=Blame.MACHINE,
            hint=f"df -h {folder}",
        ) from error
