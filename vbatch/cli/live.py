"""The worker's live view: one calm block at the foot of the terminal, its events scrolling above it.

Reads the worker's snapshot a few times a second and knows nothing of how the worker works.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from vbatch import logs
from vbatch.cli.events import SentenceFormatter
from vbatch.gpu import Gpu
from vbatch.text import GIB, count, duration, harmless, percent, rate, size
from vbatch.worker import Snapshot

REFRESHES = 4  # a second
BAR_WIDTH = 40

_LEVEL_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}


class Screen:
    """Draws snapshots. ``stopping`` returns whether a first Ctrl-C came."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        stopping: Callable[[], bool],
    ) -> None:
        self._snapshot = snapshot
        self._stopping = stopping
        self._state = ""
        self._since = time.monotonic()
        self._spinner = Spinner("dots", style="cyan")

    def __rich__(self) -> RenderableType:
        """Draw the worker as it is now."""
        now = self._snapshot()
        if now.state != self._state:
            self._state, self._since = now.state, time.monotonic()
        lines: list[RenderableType] = [self._headline(now)]
        if now.total:
            lines.append(_progress(now))
        if now.running or now.requests_per_second:
            lines.append(_pace(now))
        if now.gpu_now is not None:
            lines.append(Text(_gpu(now.gpu_now), style="dim"))
        if now.trouble is not None:
            lines.append(Text("! " + harmless(now.trouble), style="yellow"))
        if self._stopping():
            lines.append(
                Text(
                    "Stopping: running requests finish and are saved. Ctrl-C again stops at once.",
                    style="yellow",
                )
            )
        return Group(*lines)

    def _headline(self, now: Snapshot) -> RenderableType:
        headline = Text()
        if now.waiting_for is not None:
            headline.append(f"waiting for {harmless(now.waiting_for)}", style="yellow")
        else:
            headline.append(harmless(now.state), style="bold")
            if now.model is not None and now.model not in now.state:
                headline.append(" · " + harmless(now.model))
            if now.batch is not None:
                headline.append(" · " + now.batch, style="dim")
        seconds = time.monotonic() - self._since
        if now.state not in ("working", "idle") and seconds >= 2:
            headline.append(f" ({duration(seconds)})", style="dim")
        row = Table.grid(padding=(0, 1))
        row.add_row("·" if now.state == "idle" else self._spinner, headline)
        return row


def _progress(now: Snapshot) -> RenderableType:
    done = now.completed + now.failed
    row = Table.grid(padding=(0, 1))
    counts = Text.assemble((percent(done, now.total), "bold"), f"  {done:,} of {count(now.total, 'request')}")
    if now.failed:
        counts.append(f"  {now.failed:,} failed", style="red")
    row.add_row(ProgressBar(total=now.total, completed=done, width=BAR_WIDTH), counts)
    return row


def _pace(now: Snapshot) -> RenderableType:
    parts = [f"{rate(now.requests_per_second)} requests/s"]
    prompt, answer = now.prompt_tokens_per_second, now.completion_tokens_per_second
    if prompt or answer:
        parts.append(f"{rate(prompt)} tokens/s in, {rate(answer)} out")
    parts.append(f"{now.running:,} running")
    if now.remaining_seconds is not None:
        parts.append(f"about {duration(now.remaining_seconds)} left")
    return Text(" · ".join(parts))


@contextmanager
def shown(screen: Screen, console: Console, *, level: str) -> Iterator[None]:
    """Keep the screen at the foot of the terminal; events of this level or above are printed over it."""
    with Live(screen, console=console, refresh_per_second=REFRESHES, transient=True):
        # A second Ctrl-C ends the process at once: a hidden cursor would stay hidden.
        console.show_cursor(True)
        logs.send_to(_Printer(console), level)
        yield


class _Printer(logging.Handler):
    """Prints events through the console that holds the live view."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._format = SentenceFormatter()

    def emit(self, record: logging.LogRecord) -> None:
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = Text.assemble(
            (moment, "dim"), " ", (self._format.format(record), _LEVEL_STYLES.get(record.levelno, ""))
        )
        self._console.print(line)


def _gpu(card: Gpu) -> str:
    """``GPU 0 (RTX 4080): 12.9 of 15.6 GiB, 97 % busy, 61 °C``, as far as the driver reports."""
    parts = []
    if card.memory_known:
        parts.append(f"{card.used / GIB:.1f} of {size(card.total)}")
    if card.utilization is not None:
        parts.append(f"{card.utilization} % busy")
    if card.temperature is not None:
        parts.append(f"{card.temperature} °C")
    return f"GPU {card.index} ({harmless(card.name)}): {', '.join(parts)}"
