"""What people made of tasks in Label Studio: corrections by custom_id, examples for training, preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from vbatch.tabular.columns import answer_fields
from vbatch.tabular.documents import dumps
from vbatch.tabular.label_config import BETTER, GOOD, LABEL, LEFT, RIGHT, VERDICT
from vbatch.tabular.label_tasks import LABEL_FIELD
from vbatch.tabular.training import Example, conversation

Document = dict[str, Any]
_SIDES = {LEFT: ("answer_a", "answer_b"), RIGHT: ("answer_b", "answer_a")}
_VALUES = ("text", "choices", "rating", "number", "selected")  # the value of a result that is no region


class CorrectionFormat(StrEnum):
    """What corrections are written as."""

    CORRECTED = "corrected"
    SFT = "sft"
    PREFERENCE = "preference"


def correction_of(task: Mapping[str, Any]) -> Document | None:
    """Return what a task's newest annotation says; None without one, and for a task that is not vbatch's.

    ``annotations`` has the value of every control; ``corrected`` is the answer as it should be, null where it is not
    known (a grade, a tie).
    """
    data = task["data"]
    annotation = _newest(task.get("annotations") or ())
    if annotation is None or not isinstance(data, dict) or "custom_id" not in data or "messages" not in data:
        return None
    values = _values(annotation.get("result") or ())
    return {
        "custom_id": data["custom_id"],
        "batch_id": data.get("batch_id"),
        "task": task["id"],
        "model": data.get("model"),
        "messages": data["messages"],
        "model_answer": data.get("model_answer"),
        "corrected": _corrected(data, values),
        "annotations": values,
        "annotator": annotation.get("completed_by"),
        "annotated_at": annotation.get("updated_at") or annotation.get("created_at"),
    }


def training_of(correction: Document) -> Example | None:
    """Return the conversation that ends with the corrected answer; None where that is not known."""
    if correction["corrected"] is None:
        return None
    return conversation(correction["messages"], _assistant(correction["corrected"]))


def preference_of(task: Mapping[str, Any], correction: Document) -> Example | None:
    """Return the better and the worse answer to one prompt; None where there are no two that differ."""
    data, values = task["data"], correction["annotations"]
    if values.get(BETTER) in _SIDES:
        chosen, rejected = (data.get(name) for name in _SIDES[values[BETTER]])
    else:
        chosen, rejected = correction["corrected"], data.get("model_answer")
    if not isinstance(chosen, str) or not isinstance(rejected, str) or chosen == rejected:
        return None
    return {
        "prompt": correction["messages"],
        "chosen": [_assistant(chosen)],
        "rejected": [_assistant(rejected)],
    }


def _newest(annotations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the newest annotation that was not skipped."""
    kept = [each for each in annotations if not each.get("was_cancelled")]
    return max(kept, key=lambda each: (str(each.get("updated_at") or ""), each["id"]), default=None)


def _values(results: Sequence[Mapping[str, Any]]) -> Document:
    """Return the value of each control: a text of several lines or choices joined, one choice as a text."""
    values: Document = {}
    for result in results:
        value = result.get("value")
        if isinstance(value, dict) and "from_name" in result:
            found = next((value[name] for name in _VALUES if name in value), value)
            if isinstance(found, list) and all(isinstance(each, str) for each in found):
                if "text" in value:
                    found = "\n".join(found)
                elif len(found) == 1:
                    found = found[0]
            values[result["from_name"]] = found
    return values


def _corrected(data: Mapping[str, Any], values: Document) -> str | None:
    """Return the answer as it should be, by the controls of vbatch's templates; else by the only text there is."""
    if BETTER in values:
        side = _SIDES.get(values[BETTER])
        return None if side is None else data.get(side[0])
    if VERDICT in values:
        return data.get("model_answer") if values[VERDICT] == GOOD else None
    if LABEL in values:
        field = data.get(LABEL_FIELD)
        if field is None:
            return str(values[LABEL])
        return dumps({**answer_fields(data.get("model_answer")), field: values[LABEL]})
    texts = [value for value in values.values() if isinstance(value, str)]
    return values.get("answer") or (texts[0] if len(texts) == 1 else None)


def _assistant(content: str) -> Document:
    return {"role": "assistant", "content": content}
