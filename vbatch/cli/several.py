"""``run-worker --gpu all``: the workers' lines under the number of their GPU, and on a terminal one line per GPU."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.text import Text

from vbatch import logs
from vbatch.cli.output import Output
from vbatch.config import Settings
from vbatch.text import harmless
from vbatch.worker import Stop, several
from vbatch.worker.several import Member

_STAMPED = re.compile(r"\S+Z (debug|info|warning|error|critical) (.*)")


def run_workers(
    output: Output, settings: Settings, numbers: Sequence[int], options: Sequence[str], stop: Stop
) -> int:
    """Run a worker on each of these GPUs; ``options`` are those of ``run-worker`` for all. Return the exit code."""
    command = (sys.executable, "-m", "vbatch", "run-worker", "--gpu")
    commands = {number: (*command, str(number), *options) for number in numbers}
    logs.configure(settings.log_level)
    if not sys.stderr.isatty():
        return several.run(commands, stop=stop, said=_print)
    with _shown(output) as (said, changed):
        return several.run(commands, stop=stop, said=said, changed=changed)


def _print(number: int, line: str) -> None:
    """Print a worker's line with the number of its GPU; into the journal with the line's own priority."""
    stamped = _STAMPED.fullmatch(line)
    if stamped is not None and logs.is_journal(sys.stderr):
        level = logging.getLevelNamesMapping()[stamped[1].upper()]
        priority = logs.prioritised(logging.makeLogRecord({"levelno": level}))
        line = f"{priority}gpu={number} {stamped[2]}"
    else:
        line = f"gpu={number} {line}"
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def _shown(output: Output) -> Iterator[tuple[Callable[[int, str], None], Callable[[Sequence[Member]], None]]]:
    console = output.stderr
    with Live(console=console, transient=True, auto_refresh=False) as live:
        console.show_cursor(True)  # a second Ctrl-C ends the process at once: a hidden one would stay hidden

        def said(number: int, line: str) -> None:
            console.print(Text(f"gpu={number} {harmless(line)}"))

        def changed(members: Sequence[Member]) -> None:
            rows = [
                Text(f"GPU {member.number}  {harmless(member.status)}", style="bold") for member in members
            ]
            live.update(Group(*rows), refresh=True)

        yield said, changed
