"""A machine whose power can be cut: systemd as PID 1 of a guest made of namespaces, on a disk of its own.

The guest sees the host's root file system (and so this project and its virtual environment) through an
overlay; what it writes goes to an ext4 image. ``cut_power`` shuts that file system down without a flush and
kills PID 1, and with it every process of the guest: what had not reached the disk is lost, as in reality.
The next ``boot`` is another boot of the same disk, with another boot id.

Needs root, Linux namespaces, loop devices and systemd. Nothing of it outlives the process that made it: the
guest's first process is killed with its parent, and its mounts and its loop device vanish with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.rigs.waiting import SILENCE, run, until

DISK_SIZE = 8 << 30  # bytes, of a sparse file
FS_IOC_SHUTDOWN = 0x8004587D  # ext4: stop at once
NO_LOG_FLUSH = 2  # … and forget what is not on the disk yet
GUEST_NAMESPACES = ("--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SHUT_DOWN = """
import fcntl, os, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), int(sys.argv[2]), int(sys.argv[3]).to_bytes(4, "little"))
"""


class GuestError(AssertionError):
    """The guest did not do what the test needs it to do."""


def unusable() -> str | None:
    """Say why this host cannot run a guest, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs root on Linux"
    if not Path("/lib/systemd/systemd").exists():
        return "needs systemd at /lib/systemd/systemd"
    for tool in ("unshare", "nsenter", "setpriv", "mkfs.ext4", "losetup"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    if _unified_cgroup() is None:
        return "needs a mounted cgroup2 hierarchy"
    probe = subprocess.run(
        ["unshare", *GUEST_NAMESPACES, "--fork", "sh", "-c", "mount -t tmpfs tmpfs /mnt && losetup -f"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return None if probe.returncode == 0 else f"needs namespaces and loop devices: {probe.stderr.strip()}"


class Machine:
    """One guest. ``folder`` keeps its disk; ``shared`` are folders of the host that it must see."""

    def __init__(self, folder: Path, *, shared: Iterable[Path] = ()) -> None:
        self._folder = folder
        self._disk = folder / "disk.img"
        hidden = sorted({path for path in shared if _is_hidden(path)})
        self._shared = [
            str(path)
            for path in hidden
            if not any(path != other and path.is_relative_to(other) for other in hidden)
        ]
        self._launcher: subprocess.Popen[bytes] | None = None
        self._pid1: int | None = None
        self._cgroup: Path | None = None
        self.boots = 0
        self.boot_id = ""
        self.booted_at = 0.0

    @property
    def on(self) -> bool:
        """Whether it is powered."""
        return self._pid1 is not None

    @property
    def uptime(self) -> float:
        """Seconds since it was switched on."""
        return time.monotonic() - self.booted_at

    def boot(self) -> None:
        """Switch it on and return when systemd has reached its default target, or is as far as it gets."""
        assert not self.on, "it is on already"
        if not self._disk.exists():
            self._make_disk()
        desk = self._folder / "desk"
        desk.mkdir(exist_ok=True)
        self.boots += 1
        self.boot_id = str(uuid.uuid4())
        self._cgroup = _new_cgroup()
        self.booted_at = time.monotonic()
        self._launcher = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", *GUEST_NAMESPACES, "--fork", "--kill-child"),
                *("bash", str(Path(__file__).with_name("machine_boot.sh"))),
            ],
            env={
                "PATH": PATH,
                "DISK": str(self._disk),
                "DESK": str(desk),
                "BOOT_ID": self.boot_id,
                "SHARED": " ".join(self._shared),
            },
            stdin=subprocess.DEVNULL,
            stdout=(self._folder / "console.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_join(self._cgroup),
        )
        try:
            self._pid1 = self._wait_for_pid1()
            self._wait_until_up()
        except BaseException:
            self.cut_power()
            raise

    def cut_power(self) -> None:
        """Take the power away: nothing is flushed, nobody is told."""
        if self._pid1 is not None:
            self._stop_disk(self._pid1)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid1, signal.SIGKILL)
        self._collect()

    def destroy(self) -> None:
        """Cut its power and throw its disk away."""
        self.cut_power()
        self._disk.unlink(missing_ok=True)

    def shut_down(self) -> None:
        """Shut it down in order, as ``systemctl poweroff`` does."""
        assert self._launcher is not None
        self.run(["systemctl", "start", "--no-block", "poweroff.target"])
        try:
            self._launcher.wait(timeout=SILENCE)
        finally:
            self.cut_power()

    def run(
        self,
        command: Sequence[str],
        *,
        user: str | None = None,
        home: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        check: bool = True,
        limit: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest, as root or as another user, with a login's bare environment.

        Raises TimeoutError: after ``limit`` seconds, without one when neither the command nor the guest computes.
        """
        assert self._pid1 is not None, "it is off"
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"] if user else []
        home = home or (f"/home/{user}" if user else "/root")
        done = run(
            [
                *("nsenter", f"--target={self._pid1}", *GUEST_NAMESPACES, "--root", f"--wdns={home}"),
                *as_user,
                *command,
            ],
            env={"PATH": PATH, "HOME": home, "USER": user or "root", "LANG": "C.UTF-8", **(env or {})},
            text=stdin,
            limit=limit,
            progress=self.cpu_seconds,
        )
        if check and done.returncode != 0:
            raise GuestError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def show(self, unit: str, *, user: str | None = None) -> dict[str, str]:
        """Return the unit's properties, as ``systemctl show`` gives them."""
        scope = ["--user", f"--machine={user}@.host"] if user else []
        lines = self.run(["systemctl", *scope, "show", unit]).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, *arguments: str) -> list[dict[str, str]]:
        """Return the journal's entries (all boots), oldest first."""
        self.run(["journalctl", "--sync"], check=False)
        text = self.run(["journalctl", "--output=json", "--no-pager", "--quiet", *arguments]).stdout
        return [json.loads(line) for line in text.splitlines()]

    def written(self) -> dict[str, str]:
        """Return what differs on its disk from the host's file system: path to mode, owner and content."""
        script = (
            'find . -mindepth 1 \\( -type f -printf "%P\\0%m %U %G " -exec md5sum -z {} \\; \\) -o '
            '\\( ! -type f -printf "%P\\0%y %m %U %G %l\\0" \\)'
        )
        done = subprocess.run(
            [
                "nsenter",
                f"--target={self._pid1}",
                "--mount",
                "sh",
                "-c",
                f"cd {self._folder}/desk/disk/upper && {script}",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        fields = done.stdout.split("\0")
        found = dict(zip(fields[::2], fields[1::2], strict=False))
        return {f"/{path}": entry for path, entry in found.items() if not _is_mere_copy(path, entry)}

    def write(self, path: str, text: str, *, mode: int = 0o644, durable: bool = True) -> None:
        """Write a file in the guest; by default it is on the disk when this returns."""
        self.run(["install", "-D", "-m", f"{mode:o}", "/dev/stdin", path], stdin=text)
        if durable:
            self.sync()

    def copy_in(self, source: Path, target: str) -> None:
        """Copy a folder of the host into the guest, readable by everybody."""
        with tempfile.TemporaryFile() as archive:
            subprocess.run(["tar", "-C", str(source), "-cf", "-", "."], stdout=archive, check=True)
            archive.seek(0)
            self.run(["mkdir", "-p", target])
            enter = ["nsenter", f"--target={self._pid1}", "--mount", "--root"]
            subprocess.run([*enter, "tar", "-C", target, "-xf", "-"], stdin=archive, check=True)
        self.run(["chmod", "-R", "a+rX", target])

    def read(self, path: str) -> str:
        """Return a file's text."""
        return self.run(["cat", path]).stdout

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        self.run(["sync"])

    def wait_for(self, what: str, arrived: Iterator[bool]) -> float:
        """Poll until ``arrived`` yields true; return the seconds it took."""
        try:
            return until(lambda: next(arrived))
        except TimeoutError as vain:
            raise GuestError(f"{what}: {vain}\n{self.story()}") from None

    def cpu_seconds(self, unit: str = "") -> int:
        """Return the whole seconds of CPU time that the guest, or the present run of a unit, has consumed."""
        assert self._cgroup is not None, "it is off"
        files = self._cgroup.rglob(f"{unit}/cpu.stat") if unit else [self._cgroup / "cpu.stat"]
        total = 0
        for file in files:
            with contextlib.suppress(OSError):  # it ends just now
                total += int(file.read_text().split()[1])
        return total // 1_000_000

    def story(self, lines: int = 60) -> str:
        """Return the end of the journal, for a failed test's message."""
        return self.run(["journalctl", "--no-pager", "-b", "-n", str(lines)], check=False).stdout

    def _make_disk(self) -> None:
        with self._disk.open("wb") as disk:
            disk.truncate(DISK_SIZE)
        options = "lazy_itable_init=1,lazy_journal_init=1"
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-E", options, str(self._disk)], check=True, capture_output=True
        )

    def _wait_for_pid1(self) -> int:
        launcher = self._launcher
        assert launcher is not None
        with contextlib.suppress(TimeoutError):
            until(lambda: launcher.poll() is not None or _systemd_below(launcher.pid), pause=0.01)
        if launcher.poll() is None and (found := _systemd_below(launcher.pid)) is not None:
            return found
        raise GuestError(f"systemd did not start\n{(self._folder / 'console.log').read_text()}")

    def _wait_until_up(self) -> None:
        def up() -> bool:
            state = self.run(["systemctl", "is-system-running"], check=False).stdout.strip()
            return state in ("running", "degraded", "starting")

        try:
            until(up, pause=0.02)
        except TimeoutError:
            raise GuestError(f"it did not boot\n{self.story()}") from None

    def _stop_disk(self, pid1: int) -> None:
        how = (str(FS_IOC_SHUTDOWN), str(NO_LOG_FLUSH))
        subprocess.run(
            [
                "nsenter",
                f"--target={pid1}",
                "--mount",
                sys.executable,
                "-ISc",
                _SHUT_DOWN,
                f"{self._folder}/desk/disk",
                *how,
            ],
            capture_output=True,
            check=False,
        )

    def _collect(self) -> None:
        """Wait until nothing of the guest is left on the host."""
        self._pid1 = None
        if self._launcher is not None:
            with contextlib.suppress(ProcessLookupError):
                self._launcher.kill()
            self._launcher.wait(timeout=SILENCE)
            self._launcher = None
        if self._cgroup is not None:
            _remove_cgroup(self._cgroup)
            self._cgroup = None


def _is_hidden(path: Path) -> bool:
    """Whether the overlay of / does not show it: it is on another file system, or below what the guest covers."""
    covered = any(path.is_relative_to(place) for place in ("/tmp", "/run", "/dev"))
    return covered or path.stat().st_dev != Path("/").stat().st_dev


def _is_mere_copy(path: str, entry: str) -> bool:
    """Whether this is a folder of the host that the overlay copied up to hold something else."""
    return entry.startswith("d ") and Path("/", path).is_dir()


def _systemd_below(launcher: int) -> int | None:
    """Return the pid of the guest's PID 1, once it is systemd."""
    with contextlib.suppress(OSError):
        for pid in map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()):
            if Path(f"/proc/{pid}/exe").readlink().name == "systemd":
                return pid
    return None


def _unified_cgroup() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            return Path(mount.split()[4])
    return None


def _new_cgroup() -> Path:
    """Make the cgroup that is the guest's root, below the one that this process is in."""
    root = _unified_cgroup()
    assert root is not None
    own = next(
        line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
    )
    parent = root / own.lstrip("/")
    for stale in parent.glob("vbatch-guest-*"):  # of a test run that was killed
        if not Path("/proc", stale.name.split("-")[2]).exists():
            _remove_cgroup(stale)
    group = parent / f"vbatch-guest-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    return group


class _join:  # noqa: N801 - reads as the call that it is
    """Moves the new process into a cgroup before it executes."""

    def __init__(self, group: Path) -> None:
        self._procs = str(group / "cgroup.procs")

    def __call__(self) -> None:
        handle = os.open(self._procs, os.O_WRONLY)
        os.write(handle, b"0")
        os.close(handle)


def _remove_cgroup(group: Path) -> None:
    def removed() -> bool:
        if not group.exists():
            return True
        (group / "cgroup.kill").write_text("1")
        folders = sorted((entry for entry in group.rglob("*") if entry.is_dir()), reverse=True)
        for folder in (*folders, group):
            with contextlib.suppress(OSError):
                folder.rmdir()
        return not group.exists()

    until(removed, pause=0.01)
