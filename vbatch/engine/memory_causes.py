"""The known causes of failed starts that lack memory, with what a small card can do.

The patterns are those of vLLM 0.32 and 0.33, and of torch for CUDA, ROCm (HIP) and XPU.
"""

from __future__ import annotations

from vbatch.engine.cause import machine, model

_GIB = r"\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\)"
_WANTED = r"\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)"

# What a small card needs. LLM_CLASS, which vbatch uses, sets 8192 batched tokens below 70 GiB, ``vllm serve`` 2048.
_SMALL_BATCH = "--max-num-batched-tokens 2048"
_SMALL_CACHE = "--kv-cache-dtype fp8"
_SMALLER = (
    f"vbatch run-worker -- {_SMALL_BATCH} --max-model-len 8192; or {_SMALL_CACHE}; or a quantized model that fits "
    "(vbatch doctor models)"
)

KNOWN = (
    machine(
        rf"Free memory on device(?: \S+)? {_GIB} on startup is less than .*? {_WANTED}",
        "the GPU has {free} of {total} GiB free, but vLLM is set to use {wanted} GiB (gpu_memory_utilization {share})",
        "free the GPU (vbatch doctor), or use less of it: vbatch run-worker -- --gpu-memory-utilization {fitting}",
        "free the GPU: vbatch doctor",
        transient=True,
    ),
    machine(
        rf"Available memory on node \S+ {_GIB} on startup is less than .*? {_WANTED}",
        "{free} of {total} GiB of memory are free, but vLLM is set to use {wanted} GiB "
        "(gpu_memory_utilization {share}, which on a CPU means memory)",
        "vbatch run-worker -- --gpu-memory-utilization {fitting}",
        transient=True,
    ),
    machine(
        rf"Available memory on node \S+ {_GIB} on kv cache allocation is less than requested memory for kv "
        r"\((?P<wanted>[\d.]+)(?:/[\d.]+)? GiB\)",
        "{free} of {total} GiB of memory are free, but vLLM's KV cache is set to take {wanted} GiB",
        "give the cache less (VLLM_CPU_KVCACHE_SPACE=1, in GiB), or end other programs that use memory",
        transient=True,
    ),
    model(
        r"CUDA out of memory occurred when (?P<when>warming up \w+) with",
        "the GPU ran out of memory when {when}",
        f"vbatch run-worker -- --max-num-seqs 128 {_SMALL_BATCH}; or --gpu-memory-utilization 0.85",
    ),
    model(
        r"(?:CUDA|HIP|XPU) out of memory\. Tried to allocate (?P<size>[\d.]+ \w+)",
        "the GPU ran out of memory (it needed another {size})",
        f"free the GPU (vbatch doctor); {_SMALLER}",
        transient=True,
    ),
    model(
        r"(?:CUDA|HIP) error: out of memory|(?:CUBLAS|HIPBLAS)_STATUS_ALLOC_FAILED",
        "the GPU ran out of memory",
        f"free the GPU (vbatch doctor); {_SMALLER}",
        transient=True,
    ),
    model(
        r"No available memory for the cache blocks",
        "the model leaves no memory for the KV cache",
        f"{_SMALLER}; or a higher --gpu-memory-utilization, if there is room",
    ),
    machine(
        r"UVA is not available",
        "vLLM needs pinned memory, which it does not use on WSL2 unless a variable allows it",
        "export VLLM_WSL2_ENABLE_PIN_MEMORY=1",
    ),
    model(
        r"max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the "
        r"available KV cache memory \((?P<available>[\d.]+) GiB\)\.(?: Based on the available memory, the estimated "
        r"maximum model length is (?P<estimate>\d+))?",
        "a context of {length} tokens needs {needed} GiB of KV cache, and {available} GiB are left",
        f"vbatch run-worker -- --max-model-len {{estimate}}; or, for a longer one: {_SMALL_CACHE}, {_SMALL_BATCH}",
        f"a smaller --max-model-len; or {_SMALL_CACHE}, {_SMALL_BATCH}, a higher --gpu-memory-utilization, or a "
        "quantized model (vbatch doctor models)",
    ),
)
