"""Labeling configurations for Label Studio: vbatch's templates, and what a configuration asks of its tasks.

Label Studio accepts a prediction for a control that the configuration does not have, and shows nothing of it; its
exports overwrite data whose key is the name of a control; a task without a field that the configuration shows is
refused. So tasks are checked against a configuration before any is sent.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr


class Template(StrEnum):
    """What people do with the answers."""

    CORRECT = "correct"  # write a better one
    GRADE = "grade"  # say how good they are
    CLASSIFY = "classify"  # correct the one of a few values that the answer is
    PAIRWISE = "pairwise"  # choose the better of two


class NotFitting(Exception):
    """Tasks do not fit a labeling configuration: the text says why."""


DIALOGUE = "dialogue"
CORRECTED = "answer"  # the control with a better answer
LABEL = "label"  # the control with one of a few values
RATING, VERDICT = "rating", "verdict"
BETTER = "better"  # the control with the better of two
GOOD, BAD = "good", "bad"
LEFT, RIGHT, TIE = "A", "B", "tie"

_ASKED = (
    f'<Paragraphs name="{DIALOGUE}" value="$messages" layout="dialogue" nameKey="role" textKey="content"/>'
)
_SHOWN = '<Header value="Answer"/>\n  <Text name="shown" value="$model_answer"/>'
_VARIABLE = re.compile(r"\$([A-Za-z_]\w*)")


def config_of(template: Template, classes: Sequence[str] = ()) -> str:
    """Return the labeling configuration of a template; ``classes`` are the values of ``classify``."""
    match template:
        case Template.CORRECT:
            parts = [
                _ASKED,
                '<Header value="Correct the answer"/>',
                f'<TextArea name="{CORRECTED}" toName="{DIALOGUE}" editable="true" maxSubmissions="1" rows="8"/>',
            ]
        case Template.GRADE:
            parts = [
                _ASKED,
                _SHOWN,
                f'<Rating name="{RATING}" toName="shown" maxRating="5"/>',
                _choices(VERDICT, "shown", (GOOD, BAD)),
            ]
        case Template.CLASSIFY:
            parts = [_ASKED, _choices(LABEL, DIALOGUE, classes)]
        case Template.PAIRWISE:
            parts = [
                _ASKED,
                '<Header value="A"/>\n  <Text name="left" value="$answer_a"/>',
                '<Header value="B"/>\n  <Text name="right" value="$answer_b"/>',
                _choices(BETTER, DIALOGUE, (LEFT, RIGHT, TIE)),
            ]
    return "<View>\n  " + "\n  ".join(parts) + "\n</View>\n"


def _choices(name: str, to: str, values: Sequence[str]) -> str:
    listed = "".join(f"\n    <Choice value={quoteattr(value)}/>" for value in values)
    return f'<Choices name="{name}" toName="{to}" choice="single" showInLine="true">{listed}\n  </Choices>'


@dataclass(frozen=True, slots=True)
class Control:
    """Something that people set: its kind as results name it, what it belongs to, its choices."""

    kind: str
    to: frozenset[str]
    choices: frozenset[str]


@dataclass(frozen=True, slots=True)
class Config:
    """What a labeling configuration has: its controls by name, and the fields of the data that it shows."""

    controls: Mapping[str, Control]
    fields: frozenset[str]

    @classmethod
    def of(cls, text: str) -> Config:
        """Read a configuration. Raises NotFitting for what is not XML."""
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise NotFitting(f"the labeling configuration is not XML ({error})") from None
        controls, fields = {}, set()
        for element in root.iter():
            name, to = element.get("name"), element.get("toName")
            if name is not None and to is not None:
                values = {each.get("alias") or each.get("value") or "" for each in element.iter("Choice")}
                targets = frozenset(part.strip() for part in to.split(","))
                controls[name] = Control(element.tag.lower(), targets, frozenset(values))
            for value in element.attrib.values():
                if found := _VARIABLE.match(value):
                    fields.add(found[1])
        return cls(controls, frozenset(fields))

    def check_data(self, data: Collection[str]) -> None:
        """Raise NotFitting for tasks with these keys of data."""
        if taken := sorted(set(data) & self.controls.keys()):
            raise NotFitting(
                f"its control {taken[0]!r} has the name of a field of the tasks, which exports would overwrite"
            )
        if missing := sorted(self.fields - set(data)):
            raise NotFitting(f"it shows ${missing[0]}, which the tasks do not have")

    def check_predictions(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Raise NotFitting for a prediction that would not be shown."""
        for result in (result for each in predictions for result in each["result"]):
            name, kind = result["from_name"], result["type"]
            control = self.controls.get(name)
            if control is None or control.kind != kind or result["to_name"] not in control.to:
                raise NotFitting(
                    f"it has no {kind} {name!r} for {result['to_name']!r}, so no answer would be shown"
                )
            unknown = set(result["value"].get("choices", ())) - control.choices
            if unknown:
                raise NotFitting(f"its choices {name!r} have no {sorted(unknown)[0]!r}")
