"""What a known cause of a failed start is: a pattern in the engine's log, its words, and whom it blames."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from vbatch.engine import Blame


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCause:
    """A cause that is recognised by a pattern in the engine's log.

    ``line`` and ``hints`` may name the pattern's groups, ``model``, ``path`` and ``fitting`` (the share of the memory
    that would fit). The first hint is shown whose names all have a value.
    """

    pattern: re.Pattern[str]
    line: str
    hints: tuple[str, ...]
    transient: bool
    blame: Blame


def known(
    pattern: str, line: str, *hints: str, transient: bool = False, blame: Blame = Blame.UNKNOWN
) -> KnownCause:
    """Make a cause."""
    return KnownCause(
        pattern=re.compile(pattern, re.MULTILINE),
        line=line,
        hints=hints,
        transient=transient,
        blame=blame,
    )


model = partial(known, blame=Blame.MODEL)
machine = partial(known, blame=Blame.MACHINE)
flags = partial(known, blame=Blame.FLAGS)
