"""Which model a worker loads for a name: itself, or the model that has it as an alias or an adapter (LoRA).

Nothing of vLLM is imported: ``submit`` and ``doctor`` ask too. Nothing is mapped at ``submit``: the configuration of
the worker decides, when it runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

from vbatch.config import Settings
from vbatch.engine import flag_values


def base(settings: Settings, name: str, flags: Sequence[str] = ()) -> str:
    """Return the model to load for requests that name this one; the name itself where nothing else is configured.

    ``flags`` are those of the command line, for every model: an adapter among them belongs to the preloaded model, or
    to the only one that is configured.
    """
    if name in settings.models:
        return name
    for model in settings.models:
        if name in others(settings, model):
            return model
    if name in adapters_in((*settings.defaults.args, *flags)):
        candidates = [settings.preload] if settings.preload is not None else list(settings.models)
        if len(candidates) == 1:
            return candidates[0]
    return name


def others(settings: Settings, model: str) -> frozenset[str]:
    """Return the names beside its own at which a configured model answers."""
    configured = settings.models.get(model)
    if configured is None:
        return frozenset()
    return frozenset((*configured.aliases, *configured.adapters, *adapters_in(configured.args)))


def adapter(settings: Settings, name: str, flags: Sequence[str] = ()) -> str | None:
    """Return where the adapter of this name is: a folder or a name on the hub; None for a name that is no adapter."""
    configured = settings.models.get(base(settings, name, flags))
    given = adapters_in((*settings.defaults.args, *(configured.args if configured else ()), *flags))
    return {**given, **(configured.adapters if configured else {})}.get(name)


def adapters_in(flags: Sequence[str]) -> Mapping[str, str]:
    """Return the adapters that vLLM's flags name, and where they are; in both of vLLM's notations."""
    found: dict[str, str] = {}
    for word in flag_values.read(flags).several(flag_values.ADAPTERS):
        found |= _one(word)
    return found


def _one(word: str) -> dict[str, str]:
    """``NAME=PATH``, or ``{"name": …, "path": …}``."""
    if word.startswith("{"):
        with suppress(ValueError, KeyError, TypeError):
            module = json.loads(word)
            return {str(module["name"]): str(module["path"])}
        return {}
    name, equals, place = word.partition("=")
    return {name: place} if equals else {}
