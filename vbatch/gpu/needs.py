"""vLLM's own arithmetic of GPU memory: how much it takes, and which share would fit.

Its engine refuses to start unless ``free >= ceil(total * gpu_memory_utilization)``
(vllm/v1/worker/utils.py, request_memory, 0.32), looked at when its own CUDA context already exists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

DEFAULT_UTILIZATION = 0.92
CONTEXT = 600 << 20  # bytes that vLLM's context takes before it looks
LEAST = 4 << 30  # bytes; in less than that no model of any use fits with its cache

_FLAG = "--gpu-memory-utilization"
_SHORTEST = "--gpu-m"  # vLLM's parser takes any beginning that is no other flag's
_CONFIG = "--config"


def required(total: int, utilization: float) -> int:
    """Return the bytes that must be free."""
    return math.ceil(total * utilization)


def utilization(args: Sequence[str]) -> float | None:
    """Read the share from vLLM's flags, of which the last counts. What is no number, vLLM itself refuses.

    None where a file of flags (``--config``) decides, which only vLLM reads.
    """
    share = None
    for position, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        name = name.replace("_", "-")
        if name.startswith(_SHORTEST) and _FLAG.startswith(name):
            given = value if equals else next(iter(args[position + 1 :]), "")
            try:
                share = float(given)
            except ValueError:
                continue
    if share is None and not any(arg.partition("=")[0] == _CONFIG for arg in args):
        return DEFAULT_UTILIZATION
    return share


def fitting(free: int, total: int) -> float | None:
    """Return the share that would fit now, in hundredths; None where nothing of use would."""
    if total <= 0 or free - CONTEXT < LEAST:
        return None
    return math.floor((free - CONTEXT) / total * 100) / 100
