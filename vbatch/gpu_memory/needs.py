"""vLLM's own arithmetic of GPU memory: how much it needs, and which share would fit.

Its engine refuses to start unless ``free >= ceil(total * gpu_memory_utilization)``
(vllm/v1/worker/utils.py, request_memory, 0.32), measured when its own CUDA context already exists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vbatch.text import GIB, MIB

DEFAULT_UTILIZATION = 0.92
CONTEXT = 600 * MIB  # bytes that vLLM's CUDA context takes before it measures
LEAST = 4 * GIB  # bytes; a useful model with its cache does not fit into less

_FLAG = "--gpu-memory-utilization"
_SHORTEST = "--gpu-m"  # vLLM's parser accepts any prefix that fits only this flag
_CONFIG = "--config"


def required(total: int, utilization: float) -> int:
    """Return the bytes that must be free."""
    return math.ceil(total * utilization)


def utilization(args: Sequence[str]) -> float | None:
    """Return the share that vLLM's flags set; the last flag counts. vLLM itself refuses a value that is not a number.

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
    """Return the share that would fit now, in hundredths; None if no useful model would fit."""
    if total <= 0 or free - CONTEXT < LEAST:
        return None
    return math.floor((free - CONTEXT) / total * 100) / 100
