"""Which models fit the GPU: those that are configured, waited for, or in a cache, each with what would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vbatch.doctor.checks.gpu_memory import wanted_models
from vbatch.doctor.facts import Facts, of_the_worker
from vbatch.doctor.findings import Check, Entry, Finding, Level
from vbatch.engine import models, names, parallel, shape
from vbatch.engine.kinds import KINDS
from vbatch.engine.models import Availability
from vbatch.engine.shape import Model
from vbatch.gpu import Gpu
from vbatch.gpu_memory import cards as gpu_cards
from vbatch.gpu_memory import fit
from vbatch.gpu_memory.fit import Fit
from vbatch.text import GIB, harmless

FITS = Entry(
    id="models.fit",
    means="the model fits an otherwise empty GPU with its longest context; estimated from its files by vLLM's own "
    "arithmetic, before any load",
)
SHORTER = Entry(
    id="models.context",
    means="the weights fit the GPU, but the KV cache of one request of the longest length does not; vLLM refuses to "
    "load the model with these flags",
    commands=("vbatch run-worker -- --max-model-len {tokens}",),
    advice="or one of the other ways that are shown",
)
TOO_LARGE = Entry(
    id="models.too_large",
    means="the GPU is too small for the model, whatever its context",
    advice="a quantized (AWQ, GPTQ, FP8) or smaller variant of the model, or more GPUs",
)
UNKNOWN = Entry(
    id="models.unknown",
    means="whether the model fits cannot be estimated: its files are not on this disk, or no GPU reports its memory",
)


def _fits(facts: Facts) -> Iterator[Finding]:
    """Compare each model with the GPUs that a worker may use."""
    kind = KINDS[facts.settings.engine]
    found = sorted(filter(kind.serves, models.known(facts.settings) | _wanted(facts)))
    if not kind.needs_files or not found:
        yield UNKNOWN.skip(
            "no model is configured or in a cache" if kind.needs_files else f"{kind.title} needs no model"
        )
        return
    cards = _cards(facts)
    for name in found:
        if not cards:
            yield _of_one(facts, name, None)
        for card in cards:
            yield _of_one(facts, name, card)


def _cards(facts: Facts) -> list[Gpu]:
    """Return one GPU of each size that a worker may have; where one engine is over several, the smallest decides."""
    known = [card for card in of_the_worker(facts) if card.memory_known] if facts.needs_gpu else []
    by_size = {card.total: card for card in reversed(known)}
    if gpu_cards.one_per_gpu(facts.settings, facts.gpu):
        return sorted(by_size.values(), key=lambda card: card.index)
    return [by_size[min(by_size)]] if by_size else []


def _wanted(facts: Facts) -> set[str]:
    """Return the models to load for what is configured or waited for: an alias or an adapter stands for its model."""
    return {names.base(facts.settings, name) for name in wanted_models(facts)}


def _of_one(facts: Facts, name: str, card: Gpu | None) -> Finding:
    shown = harmless(name)
    model = _measured(facts, name)
    if isinstance(model, str):
        return UNKNOWN.info(f"{shown} {model}")
    args = gpu_cards.engine_flags(facts.settings, name)
    seen = fit.estimate(card.total if card is not None else 0, model, args)
    if seen is None:
        return UNKNOWN.info(
            f"{shown}: {_needs(model, None)}", why="a file of flags (--config) cannot be read here"
        )
    if card is None:
        return UNKNOWN.info(f"{shown}: {_needs(model, seen)}", why="no GPU reports its memory here")
    if seen.fits:
        return FITS.ok(
            f"{shown} fits {_named(card, args)}: {_needs(model, seen)}{_room(seen)}", *_arithmetic(seen)
        )
    return _too_big(facts, name, card, model, seen)


def _measured(facts: Facts, name: str) -> Model | str:
    """Measure a model's files; say in a few words why that is not possible."""
    found = models.find(facts.settings, name)
    folder = models.folder(found.place)
    if folder is not None:
        files = models.look(folder)
        return (
            f"is not complete: {', '.join(files.missing[:3])} missing"
            if files.missing
            else shape.measured(files)
        )
    if found.availability is Availability.HERE and Path(found.place).is_file():
        return Model(weights=Path(found.place).stat().st_size)
    return "is not on this disk"


def _too_big(facts: Facts, name: str, card: Gpu, model: Model, seen: Fit) -> Finding:
    shown, args = harmless(name), gpu_cards.engine_flags(facts.settings, name)
    level = Level.WARN if name in _wanted(facts) else Level.INFO
    ways = fit.remedies(card.total, model, args)
    if ways and seen.cache > 0:
        return SHORTER.found(
            level,
            f"{shown} fits {_named(card, args)} only with less: {_needs(model, seen)}{_room(seen)}",
            why=f"it would load with {'; or '.join(ways)}",
            evidence=_arithmetic(seen),
            commands=tuple(f"vbatch run-worker -- {way}" for way in ways),
        )
    number = fit.cards(card.total, model, args)
    more = [f"{number} GPUs like this one (--tensor-parallel-size {number})"] if number is not None else []
    alike = [other.index for other in facts.gpu.gpus if other.total >= card.total]
    if number is not None and number <= len(alike):
        over = f"vbatch run-worker --gpu {','.join(map(str, alike[:number]))}"
    else:
        over = None
    return TOO_LARGE.found(
        level,
        f"{shown} does not fit {_named(card, args)} ({card.total / GIB:.1f} GiB): {_needs(model, seen)}",
        why="what would do: "
        + "; or ".join([*ways, *more, "a quantized (AWQ, GPTQ, FP8) or smaller variant of it"]),
        evidence=_arithmetic(seen),
        commands=(*(f"vbatch run-worker -- {way}" for way in ways), *([over] if over else [])),
    )


def _named(card: Gpu, args: Sequence[str]) -> str:
    """Name the GPU, and in how many parts the model is split over such ones."""
    parts = parallel.of(args).weights
    return f"GPU {card.index}" if parts == 1 else f"GPU {card.index} and {parts - 1} like it"


def _needs(model: Model, seen: Fit | None) -> str:
    """Describe what a model needs."""
    kind = f" ({model.shape.quantization})" if model.shape.quantization else ""
    weights = f"{(seen.weights if seen is not None else model.weights) / GIB:.1f} GiB of weights{kind}"
    if seen is None or seen.per_token is None:
        return f"{weights}, KV cache unknown"
    return f"{weights}, {seen.per_token / 1024:.0f} KiB of KV cache per token" if seen.per_token else weights


def _room(seen: Fit) -> str:
    if seen.tokens is None:
        return ""
    longest = f" (a request may have {seen.wanted:,})" if seen.wanted is not None else ""
    return f", room for about {seen.tokens:,} tokens{longest}"


def _arithmetic(seen: Fit) -> tuple[str, ...]:
    return (
        f"{seen.allowed / GIB:.2f} GiB for vLLM - {seen.weights / GIB:.2f} weights - {seen.step / GIB:.2f} for a step "
        f"of the largest batch = {seen.cache / GIB:.2f} GiB of KV cache",
    )


CHECKS = (Check(name="models.fit", finds=(FITS, SHORTER, TOO_LARGE, UNKNOWN), run=_fits, by_name=True),)
