"""What is wrong with the lines of a file, of which any number may be bad."""

from __future__ import annotations

import heapq
import re

import msgspec

from vbatch.jsonl import not_json
from vbatch.protocol import BatchError

SHOWN_DEFECTS = 100
FIRST_LINES = 3  # of those that share a defect
_PLACE = re.compile(r" \((?:at )?byte \d+\)")
_EARLIER = re.compile(r" on line \d+")


class Defects:
    """The bad lines of a file: the first hundred in full, and how many there are. They may come in any order."""

    def __init__(self) -> None:
        self.total = 0
        self._first: list[tuple[int, int, BatchError]] = []  # a heap: what comes last in the file is on top
        self._kinds: dict[tuple[str, str], list[int]] = {}  # code and kind: how many, and the first lines
        self.lines: set[int] | None = None  # of all bad lines, where they are asked for

    @property
    def shown(self) -> list[BatchError]:
        """The first hundred, in the order of the file."""
        return [defect for _, _, defect in sorted(self._first, reverse=True)]

    @property
    def shared(self) -> dict[tuple[str, str], tuple[int, list[int]]]:
        """The defects that many lines share: by code and kind, how many lines, and the first of them."""
        return {key: (many, lines) for key, (many, *lines) in self._kinds.items() if many > FIRST_LINES}

    def add(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> None:
        """Count one, and keep it while it is among the first."""
        self.total += 1
        if self.lines is not None and line is not None:
            self.lines.add(line)
        key = code, kind_of(message)
        kind = self._kinds.get(key)
        if kind is not None:
            kind[0] += 1
            if len(kind) <= FIRST_LINES or (line or 0) < kind[-1]:  # they may come in any order
                kind[1:] = sorted([*kind[1:], line or 0])[:FIRST_LINES]
        elif len(self._kinds) < SHOWN_DEFECTS:
            self._kinds[key] = [1, line or 0]
        entry = (-(line or 0), -self.total, BatchError(code=code, message=message, line=line, param=param))
        if len(self._first) < SHOWN_DEFECTS:
            heapq.heappush(self._first, entry)
        else:
            heapq.heappushpop(self._first, entry)

    def mark_cut_off(self, line: int) -> None:
        """Add to the defect of the last line, if it has one, that no line break ends it, which is why."""
        for position, (place, number, defect) in enumerate(self._first):
            if (
                defect.line == line
                and defect.code == "invalid_json_line"
                and defect.message != not_json.NO_LINE_FEED
            ):
                message = f"The last line is cut off: the file may be incomplete. {defect.message}"
                self._first[position] = (place, number, msgspec.structs.replace(defect, message=message))


def kind_of(message: str) -> str:
    """Return a defect's message without the place, which differs in each line."""
    return _EARLIER.sub(" on an earlier line", _PLACE.sub("", message))
