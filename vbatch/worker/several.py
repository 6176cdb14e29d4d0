"""One worker per GPU under one parent: it starts them, forwards signals, speaks to systemd for them, restarts nothing.

Each worker is a ``run-worker --gpu N`` in a process group of its own, so that a terminal's Ctrl-C reaches it once,
through the parent. It reports to the parent as it would to systemd (sd_notify(3)); the kernel names the sender.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from vbatch import gpu
from vbatch.config import Settings
from vbatch.config.gpu_setting import ALL
from vbatch.engine import installed
from vbatch.engine.kinds import KINDS
from vbatch.errors import EngineUnavailable, ExitCode
from vbatch.gpu import Gpu
from vbatch.gpu_memory import cards, granted
from vbatch.worker.stop import Stop, on_signals
from vbatch.worker.systemd import notify, watchdog_interval

log = logging.getLogger(__name__)

PARENT = "_VBATCH_PARENT"  # the pid of the parent, for its workers
PAUSE = 0.2  # seconds between two looks at the workers
CHECK_INTERVAL = 1.0  # seconds between two looks of a worker at its parent
END_LIMIT = 3.0  # seconds for a worker to end at a second signal

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7), SCM_CREDENTIALS


@dataclass(slots=True, kw_only=True)
class Member:
    """One worker: what it last reported of itself, and how it ended, None while it runs."""

    number: int
    process: subprocess.Popen[bytes]
    status: str = "starting"
    ready: bool = False
    progress: bool = False
    code: int | None = None


def keep_to_share(settings: Settings) -> None:
    """Have this process see only the GPUs that Slurm or a container's device plugin gave it, unless a number is set.

    Raises ConfigError where there are more tasks than GPUs.
    """
    if settings.gpu == ALL or (settings.gpu is None and _wants_gpu(settings)):
        own = granted.visible(os.environ, gpu.probe)
        if own is not None:
            log.info("worker.share gpus=%s", own)
            os.environ[cards.VARIABLE] = own


def choose(settings: Settings, vllm_flags: Sequence[str] = ()) -> tuple[tuple[int, ...], tuple[Gpu, ...]]:
    """Return the GPUs that get a worker each, and those left out for their display; none where it is one worker.

    Raises EngineUnavailable where ``all`` are asked for, vLLM computes on GPUs and there is none, and what a wrong name
    of a GPU raises.
    """
    if settings.gpu not in (None, ALL) or (settings.gpu is None and not _wants_gpu(settings)):
        return (), ()
    if KINDS[settings.engine].remote:
        return (), ()
    report = gpu.probe()
    if report.gpus:
        return cards.one_each(report) if cards.one_per_gpu(settings, report, vllm_flags) else ((), ())
    if settings.gpu == ALL and _wants_gpu(settings):
        reason = report.trouble.message if report.trouble is not None else "the driver lists no GPU"
        raise EngineUnavailable(f"there is no GPU to use: {reason}", hint="vbatch doctor gpu")
    return (), ()


def _wants_gpu(settings: Settings) -> bool:
    return KINDS[settings.engine].needs_gpu and installed.has_nvml()


def run(
    commands: Mapping[int, Sequence[str]],
    *,
    stop: Stop,
    said: Callable[[int, str], None],
    changed: Callable[[Sequence[Member]], None] = lambda _: None,
) -> int:
    """Run one worker per GPU until all have ended; return 78 if one ended with it, else the worst exit code.

    ``said`` gets each line that a worker prints, ``changed`` all of them whenever one has reported something.
    """
    with ExitStack() as stack:
        channel = stack.enter_context(_channel())
        stack.enter_context(on_signals(stop))
        members: list[Member] = []
        forwarded = threading.Event()
        stop.on_second = lambda: _end_at_once(members, first_sent=forwarded.is_set())
        try:
            for number, command in commands.items():
                members.append(Member(number=number, process=_start(command, channel)))
            readers = [_reading(member, said) for member in members]
            changed(members)
            _look_after(members, channel, stop, forwarded, changed)
        finally:
            for member in members:
                if member.process.poll() is None:
                    member.process.terminate()
        for reader in readers:
            reader.join(timeout=END_LIMIT)  # what a worker left behind may hold its pipe
        notify("STOPPING=1")
    codes = [member.code or 0 for member in members]
    return int(ExitCode.MISCONFIGURED) if ExitCode.MISCONFIGURED in codes else max(codes, default=0)


@contextmanager
def with_parent(stop: Stop) -> Iterator[None]:
    """Have a worker that a parent started drain when the parent is gone, however that ended.

    Not PR_SET_PDEATHSIG: it fires when the thread that started this process ends, and not for a parent that was gone
    before the call.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while str(os.getppid()) == parent:
            if over.wait(CHECK_INTERVAL):
                return
        log.warning("worker.parent_ended pid=%s", parent)
        stop.request()

    threading.Thread(target=watch, name="parent", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _look_after(
    members: Sequence[Member],
    channel: socket.socket,
    stop: Stop,
    forwarded: threading.Event,
    changed: Callable[[Sequence[Member]], None],
) -> None:
    status = ""
    ready = False
    while any(member.code is None for member in members):
        _listen(channel, members)
        for member in members:
            if member.code is None and (code := member.process.poll()) is not None:
                member.code = code if code >= 0 else 128 - code
                member.status = f"ended with exit code {member.code}" if member.code else "ended"
                log.info("worker.ended gpu=%d exit_code=%d", member.number, member.code)
                if member.code == ExitCode.MISCONFIGURED:
                    stop.request()
        if stop.requested and not forwarded.is_set():
            forwarded.set()
            for member in members:
                if member.code is None:
                    member.process.terminate()
        if not ready and any(member.ready for member in members):
            ready = True
            notify("READY=1")
        _pass_progress_on(members)
        if (line := "; ".join(f"GPU {member.number}: {member.status}" for member in members)) != status:
            status = line
            notify(f"STATUS={line}")
            changed(members)


def _pass_progress_on(members: Sequence[Member]) -> None:
    """Reset systemd's watchdog when every worker at work has reset its own since the last time."""
    at_work = [member for member in members if member.ready and member.code is None]
    if at_work and all(member.progress for member in at_work):
        notify("WATCHDOG=1")
        for member in at_work:
            member.progress = False


def _listen(channel: socket.socket, members: Sequence[Member]) -> None:
    """Take in what the workers report, for a moment."""
    deadline = time.monotonic() + PAUSE
    while (left := deadline - time.monotonic()) > 0:
        channel.settimeout(left)
        try:
            data, ancillary, _, _ = channel.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
        except TimeoutError:
            return
        sender = next(
            (
                _CREDENTIALS.unpack(content)[0]
                for level, kind, content in ancillary
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS
            ),
            None,
        )
        for member in members:
            if member.process.pid == sender:
                _take(member, data.decode(errors="replace"))


def _take(member: Member, message: str) -> None:
    for line in message.splitlines():
        name, _, value = line.partition("=")
        match name:
            case "READY":
                member.ready = True
            case "STATUS":
                member.status = value
            case "WATCHDOG":
                member.progress = True
            case "EXTEND_TIMEOUT_USEC":
                notify(line)


@contextmanager
def _channel() -> Iterator[socket.socket]:
    """Open the workers' service manager: an address without a file, which the kernel chooses and takes back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        channel.bind(b"")
        yield channel


def _start(command: Sequence[str], channel: socket.socket) -> subprocess.Popen[bytes]:
    address: bytes = channel.getsockname()
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": "@" + address[1:].decode("ascii"),
        PARENT: str(os.getpid()),
    }
    if watchdog_interval() is not None:
        environment.pop("WATCHDOG_PID", None)  # each of them resets the parent's
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )


def _reading(member: Member, said: Callable[[int, str], None]) -> threading.Thread:
    lines = member.process.stdout
    assert lines is not None

    def read() -> None:
        for line in lines:
            with suppress(OSError):
                said(member.number, line.decode(errors="replace").rstrip("\n"))

    thread = threading.Thread(target=read, name=f"gpu-{member.number}", daemon=True)
    thread.start()
    return thread


def _end_at_once(members: Sequence[Member], *, first_sent: bool) -> None:
    """End the workers as a second signal ends one; kill what does not end. Their engines end with them."""
    living = [member.process for member in members if member.code is None]
    for _ in range(1 if first_sent else 2):
        for process in living:
            process.terminate()
        time.sleep(0 if first_sent else PAUSE)
    deadline = time.monotonic() + END_LIMIT
    for process in living:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.kill()
