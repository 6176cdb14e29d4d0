"""What is chosen by the device where no flag chooses: never on a GPU, never what does not fit."""

from __future__ import annotations

import json
import os
import struct
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vbatch.engine import defaults, installed
from vbatch.system import memory
from vbatch.text import GIB

CONFIG = {"dtype": "bfloat16", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}


def vllm(*, cpu: bool) -> Any:
    return SimpleNamespace(
        current_platform=SimpleNamespace(is_cpu=lambda: cpu),
        UsageContext=SimpleNamespace(LLM_CLASS="offline", OPENAI_API_SERVER="server"),
    )


def flags(**given: Any) -> Namespace:
    return Namespace(
        **{"dtype": "auto", "quantization": None, "max_model_len": 128, "gpu_memory_utilization": 0.9} | given
    )


def model(folder: Path, *, weights: int = 1 << 20, **config: Any) -> str:
    """A complete model with one tensor in bfloat16, of which the disk holds nothing."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, weights]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(weights)
    return str(folder)


@pytest.fixture(autouse=True)
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX2 alone, and 8 GiB of which 6 are free."""
    monkeypatch.setattr(installed, "emulates_bfloat16", lambda: True)
    monkeypatch.setattr(memory, "total", lambda: 8 * GIB)
    monkeypatch.setattr(memory, "free", lambda: 6 * GIB)


def test_float32_where_bfloat16_is_emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: the question for the device is left out; the one for the instructions."""
    path = model(tmp_path / "m")
    assert defaults.dtype(vllm(cpu=True), flags(), path) == "float32"
    assert defaults.dtype(vllm(cpu=False), flags(), path) == "auto"
    monkeypatch.setattr(installed, "emulates_bfloat16", lambda: False)
    assert defaults.dtype(vllm(cpu=True), flags(), path) == "auto"


@pytest.mark.parametrize("given", ["bfloat16", "float16", "float32", "half"])
def test_a_flag_counts(tmp_path: Path, given: str) -> None:
    """Mutant: a flag is overridden."""
    assert defaults.dtype(vllm(cpu=True), flags(dtype=given), model(tmp_path / "m")) == given


def test_twice_the_weights_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into what is free, and into the share that vLLM takes. Mutants: once the weights; no share; no KV cache."""
    path = model(tmp_path / "m", weights=2 * GIB)
    assert defaults.dtype(vllm(cpu=True), flags(), path) == "float32"
    assert defaults.dtype(vllm(cpu=True), flags(gpu_memory_utilization=0.5), path) == "auto"
    assert defaults.dtype(vllm(cpu=True), flags(max_model_len=2_000_000), path) == "auto"
    assert defaults.dtype(vllm(cpu=True), flags(), model(tmp_path / "l", weights=5 * GIB // 2 + 1)) == "auto"
    monkeypatch.setattr(memory, "free", lambda: 4 * GIB)
    assert defaults.dtype(vllm(cpu=True), flags(), path) == "auto"


def test_what_is_quantized_or_unknown_stays(tmp_path: Path) -> None:
    quantized = model(tmp_path / "q", quantization_config={"quant_method": "gptq"})
    assert defaults.dtype(vllm(cpu=True), flags(), quantized) == "auto"
    assert defaults.dtype(vllm(cpu=True), flags(quantization="fp8"), model(tmp_path / "m")) == "auto"
    assert defaults.dtype(vllm(cpu=True), flags(), "somebody/not-on-this-disk") == "auto"


def test_the_sizes_of_a_batch() -> None:
    """Mutant: one row of vLLM's table for every device."""
    assert defaults.context(vllm(cpu=True)) == "server"
    assert defaults.context(vllm(cpu=False)) == "offline"


@pytest.mark.parametrize(
    ("cpu", "cores", "given", "reserved"),
    [
        (True, 2, {}, "0"),
        (True, 1, {}, "0"),
        (True, 3, {}, None),  # not measured
        (False, 2, {}, None),
        (True, 2, {defaults.RESERVED: "1"}, "1"),
        (True, 2, {defaults.BINDING: "0"}, None),
    ],
)
def test_a_small_cpu_computes_on_both_cores(
    monkeypatch: pytest.MonkeyPatch, cpu: bool, cores: int, given: dict[str, str], reserved: str | None
) -> None:
    """Mutants: on a GPU too; on any number of cores; over what the user has set."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
    monkeypatch.setattr(os, "environ", given)
    defaults.use_both_cores(vllm(cpu=cpu))
    assert given.get(defaults.RESERVED) == reserved


@pytest.mark.vllm
@pytest.mark.usefixtures("small_model")  # which sets what vLLM reads as it is imported
def test_the_row_of_the_server_has_128_sequences_on_a_cpu() -> None:
    """So that nothing is set here that vLLM's own checks of a model might refuse."""
    from vbatch.engine import vllm_names

    names = vllm_names.load()
    if not names.current_platform.is_cpu():
        pytest.skip("this vLLM computes on a GPU")
    tokens, sequences = names.AsyncEngineArgs.get_batch_defaults(1)
    context = defaults.context(names)
    assert (sequences[context], tokens[context]) == (128, 2048)
