"""Checks of the models that are configured or waited for: complete on this disk, fitting the GPU, no network needed."""

from __future__ import annotations

from collections.abc import Iterator

from vbatch.doctor.checks.gpu_memory import wanted_models
from vbatch.doctor.facts import Facts, of_the_worker
from vbatch.doctor.findings import Check, Entry, Finding, Level
from vbatch.engine import models, parallel, shape
from vbatch.engine.kinds import KINDS
from vbatch.engine.models import Availability
from vbatch.gpu_memory import cards
from vbatch.gpu_memory.fit import estimate
from vbatch.text import GIB, harmless

MODEL = Entry(
    id="engine.model",
    means="whether the files of a model are complete on this disk, so that loading it needs no network",
    commands=("hf download {model}",),
    advice='or configure its folder: [models."NAME"] path = … in config.toml',
)
FIT = Entry(
    id="engine.fit",
    means="the weights alone are larger than what vLLM may use of the GPU, or the model is set to use more GPUs than "
    "the worker has, so it cannot be loaded there",
    commands=("vbatch doctor models", "vbatch submit --help   # -m names a smaller or a quantized model"),
    advice="a higher --gpu-memory-utilization may be enough",
)


def _models(facts: Facts) -> Iterator[Finding]:
    """Look at each model that the settings name or the queue waits for."""
    kind = KINDS[facts.settings.engine]
    if not kind.needs_files:
        yield MODEL.skip(f"{kind.title} needs no model")
        return
    wanted = sorted(wanted_models(facts))
    if not wanted:
        yield MODEL.skip("no model is configured or waited for")
    for model in wanted:
        yield from _of_one(facts, model)


def _of_one(facts: Facts, model: str) -> Iterator[Finding]:
    shown = harmless(model)
    values = {"model": shown}
    found = models.find(facts.settings, model)
    folder = models.folder(found.place)
    if folder is None and found.availability is Availability.HERE:
        yield MODEL.ok(f"{shown} is a file on this disk", found.place)
        return
    if folder is None:
        lost = found.availability is Availability.MISSING
        yield MODEL.found(
            Level.FAIL if lost else Level.WARN,
            f"{shown} is not on this disk ({harmless(found.place)})"
            + (f"; did you mean {harmless(found.nearest)}?" if found.nearest else ""),
            why="its batches cannot be answered" if lost else "the first load will download it",
            values=values,
        )
        return
    files = models.look(folder)
    if files.missing:
        yield MODEL.fail(
            f"{shown} is not complete: {', '.join(files.missing[:3])} missing",
            why="a download was cut off, or a file was deleted; it cannot be loaded like this",
            evidence=(str(folder), *files.missing),
            values=values,
        )
        return
    yield MODEL.ok(f"{shown} is complete ({files.weights / GIB:.1f} GiB of weights)", str(folder))
    yield from _fit(facts, model, shape.measured(files))


def _fit(facts: Facts, model: str, measured: shape.Model) -> Iterator[Finding]:
    args = cards.engine_flags(facts.settings, model)
    spread = parallel.of(args)
    found = of_the_worker(facts)
    together = not cards.one_per_gpu(facts.settings, facts.gpu)  # else each of them has a worker of its own
    if found and spread.gpus > (len(found) if together else 1) and not spread.devices:
        there = f"the worker has {len(found)}" if together else "each worker has one"
        numbers = ",".join(str(card.index) for card in facts.gpu.gpus[: spread.gpus])
        yield FIT.fail(
            f"{harmless(model)} is set to use {spread.gpus} GPUs; {there}",
            commands=(f"vbatch run-worker --gpu {numbers}",) if len(facts.gpu.gpus) >= spread.gpus else (),
        )
        return
    for card in found:
        fit = estimate(card.total, measured, args) if card.memory_known else None
        if fit is not None and fit.weights > fit.allowed:
            yield FIT.fail(
                f"{harmless(model)} has {fit.weights / GIB:.1f} GiB of weights; vLLM may use "
                f"{fit.allowed / GIB:.1f} GiB of GPU {card.index}"
            )


CHECKS = (Check(name="engine.models", finds=(MODEL, FIT), run=_models),)
