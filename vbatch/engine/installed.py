"""What is installed of vLLM and what it needs, found by really importing it: in a child, for that takes its time.

``look`` starts the child; nothing of vLLM or torch is ever imported where it is called.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from contextlib import redirect_stdout
from datetime import timedelta
from importlib import metadata, util

import msgspec

from vbatch.engine import guard

LIMIT = timedelta(seconds=110)  # a cold import from a slow disk

# Text models need none of these; one that is there and cannot load breaks every import of a model.
FRAGILE = ("torchvision", "torchaudio", "torchcodec")


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found. ``failures`` maps a package that is there and cannot be imported to its last words.

    ``cuda`` is the CUDA version that torch was built for, None for a CPU build. ``hanging`` says that the imports
    took too long.
    """

    vllm: str | None = None
    torch: str | None = None
    cuda: str | None = None
    failures: dict[str, str] = {}
    guard_registered: bool = False
    hanging: bool = False


def look(limit: timedelta = LIMIT) -> Installed:
    """Return what is installed; never raises for what the imports do."""
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit.total_seconds(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Installed(hanging=True)
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()
        reason = last[-1] if last else f"exit {done.returncode}"
        return Installed(failures={"vllm": reason}, guard_registered=_guard_registered())
    return msgspec.json.decode(done.stdout, type=Installed)


def _examine() -> Installed:
    failures: dict[str, str] = {}
    for name in FRAGILE:
        if util.find_spec(name) is not None:
            _try(name, failures)
    has_vllm = util.find_spec("vllm") is not None
    vllm = torch = cuda = None
    if (
        has_vllm
        and _try("torch", failures)
        and _try("vllm", failures)
        and _try("vllm.v1.engine.async_llm", failures)
    ):
        torch_module, version = sys.modules["torch"], importlib.import_module("vllm.version")
        vllm, torch, cuda = str(version.__version__), str(torch_module.__version__), torch_module.version.cuda
    elif has_vllm:
        vllm = "unknown"
    return Installed(
        vllm=vllm, torch=torch, cuda=cuda, failures=failures, guard_registered=_guard_registered()
    )


def _try(name: str, failures: dict[str, str]) -> bool:
    try:
        importlib.import_module(name)
    except BaseException as error:
        words = str(error).strip().splitlines()
        failures[name] = f"{type(error).__name__}: {words[0] if words else ''}"
        return False
    return True


def _guard_registered() -> bool:
    """Whether vLLM will find our guard: the entry point of the installed vbatch, or none where it only lies about."""
    return any(entry.name == guard.NAME for entry in metadata.entry_points(group="vllm.general_plugins"))


def main() -> int:
    """Print what is installed as JSON; what the imports print goes to stderr."""
    out = sys.stdout.buffer
    with redirect_stdout(sys.stderr):
        found = _examine()
    out.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
