"""Which models fit a card: the arithmetic on the published shapes of real models."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.nvml import GIB, TOTAL
from vbatch.engine import models, shape
from vbatch.engine.shape import Model
from vbatch.gpu_memory import fit

QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
}
BIG_WEIGHTS = round(15.26 * GIB)


def of(tmp_path: Path, config: object) -> shape.Shape:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return shape.of(tmp_path)


def qwen(tmp_path: Path, weights: int = BIG_WEIGHTS, **more: Any) -> Model:
    return Model(weights=weights, shape=of(tmp_path, QWEN3_8B | more))


def estimated(total: int, model: Model, *args: str) -> fit.Fit:
    found = fit.estimate(total, model, args)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("changes", "per_token"),
    [
        ({}, 36 * 2 * 8 * 128 * 2),
        ({"num_key_value_heads": None}, 36 * 2 * 32 * 128 * 2),
        ({"head_dim": None, "hidden_size": 2048}, 36 * 2 * 8 * 64 * 2),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 36 * 576 * 2),
        (
            {"layer_types": ["full_attention", "sliding_attention"] * 18, "sliding_window": 128},
            18 * 2 * 8 * 128 * 2,
        ),
        ({"layer_types": ["linear_attention"] * 27 + ["full_attention"] * 9}, 9 * 2 * 8 * 128 * 2),
        ({"architectures": ["BertModel"]}, 0),
        ({"num_hidden_layers": None}, None),
    ],
)
def test_the_kv_cache_per_token(tmp_path: Path, changes: dict[str, Any], per_token: int | None) -> None:
    """144 KiB for Qwen3-8B. Mutants: all heads; hidden size by heads despite head_dim; windows counted without end."""
    found = estimated(80 * GIB, qwen(tmp_path, **changes))
    assert found.per_token == per_token
    assert found.fixed == (18 * 128 * 4096 if "sliding_window" in changes else 0)


def test_the_language_model_inside_a_vision_model(tmp_path: Path) -> None:
    """Mutant: reading the outer names alone."""
    nested = of(
        tmp_path, {"architectures": ["X"], "thinker_config": {"text_config": QWEN3_8B}, "hidden_size": 9}
    )
    assert (nested.layers, nested.kv, nested.context) == (36, 2048, 40960)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"num_hidden_layers": "many", "head_dim": true}', '{"a":'])
def test_a_config_that_says_nothing(tmp_path: Path, text: str) -> None:
    """Mutant: a traceback, or zero layers taken for no need."""
    found = estimated(TOTAL, Model(weights=GIB, shape=of(tmp_path, text)))
    assert (found.per_token, found.tokens) == (None, None)
    assert found.fits, "as far as is known"


def test_what_does_not_fit_names_flags_with_which_it_does(tmp_path: Path) -> None:
    """Qwen3-8B in 8 bits (9 GiB) on 15.57 GiB. Mutant: a flag that is not estimated again."""
    model = qwen(tmp_path, weights=9 * GIB, quantization_config={"quant_method": "fp8"})
    now = estimated(TOTAL, model)
    assert not now.fits
    ways = fit.remedies(TOTAL, model, ())
    assert ways[0] == "--kv-cache-dtype fp8"
    assert ways[1].startswith("--max-model-len")
    assert len(ways) == 2
    for way in ways:
        assert estimated(TOTAL, model, *way.split()).fits, way


def test_big_weights_need_another_card_or_more_of_them(tmp_path: Path) -> None:
    model = qwen(tmp_path)
    assert estimated(TOTAL, model).cache < 0
    (way,) = fit.remedies(TOTAL, model, ())
    assert way.startswith("--quantization fp8_per_tensor --max-model-len")
    assert estimated(TOTAL, model, *way.split()).fits
    assert fit.cards(TOTAL, model, ()) == 2
    assert fit.cards(2 * GIB, model, ()) is None
    assert estimated(80 * GIB, model).fits


def test_several_gpus_and_offloaded_weights_share_the_load(tmp_path: Path) -> None:
    """Mutant: tensor parallel alone; a pipeline that keeps every layer's cache."""
    model = qwen(tmp_path)
    alone, tensor, pipeline = (estimated(24 * GIB, model, *args) for args in ((), ("-tp", "2"), ("-pp=2",)))
    assert tensor.weights == pipeline.weights == alone.weights // 2
    assert alone.per_token is not None
    assert tensor.per_token == pipeline.per_token == alone.per_token // 2
    assert estimated(24 * GIB, model, "-tp", "16").per_token == alone.per_token // 8, (
        "each has one head at least"
    )
    assert estimated(24 * GIB, model, "--cpu-offload-gb", "4").weights == alone.weights - 4 * GIB


def test_what_flags_change(tmp_path: Path) -> None:
    """Mutants: each flag not read."""
    model = qwen(tmp_path)
    plain = estimated(24 * GIB, model)
    assert plain.per_token is not None
    assert estimated(24 * GIB, model, "--kv-cache-dtype", "fp8_e4m3").per_token == plain.per_token // 2
    assert estimated(24 * GIB, model, "--max-num-batched-tokens", "2048").step < plain.step
    assert estimated(24 * GIB, model, "--max-model-len", "4k").wanted == 4000
    assert estimated(24 * GIB, model, "-q", "fp8_per_block").weights < plain.weights
    assert estimated(24 * GIB, model, "--gpu-memory-utilization", "0.5").allowed == 12 * GIB
    assert estimated(24 * GIB, model, "--kv-cache-memory-bytes", "1G").cache == GIB
    assert fit.estimate(24 * GIB, model, ("--config", "flags.yaml")) is None
    assert estimated(80 * GIB, model).step > plain.step, "vLLM's batches are bigger from 70 GiB on"


def test_weights_in_float32_are_loaded_in_half(tmp_path: Path) -> None:
    """vLLM loads them in 16 bits unless --dtype asks for 32. Mutants: the size of the files; of all tensors."""
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [100], "data_offsets": [0, 400]},
            "b": {"dtype": "BF16", "shape": [100], "data_offsets": [400, 600]},
        }
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(600))
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    (tmp_path / "tokenizer.json").write_text("{}")
    model = shape.measured(models.look(tmp_path))
    assert model.float32 == 400
    assert estimated(TOTAL, model).weights == model.weights - 200
    assert estimated(TOTAL, model, "--dtype", "float32").weights == model.weights
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    assert shape.measured(models.look(tmp_path)).float32 == 0, "a damaged file says nothing"


@pytest.mark.vllm
def test_the_quantizations_are_those_of_vllm() -> None:
    """Mutant: ``fp8``, with which vLLM no longer quantizes a model itself, or a name that it does not have."""
    quantization = pytest.importorskip("vllm.config.quantization")
    known = pytest.importorskip("vllm.model_executor.layers.quantization")
    assert set(fit._ON_THE_FLY) <= set(quantization.ONLINE_QUANT_SHORTHAND_NAMES)
    assert set(fit._ON_THE_FLY) <= set(known.QUANTIZATION_METHODS)
