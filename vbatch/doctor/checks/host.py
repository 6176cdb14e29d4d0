"""Checks of the machine: its clock, disks, shared memory, limits and journal."""

from __future__ import annotations

import resource
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Check, Entry, Finding, Level
from vbatch.engine.kinds import KINDS
from vbatch.errors import VbatchError
from vbatch.protocol import BatchStatus
from vbatch.store import catalog, overview, registry
from vbatch.system.disks import Mount, hub_cache, mount_of
from vbatch.text import GIB, MIB, duration

LEAST_ROOM = GIB  # free bytes below which a disk is called full, whatever the queue still needs
LEAST_SHARED = GIB  # bytes of /dev/shm
LEAST_FILES = 4096  # open files; vLLM itself asks for 65,535 at its start where the hard limit allows it
PATIENCE = timedelta(seconds=5)  # for timedatectl, whose service may not be up yet
BEHIND = timedelta(minutes=2)  # how much older than the newest record the clock may be

CLOCK = Entry(
    id="host.clock",
    means="deadlines (--expires-in) and the times that are shown depend on the clock; leases do not",
    commands=("sudo timedatectl set-ntp true",),
)
DISK = Entry(
    id="host.disk",
    means="whether there is room for what the queue will still write; the worker pauses when a disk is full, continues "
    "when there is room, and loses nothing",
    commands=("du -xh {place} | sort -h | tail", "vbatch delete --ended-before 30d"),
)
READ_ONLY = Entry(
    id="host.read_only",
    means="the kernel mounts a file system read-only when its disk fails; nothing can be saved there",
    commands=("dmesg | tail", "sudo mount -o remount,rw {place}"),
    advice="check the disk",
)
SHM = Entry(
    id="host.shm",
    means="vLLM's processes exchange requests in /dev/shm, and an engine may crash where it is small; containers have "
    "64 MiB by default",
    commands=("sudo mount -o remount,size=50% /dev/shm",),
    advice="docker run --ipc=host, or --shm-size 8g",
)
FILES = Entry(
    id="host.files",
    means="vLLM opens a socket for each of its processes and a file for each part of a model; the service sets its own "
    "limit",
    commands=("sudo prlimit --pid $$ --nofile=65536:65536",),
)
JOURNAL = Entry(
    id="host.journal",
    means="a journal that is kept in memory only does not show after a power cut what happened before it",
    commands=("sudo mkdir -p /var/log/journal && sudo systemctl restart systemd-journald",),
)

_SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
_JOURNAL = Path("/var/log/journal")  # journald.conf(5), Storage=auto


def _clock(facts: Facts) -> Iterator[Finding]:
    """Look whether the clock is set, and whether it was set back."""
    newest = _newest_record(facts)
    now = datetime.now(UTC)
    if newest is not None and newest - now > BEHIND:
        yield CLOCK.warn(f"the clock is {duration((newest - now).total_seconds())} behind the newest record")
        return
    synchronised = _ask_timedatectl()
    if synchronised is False:
        yield CLOCK.info("the clock is not set by the network")
    else:
        yield CLOCK.ok("the clock is set" if synchronised else "the clock is not behind any record")


def _newest_record(facts: Facts) -> datetime | None:
    try:
        times = [worker.heartbeat_at for worker in registry.recent(facts.records, limit=5)]
        times += [batch.created_at for batch in catalog.recent(facts.records, limit=1)]
    except (VbatchError, NothingStored):
        return None
    return max(times, default=None)


def _ask_timedatectl() -> bool | None:
    """Return whether the clock is synchronised; None where that is unknown."""
    if shutil.which("timedatectl") is None or not _SYSTEMD.is_dir():
        return None
    command = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    limit = PATIENCE.total_seconds()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:  # its service is not up yet, or the bus hangs
        return None
    return done.stdout.strip() == "yes" if done.returncode == 0 else None


def _disks(facts: Facts) -> Iterator[Finding]:
    """Look for room and for read-only mounts, once for each file system that vbatch writes to."""
    coming = _bytes_to_come(facts)
    mounts: dict[Path, tuple[Mount, list[str]]] = {}
    for name, path in _written(facts):
        try:
            mount = mount_of(path)
        except OSError as error:
            yield DISK.warn(
                f"{path} ({name}) cannot be read: {error.strerror}",
                commands=(shlex.join(["ls", "-ld", str(path)]),),
            )
            continue
        mounts.setdefault(mount.place, (mount, []))[1].append(name)
    fine = []
    for mount, names in mounts.values():
        holds = ", ".join(dict.fromkeys(names))
        grows = coming if {"store", "outputs"} & set(names) else 0
        if mount.read_only:
            yield READ_ONLY.found(
                Level.WARN if set(names) == {"models"} else Level.FAIL,
                f"{mount.place} is mounted read-only; it holds {holds}",
                values={"place": mount.place},
            )
        elif mount.free < max(LEAST_ROOM, grows):
            full = mount.free < LEAST_ROOM // 16 and set(names) != {"models"}
            needs = f"; the queue will need about {grows / GIB:.1f} GiB" if grows > mount.free else ""
            yield DISK.found(
                Level.FAIL if full else Level.WARN,
                f"{mount.place} has {mount.free / GIB:.2f} GiB free; it holds {holds}{needs}",
                values={"place": mount.place},
            )
        else:
            fine.append(f"{mount.free / GIB:,.0f} GiB free for {holds}")
    if fine:
        yield DISK.ok("; ".join(fine))


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
    if KINDS[settings.engine].needs_files:
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
        yield SHM.skip("there is no /dev/shm here")
    elif (mount := mount_of(shared)).total < LEAST_SHARED:
        yield SHM.warn(f"/dev/shm has {mount.total / MIB:,.0f} MiB")
    else:
        yield SHM.ok(f"/dev/shm has {mount.total / GIB:.1f} GiB")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < LEAST_FILES:
        yield FILES.warn(f"at most {hard} files may be open here")
    else:
        yield FILES.ok(f"{soft if soft >= 0 else 'any number of'} open files are allowed")


def _journal(_facts: Facts) -> Iterator[Finding]:
    """Look whether the journal survives a power cut."""
    if not _SYSTEMD.is_dir():
        yield JOURNAL.skip("no systemd here, no journal")
    elif _JOURNAL.is_dir():
        yield JOURNAL.ok("the journal survives a reboot")
    else:
        yield JOURNAL.info("the journal is kept in memory only")


CHECKS = (
    Check(name="host.clock", finds=(CLOCK,), run=_clock),
    Check(name="host.disk", finds=(DISK, READ_ONLY), run=_disks),
    Check(name="host.limits", finds=(SHM, FILES), run=_limits),
    Check(name="host.journal", finds=(JOURNAL,), run=_journal),
)
