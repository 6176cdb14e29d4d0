"""Tasks for Label Studio, of answered requests: what is shown, and the answer as a prediction to correct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from vbatch.tabular.columns import answer_fields
from vbatch.tabular.documents import content_text, decode
from vbatch.tabular.label_config import CORRECTED, DIALOGUE, LABEL, Template
from vbatch.tabular.prompts import messages_of, metadata_of
from vbatch.tabular.record import Record, RecordStatus, Source, record_of
from vbatch.tabular.writers import as_text

Task = dict[str, Any]
LABEL_FIELD = "label_field"  # the key of the data that names the field of a JSON answer which is the label


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How tasks are made: the template; for ``classify`` the values, and the field of JSON answers that is one."""

    template: Template
    field: str | None = None
    classes: frozenset[str] = frozenset()


def task_of(source: Source, shape: Shape) -> Task | None:
    """Return the task of an answered request; None for one without an answer in text."""
    record = record_of(source)
    data = _data(source, record)
    if data is None:
        return None
    task: Task = {"data": data}
    version = f"{record.model}@{record.batch_id}"
    result: dict[str, Any] | None = None
    match shape.template:
        case Template.CORRECT:
            result = _result(CORRECTED, "textarea", {"text": [record.answer]})
        case Template.CLASSIFY:
            label = label_of(record, shape.field)
            result = _result(LABEL, "choices", {"choices": [label]}) if label in shape.classes else None
            if shape.field is not None:
                data[LABEL_FIELD] = shape.field
    if result is not None:
        prediction: dict[str, Any] = {"model_version": version, "result": [result]}
        if (score := confidence_of(source.body or b"null")) is not None:
            prediction["score"] = score
        task["predictions"] = [prediction]
    return task


def pair_of(source: Source, other: Source) -> Task | None:
    """Return the task of one request that two batches have answered; None where one has no answer in text.

    Which answer is A depends on the custom_id alone: people cannot learn which model is on which side.
    """
    first, second = record_of(source), record_of(other)
    data = _data(source, first)
    if data is None or not _is_text(second):
        return None
    left, right = (second, first) if sha256(first.custom_id.encode()).digest()[0] % 2 else (first, second)
    for side, record in (("a", left), ("b", right)):
        data |= {
            f"answer_{side}": record.answer,
            f"model_{side}": record.model,
            f"batch_{side}": record.batch_id,
        }
    return {"data": data}


def label_of(record: Record, field: str | None) -> str | None:
    """Return the value that an answer is, or has in a field."""
    if field is None:
        return None if record.answer is None else record.answer.strip()
    value = answer_fields(record.answer).get(field)
    return None if value is None else as_text(value)


def confidence_of(body: bytes) -> float | None:
    """Return the mean probability of an answer's tokens, where it has their logarithms."""
    match decode(body):
        case {"choices": [{"logprobs": {"content": [_, *_] as tokens}}, *_]}:
            known = [token["logprob"] for token in tokens if isinstance(token.get("logprob"), int | float)]
            return math.exp(min(sum(known) / len(known), 0.0)) if known else None
    return None


def _data(source: Source, record: Record) -> Task | None:
    if not _is_text(record):
        return None
    messages = messages_of(source.request)
    if messages is None:
        messages = [{"role": "user", "content": record.prompt}]
    shown = [{"role": each["role"], "content": content_text(each.get("content")) or ""} for each in messages]
    return {
        "custom_id": record.custom_id,
        "batch_id": record.batch_id,
        "line": record.line,
        "model": record.model,
        "messages": shown,
        "prompt": record.prompt or "",
        "model_answer": record.answer,
        "reasoning": record.reasoning or "",
        "finish_reason": record.finish_reason or "",
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        **{f"metadata_{name}": value for name, value in metadata_of(source.request).items()},
    }


def _is_text(record: Record) -> bool:
    return record.status in (RecordStatus.ANSWERED, RecordStatus.CUT_OFF) and record.answer is not None


def _result(name: str, kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": "a", "from_name": name, "to_name": DIALOGUE, "type": kind, "value": value}
