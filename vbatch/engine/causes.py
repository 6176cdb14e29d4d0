"""Why an engine did not start or died, in one line, found in what it said.

vLLM's engine fails in a child process; the parent learns only that it failed. The cause is in the child's
words, which the engine's log has. The patterns are those of vLLM 0.32 and 0.33, torch, transformers and
huggingface_hub of their time; what matches none is reported by its last exception.
"""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST = 300  # characters of a cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One line for people; what a person can do, to paste where possible; and what it means for going on.

    ``transient``: trying again may help. ``model_fault``: other models may load on this machine all the same.
    """

    line: str
    hint: str | None = None
    transient: bool = False
    model_fault: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A cause that is recognised by a pattern.

    ``line`` and ``hints`` may name the pattern's groups, ``model``, ``path`` and ``fitting`` (the share of the
    memory that would fit). Of the hints the first is given for which everything is known.
    """

    pattern: re.Pattern[str]
    line: str
    hints: tuple[str, ...]
    transient: bool
    model_fault: bool


def _known(
    pattern: str, line: str, *hints: str, transient: bool = False, model_fault: bool = False
) -> _Known:
    return _Known(
        pattern=re.compile(pattern, re.MULTILINE),
        line=line,
        hints=hints,
        transient=transient,
        model_fault=model_fault,
    )


_GIB = r"\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\)"
_WANTED = r"\((?P<share>[\d.]+), (?P<wanted>[\d.]+) GiB\)"
_UNINSTALL = "pip uninstall --yes torchvision torchaudio torchcodec"

# The first that matches wins. Only memory that somebody else holds is worth another try: it may be given back.
_CAUSES = (
    _known(
        rf"Free memory on device(?: \S+)? {_GIB} on startup is less than .*? {_WANTED}",
        "the GPU has {free} of {total} GiB free, and vLLM is to use {wanted} GiB (gpu_memory_utilization {share})",
        "free the GPU (vbatch doctor), or use less of it: vbatch run-worker -- --gpu-memory-utilization {fitting}",
        "free the GPU: vbatch doctor",
        transient=True,
    ),
    _known(
        rf"Available memory on node \S+ {_GIB} on startup is less than .*? {_WANTED}",
        "{free} of {total} GiB of memory are free, and vLLM is to use {wanted} GiB "
        "(gpu_memory_utilization {share}, which on a CPU means memory)",
        "vbatch run-worker -- --gpu-memory-utilization {fitting}",
        transient=True,
    ),
    _known(
        rf"Available memory on node \S+ {_GIB} on kv cache allocation is less than requested memory for kv "
        r"\((?P<wanted>[\d.]+)(?:/[\d.]+)? GiB\)",
        "{free} of {total} GiB of memory are free, and vLLM's KV cache is to have {wanted} GiB",
        "give the cache less (VLLM_CPU_KVCACHE_SPACE=1, in GiB), or end what uses the memory",
        transient=True,
    ),
    _known(
        r"CUDA out of memory occurred when (?P<when>warming up \w+) with",
        "the GPU ran out of memory when {when}",
        "vbatch run-worker -- --max-num-seqs 128 --gpu-memory-utilization 0.85",
        model_fault=True,
    ),
    _known(
        r"CUDA out of memory\. Tried to allocate (?P<size>[\d.]+ \w+)",
        "the GPU ran out of memory (another {size} were needed)",
        "free the GPU (vbatch doctor), or use a smaller or quantized model",
        transient=True,
    ),
    _known(
        r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "the GPU ran out of memory",
        "free the GPU: vbatch doctor",
        transient=True,
    ),
    _known(
        r"No available memory for the cache blocks",
        "the model leaves no memory for the KV cache",
        "a higher --gpu-memory-utilization if there is room, or a smaller or quantized model",
        model_fault=True,
    ),
    _known(
        r"max seq len \((?P<length>\d+)\), \((?P<needed>[\d.]+) GiB KV cache is needed, which is larger than the "
        r"available KV cache memory \((?P<available>[\d.]+) GiB\)\.(?: Based on the available memory, the estimated "
        r"maximum model length is (?P<estimate>\d+))?",
        "a context of {length} tokens needs {needed} GiB of KV cache, and {available} GiB are left",
        "vbatch run-worker -- --max-model-len {estimate}",
        "a smaller --max-model-len, a higher --gpu-memory-utilization, or a smaller model",
        model_fault=True,
    ),
    _known(
        r"User-specified max_model_len \((?P<length>\d+)\) is greater than the derived max_model_len "
        r"\(\w+=(?P<limit>\d+)",
        "--max-model-len {length} is more than the {limit} tokens that the model was made for",
        "vbatch run-worker -- --max-model-len {limit}",
        model_fault=True,
    ),
    _known(
        r"^vllm: error: (?P<complaint>.+)$",
        "vLLM does not accept its flags: {complaint}",
        "vllm serve --help=all",
        model_fault=True,
    ),
    _known(
        r"UnexpectedArgument: (?P<word>.*)",
        "vLLM does not accept its flags: {word} belongs to none of them",
        "vllm serve --help=all",
        model_fault=True,
    ),
    _known(
        r"operator torchvision::nms does not exist|_torchaudio|[Ll]ibtorchcodec",
        "torchvision, torchaudio or torchcodec do not fit the installed torch, and break the import of models",
        _UNINSTALL,
    ),
    _known(
        r"ModuleNotFoundError: No module named 'vllm'",
        "vLLM is not installed",
        "pip install 'vbatch[gpu]'",
    ),
    _known(
        r"vbatch\.engine\.vllm\.Unguarded",
        "the engine started without vbatch's guard, and would outlive this worker",
        "install vbatch as a package: pip install vbatch",
    ),
    _known(
        r"GatedRepoError|gated repo",
        "{model} is gated: its owner wants to know who downloads it",
        "accept the terms at https://huggingface.co/{model}, then: hf auth login",
        model_fault=True,
    ),
    _known(
        r"HFValidationError: Repo id must|is not a local folder and is not a valid model identifier",
        "there is no model at {path}",
        'a folder can be given in config.toml: [models."{model}"] path = "/where/it/is"',
        model_fault=True,
    ),
    _known(
        r"RepositoryNotFoundError",
        "the model hub knows no model {path}, or only for those who log in",
        "check the name in the batch, or: hf auth login",
        model_fault=True,
    ),
    _known(
        r"outgoing traffic has been disabled|OfflineModeIsEnabled|offline mode is enabled",
        "{path} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it",
        "HF_HUB_OFFLINE=0 hf download {path}",
        model_fault=True,
    ),
    _known(
        r"couldn't connect to '(?P<hub>https?://[^']+)'|An error happened while trying to locate the file",
        "{path} is not on this machine, and the model hub cannot be reached",
        'check the network, or give a folder in config.toml: [models."{model}"] path = "/where/it/is"',
        transient=True,
    ),
    _known(
        r"--trust-remote-code|trust_remote_code=True",
        "{model} brings code of its own, which vLLM runs only when told so",
        "vbatch run-worker -- --trust-remote-code",
        model_fault=True,
    ),
    _known(
        r"Model architectures \[(?P<names>[^\]]*)\] are not supported",
        "this vLLM does not know the architecture {names}",
        "pip install --upgrade vllm",
        model_fault=True,
    ),
    _known(
        r"model type `(?P<type>[^`]*)` but Transformers does not recognize",
        "this transformers does not know the model type {type}",
        "pip install --upgrade vllm transformers",
        model_fault=True,
    ),
    _known(
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver|libcuda\.so\.1: cannot open",
        "vLLM finds no GPU",
        "check the driver with nvidia-smi; on a machine without a GPU: pip install 'vbatch[cpu]'",
    ),
    _known(
        r"NVIDIA driver on your system is too old(?: \(found version (?P<version>\d+)\))?",
        "the NVIDIA driver is too old for the installed torch",
        "update the NVIDIA driver",
    ),
    _known(
        r"No space left on device",
        "the disk is full",
        "df -h ~/.cache",
    ),
)

_SIGNAL = re.compile(r"Failed core proc\(s\): \{[^}]*: -(\d+)")


def of_failed_start(log: str, *, model: str, path: str) -> Cause:
    """Find the root cause of a failed start in the engine's log, which ends with our own traceback of it."""
    complaints = _complaints(log)
    text = "\n".join(complaints)
    for known in _CAUSES:
        if (match := known.pattern.search(text)) is not None:
            words = {key: value for key, value in match.groupdict().items() if value is not None}
            return _filled(known, words | {"model": model, "path": path})
    if (match := _SIGNAL.search(text)) is not None:
        number = int(match[1])
        # A kill from outside is most often the kernel's, for want of memory.
        return Cause(line=f"{_end(-number)} as it started", transient=number == signal.SIGKILL)
    return Cause(line=_last_exception(complaints) or "vLLM did not say why it did not start")


def of_death(exit_codes: Sequence[int | None], log: str) -> str:
    """Say in one line why an engine died: how its first process ended, and its last words."""
    ends = [_end(code) for code in exit_codes if code]
    words = _last_exception(_complaints(log))
    return ": ".join(filter(None, [*ends[:1], words])) or "the engine stopped"


def out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since boot (proc_vmstat(5))."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _filled(known: _Known, words: dict[str, str]) -> Cause:
    if "free" in words and (share := int(100 * float(words["free"]) / float(words["total"])) - 1) >= 20:
        words["fitting"] = f"{share / 100:.2f}"
    hint = None
    for template in reversed(known.hints):
        with contextlib.suppress(KeyError):
            hint = template.format_map(words)
    possible = float(words.get("wanted", 0)) <= float(words.get("total", "inf"))
    return Cause(
        line=_short(known.line.format_map(words)),
        hint=hint,
        transient=known.transient and possible,
        model_fault=known.model_fault or not possible,
    )


def _end(code: int) -> str:
    if code > 0:
        return f"the engine process exited with status {code}"
    known = -code in set(signal.valid_signals())
    return f"the engine process was ended by {signal.Signals(-code).name if known else f'signal {-code}'}"


_TALK = re.compile(r"(?:\(.*?\) )?(?:DEBUG|INFO|WARNING) ")
_PREFIX = re.compile(r"\(.*? pid=\d+\) (?:(?:ERROR|CRITICAL) \S+ \S+ \[[^\]]*\] ?)?")
_VALIDATION = re.compile(
    r"  (?:(?:Value|Assertion) error, (?P<raised>.*?)(?: \[type=.*)?|(?P<mistyped>.*) \[type=.*)$"
)
_EXCEPTION = re.compile(r"(?:\w+\.)*(\w*(?:Error|Exception)(?:: .*)?)$")

# Exceptions that say that something failed elsewhere, not what.
_ECHOES = re.compile(
    r"EngineDeadError|Engine core initialization failed|Worker failed with error|validation errors? for|FlagsRefused"
)


def _complaints(log: str) -> list[str]:
    """Return the lines that may tell a cause: no informational ones, no code that a traceback quotes."""
    complaints = []
    for said in log.splitlines():
        if _TALK.match(said):
            continue
        line = _PREFIX.sub("", said, count=1)
        if (match := _VALIDATION.match(line)) is not None:
            line = f"ValueError: {match['raised'] or match['mistyped']}"
        if line and not line[0].isspace():
            complaints.append(line)
    return complaints


def _last_exception(complaints: Sequence[str]) -> str | None:
    """Return the last exception that says what happened."""
    matches = (_EXCEPTION.match(line) for line in reversed(complaints))
    return next((_short(match[1]) for match in matches if match and not _ECHOES.search(match[1])), None)


def _short(line: str) -> str:
    line = " ".join(line.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
