"""Estimate what a file of requests will take, before it is stored: tokens, time and disk, all of them estimates."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from vbatch.batches.prefix_order import Row
from vbatch.batches.startup import as_it_is
from vbatch.config import Settings
from vbatch.engine import tokens
from vbatch.engine.tokens import Measure
from vbatch.errors import VbatchError
from vbatch.store import pace
from vbatch.store.overview import GUESSED_ANSWER
from vbatch.store.pace import Pace
from vbatch.system import processes

SAMPLE = 10_000  # requests whose tokens are counted
SAMPLE_BYTES = 32 << 20
ROW_BYTES = 300  # of a request and its result, beside the bodies
_ENVELOPE = 600  # bytes of an answer beside its text
_BYTES_PER_TOKEN = 4


class _Limits(msgspec.Struct, gc=False):
    """The fields of a body that limit its answer."""

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None


_limits = msgspec.json.Decoder(_Limits).decode
_WRITES = ("/completions", "/responses", "/messages", "/generate")


@dataclass(slots=True)
class _Model:
    requests: int = 0
    limited: int = 0  # tokens out at most, of the requests that have a limit
    unlimited: int = 0  # requests without one
    sampled: list[tuple[bytes, int | None]] = field(default_factory=list)


class Sampler:
    """Looks at every request of a file, and keeps some of them, each with the same chance (algorithm R)."""

    def __init__(self) -> None:
        self.bytes = 0
        self.requests = 0
        self.duplicates = 0
        self.models: dict[str, _Model] = {}
        self._kept: list[tuple[str, bytes, int | None]] = []
        self._held = 0
        self._most = SAMPLE

    def add_all(self, rows: Sequence[Row], model: str, url: str) -> None:
        """Look at requests of one model and url."""
        for _, _, _, body in rows:
            self.bytes += len(body)
            self.requests += 1
            of_model = self.models.setdefault(model, _Model())
            of_model.requests += 1
            limit = _limit(url, body)
            if limit is None:
                of_model.unlimited += 1
            else:
                of_model.limited += limit
            self._keep((model, body, limit))

    def add_duplicate(self, line: int, custom_id: str, model: str, body: bytes, url: str) -> None:
        """Count one that does not run."""
        del line, custom_id, model, url
        self.bytes += len(body)
        self.duplicates += 1

    def _keep(self, request: tuple[str, bytes, int | None]) -> None:
        if len(self._kept) < self._most:
            self._kept.append(request)
        elif (place := random.randrange(self.requests)) < self._most:
            self._held -= len(self._kept[place][1])
            self._kept[place] = request
        else:
            return
        self._held += len(request[1])
        if self._held > SAMPLE_BYTES and len(self._kept) > 1:  # large ones: a smaller sample is enough
            random.shuffle(self._kept)
            del self._kept[len(self._kept) // 2 :]
            self._most = len(self._kept)
            self._held = sum(len(body) for _, body, _ in self._kept)

    def by_model(self) -> dict[str, _Model]:
        """Return what was seen of each model, with its part of the sample."""
        for each in self.models.values():
            each.sampled.clear()
        for model, body, limit in self._kept:
            self.models[model].sampled.append((body, limit))
        return self.models


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEstimate:
    """What the requests for one model take. ``counted`` of them were counted, with the model's own tokenizer or not.

    ``most_out`` is None where requests have no limit and the context is not known. ``beyond`` do not fit into the
    ``context``, their answers included.
    """

    model: str
    requests: int
    counted: int
    own_tokenizer: bool
    tokens_in: int
    most_out: int | None
    context: int | None
    beyond: int
    pace: Pace | None

    @property
    def duration(self) -> timedelta | None:
        """How long they run at the measured pace."""
        return None if self.pace is None else timedelta(seconds=self.requests / self.pace.requests_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a file takes: by model, and the disk for the store and the output files, of which so much is free."""

    models: tuple[ModelEstimate, ...]
    disk: int
    free: int | None


def estimate(settings: Settings, seen: Sampler, *, output: Path) -> Estimate:
    """Return what the requests take that were looked at. Where no store is there yet, no pace is known."""
    models = seen.by_model()
    paces = _paces(settings, list(models))
    found = [_of_model(settings, name, model, paces.get(name)) for name, model in models.items()]
    answers = 0
    for each in found:
        length = GUESSED_ANSWER
        if each.most_out is not None:
            length = min(length, _ENVELOPE + each.most_out * _BYTES_PER_TOKEN // max(1, each.requests))
        answers += each.requests * length
    try:
        free = shutil.disk_usage(output.parent).free
    except OSError:
        free = None
    lines = seen.requests + seen.duplicates
    answers = answers * lines // max(1, seen.requests)
    # each answer is written into the store, and into the output file
    return Estimate(models=tuple(found), disk=seen.bytes + ROW_BYTES * lines + 2 * answers, free=free)


def _of_model(settings: Settings, name: str, model: _Model, measured: Pace | None) -> ModelEstimate:
    how = tokens.measure(settings, name)
    counted = tokens.count(how, [_decoded(body) for body, _ in model.sampled])
    share = model.requests / max(1, len(counted))
    tokens_in = round(sum(counted) * share)
    return ModelEstimate(
        model=name,
        requests=model.requests,
        counted=len(counted),
        own_tokenizer=how.tokenizer is not None,
        tokens_in=tokens_in,
        most_out=_most_out(model, how, tokens_in),
        context=how.context,
        beyond=round(_beyond(how, model, counted) * share),
        pace=measured,
    )


def _most_out(model: _Model, how: Measure, tokens_in: int) -> int | None:
    if not model.unlimited:
        return model.limited
    if how.context is None:
        return None
    return model.limited + model.unlimited * max(0, how.context - tokens_in // model.requests)


def _beyond(how: Measure, model: _Model, counted: Sequence[int]) -> int:
    if how.context is None:
        return 0
    wanted = zip(counted, model.sampled, strict=True)
    return sum(tokens_in + (1 if limit is None else limit) > how.context for tokens_in, (_, limit) in wanted)


def _paces(settings: Settings, models: Sequence[str]) -> dict[str, Pace]:
    """Return what the store knows of these models, if there is one and it answers at once."""
    host = processes.current().host
    try:
        with as_it_is(settings.store_url) as store:
            found = (
                {}
                if store is None
                else {name: pace.measured(store, model=name, host=host) for name in models}
            )
    except VbatchError:
        return {}
    return {name: each for name, each in found.items() if each is not None}


def _limit(url: str, body: bytes) -> int | None:
    """Return the most tokens that an answer may have; None without a limit, 0 where no text is written."""
    if not url.endswith(_WRITES):
        return 0
    try:
        found = _limits(body)
    except msgspec.MsgspecError:
        return None
    limit = found.max_completion_tokens or found.max_tokens or found.max_output_tokens
    return None if limit is None else max(0, limit) * max(1, found.n or 1)


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
