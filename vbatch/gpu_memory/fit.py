"""Whether a model fits a GPU, with how much context, or what would make it fit: an estimate before any load.

By vLLM's own arithmetic (determine_available_memory of its GPU worker, 0.32 and 0.33): what it may use of the card,
less the weights, less what a step of the largest batch takes, is the KV cache, and it must hold one request of the
longest length. The step is estimated here and measured by vLLM, so figures are about right, not exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vbatch.engine import flag_values as flags
from vbatch.engine import parallel
from vbatch.engine.flag_values import Flags
from vbatch.engine.shape import Model, Shape
from vbatch.gpu_memory import needs
from vbatch.text import GIB, MIB

# vLLM's defaults for LLM_CLASS below and from 70 GiB on (get_batch_defaults of vllm/engine/arg_utils.py).
_BIG_CARD = 70 * GIB
_BATCHED_TOKENS = (8192, 16384)
_SEQUENCES = (256, 1024)
SMALL_BATCH = 2048  # tokens, as of ``vllm serve`` on a small card
GRAPHS = 400 * MIB  # bytes of CUDA graphs, cuBLAS and what torch does not give back
USEFUL = 1024  # tokens; a shorter context is of no use
ROUND = 256  # tokens
# Of the bytes in 16 bits, when vLLM quantizes a model as it loads it (ONLINE_QUANT_SHORTHAND_NAMES; no longer ``fp8``).
_ON_THE_FLY = {
    "fp8_per_tensor": 0.52,
    "fp8_per_channel": 0.52,
    "fp8_per_block": 0.52,
    "mxfp8": 0.54,
    "int8_per_channel_weight_only": 0.52,
    "nvfp4_per_token": 0.32,
}
_PROPOSED = "fp8_per_tensor"
_EIGHT_BIT_CACHES = ("fp8", "int8", "turboquant_k8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A model on a card, in bytes. ``weights``, ``per_token`` and ``fixed`` are those of one GPU of several.

    ``allowed`` is what vLLM may use, ``step`` what the largest batch takes, ``wanted`` the longest request in tokens.
    ``per_token`` is None where the files do not say, 0 where nothing is cached; ``fixed`` is what the layers with a
    window cache.
    """

    allowed: int
    weights: int
    step: int
    per_token: int | None
    fixed: int
    wanted: int | None

    @property
    def cache(self) -> int:
        """What is left for the KV cache."""
        return self.allowed - self.weights - self.step

    @property
    def tokens(self) -> int | None:
        """How many tokens the KV cache holds; None where that is not known or has no limit."""
        if not self.per_token:
            return None
        return max(0, (self.cache - self.fixed) // self.per_token)

    @property
    def fits(self) -> bool:
        """Whether it loads with these flags, as far as that can be estimated."""
        if self.tokens is not None and self.wanted is not None:
            return self.tokens >= self.wanted
        return self.cache > 0

    @property
    def shorter(self) -> int | None:
        """The longest context with which it would load, as a value for ``--max-model-len``; None for no useful one."""
        if self.tokens is None or (length := self.tokens // ROUND * ROUND) < USEFUL:
            return None
        return length


def estimate(total: int, model: Model, args: Sequence[str]) -> Fit | None:
    """Estimate a model on a card of ``total`` bytes; None where a file of flags decides that cannot be read here."""
    share = needs.utilization(args)
    if share is None:
        return None
    given, shape, spread = flags.read(args), model.shape, parallel.of(args)
    tensor, pipeline = spread.tensor, spread.pipeline
    allowed = needs.required(total, share)
    on_card = max(0, math.ceil(_loaded(model, given) / spread.weights) - int(spread.offload * GIB))
    step = _step(total, shape, given, tensor)
    if (cache := given.number(flags.CACHE)) is not None:  # the share no longer counts
        allowed = min(on_card + step + cache, total - needs.CONTEXT)
    per_layer = _per_layer(shape, given, tensor)
    longest = given.number(flags.CONTEXT) or shape.context
    windowed = math.ceil(shape.windowed / pipeline) * min(shape.window, longest or shape.window)
    return Fit(
        allowed=allowed,
        weights=on_card,
        step=step,
        per_token=_times(
            math.ceil((shape.layers or 0) / pipeline) if shape.layers is not None else None, per_layer
        ),
        fixed=_times(windowed, per_layer) or 0,
        wanted=longest,
    )


def remedies(total: int, model: Model, args: Sequence[str]) -> list[str]:
    """Return flags of vLLM that make a model fit which does not, the mildest first: one set per way, each checked."""
    now = estimate(total, model, args)
    batch = ("--max-num-batched-tokens", str(SMALL_BATCH))
    eight = ("--kv-cache-dtype", "fp8")
    alone = [more for more in (batch, eight) if _would_fit(total, model, (*args, *more))]
    together = [batch + eight] if not alone and _would_fit(total, model, (*args, *batch, *eight)) else []
    found = [" ".join(more) for more in alone + together]
    for more in ((), batch, eight, batch + eight):
        then = estimate(total, model, (*args, *more))
        if then is not None and then.shorter is not None and now is not None:
            found.append(
                " ".join([f"--max-model-len {min(then.shorter, now.wanted or then.shorter)}", *more])
            )
            break
    if not found and model.shape.quantization is None and flags.read(args).last(flags.QUANTIZATION) is None:
        quantized = ("--quantization", _PROPOSED, "--max-model-len", "4096", *batch)
        if _would_fit(total, model, (*args, *quantized)):
            found.append(" ".join(quantized))
    return found


def _would_fit(total: int, model: Model, args: Sequence[str]) -> bool:
    then = estimate(total, model, args)
    return then is not None and then.fits


def cards(total: int, model: Model, args: Sequence[str]) -> int | None:
    """Return how many GPUs like this one hold the model: a power of two, at most 8; None if those are too few."""
    for number in (2, 4, 8):
        then = estimate(total, model, (*args, parallel.TENSOR, str(number)))
        if then is not None and (then.fits or then.shorter is not None):
            return number
    return None


def _loaded(model: Model, given: Flags) -> int:
    """Return the bytes of the weights in memory: in 16 bits, unless they are quantized or float32 is asked for."""
    if model.shape.quantization is not None:
        return model.weights
    weights = model.weights
    if given.last(flags.DTYPE) not in ("float32", "float"):
        weights -= model.float32 // 2
    return int(weights * _ON_THE_FLY.get(given.last(flags.QUANTIZATION) or "", 1))


def _step(total: int, shape: Shape, given: Flags, tensor: int) -> int:
    """Estimate what a step of the largest batch takes: of a layer's activations, and of the logits of each sequence."""
    big = total >= _BIG_CARD
    tokens = given.number(flags.BATCHED_TOKENS) or _BATCHED_TOKENS[big]
    sequences = min(given.number(flags.SEQUENCES) or _SEQUENCES[big], tokens)
    activations = tokens * (4 * shape.hidden + 3 * shape.intermediate // tensor) * 2
    logits = 0 if shape.encoder else sequences * shape.vocabulary * 4 * 2
    return activations + logits + GRAPHS


def _per_layer(shape: Shape, given: Flags, tensor: int) -> int | None:
    if shape.encoder:
        return 0
    if shape.kv is None:
        return None
    kind = given.last(flags.CACHE_DTYPE) or "auto"
    size = 1 if kind.startswith(_EIGHT_BIT_CACHES) else 2
    parts = min(tensor, shape.heads) if shape.divisible else 1
    return math.ceil(shape.kv / parts) * size


def _times(layers: int | None, per_layer: int | None) -> int | None:
    return None if layers is None or per_layer is None else layers * per_layer
