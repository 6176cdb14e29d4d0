"""Checks of the models that are configured or waited for: complete on this disk, fitting the GPU, no network needed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vbatch.doctor.checks.gpu_memory import of_the_worker, wanted_models
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding, Level
from vbatch.engine.kinds import KINDS
from vbatch.gpu_memory import needs
from vbatch.system.disks import hub_cache
from vbatch.text import GIB, harmless

MODEL = Entry(
    id="engine.model",
    means="whether the files of a model are complete on this disk, so that loading it needs no network",
    commands=("hf download {model}",),
    advice='or configure its folder: [models."NAME"] path = … in config.toml',
)
FIT = Entry(
    id="engine.fit",
    means="the weights alone are larger than what vLLM may use of the GPU, so the model cannot be loaded there",
    commands=("vbatch submit --help   # -m names a smaller or a quantized model",),
    advice="a higher --gpu-memory-utilization may be enough",
)

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """A model's folder. ``missing`` names what is not there; ``weights`` are the bytes of its weights."""

    folder: Path
    missing: tuple[str, ...]
    weights: int


def _models(facts: Facts) -> Iterator[Finding]:
    """Look at each model that the settings name or the queue waits for."""
    kind = KINDS[facts.settings.engine]
    if not kind.needs_files:
        yield MODEL.skip(f"{kind.title} needs no model")
        return
    models = sorted(wanted_models(facts))
    if not models:
        yield MODEL.skip("no model is configured or waited for")
    for model in models:
        yield from _of_one(facts, model)


def _of_one(facts: Facts, model: str) -> Iterator[Finding]:
    shown = harmless(model)
    values = {"model": shown}
    place = facts.settings.model_path(model)
    folder = _folder(place)
    if folder is None:
        offline = os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True", "yes", "on")
        lost = offline or place.startswith("/")
        yield MODEL.found(
            Level.FAIL if lost else Level.WARN,
            f"{shown} is not on this disk ({harmless(place)})",
            why="its batches cannot be answered" if lost else "the first load will download it",
            values=values,
        )
        return
    files = _look(folder)
    if files.missing:
        yield MODEL.fail(
            f"{shown} is not complete: {', '.join(files.missing[:3])} missing",
            why="a download was cut off, or a file was deleted; it cannot be loaded like this",
            evidence=(str(folder), *files.missing),
            values=values,
        )
        return
    yield MODEL.ok(f"{shown} is complete ({files.weights / GIB:.1f} GiB of weights)", str(folder))
    yield from _fit(facts, model, files.weights)


def _fit(facts: Facts, model: str, weights: int) -> Iterator[Finding]:
    args = facts.settings.engine_args(model)
    parts = max(1, _number(args, "--tensor-parallel-size", "-tp"))
    for card in of_the_worker(facts):
        utilization = needs.utilization(args)
        if not card.memory_known or utilization is None:
            continue
        allowed = needs.required(card.total, utilization)
        if weights / parts > allowed:
            yield FIT.fail(
                f"{harmless(model)} has {weights / GIB:.1f} GiB of weights; vLLM may use "
                f"{allowed / GIB:.1f} GiB of GPU {card.index}"
            )


def _number(args: tuple[str, ...], *flags: str) -> int:
    for position, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in flags:
            given = value if equals else next(iter(args[position + 1 :]), "")
            return int(given) if given.isdecimal() else 1
    return 1


def _folder(place: str) -> Path | None:
    """Return where the files are: a folder, or the newest snapshot in the Hugging Face cache; None for nowhere."""
    if Path(place).is_dir():
        return Path(place)
    snapshots = hub_cache() / f"models--{place.replace('/', '--')}" / "snapshots"
    found = sorted(snapshots.glob("*/"), key=lambda snapshot: snapshot.stat().st_mtime)
    return found[-1] if found else None


def _look(folder: Path) -> _Files:
    missing = [] if (folder / "config.json").exists() or any(folder.glob("*.gguf")) else ["config.json"]
    if not any((folder / name).exists() for name in _TOKENIZERS) and not any(folder.glob("*.gguf")):
        missing.append("the tokenizer")
    names, lacking = _weights(folder)
    missing += sorted(lacking)
    if not names:
        missing.append("the weights")
    sizes = [(folder / name).stat().st_size for name in names - lacking]
    return _Files(folder=folder, missing=tuple(missing), weights=sum(sizes))


def _weights(folder: Path) -> tuple[set[str], set[str]]:
    """Return the files of the weights that vLLM would read, and those of them that are not there.

    A repository may hold them in several formats, of which a download need not bring all.
    """
    indices = sorted(folder.glob("*.index.json"), reverse=True)  # model.safetensors before pytorch_model.bin
    indexed = [
        (names, {name for name in names if not (folder / name).exists()}) for names in map(_shards, indices)
    ]
    formats = {Path(index.name.removesuffix(".index.json")).suffix for index in indices}
    others = [pattern for pattern in _WEIGHTS if Path(pattern).suffix not in formats]
    loose = [{path.name for path in folder.glob(pattern) if path.exists()} for pattern in others]
    complete = [found for found in indexed if not found[1]]
    found = [*complete, *((names, set[str]()) for names in loose if names), *indexed]
    return found[0] if found else (set(), set())


def _shards(index: Path) -> set[str]:
    """Return the files that an index of weights names."""
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return {f"a readable {index.name}"}


CHECKS = (Check(name="engine.models", finds=(MODEL, FIT), run=_models),)
