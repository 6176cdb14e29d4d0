"""The known causes of failed starts, each with its pattern, a line for people, what they can do, and the blame.

The patterns are those of vLLM 0.32 and 0.33, torch, transformers and huggingface_hub of their time.
"""

from __future__ import annotations

from vbatch.engine import memory_causes
from vbatch.engine.cause import flags as _flags
from vbatch.engine.cause import known as _known
from vbatch.engine.cause import machine as _machine
from vbatch.engine.cause import model as _model

_UNINSTALL = "pip uninstall --yes torchvision torchaudio torchcodec"

_PARSER = (
    r"ParserUnknown: invalid (?P<parser>tool call|reasoning) parser: (?P<name>.*?) \(.*\{ (?P<names>.*) \}\)"
)

# The first match wins. Transient: memory that another process may free, a model hub that does not answer.
KNOWN = (
    *memory_causes.KNOWN,
    _model(
        r"User-specified max_model_len \((?P<length>\d+)\) is greater than the derived max_model_len "
        r"\(\w+=(?P<limit>\d+)",
        "--max-model-len {length} is more than the {limit} tokens that the model supports",
        "vbatch run-worker -- --max-model-len {limit}",
    ),
    _flags(
        r"^vllm: error: (?P<complaint>.+)$(?=[\s\S]*SharedFlagsRefused)",
        "vLLM does not accept its flags: {complaint}",
        "vllm serve --help=all",
    ),
    _flags(
        r"UnexpectedArgument: (?P<word>.*)(?=[\s\S]*SharedFlagsRefused)",
        "vLLM does not accept its flags: {word} belongs to no flag",
        "vllm serve --help=all",
    ),
    _flags(
        rf"{_PARSER}(?=[\s\S]*SharedFlagsRefused)",
        "vLLM does not accept its flags: it has no {parser} parser {name}",
        "one of {names}",
    ),
    _model(
        _PARSER,
        "vLLM does not accept its flags: it has no {parser} parser {name}",
        "one of {names}",
    ),
    _model(
        r"^vllm: error: (?P<complaint>.+)$",
        "vLLM does not accept its flags: {complaint}",
        "vllm serve --help=all",
    ),
    _model(
        r"UnexpectedArgument: (?P<word>.*)",
        "vLLM does not accept its flags: {word} belongs to no flag",
        "vllm serve --help=all",
    ),
    _machine(
        r"operator torchvision::nms does not exist|_torchaudio|[Ll]ibtorchcodec",
        "torchvision, torchaudio or torchcodec do not match the installed torch, which breaks the import of models",
        _UNINSTALL,
    ),
    _machine(
        r"ModuleNotFoundError: No module named 'vllm'",
        "vLLM is not installed",
        "pip install 'vbatch[gpu]'",
    ),
    _machine(
        r"vbatch\.engine\.guard\.Unguarded",
        "the engine started without vbatch's guard, so it would continue to run after this worker ends",
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
        "the config.json of {path} cannot be read, or names a model that vLLM does not support",
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
        "the model hub has no model {path}, or shows it only to users who are logged in",
        "check the name in the batch, or: hf auth login",
    ),
    _model(
        r"outgoing traffic has been disabled|OfflineModeIsEnabled|offline mode is enabled",
        "{path} is not on this machine, and HF_HUB_OFFLINE prevents the download",
        "HF_HUB_OFFLINE=0 hf download {path}",
    ),
    _known(
        r"couldn't connect to '(?P<hub>https?://[^']+)'|An error happened while trying to locate the file|"
        r"httpx\.(?:(?:Read|Write|Connect|Pool)(?:Timeout|Error)|RemoteProtocolError)|CAS service error|"
        r"429 Too Many Requests",
        "{path} is not complete on this machine, and the model hub does not answer",
        'check the network, or give a folder in config.toml: [models."{model}"] path = "/where/it/is"',
        transient=True,
    ),
    _model(
        r"--trust-remote-code|trust_remote_code=True",
        "{model} contains Python code of its own, which vLLM runs only with --trust-remote-code",
        "vbatch run-worker -- --trust-remote-code",
    ),
    _model(
        r"Model architectures \[(?P<names>[^\]]*)\] are not supported",
        "this vLLM does not support the architecture {names}",
        "pip install --upgrade vllm",
    ),
    _model(
        r"Model architecture (?P<name>\w+) (?:was supported in vLLM until|is not supported in-tree)",
        "this vLLM no longer supports the architecture {name}",
    ),
    _machine(
        r"HarmonyError: (?:invalid tiktoken vocab file|error downloading or loading vocab file)",
        "the vocabulary of gpt-oss is not on this machine, and cannot be downloaded",
        "export TIKTOKEN_ENCODINGS_BASE=FOLDER   # with o200k_base.tiktoken in it",
    ),
    _model(
        r"Unknown quantization method: (?P<name>[\w.-]+)\. Must",
        "this vLLM does not load weights in the format {name}",
        "use a variant of the model in AWQ, GPTQ, FP8 or compressed-tensors",
    ),
    _model(
        r"Bfloat16 is only supported on GPUs",
        "{model} uses bfloat16, which this GPU does not support",
        "vbatch run-worker -- --dtype half",
    ),
    _machine(
        r"Model architectures \[(?P<names>[^\]]*)\] failed to be inspected",
        "vLLM's code for {names} cannot be imported here",
        "vbatch doctor engine",
    ),
    _model(
        r"model type `(?P<type>[^`]*)` but Transformers does not recognize",
        "this version of transformers does not support the model type {type}",
        "pip install --upgrade vllm transformers",
    ),
    _machine(
        r"Error in memory profiling",
        "another program freed GPU memory while vLLM measured it",
        "try again while no other program uses the GPU",
        transient=True,
    ),
    _machine(
        r"World size \((?P<wanted_gpus>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)",
        "vLLM is set to use {wanted_gpus} GPUs for the model, but this worker has only {gpus}",
        "start one worker over enough GPUs: vbatch run-worker --gpu 0,1",
    ),
    _machine(
        r"Error 803|system has unsupported display driver",
        "the NVIDIA driver was updated, but the old version is still loaded",
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
        "the GPUs cannot communicate with each other: NCCL error{what}",
        "NCCL_DEBUG=INFO vbatch run-worker",
    ),
    _machine(
        r"Failed to find C compiler|fatal error: Python\.h: No such file|Could not find nvcc",
        "vLLM must compile code for this GPU, but no compiler is installed",
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
