"""The generated documentation: tables of settings and findings, the help of every command, the picture.

python -m tests.rigs.docs        write what is generated in vbatch/docs/ again
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "vbatch" / "docs"
PICTURE = DOCS / "live.svg"


class Meaning(Protocol):
    """What doctor has to say about one finding."""

    @property
    def means(self) -> str: ...

    @property
    def remedy(self) -> str: ...


def meanings() -> Mapping[str, Meaning]:
    """Return what every finding of doctor means, in the order of the checks."""
    from vbatch.doctor import registry

    return registry.meanings()


def commands() -> str:
    """Return the help of every command, as a terminal of 80 columns shows it."""
    helps = dict(_helps())
    return "\n".join(f"## {name}\n\n```text\n{text}```\n" for name, text in helps.items())


def _helps(*group: str) -> Iterator[tuple[str, str]]:
    """Yield the help of a command, and of the commands in it."""
    text = _help(*group)
    yield " ".join(("vbatch", *group)), text
    for name in re.findall(r"^  ([a-z-]+)  ", text.partition("Commands:\n")[2], re.MULTILINE):
        yield from _helps(*group, name)


def _help(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vbatch", *command, "--help"],
        env=os.environ | {"COLUMNS": "80"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def findings() -> str:
    """Return the table of doctor's findings."""
    rows = ["| finding | what it means | what to do |", "| --- | --- | --- |"]
    for name, meaning in meanings().items():
        means, remedy = (text.replace("|", "\\|") for text in (meaning.means, meaning.remedy))
        rows.append(f"| `{name}` | {means} | {remedy} |")
    return "\n".join(rows) + "\n"


def settings() -> str:
    """Return the table of settings, from their declarations."""
    from vbatch.config import PREFIX, TABLES, Settings

    rows = ["| variable | in config.toml | default | what it sets |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        if name not in TABLES:
            default = _default(name, field.default)
            rows.append(f"| `{PREFIX}{name.upper()}` | `{name}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"


def serve() -> str:
    """Return the table of ``[serve]``."""
    from vbatch.config.serve import ServeSettings

    rows = ["| in [serve] | default | what it sets |", "| --- | --- | --- |"]
    for name, field in ServeSettings.model_fields.items():
        rows.append(f"| `{name}` | {_served_default(field.default)} | {field.description} |")
    return "\n".join(rows) + "\n"


def _served_default(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 30:
        return f"`{value >> 30}GiB`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in (None, ()) else ""


_FOLDERS = {
    "data_dir": "~/.local/share/vbatch",
    "cache_dir": "~/.cache/vbatch",
    "state_dir": "~/.local/state/vbatch",
}


def _default(name: str, value: object) -> str:
    if name in _FOLDERS:
        return f"`{_FOLDERS[name]}`"
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())
        return f"`{seconds // 60}m`" if seconds % 60 == 0 else f"`{seconds}s`"
    if value is None or value == ():
        return "`never`" if name in ("request_timeout", "idle_unload") else ""
    return f"`{value}`"


def picture() -> str:
    """Return the live view of ``run-worker`` as an SVG image, drawn by its own code."""
    from rich.console import Console

    from vbatch.cli.live import Screen
    from vbatch.gpu import Gpu
    from vbatch.worker import Snapshot

    gib = 2**30
    card = Gpu(
        index=0, uuid="GPU-0", name="NVIDIA GeForce RTX 4080", memory_known=True, total=int(15.57 * gib),
        used=int(14.3 * gib), utilization=98, temperature=67,
    )  # fmt: skip
    moment = Snapshot(
        state="working", model="Qwen/Qwen3-8B", batch="batch_6a3f90c1d27be81f0a55e4b9", batches=1, total=5000,
        completed=2034, failed=14, running=256, requests_per_second=9.7, prompt_tokens_per_second=1830.0,
        completion_tokens_per_second=2410.0, gpus=(card,),
    )  # fmt: skip
    console = Console(
        file=io.StringIO(), record=True, width=90, force_terminal=True, color_system="truecolor", legacy_windows=False,
        get_time=lambda: 0.0,
    )  # fmt: skip
    with patch.object(
        time, "monotonic", lambda: 0.0
    ):  # how long the state lasts, and how old the GPU's figures are
        clock = datetime(2026, 11, 26, 21, 30).astimezone()  # a time of day, in whatever zone
        console.print(Screen(lambda: moment, stopping=lambda: False, clock=lambda: clock))
    svg = console.export_svg(title="vbatch run-worker", unique_id="live")
    return re.sub(
        r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL
    )  # they would be loaded from a foreign server


def words(svg: str) -> list[str]:
    """Return what a picture shows, without how it is drawn: that may change with any version of Rich."""
    return [text.replace("&#160;", " ").strip() for text in re.findall(r"<text[^>]*>(.*?)</text>", svg)]


def between(text: str, name: str) -> str:
    """Return what stands between the markers of this name."""
    return text.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


GENERATED = {"commands.md": commands, "findings.md": findings, "server.md": serve, "settings.md": settings}


def refreshed(name: str) -> str:
    """Return a page with its generated part, between its markers, as it should be."""
    text = (DOCS / name).read_text()
    marker = GENERATED[name].__name__
    before, _, rest = text.partition(f"<!-- {marker} -->\n")
    _, _, after = rest.partition(f"<!-- /{marker} -->")
    return f"{before}<!-- {marker} -->\n{GENERATED[name]()}<!-- /{marker} -->{after}"


if __name__ == "__main__":
    for page in GENERATED:
        (DOCS / page).write_text(refreshed(page))
    PICTURE.write_text(picture())
