"""vLLM's own arithmetic of GPU memory: how much it needs, and which share would fit.

Its engine refuses to start unless ``free >= ceil(total * gpu_memory_utilization)``
(vllm/v1/worker/utils.py, request_memory, 0.32 and 0.33), measured when its own CUDA context already exists.
``--kv-cache-memory-bytes`` changes nothing about that: it only replaces what vLLM then measures for its KV cache, which
must fit beside weights, context and cuBLAS (vllm/v1/worker/gpu_worker.py, determine_available_memory).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vbatch.engine import flag_values as flags
from vbatch.text import GIB, MIB

DEFAULT_UTILIZATION = 0.92
SMALLEST_CONTEXT = 128 * MIB  # bytes; no CUDA context of torch is smaller, so less never fits
CONTEXT = 600 * MIB  # bytes that vLLM's CUDA context takes before it measures, on a big card
CUBLAS = 32 * MIB  # bytes of workspace that torch has cuBLAS take on Hopper; 8 MiB on older cards
LEAST = 4 * GIB  # bytes; a useful model with its cache does not fit into less


def required(total: int, utilization: float) -> int:
    """Return the bytes that must be free, by vLLM's condition alone."""
    return math.ceil(total * utilization)


def utilization(args: Sequence[str]) -> float | None:
    """Return the share that vLLM's flags set; the last flag counts. vLLM itself refuses a value that is not a number.

    None where a file of flags (``--config``) decides that cannot be read here.
    """
    given = flags.read(args)
    share = None
    for value in given.given(flags.SHARE):
        try:
            share = float(value)
        except ValueError:
            continue
    if share is None and given.complete:
        return DEFAULT_UTILIZATION
    return share


def at_start(total: int, args: Sequence[str]) -> tuple[int, str] | None:
    """Return the bytes that must be free before an engine with these flags starts, and what asks for them.

    None where a file of flags decides that cannot be read here.
    """
    share = utilization(args)
    if share is None:
        return None
    cache = flags.read(args).number(flags.CACHE) or 0
    of_share = required(total, share) + SMALLEST_CONTEXT
    of_cache = cache + SMALLEST_CONTEXT + CUBLAS
    if cache and of_cache > of_share:
        return of_cache, f"kv_cache_memory_bytes {cache}, a CUDA context and cuBLAS"
    return of_share, f"gpu_memory_utilization {share:g} and a CUDA context"


def fitting(free: int, total: int) -> float | None:
    """Return the share that would fit now, in hundredths; None if no useful model would fit."""
    if total <= 0 or free - CONTEXT < LEAST:
        return None
    return math.floor((free - CONTEXT) / total * 100) / 100
