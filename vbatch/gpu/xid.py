"""The driver's errors (Xid) of this boot, from the kernel log where it may be read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vbatch.system import kernel_log

_LINE = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+),?\s*(.*)")

# From NVIDIA's catalogue: docs.nvidia.com/deploy/xid-errors. Other errors are shown by their number alone.
_MEANINGS = {
    13: "a program's fault on the GPU (graphics engine exception)",
    31: "a program used memory that it may not use (MMU fault)",
    43: "a program was stopped on the GPU (reset channel)",
    45: "a program's work was discarded, as when it is killed",
    48: "a memory error that could not be corrected (double bit ECC)",
    61: "the GPU's own controller had an error",
    62: "the GPU's own controller stopped",
    63: "memory cells were taken out of use",
    64: "memory cells could not be taken out of use",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    94: "a memory error that was contained: it ended one program",
    95: "a memory error that was not contained: reset the GPU",
    119: "the GPU's system processor does not answer: reboot",
    120: "the GPU's system processor had an error: reboot",
    154: "the GPU must be reset, or the machine rebooted",
}

# Left behind by a killed or faulty program; not a fault of the GPU.
_HARMLESS = frozenset({43, 45})


@dataclass(frozen=True, slots=True, kw_only=True)
class Xid:
    """One kind of error of this boot; ``text`` is its last line in the kernel log."""

    code: int
    meaning: str
    text: str


def xid_errors(log: str | None = None) -> list[Xid] | None:
    """Return the kinds of errors of this boot, each once. None where the kernel log may not be read."""
    log = log if log is not None else kernel_log.read()
    if not log:
        return None
    found: dict[int, Xid] = {}
    for place, code, rest in _LINE.findall(log):
        number = int(code)
        if number not in _HARMLESS:
            meaning = _MEANINGS.get(number, "see NVIDIA's Xid catalogue")
            found[number] = Xid(
                code=number, meaning=meaning, text=f"NVRM: Xid ({place}): {code}, {rest}".strip()
            )
    return list(found.values())
