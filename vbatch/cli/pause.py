"""``pause`` and ``resume``: the GPU back for a while, and what still pauses the workers."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from vbatch import pausing
from vbatch.cli.output import Output, Result
from vbatch.cli.startup import settings
from vbatch.config import Settings
from vbatch.pausing import Pause, Reason


def pause(*, everyone: bool, now: bool, json: bool) -> None:
    """Pause the workers of this account, or of every account."""
    output = Output.of(json=json)
    loaded = settings(output)
    file = pausing.pause(loaded, everyone=everyone, now=now)
    whose = "the workers of every account" if everyone else "your workers"
    how = "give their requests back to the queue" if now else "finish their running requests"
    words = (
        f"{whose} on this host {how} and unload their models\n"
        f"to continue: vbatch resume{' --all' if everyone else ''}"
    )
    _show(output, loaded, file, words)


def resume(*, everyone: bool, json: bool) -> None:
    """End a pause, and report one that remains."""
    output = Output.of(json=json)
    loaded = settings(output)
    ended = pausing.resume(loaded, everyone=everyone)
    file = pausing.MACHINE_FILE if everyone else loaded.state_dir / pausing.NAME
    left = pausing.shown(loaded)
    whose = "the workers of every account" if everyone else "your workers"
    if left is not None:
        words = f"{whose} are still {left.words}"
    elif ended:
        words = f"{whose} on this host continue"
    else:
        words = f"{whose} on this host were not paused"
    _show(output, loaded, file, words)
    if left is not None and left.reason is not Reason.HOURS:
        output.warn(f"this pause ends with: {left.remedy}")


def _show(output: Output, loaded: Settings, file: Path, words: str) -> None:
    found = pausing.shown(loaded)
    output.show(Result(document=lambda: _document(found, file), screen=lambda: words))


def _document(found: Pause | None, file: Path) -> dict[str, Any]:
    return {
        "object": "pause",
        "host": socket.gethostname(),
        "paused": pausing.document(found),
        "file": str(file),
    }
