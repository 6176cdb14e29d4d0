"""What vbatch chooses where you did not, by the device: vLLM's sizes for offline work, and on a CPU what is fast there.

Measured on two cores with AVX2 alone (vLLM 0.32, SmolLM2-135M-Instruct): 32 answers took 54.6 s in bfloat16 and 10.1 s
in float32; 256 sequences and 4,096 tokens a step were 8 % slower than 128 and 2,048. What a second core for the model
brings is in docs/performance.md.
"""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from vbatch.engine import installed, models, shape
from vbatch.system import memory
from vbatch.text import GIB

FEW_CORES = 2
RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"
BINDING = "VLLM_CPU_OMP_THREADS_BIND"  # which cores the model computes on, by their numbers
FLOAT32 = "float32"
BESIDE = GIB  # bytes that an engine on a CPU takes beside weights and KV cache: torch, a step
_BYTES = 4  # of a number in float32
_UNQUANTIZED = frozenset(
    {None, "bfloat16", "float16", "float32"}
)  # what a config.json names; None: it does not


def context(vllm: Any) -> Any:
    """Return the kind of use for which vLLM chooses the batch sizes that no flag sets.

    LLM_CLASS is offline work: the context of `vllm run-batch` has no row in vLLM's table of defaults and gets 128
    sequences where LLM_CLASS gets 256 to 1024. On a CPU the row of the server has the sizes that win, 128 and 2,048.
    """
    on_cpu = vllm.current_platform.is_cpu()
    return vllm.UsageContext.OPENAI_API_SERVER if on_cpu else vllm.UsageContext.LLM_CLASS


def use_both_cores(vllm: Any) -> None:
    """Let a model compute on both cores of a machine that has two and no GPU, if no variable says otherwise.

    vLLM keeps one core free for its scheduler (``OMPProcessManager``), which is half of such a machine.
    """
    if (
        vllm.current_platform.is_cpu()
        and len(os.sched_getaffinity(0)) <= FEW_CORES
        and BINDING not in os.environ
    ):
        os.environ.setdefault(RESERVED, "0")


def dtype(vllm: Any, arguments: Namespace, path: str) -> str:
    """Return the type of the weights: float32 on a CPU that only emulates bfloat16, if no flag names one and it fits.

    Weights and KV cache then take twice their memory.
    """
    chosen = str(arguments.dtype)
    if chosen != "auto" or not vllm.current_platform.is_cpu() or not installed.emulates_bfloat16():
        return chosen
    needed = _in_float32(path, arguments)
    room = min(memory.free(), int(memory.total() * arguments.gpu_memory_utilization))
    return FLOAT32 if needed is not None and needed + BESIDE <= room else chosen


def _in_float32(path: str, arguments: Namespace) -> int | None:
    """Return the bytes of weights in float32 and the KV cache of one longest request; None where that is not known.

    Weights that are quantized are left as they are.
    """
    folder = models.folder(path)
    if folder is None or arguments.quantization is not None:
        return None
    files = models.look(folder)
    if files.missing or not files.weights or any(name.endswith(".gguf") for name in files.names):
        return None
    model = shape.measured(files)
    of = model.shape
    if of.quantization is not None or of.dtype not in _UNQUANTIZED:
        return None
    length = arguments.max_model_len
    length = length if isinstance(length, int) and length > 0 else of.context or 0
    cached = (of.kv or 0) * (of.layers or 0) * length * _BYTES
    return 2 * model.weights - model.float32 + cached
