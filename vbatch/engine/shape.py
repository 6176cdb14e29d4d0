"""How much memory a model needs by its own files: its weights as they are loaded, and its KV cache per token.

Nothing of vLLM is imported. The names are those of the config.json of transformers; a file that lacks them, or is not
one of transformers (GGUF), leaves unknown what it does not say.
"""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbatch.engine.models import Files

# The part of a config.json of a model of several kinds of input that describes the language model.
_TEXT = ("text_config", "llm_config", "language_config", "thinker_config")
_ENCODERS = ("Bert", "Roberta", "BERT", "GteModel", "NomicBert")  # no token waits for another: no KV cache
_LONGEST_HEADER = 64 << 20  # bytes; a file that claims more is damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What config.json says. Sizes are per token and layer, in elements; None is what it does not say.

    ``kv`` is what one layer caches of a token: on one GPU, and ``divisible`` by the key-value heads among several.
    ``window``: only so many tokens are cached in each of ``windowed`` layers. ``quantization`` is the format of
    weights that are quantized already.
    """

    layers: int | None = None
    windowed: int = 0
    window: int = 0
    kv: int | None = None
    heads: int = 1
    divisible: bool = True
    context: int | None = None
    hidden: int = 0
    intermediate: int = 0
    vocabulary: int = 0
    dtype: str | None = None
    quantization: str | None = None
    encoder: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's files: the bytes of its weights, those of them in float32, and its shape."""

    weights: int
    float32: int = 0
    shape: Shape = Shape()


def measured(files: Files) -> Model:
    """Measure a model by its files."""
    in_float32 = sum(_float32(files.folder / name) for name in files.names if name.endswith(".safetensors"))
    return Model(weights=files.weights, float32=in_float32, shape=of(files.folder))


def of(folder: Path) -> Shape:
    """Read the shape of the model in a folder; an empty one where there is no config.json that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Shape()
    return _shape(config) if isinstance(config, dict) else Shape()


def _shape(config: dict[str, Any]) -> Shape:
    text = _text(config)
    layers = _number(text, "num_hidden_layers", "n_layer", "num_layers")
    heads = _number(text, "num_attention_heads", "n_head", "num_heads")
    hidden = _number(text, "hidden_size", "n_embd", "d_model") or 0
    kv_heads = _number(text, "num_key_value_heads", "num_kv_heads")
    if kv_heads is None:
        kv_heads = 1 if text.get("multi_query") is True else heads
    head = _number(text, "head_dim") or (hidden // heads if heads else None)
    latent = _number(text, "kv_lora_rank")  # DeepSeek's attention: one compressed vector for all heads
    kv = latent + (_number(text, "qk_rope_head_dim") or 0) if latent else None
    if kv is None and kv_heads and head:
        kv = 2 * kv_heads * head
    kinds = text.get("layer_types")
    windowed = 0
    if isinstance(kinds, list) and layers is not None:
        windowed = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
        layers = sum(kind in ("full_attention", "attention") for kind in kinds)
    quantization = config.get("quantization_config") or text.get("quantization_config")
    architectures = config.get("architectures")
    return Shape(
        layers=layers,
        windowed=windowed,
        window=_number(text, "sliding_window", "attention_chunk_size") or 0,
        kv=kv,
        heads=kv_heads or 1,
        divisible=not latent,
        context=_number(text, "max_position_embeddings", "n_positions", "max_seq_len"),
        hidden=hidden,
        intermediate=_number(text, "intermediate_size", "moe_intermediate_size", "n_inner") or 4 * hidden,
        vocabulary=_number(text, "vocab_size") or 0,
        dtype=next((str(each) for each in map(text.get, ("dtype", "torch_dtype")) if each), None)
        or next((str(each) for each in map(config.get, ("dtype", "torch_dtype")) if each), None),
        quantization=str(quantization.get("quant_method")) if isinstance(quantization, dict) else None,
        encoder=any(mark in str(architectures) for mark in _ENCODERS),
    )


def _text(config: dict[str, Any]) -> dict[str, Any]:
    for name in _TEXT:
        if isinstance(inner := config.get(name), dict):
            return _text(inner)
    return config


def _number(config: dict[str, Any], *names: str) -> int | None:
    """Return the first of these that is a number above zero."""
    found = (config.get(name) for name in names)
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)


def _float32(file: Path) -> int:
    """Return the bytes of tensors in float32, which vLLM loads in half of them. Only safetensors says what it holds."""
    with suppress(OSError, ValueError, AttributeError, struct.error), file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length <= _LONGEST_HEADER:
            tensors = json.loads(stream.read(length)).values()
            spans = [each["data_offsets"] for each in tensors if each.get("dtype") == "F32"]
            return sum(int(end) - int(start) for start, end in spans)
    return 0
