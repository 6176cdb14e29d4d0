"""Checks of the machine: its clock, its disks, its shared memory, its limits, its journal."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vbatch.disks import Mount, hub_cache, mount_of
from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Finding, Level, info, ok, skip
from vbatch.errors import VbatchError
from vbatch.protocol import BatchStatus
from vbatch.store import catalog, overview, registry

GIB = 1 << 30
LEAST_ROOM = GIB  # free bytes below which a disk is called full, whatever the queue still needs
LEAST_SHARED = GIB  # bytes of /dev/shm; vLLM's processes exchange requests and tensors there
LEAST_FILES = 4096  # open files; vLLM itself asks for 65,535 at its start where the hard limit allows it
PATIENCE = timedelta(seconds=5)  # for timedatectl, whose service may not be up yet
BEHIND = timedelta(minutes=2)  # how much older than the newest record the clock may be

MEANINGS = {
    "host.clock": Meaning(
        means="Whether the clock is set by the network, and not behind what is already written down. Leases do not "
        "depend on it; deadlines (--expires-in) and the times that are shown do.",
        remedy="sudo timedatectl set-ntp true",
    ),
    "host.disk": Meaning(
        means="Whether there is room for what the queue will still write: answers in the store, and the output files.",
        remedy="Make room, or delete batches whose files you have: vbatch delete ID. The worker pauses meanwhile.",
    ),
    "host.read_only": Meaning(
        means="A file system that vbatch writes to is mounted read-only: the kernel does that when a disk fails.",
        remedy="dmesg | tail; check the disk, then mount it again: sudo mount -o remount,rw PLACE",
    ),
    "host.shm": Meaning(
        means="/dev/shm is small; vLLM's processes exchange requests there. Containers have 64 MiB by default.",
        remedy="docker run --ipc=host, or --shm-size 8g",
    ),
    "host.files": Meaning(
        means="This shell allows few open files. The service sets its own limit.",
        remedy="sudo prlimit --pid $$ --nofile=65536:65536, in this shell",
    ),
    "host.journal": Meaning(
        means="The journal is kept in memory only: after a power cut nobody can read what happened before it.",
        remedy="sudo mkdir -p /var/log/journal && sudo systemctl restart systemd-journald",
    ),
}


def _clock(facts: Facts) -> Iterator[Finding]:
    """Look whether the clock is set, and whether it has been set back."""
    newest = _newest_record(facts)
    now = datetime.now(UTC)
    if newest is not None and newest - now > BEHIND:
        yield Finding(
            id="host.clock",
            level=Level.WARN,
            what=f"the clock is {_hours(newest - now)} behind what is written down",
            why="nothing is lost by it, no lease depends on the clock; deadlines come later than they were meant",
            commands=("timedatectl", "sudo timedatectl set-ntp true"),
        )
        return
    synchronised = _ask_timedatectl()
    if synchronised is False:
        yield info(
            "host.clock",
            "the clock is not set by the network",
            "deadlines (--expires-in) depend on it; leases do not",
            commands=("sudo timedatectl set-ntp true",),
        )
    else:
        yield ok("host.clock", "the clock is set" if synchronised else "the clock is not behind any record")


def _newest_record(facts: Facts) -> datetime | None:
    try:
        times = [worker.beat_at for worker in registry.recent(facts.records, limit=5)]
        times += [batch.created_at for batch in catalog.recent(facts.records, limit=1)]
    except (VbatchError, NothingStored):
        return None
    return max(times, default=None)


def _ask_timedatectl() -> bool | None:
    """Return whether the clock is synchronised; None where nobody can say."""
    if shutil.which("timedatectl") is None or not _SYSTEMD.is_dir():
        return None
    command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    limit = PATIENCE.total_seconds()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:  # its service is not up yet, or the bus hangs
        return None
    return done.stdout.strip() == "yes" if done.returncode == 0 else None


_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
_JOURNAL = Path("/var/log/journal")  # journald.conf(5), Storage=auto


def _disks(facts: Facts) -> Iterator[Finding]:
    """Look for room and for read-only mounts, once for each file system that vbatch writes to."""
    coming = _bytes_to_come(facts)
    mounts: dict[Path, tuple[Mount, list[str]]] = {}
    for name, path in _written(facts):
        try:
            mount = mount_of(path)
        except OSError as error:
            yield Finding(
                id="host.disk",
                level=Level.WARN,
                what=f"{path} ({name}) cannot be looked at: {error.strerror}",
                commands=(f"ls -ld {path}",),
            )
            continue
        mounts.setdefault(mount.place, (mount, []))[1].append(name)
    fine = []
    for mount, names in mounts.values():
        holds = ", ".join(dict.fromkeys(names))
        grows = coming if {"store", "outputs"} & set(names) else 0
        if mount.read_only:
            yield Finding(
                id="host.read_only",
                level=Level.WARN if set(names) == {"models"} else Level.FAIL,
                what=f"{mount.place} is mounted read-only; it holds {holds}",
                why="the kernel does that when a disk fails; nothing can be saved there",
                commands=("dmesg | tail", f"sudo mount -o remount,rw {mount.place}"),
            )
        elif mount.free < max(LEAST_ROOM, grows):
            yield _too_little(mount, names, grows)
        else:
            fine.append(f"{mount.free / GIB:,.0f} GiB free for {holds}")
    if fine:
        yield ok("host.disk", "; ".join(fine))


def _too_little(mount: Mount, names: Sequence[str], grows: int) -> Finding:
    full = mount.free < LEAST_ROOM // 16 and set(names) != {"models"}
    holds = ", ".join(dict.fromkeys(names))
    needs = f"; the queue will need about {grows / GIB:.1f} GiB" if grows > mount.free else ""
    return Finding(
        id="host.disk",
        level=Level.FAIL if full else Level.WARN,
        what=f"{mount.place} has {mount.free / GIB:.2f} GiB free; it holds {holds}{needs}",
        why="the worker pauses when it is full, and goes on when there is room; nothing is lost",
        commands=(f"du -xh {mount.place} | sort -h | tail", "vbatch list   # then: vbatch delete ID"),
        passing=False,
    )


def _written(facts: Facts) -> Iterator[tuple[str, Path]]:
    """Name everything that vbatch writes to."""
    settings = facts.settings
    try:
        if (file := facts.store.file) is not None:
            yield "store", file
        unfinished = [status for status in BatchStatus if not status.final]
        for batch in catalog.recent(facts.records, limit=20, statuses=unfinished):
            yield "outputs", Path(batch.output_path).parent
    except (VbatchError, NothingStored):
        yield "store", settings.data_dir
    yield "models", settings.cache_dir
    if settings.engine != "echo":
        yield "models", hub_cache()
    yield "logs", settings.state_dir


def _bytes_to_come(facts: Facts) -> int:
    try:
        return overview.bytes_to_come(facts.records)
    except (VbatchError, NothingStored):
        return 0


def _limits(_facts: Facts) -> Iterator[Finding]:
    """Look at shared memory and open files."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield skip("host.shm", "there is no /dev/shm here")
    elif (mount := mount_of(shared)).total < LEAST_SHARED:
        yield Finding(
            id="host.shm",
            level=Level.WARN,
            what=f"/dev/shm has {mount.total / (1 << 20):,.0f} MiB",
            why="vLLM's processes exchange requests there; an engine may die of it",
            commands=("sudo mount -o remount,size=50% /dev/shm",),
        )
    else:
        yield ok("host.shm", f"/dev/shm has {mount.total / GIB:.1f} GiB")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < LEAST_FILES:
        yield Finding(
            id="host.files",
            level=Level.WARN,
            what=f"at most {hard} files may be open here",
            why="vLLM opens a socket for each of its processes and a file for each part of a model",
            commands=("sudo prlimit --pid $$ --nofile=65536:65536",),
        )
    else:
        yield ok("host.files", f"{soft if soft >= 0 else 'any number of'} open files are allowed")


def _journal(_facts: Facts) -> Iterator[Finding]:
    """Look whether the journal outlives a power cut."""
    if not _SYSTEMD.is_dir():
        yield skip("host.journal", "no systemd here, no journal")
    elif _JOURNAL.is_dir():
        yield ok("host.journal", "the journal survives a reboot")
    else:
        yield info(
            "host.journal",
            "the journal is kept in memory only",
            "after a power cut nobody can read what happened before it",
            commands=("sudo mkdir -p /var/log/journal && sudo systemctl restart systemd-journald",),
        )


def _hours(span: timedelta) -> str:
    hours, seconds = divmod(int(span.total_seconds()), 3600)
    return f"{hours} h {seconds // 60} min" if hours else f"{seconds // 60} min"


CHECKS = (
    Check(name="host.clock", group=Group.HOST, run=_clock),
    Check(name="host.disk", group=Group.HOST, run=_disks),
    Check(name="host.limits", group=Group.HOST, run=_limits),
    Check(name="host.journal", group=Group.HOST, run=_journal),
)
