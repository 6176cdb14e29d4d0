"""Why an engine did not start or died, in one line, found in its log.

vLLM's engine fails in a child process, and the parent learns only that it failed. The cause is in the child's output,
which is in the engine's log. A cause that is not known is reported by the last exception.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vbatch.engine import Blame
from vbatch.engine.cause import KnownCause
from vbatch.engine.known_causes import KNOWN

LONGEST = 300  # characters of a cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a start failed. ``hint`` is what a person can do, a command to paste where possible.

    ``transient``: another try may succeed.
    """

    line: str
    hint: str | None = None
    transient: bool = False
    blame: Blame = Blame.UNKNOWN


# vLLM's words where one process of an engine over several GPUs is gone, and how the others then fail. The exit code is
# None where it looked before the kernel had one.
_WORKER = re.compile(r"Worker proc (?P<name>\S+) died unexpectedly \(exit code: (?P<code>-?\d+|None)\)")
_SURVIVOR = re.compile(
    r"Connection (?:reset|closed) by peer|Broken pipe|Executor failed|"
    r"(?:BrokenPipe|ConnectionReset|DistBackend|DistNetwork)Error|cancelled|EOFError"
)

_SIGNAL = re.compile(r"Failed core proc\(s\): \{[^}]*: -(\d+)")


def of_failed_start(log: str, *, model: str, path: str) -> Cause:
    """Find the root cause of a failed start in the engine's log, which ends with the worker's traceback of it."""
    complaints = _complaints(log)
    died = _dead_worker(complaints)
    complaints = complaints if died is None else _without_survivors(complaints)
    text = "\n".join(complaints)
    for known in KNOWN:
        if (match := known.pattern.search(text)) is not None:
            words = {key: value for key, value in match.groupdict().items() if value is not None}
            return _fill_in(known, words | {"model": model, "path": path})
    if (match := _SIGNAL.search(text)) is not None:
        number = int(match[1])
        # SIGKILL most often comes from the kernel's out-of-memory killer.
        return Cause(line=f"{_how_it_ended(-number)} as it started", transient=number == signal.SIGKILL)
    said = ": ".join(filter(None, [died, _last_exception(complaints)]))
    return Cause(line=said or "vLLM did not say why it did not start")


def of_death(exit_codes: Sequence[int | None], log: str) -> str:
    """Return in one line why an engine died: how its first process ended, and its last exception."""
    complaints = _complaints(log)
    if (died := _dead_worker(complaints)) is not None:
        return ": ".join(filter(None, [died, _last_exception(_without_survivors(complaints))]))
    ends = [_how_it_ended(code) for code in exit_codes if code]
    words = _last_exception(complaints)
    return ": ".join(filter(None, [*ends[:1], words])) or "the engine stopped"


def was_killed(exit_codes: Sequence[int | None], log: str) -> bool:
    """Whether SIGKILL ended the engine or a part of it: a person or the kernel sent it, no request did."""
    died = next(filter(None, map(_WORKER.search, _complaints(log))), None)
    return -signal.SIGKILL in exit_codes or (died is not None and died["code"] == str(-signal.SIGKILL))


def out_of_memory_kills() -> int:
    """Return how many processes the kernel's out-of-memory killer has ended since boot (proc_vmstat(5))."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def out_of_memory_since(kills: int) -> str:
    """Return, to be added to a cause, that there were such kills since there were this many; nothing where not."""
    if out_of_memory_kills() <= kills:
        return ""
    return " (the kernel's out-of-memory killer ended a process: the machine or its control group ran out of memory)"


def _fill_in(known: KnownCause, words: dict[str, str]) -> Cause:
    if "free" in words and (share := int(100 * float(words["free"]) / float(words["total"])) - 1) >= 20:
        words["fitting"] = f"{share / 100:.2f}"
    hint = None
    for template in reversed(known.hints):
        with contextlib.suppress(KeyError):
            hint = template.format_map(words)
    possible = float(words.get("wanted", 0)) <= float(words.get("total", "inf"))
    return Cause(
        line=_short(known.line.format_map(words)),
        hint=hint,
        transient=known.transient and possible,
        blame=known.blame if possible else Blame.MODEL,
    )


def _dead_worker(complaints: Sequence[str]) -> str | None:
    """Return how the first process that died of an engine over several GPUs ended, None where none did."""
    found = next(filter(None, map(_WORKER.search, complaints)), None)
    if found is None:
        return None
    who = f"the engine process {found['name']}"
    return f"{who} crashed" if found["code"] == "None" else _how_it_ended(int(found["code"]), who)


def _without_survivors(complaints: Sequence[str]) -> list[str]:
    """Leave out what the other processes of the engine say when one is gone."""
    return [line for line in complaints if not _SURVIVOR.search(line) and not _WORKER.search(line)]


def _how_it_ended(code: int, who: str = "the engine process") -> str:
    if code > 0:
        return f"{who} exited with status {code}"
    known = -code in set(signal.valid_signals())
    return f"{who} was ended by {signal.Signals(-code).name if known else f'signal {-code}'}"


_INFORMATION = re.compile(r"(?:\(.*?\) )?(?:DEBUG|INFO|WARNING) ")
_PREFIX = re.compile(r"\(.*? pid=\d+\) (?:(?:ERROR|CRITICAL) \S+ \S+ \[[^\]]*\] ?)?")
_VALIDATION = re.compile(
    r"  (?:(?:Value|Assertion) error, (?P<raised>.*?)(?: \[type=.*)?|(?P<mistyped>.*) \[type=.*)$"
)
_EXCEPTION = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception)(?:: .*)?)$|(?:[a-z_]\w*\.)+([A-Z]\w*(?:: .*)?)$")

# Exceptions that report only that something failed elsewhere.
_SECONDARY = re.compile(
    r"EngineDeadError|Engine core initialization failed|WorkerProc initialization failed|Worker failed with error|"
    r"validation errors? for|FlagsRefused"
)


def _complaints(log: str) -> list[str]:
    """Return the lines that may hold the cause: no informational ones, no code that a traceback quotes."""
    complaints = []
    for said in log.splitlines():
        if _INFORMATION.match(said):
            continue
        line = _PREFIX.sub("", said, count=1)
        if (match := _VALIDATION.match(line)) is not None:
            line = f"ValueError: {match['raised'] or match['mistyped']}"
        if line and not line[0].isspace():
            complaints.append(line)
    return complaints


def _last_exception(complaints: Sequence[str]) -> str | None:
    """Return the last exception that is not only a consequence of another one."""
    matches = (_EXCEPTION.match(line) for line in reversed(complaints))
    said = (match[1] or match[2] for match in matches if match)
    return next((_short(words) for words in said if not _SECONDARY.search(words)), None)


def _short(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
