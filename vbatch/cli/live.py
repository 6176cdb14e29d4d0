"""The worker's live view: one calm block at the foot of the terminal, its events scrolling above it.

Reads the worker's snapshot a few times a second and knows nothing of how the worker works.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from vbatch import logs
from vbatch.cli.events import SentenceFormatter
from vbatch.cli.screens import bar, time_left
from vbatch.engine.figures import EngineFigures
from vbatch.gpu import Gpu
from vbatch.text import GIB, count, duration, harmless, one_line, percent, rate, size
from vbatch.worker import Snapshot

REFRESHES = 4  # a second
BLOCKED_SHOWN = 3  # models that cannot be loaded, and endpoints at which one does not answer

_LEVEL_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}


class Screen:
    """Draws snapshots. ``stopping`` returns whether a first Ctrl-C came, ``clock`` the time."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        stopping: Callable[[], bool],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock = clock
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
        if now.running or (now.requests_per_second and now.state == "working"):
            lines.append(_pace(now, self._clock()))
        if now.engine is not None and now.running:
            lines.append(Text(_engine(now.engine), style="dim"))
        lines.extend(Text(_gpu(card), style="dim") for card in now.gpus_now)
        for model, cause in list(now.blocked.items())[:BLOCKED_SHOWN]:
            line = f"! the requests for {one_line(model, limit=80)} wait: {one_line(cause, limit=200)}"
            lines.append(Text(line, style="yellow"))
        if len(now.blocked) > BLOCKED_SHOWN:
            lines.append(
                Text(f"! and {count(len(now.blocked) - BLOCKED_SHOWN, 'other model')}", style="yellow")
            )
        if now.paused is not None:
            lines.append(Text(harmless(now.paused), style="yellow"))
        if now.trouble is not None:
            lines.append(Text("! " + harmless(now.trouble), style="yellow"))
        if now.advice is not None:
            lines.append(Text(harmless(now.advice), style="dim yellow"))
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
        row.add_row("·" if now.state in ("idle", "paused") else self._spinner, headline)
        return row


def _progress(now: Snapshot) -> RenderableType:
    done = now.completed + now.failed
    row = Table.grid(padding=(0, 1))
    counts = Text.assemble((percent(done, now.total), "bold"), f"  {done:,} of {count(now.total, 'request')}")
    if now.failed:
        counts.append(f"  {now.failed:,} failed", style="red")
    row.add_row(bar(done, now.total), counts)
    return row


def _pace(now: Snapshot, clock: datetime) -> RenderableType:
    if not now.requests_per_second:
        return Text(f"{now.running:,} running, none finished yet")
    parts = [f"{rate(now.requests_per_second)} requests/s"]
    prompt, answer = now.prompt_tokens_per_second, now.completion_tokens_per_second
    if prompt or answer:
        parts.append(f"{rate(prompt)} tokens/s in, {rate(answer)} out")
    parts.append(f"{now.running:,} running")
    if now.remaining_seconds is not None:
        parts.append(time_left(timedelta(seconds=now.remaining_seconds), now=clock))
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


def _engine(now: EngineFigures) -> str:
    """``engine: 64 running, 16 waiting, KV cache 43 %, 60 % of prompt tokens cached``, and preemptions, if any."""
    parts = [
        f"{now.running:,} running",
        f"{now.waiting:,} waiting",
        f"KV cache {now.cache:.0%}".replace("%", " %"),
    ]
    if now.hit_rate is not None:
        parts.append(f"{100 * now.hit_rate:.0f} % of prompt tokens cached")
    if now.preemptions:
        parts.append(count(now.preemptions, "preemption"))
    return f"engine: {', '.join(parts)}"


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
