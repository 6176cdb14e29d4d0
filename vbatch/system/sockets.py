"""The sockets of workers with chat: one for each worker, in a folder of the state folder that its user alone can enter.

A path longer than 107 bytes fits into no socket's address (unix(7)), and a state folder may have one: so the folder is
opened, and the socket named through /proc.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = "chat"  # in the state folder
SUFFIX = ".sock"
MODE = 0o600
BACKLOG = 512


def path_of(state_dir: Path, worker: str) -> Path:
    """Return where a worker's socket is."""
    return state_dir / FOLDER / f"{worker}{SUFFIX}"


def found(state_dir: Path) -> list[Path]:
    """Return the sockets that are there, those of dead workers too, in the order of their names."""
    with suppress(OSError):
        return sorted(path for path in (state_dir / FOLDER).glob(f"*{SUFFIX}") if path.is_socket())
    return []


def worker_of(path: Path) -> str:
    """Return whose socket this is."""
    return path.name.removesuffix(SUFFIX)


def listen(state_dir: Path, worker: str) -> socket.socket:
    """Make a worker's socket, for its user alone. Raises OSError, as where the file system has no sockets."""
    path = path_of(state_dir, worker)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address(path) as short:
            listener.bind(short)
        path.chmod(MODE)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Give the address of a socket, for as long as it takes to bind it or to connect. Raises OSError."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def answers(path: Path) -> bool:
    """Whether a process of this machine listens at a socket: the one of a dead worker, or of another host, refuses."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            with address(path) as short:
                client.connect(short)
        except TimeoutError:
            return True  # it has more clients than it takes
        except OSError:
            return False
    return True
