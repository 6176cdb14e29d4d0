"""The root cause of a failed start or a death, in one line. The texts are what vLLM 0.32 and its libraries say."""

from __future__ import annotations

import signal

import pytest

from vbatch.engine import Blame, causes

FAILED = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
ERROR = "(EngineCore pid=71) ERROR 11-23 19:43:10 [core.py:1510] "
TALK = "(EngineCore pid=71) INFO 11-23 19:43:10 [gpu_worker.py:1013] "


def of_failed_start(log: str) -> causes.Cause:
    return causes.of_failed_start(log, model="owner/name", path="owner/name")


def test_the_incidents_own_error() -> None:
    log = (
        f"{ERROR}Traceback (most recent call last):\n"
        f"{ERROR}    raise ValueError(\n"
        f"{ERROR}ValueError: Free memory on device cuda:0 (1.2/15.57 GiB) on startup is less than desired GPU "
        "memory utilization (0.9, 14.01 GiB). Decrease GPU memory utilization or reduce GPU memory used by "
        f"other processes.\n{FAILED}\n"
    )

    cause = of_failed_start(log)

    assert cause.line == (
        "the GPU has 1.2 of 15.57 GiB free, but vLLM is set to use 14.01 GiB (gpu_memory_utilization 0.9)"
    )
    assert cause.transient
    assert cause.blame is Blame.MACHINE
    assert cause.hint == "free the GPU: vbatch doctor"


def test_a_share_of_the_gpu_that_would_fit_is_named() -> None:
    log = (
        "ValueError: Free memory on device (10.0/16.0 GiB) on startup is less than desired GPU memory "
        "utilization (0.92, 14.72 GiB). Decrease GPU memory utilization"
    )

    assert "--gpu-memory-utilization 0.61" in str(of_failed_start(log).hint)


def test_what_will_never_fit_is_not_tried_again() -> None:
    log = (
        "ValueError: Available memory on node 0 (6.6/8.71 GiB) on kv cache allocation is less than requested "
        "memory for kv (400.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU "
        "memory used by other processes."
    )

    cause = of_failed_start(log)

    assert cause.line == "6.6 of 8.71 GiB of memory are free, but vLLM's KV cache is set to take 400.0 GiB"
    assert not cause.transient


@pytest.mark.parametrize(
    ("said", "line", "hint", "consequence"),
    [
        (
            "ValueError: Available memory on node 0 (6.8/9.46 GiB) on startup is less than desired CPU memory "
            "utilization (0.99, 9.37 GiB). On the CPU backend, the `--gpu-memory-utilization` flag controls",
            "6.8 of 9.46 GiB of memory are free, but vLLM is set to use 9.37 GiB",
            "--gpu-memory-utilization 0.70",
            "transient machine",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity "
            "of 15.57 GiB of which 1.01 GiB is free.",
            "the GPU ran out of memory (it needed another 2.00 GiB)",
            "vbatch doctor",
            "transient model",
        ),
        (
            "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 96.00 MiB. GPU 0 has a total capacity of 15.",
            "the GPU ran out of memory (it needed another 96.00 MiB)",
            "vbatch run-worker -- --max-num-batched-tokens 2048",
            "transient model",
        ),
        (
            f"{ERROR}RuntimeError: UVA is not available\n{FAILED}",
            "vLLM needs pinned memory, which it does not use on WSL2 unless a variable allows it",
            "export VLLM_WSL2_ENABLE_PIN_MEMORY=1",
            "machine",
        ),
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests. Please "
            "try lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
            "the GPU ran out of memory when warming up sampler",
            "--max-num-seqs",
            "model",
        ),
        (
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            "initializing the engine",
            "the model leaves no memory for the KV cache",
            "--gpu-memory-utilization",
            "model",
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache "
            "is needed, which is larger than the available KV cache memory (4.50 GiB). Based on the available "
            "memory, the estimated maximum model length is 36848. Try increasing `gpu_memory_utilization`",
            "a context of 131072 tokens needs 16.00 GiB of KV cache, and 4.50 GiB are left",
            "vbatch run-worker -- --max-model-len 36848",
            "model",
        ),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            "  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len "
            "(max_position_embeddings=8192.0 or model_max_length=None in model's config.json). [type=value_error]",
            "--max-model-len 100000 is more than the 8192 tokens that the model supports",
            "vbatch run-worker -- --max-model-len 8192",
            "model",
        ),
        (
            "usage: vllm [-h]\nvllm: error: unrecognized arguments: --no-such-flag 3",
            "vLLM does not accept its flags: unrecognized arguments: --no-such-flag 3",
            "vllm serve --help=all",
            "model",
        ),
        (
            "vllm: error: unrecognized arguments: --no-such-flag 3\n"
            "vbatch.engine.server.FlagsRefused\n\nThe above exception was the direct cause of the following "
            "exception:\n\nvbatch.engine.server.SharedFlagsRefused",
            "vLLM does not accept its flags: unrecognized arguments: --no-such-flag 3",
            "vllm serve --help=all",
            "flags",
        ),
        (
            "vbatch.engine.server.UnexpectedArgument: nonsense\nvbatch.engine.server.SharedFlagsRefused",
            "vLLM does not accept its flags: nonsense belongs to no flag",
            "vllm serve --help=all",
            "flags",
        ),
        (
            "vbatch.engine.flags.ParserUnknown: invalid tool call parser: hermess (chose from { hermes,xlam })",
            "vLLM does not accept its flags: it has no tool call parser hermess",
            "one of hermes,xlam",
            "model",
        ),
        (
            "vbatch.engine.flags.ParserUnknown: invalid reasoning parser: x (chose from { qwen3 })\n"
            "vbatch.engine.flags.SharedFlagsRefused",
            "vLLM does not accept its flags: it has no reasoning parser x",
            "one of qwen3",
            "flags",
        ),
        (
            f"{ERROR}safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file "
            "not fully covered\nRuntimeError: WorkerProc initialization failed due to an exception in a background "
            "process. See stack trace for root cause.",
            "the weights at owner/name are damaged or incomplete",
            "hf download owner/name",
            "model",
        ),
        (
            f"{ERROR}RuntimeError: CUDA error: no kernel image is available for execution on the device\n"
            "Exception: WorkerProc initialization failed due to an exception in a background process.",
            "the installed torch and vLLM were not built for this GPU and driver",
            "vbatch doctor gpu engine",
            "machine",
        ),
        (
            f"{ERROR}AssertionError: Error in memory profiling. Initial free memory 14.1 GiB, current free memory "
            "14.9 GiB. This happens when other processes sharing the same container release GPU memory",
            "another program freed GPU memory while vLLM measured it",
            "try again",
            "transient machine",
        ),
        (
            "  Value error, World size (2) is larger than the number of available GPUs (1) in this node. If this "
            "is intentional and you are using: [type=value_error, input_value=1, input_type=int]",
            "vLLM is set to use 2 GPUs for the model, but this worker has only 1",
            "run-worker --gpu 0,1",
            "machine",
        ),
        (
            "RuntimeError: CUDA unknown error - this may be due to an incorrectly set up environment, e.g. changing "
            "env variable CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be zero.",
            "the NVIDIA driver has lost its state, as after a suspend",
            "modprobe nvidia_uvm",
            "machine",
        ),
        (
            "RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu.",
            "the NVIDIA driver has lost its state, as after a suspend",
            "modprobe nvidia_uvm",
            "machine",
        ),
        (
            "RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before "
            "calling NumCudaDevices() that might have already set an error? Error 803: system has unsupported "
            "display driver / cuda driver combination",
            "the NVIDIA driver was updated, but the old version is still loaded",
            "sudo reboot",
            "machine",
        ),
        (
            f"{ERROR}torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
            "the GPU cannot be used: CUDA-capable device(s) is/are busy or unavailable",
            "vbatch doctor gpu",
            "machine",
        ),
        (
            f"{ERROR}RuntimeError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
            "the GPUs cannot communicate with each other: NCCL error: unhandled system error",
            "NCCL_DEBUG=INFO",
            "machine",
        ),
        (
            f"{ERROR}RuntimeError: Failed to find C compiler. Please specify via CC environment variable",
            "vLLM must compile code for this GPU, but no compiler is installed",
            "build-essential",
            "machine",
        ),
        (
            "  Value error, Model architectures ['LlavaForCausalLM'] failed to be inspected. Please check the logs "
            "for more details. [type=value_error, input_value=1, input_type=int]",
            "vLLM's code for 'LlavaForCausalLM' cannot be imported here",
            "vbatch doctor engine",
            "machine",
        ),
        (
            "  Value error, Model architecture MotifForCausalLM was supported in vLLM until v0.10.2, and is not "
            "supported anymore. [type=value_error, input_value=1, input_type=int]",
            "this vLLM no longer supports the architecture MotifForCausalLM",
            "None",
            "model",
        ),
        (
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 "
            "GPU has compute capability 7.5.",
            "owner/name uses bfloat16, which this GPU does not support",
            "--dtype half",
            "model",
        ),
        (
            "openai_harmony.HarmonyError: invalid tiktoken vocab file: No such file or directory (os error 2)",
            "the vocabulary of gpt-oss is not on this machine, and cannot be downloaded",
            "export TIKTOKEN_ENCODINGS_BASE=",
            "machine",
        ),
        (
            "  Value error, Unknown quantization method: bitsandbytes. Must be one of ['awq']. [type=value_error]",
            "this vLLM does not load weights in the format bitsandbytes",
            "AWQ, GPTQ, FP8",
            "model",
        ),
        (
            "RuntimeError: operator torchvision::nms does not exist",
            "torchvision, torchaudio or torchcodec do not match the installed torch",
            "pip uninstall --yes torchvision torchaudio torchcodec",
            "machine",
        ),
        (
            "ModuleNotFoundError: No module named 'vllm'",
            "vLLM is not installed",
            "pip install 'vbatch[gpu]'",
            "machine",
        ),
        (
            "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-6)\n\n"
            "Cannot access gated repo for url https://huggingface.co/owner/name/resolve/main/config.json.",
            "owner/name is gated: its owner wants to know who downloads it",
            "https://huggingface.co/owner/name",
            "model",
        ),
        (
            "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-6)",
            "the model hub has no model owner/name, or shows it only to users who are logged in",
            "hf auth login",
            "model",
        ),
        (
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
            "'namespace/repo_name': '/no/such/model'. Use `repo_type` argument if needed.",
            "there is no model at owner/name",
            '[models."owner/name"] path',
            "model",
        ),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder "
            "for the specified revision on the local disk and outgoing traffic has been disabled.",
            "owner/name is not on this machine, and HF_HUB_OFFLINE prevents the download",
            "HF_HUB_OFFLINE=0 hf download owner/name",
            "model",
        ),
        (
            "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them "
            "in the cached files.",
            "owner/name is not complete on this machine, and the model hub does not answer",
            "check the network",
            "transient unknown",
        ),
        (
            "httpx.ReadTimeout: The read operation timed out",
            "owner/name is not complete on this machine, and the model hub does not answer",
            "check the network",
            "transient unknown",
        ),
        (
            "  Value error, Model architectures ['FooForCausalLM'] are not supported for now. Supported "
            "architectures: dict_keys(['A', 'B']) [type=value_error, input_value=1, input_type=int]",
            "this vLLM does not support the architecture 'FooForCausalLM'",
            "pip install --upgrade vllm",
            "model",
        ),
        (
            "  Value error, The checkpoint you are trying to load has model type `foo` but Transformers does not "
            "recognize this architecture. This could be because of an issue with the checkpoint",
            "this version of transformers does not support the model type foo",
            "pip install --upgrade vllm transformers",
            "model",
        ),
        (
            "RuntimeError: Failed to load the model config. If the model is a custom model not yet available in "
            "the HuggingFace transformers library, consider setting `trust_remote_code=True` in LLM or using the "
            "`--trust-remote-code` flag in the CLI.",
            "owner/name contains Python code of its own, which vLLM runs only with --trust-remote-code",
            "vbatch run-worker -- --trust-remote-code",
            "model",
        ),
        (
            "RuntimeError: Failed to infer device type, please set the environment variable",
            "vLLM finds no GPU",
            "nvidia-smi",
            "machine",
        ),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 12020).",
            "the NVIDIA driver is too old for the installed torch",
            "update the NVIDIA driver",
            "machine",
        ),
        (
            "OSError: [Errno 28] No space left on device: '/psm_1f2e3d4c'",
            "/dev/shm is full",
            "df -h /dev/shm",
            "machine",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full", "df -h", "machine"),
    ],
)
def test_known_causes(said: str, line: str, hint: str, consequence: str) -> None:
    cause = of_failed_start(f"{said}\n{FAILED}\n")

    assert cause.line.startswith(line)
    assert hint in str(cause.hint)
    assert f"{'transient ' * cause.transient}{cause.blame}" == consequence


@pytest.mark.parametrize(
    "said",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB",
        "torch.AcceleratorError: CUDA error: out of memory",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when",
        "ValueError: To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache is "
        "needed, which is larger than the available KV cache memory (0.10 GiB). Try increasing",
    ],
)
def test_a_small_card_is_helped(said: str) -> None:
    """Mutant: "use a smaller model" as all that is said; vLLM's own server may just fit it with its smaller batch."""
    hint = str(of_failed_start(f"{ERROR}{said}\n{FAILED}\n").hint)
    for way in (
        "--max-num-batched-tokens 2048",
        "--max-model-len",
        "--kv-cache-dtype fp8",
        "quantized model",
    ):
        assert way in hint
    assert "vbatch doctor models" in hint


def test_a_line_that_only_informs_is_no_cause() -> None:
    log = (
        f"{TALK}Free memory on device (1.2/15.57 GiB) on startup. Desired GPU memory utilization is (0.9, 14.01 "
        "GiB). Actual usage is less than 3 (1, 2 GiB).\n"
        f"{TALK}ValueError: trust_remote_code=True\n"
        f"{ERROR}    raise ValueError('No module named vllm')\n"
        f"{ERROR}torch.AcceleratorError: CUDA error: device-side assert triggered\n{FAILED}\n"
    )

    assert of_failed_start(log).line == "AcceleratorError: CUDA error: device-side assert triggered"


def test_an_unknown_cause_is_its_last_telling_exception_on_one_short_line() -> None:
    log = f"{ERROR}SomethingError: first\n{ERROR}a.b.OtherError: it\twent {'so ' * 200}wrong\n{FAILED}\n"

    cause = of_failed_start(log)

    assert cause.line.startswith("OtherError: it went so so")
    assert len(cause.line) == causes.LONGEST
    assert not cause.transient


@pytest.mark.parametrize(
    "said", ["httpcore.PoolGone: 3 left", "triton.runtime.errors.OutOfResources: shared memory", "a.b.Broken"]
)
def test_an_exception_that_is_not_called_one(said: str) -> None:
    """Mutant: only names that end in Error or Exception."""
    assert of_failed_start(f"{said}\n{FAILED}\n").line == said.rsplit(".", maxsplit=1)[-1]


def test_an_engine_that_is_killed_as_it_starts() -> None:
    log = FAILED.replace("{}", "{'EngineCore': -9}")

    cause = of_failed_start(log)

    assert cause.line == "the engine process was ended by SIGKILL as it started"
    assert cause.transient


def test_an_empty_log() -> None:
    assert of_failed_start("").line == "vLLM did not say why it did not start"


def test_a_death_is_reported_by_its_signal_and_last_exception() -> None:
    echo = "(MainProcess pid=1) ERROR 11-23 19:34:18 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: x"

    assert causes.of_death([-signal.SIGKILL], echo) == "the engine process was ended by SIGKILL"
    assert causes.of_death([1], f"{ERROR}RuntimeError: CUDA error: an illegal memory access\n{echo}") == (
        "the engine process exited with status 1: RuntimeError: CUDA error: an illegal memory access"
    )
    assert causes.of_death([None], "") == "the engine stopped"


DEAD_PART = (
    "(EngineCore pid=7) ERROR 11-26 12:00:00 [multiproc_executor.py:315] Worker proc VllmWorker-1 died unexpectedly "
    "(exit code: {code}), shutting down executor."
)
SURVIVOR = "(Worker_TP0 pid=8) ERROR 11-26 12:00:00 [x.py:1] RuntimeError: [gloo/pair.cc:534] Connection reset by peer"


@pytest.mark.parametrize(
    ("code", "own", "cause"),
    [
        (-9, "", "the engine process VllmWorker-1 was ended by SIGKILL"),
        (None, "", "the engine process VllmWorker-1 crashed"),
        (
            1,
            "(Worker_TP1 pid=9) ERROR 11-26 12:00:00 [x.py:1] torch.OutOfMemoryError: CUDA out of memory",
            "the engine process VllmWorker-1 exited with status 1: OutOfMemoryError: CUDA out of memory",
        ),
    ],
)
def test_a_dead_part_is_reported_by_its_own_cause(code: int | None, own: str, cause: str) -> None:
    """Mutants: the last exception, which is that of a survivor; a SIGKILL that convicts the requests."""
    log = "\n".join([own, SURVIVOR, DEAD_PART.format(code=code), SURVIVOR])
    assert causes.of_death([1], log) == cause
    assert causes.was_killed([1], log) is (code == -signal.SIGKILL)
