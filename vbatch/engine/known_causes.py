"""The causes of failed starts that are recognised, each with what a person can do and whose fault it is.

The patterns are those of vLLM 0.32 and 0.33, torch, transformers and huggingface_hub of their time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from vbatch.engine import Blame


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A cause that is recognised by a pattern.

    ``line`` and ``hints`` may name the pattern's groups, ``model``, ``path`` and ``fitting`` (the share of the
    memory that would fit). Of the hints the first is given for which everything is known.
    """

    pattern: re.Pattern[str]
    line: str
    hints: tuple[str, ...]
    transient: bool
    blame: Blame


def _known(
    pattern: str, line: str, *hints: str, transient: bool = False, blame: Blame = Blame.UNKNOWN
) -> Known:
    return Known(
        pattern=re.compile(pattern, re.MULTILINE),
        line=line,
        hints=hints,
        transient=transient,
        blame=blame,
    )


_model = partial(_known, blame=Blame.MODEL)
_machine = partial(_known, blame=Blame.MACHINE)
_flags = partial(_known, blame=Blame.FLAGS)

_GIB = r"\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\)"
_WANTED = r"\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)"
_UNINSTALL = "pip uninstall --yes torchvision torchaudio torchcodec"

# The first that matches wins. Worth another try: memory that somebody else may give back, a hub that is away.
KNOWN = (
    _machine(
        rf"Free memory on device(?: \S+)? {_GIB} on startup is less than .*? {_WANTED}",
        "the GPU has {free} of {total} GiB free, and vLLM is to use {wanted} GiB (gpu_memory_utilization {share})",
        "free the GPU (vbatch doctor), or use less of it: vbatch run-worker -- --gpu-memory-utilization {fitting}",
        "free the GPU: vbatch doctor",
        transient=True,
    ),
    _machine(
        rf"Available memory on node \S+ {_GIB} on startup is less than .*? {_WANTED}",
        "{free} of {total} GiB of memory are free, and vLLM is to use {wanted} GiB "
        "(gpu_memory_utilization {share}, which on a CPU means memory)",
        "vbatch run-worker -- --gpu-memory-utilization {fitting}",
        transient=True,
    ),
    _machine(
        rf"Available memory on node \S+ {_GIB} on kv cache allocation is less than requested memory for kv "
        r"\((?P<wanted>[\d.]+)(?:/[\d.]+)? GiB\)",
        "{free} of {total} GiB of memory are free, and vLLM's KV cache is to have {wanted} GiB",
        "give the cache less (VLLM_CPU_KVCACHE_SPACE=1, in GiB), or end what uses the memory",
        transient=True,
    ),
    _model(
        r"CUDA out of memory occurred when (?P<when>warming up \w+) with",
        "the GPU ran out of memory when {when}",
        "vbatch run-worker -- --max-num-seqs 128 --gpu-memory-utilization 0.85",
    ),
    _model(
        r"CUDA out of memory\. Tried to allocate (?P<size>[\d.]+ \w+)",
        "the GPU ran out of memory (another {size} were needed)",
        "free the GPU (vbatch doctor), or use a smaller or quantized model",
        transient=True,
    ),
    _model(
        r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU ran out of memory",
        "free the GPU: vbatch doctor",
        transient=True,
    ),
    _model(
        r"No available memory for the cache blocks",
        "the model leaves no memory for the KV cache",
        "a higher --gpu-memory-utilization if there is room, or a smaller or quantized model",
    ),
    _model(
        r"max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the "
        r"available KV cache memory \((?P<available>[\d.]+) GiB\)\.(?: Based on the available memory, the estimated "
        r"maximum model length is (?P<estimate>\d+))?",
        "a context of {length} tokens needs {needed} GiB of KV cache, and {available} GiB are left",
        "vbatch run-worker -- --max-model-len {estimate}",
        "a smaller --max-model-len, a higher --gpu-memory-utilization, or a smaller model",
    ),
    _model(
        r"User-specified max_model_len \((?P<length>\d+)\) is greater than the derived max_model_len "
        r"\(\w+=(?P<limit>\d+)",
        "--max-model-len {length} is more than the {limit} tokens that the model was made for",
        "vbatch run-worker -- --max-model-len {limit}",
    ),
    _flags(
        r"^vllm: error: (?P<complaint>.+)$(?=[\s\S]*SharedFlagsRefused)",
        "vLLM does not accept its flags: {complaint}",
        "vllm serve --help=all",
    ),
    _flags(
        r"UnexpectedArgument: (?P<word>.*)(?=[\s\S]*SharedFlagsRefused)",
        "vLLM does not accept its flags: {word} belongs to none of them",
        "vllm serve --help=all",
    ),
    _model(
        r"^vllm: error: (?P<complaint>.+)$",
        "vLLM does not accept its flags: {complaint}",
        "vllm serve --help=all",
    ),
    _model(
        r"UnexpectedArgument: (?P<word>.*)",
        "vLLM does not accept its flags: {word} belongs to none of them",
        "vllm serve --help=all",
    ),
    _machine(
        r"operator torchvision::nms does not exist|_torchaudio|[Ll]ibtorchcodec",
        "torchvision, torchaudio or torchcodec do not fit the installed torch, and break the import of models",
        _UNINSTALL,
    ),
    _machine(
        r"ModuleNotFoundError: No module named 'vllm'",
        "vLLM is not installed",
        "pip install 'vbatch[gpu]'",
    ),
    _machine(
        r"vbatch\.engine\.vllm\.Unguarded",
        "the engine started without vbatch's guard, and would outlive this worker",
        "install vbatch as a package: pip install vbatch",
    ),
    _model(
        r"SafetensorError|Error while deserializing header|UnpicklingError|PytorchStreamReader failed",
        "the weights at {path} are damaged or incomplete",
        "hf download {path}",
    ),
    _model(
        r"Cannot find any model weights|does not appear to have (?:a file|files) named",
        "the model at {path} is incomplete: files are missing",
        "hf download {path}",
    ),
    _model(
        r"Unrecognized model in|Expecting value: line|It looks like the config file at",
        "the config.json of {path} cannot be read, or names no model that vLLM knows",
        "hf download {path}",
    ),
    _model(
        r"GatedRepoError|gated repo",
        "{model} is gated: its owner wants to know who downloads it",
        "accept the terms at https://huggingface.co/{model}, then: hf auth login",
    ),
    _model(
        r"HFValidationError: Repo id must|is not a local folder and is not a valid model identifier",
        "there is no model at {path}",
        'a folder can be given in config.toml: [models."{model}"] path = "/where/it/is"',
    ),
    _model(
        r"RepositoryNotFoundError",
        "the model hub knows no model {path}, or only for those who log in",
        "check the name in the batch, or: hf auth login",
    ),
    _model(
        r"outgoing traffic has been disabled|OfflineModeIsEnabled|offline mode is enabled",
        "{path} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it",
        "HF_HUB_OFFLINE=0 hf download {path}",
    ),
    _known(
        r"couldn't connect to '(?P<hub>https?://[^']+)'|An error happened while trying to locate the file|"
        r"httpx\.(?:(?:Read|Write|Connect|Pool)(?:Timeout|Error)|RemoteProtocolError)|CAS service error|"
        r"429 Too Many Requests",
        "{path} is not whole on this machine, and the model hub does not answer",
        'check the network, or give a folder in config.toml: [models."{model}"] path = "/where/it/is"',
        transient=True,
    ),
    _model(
        r"--trust-remote-code|trust_remote_code=True",
        "{model} brings code of its own, which vLLM runs only when told so",
        "vbatch run-worker -- --trust-remote-code",
    ),
    _model(
        r"Model architectures \[(?P<names>[^\]]*)\] are not supported",
        "this vLLM does not know the architecture {names}",
        "pip install --upgrade vllm",
    ),
    _model(
        r"Model architecture (?P<name>\w+) (?:was supported in vLLM until|is not supported in-tree)",
        "this vLLM does not know the architecture {name} any more",
    ),
    _model(
        r"Bfloat16 is only supported on GPUs",
        "{model} computes in bfloat16, which this GPU cannot",
        "vbatch run-worker -- --dtype half",
    ),
    _machine(
        r"Model architectures \[(?P<names>[^\]]*)\] failed to be inspected",
        "vLLM's code for {names} cannot be imported here",
        "vbatch doctor engine",
    ),
    _model(
        r"model type `(?P<type>[^`]*)` but Transformers does not recognize",
        "this transformers does not know the model type {type}",
        "pip install --upgrade vllm transformers",
    ),
    _machine(
        r"Error in memory profiling",
        "another program gave back GPU memory while vLLM measured it",
        "try again, and leave the GPU to vbatch meanwhile",
        transient=True,
    ),
    _machine(
        r"World size \((?P<wanted_gpus>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)",
        "vLLM is to spread the model over {wanted_gpus} GPUs, and is given {gpus}",
        "a worker that has all of them: vbatch run-worker without --gpu (install-service gives each GPU its own)",
    ),
    _machine(
        r"Error 803|system has unsupported display driver",
        "the NVIDIA driver was updated, and the old one still runs",
        "sudo reboot",
    ),
    _machine(
        r"CUDA unknown error|CUDA driver initialization failed|unspecified launch failure",
        "the NVIDIA driver has lost its state, as after a suspend",
        "sudo modprobe -r nvidia_uvm && sudo modprobe nvidia_uvm   # or: sudo reboot",
    ),
    _machine(
        r"(?P<what>CUDA-capable device\(s\) is/are busy or unavailable|uncorrectable ECC error)",
        "the GPU cannot be used: {what}",
        "vbatch doctor gpu",
    ),
    _machine(
        r"no kernel image is available|the provided PTX was compiled with an unsupported toolchain",
        "the installed torch and vLLM were not built for this GPU and driver",
        "vbatch doctor gpu engine",
    ),
    _machine(
        r"NCCL error(?P<what>[^\n]*)",
        "the GPUs cannot talk to each other: NCCL error{what}",
        "NCCL_DEBUG=INFO vbatch run-worker",
    ),
    _machine(
        r"Failed to find C compiler|fatal error: Python\.h: No such file|Could not find nvcc",
        "vLLM compiles code for this GPU, and there is no compiler for it",
        "sudo apt install build-essential python3-dev",
    ),
    _machine(
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver|libcuda\.so\.1: cannot open",
        "vLLM finds no GPU",
        "check the driver with nvidia-smi; on a machine without a GPU: pip install 'vbatch[cpu]'",
    ),
    _machine(
        r"NVIDIA driver on your system is too old(?: \(found version (?P<version>\d+)\))?",
        "the NVIDIA driver is too old for the installed torch",
        "update the NVIDIA driver",
    ),
    _machine(
        r"No space left on device: '/psm_",
        "/dev/shm is full",
        "df -h /dev/shm",
    ),
    _machine(
        r"No space left on device",
        "the disk is full",
        "df -h ~/.cache",
    ),
)
