"""Several hosts on one machine: processes with a host name, a boot id and a wall clock of their own (needs root).

Names and ids are the kernel's (namespaces), the clock is that of ``misfortune.c``; nothing in vbatch is replaced. Their
files are on one disk, so a host has a home of its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from tests.rigs import waiting
from tests.rigs.commands import Home
from tests.rigs.misfortune import WallClock, preloaded

ROOT = Path(__file__).parents[2]
REAL = os.geteuid() == 0
WHY = "needs root for the namespaces of the hosts"

_ENTER = 'hostname "$1" && mount --bind "$2" /proc/sys/kernel/random/boot_id && shift 2 && exec "$@"'


class Host(Home):
    """A host with one user. Without ``clock`` its clock is right."""

    def __init__(
        self,
        folder: Path,
        name: str,
        database_url: str,
        *,
        clock: timedelta | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder / name, database_url, {"PYTHONPATH": str(ROOT), **(extra or {})})
        self.name = name
        self.path.mkdir()
        self._boot_id = self.path / "boot_id"
        self._boot_id.write_text(f"{uuid.uuid4()}\n")
        self._clock: WallClock | None = None
        if clock is not None:
            self._clock = WallClock(self.path / "clock")
            self._clock.set_off(clock)

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the command line of ``vbatch ARGUMENTS`` on this host."""
        clock = "" if self._clock is None else str(self._clock.path)
        inside = [sys.executable, "-m", "tests.rigs.hosts", clock, *map(str, arguments)]
        enter = ["unshare", "--uts", "--mount", "sh", "-c", _ENTER, "sh", self.name, str(self._boot_id)]
        return [*enter, *inside]

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        with preloaded() if self._clock is not None else contextlib.nullcontext():
            done = waiting.run(self.command(*arguments), env=self.env, cwd=self.path)
        if check and done.returncode != 0:
            raise AssertionError(
                f"vbatch {arguments} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done

    @contextlib.contextmanager
    def start(self, *arguments: str, log: str = "worker.log") -> Iterator[subprocess.Popen[bytes]]:
        """Keep a command running, such as a worker; it is killed at the end if it still lives."""
        with (self.path / log).open("ab") as out:
            with preloaded() if self._clock is not None else contextlib.nullcontext():
                process = subprocess.Popen(
                    self.command(*arguments),
                    env=self.env,
                    cwd=self.path,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()


def _main(clock: str, arguments: list[str]) -> int:
    from vbatch import cli

    if clock:
        WallClock(Path(clock)).show()
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2:]))
