"""Templates are filled letter by letter; nothing in them is run."""

from __future__ import annotations

import datetime

import pytest

from vbatch.errors import UsageError
from vbatch.tabular.templates import NoSuchColumn, Template, no_such_column, shown


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("{a}", "1 {b}"),
        ("{ a }{b c}", "1 {b}2"),
        ('{{"label": "{b c}"}}', '{"label": "2"}'),
        ("{{{b c}}}", "{2}"),
        ("{{}}", "{}"),
    ],
)
def test_filled(text: str, filled: str) -> None:
    """Mutant: what a cell holds is filled again."""
    assert Template.of(text, "--prompt").fill({"a": "1 {b}", "b c": 2, "b": "wrong"}) == filled


@pytest.mark.parametrize("text", ["{a", "a}", "{}", "{a{b}}"])
def test_single_braces_are_named(text: str) -> None:
    with pytest.raises(UsageError, match="--system: ") as raised:
        Template.of(text, "--system")
    assert "doubled" in str(raised.value.hint)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(NoSuchColumn):
        Template.of("{reveiw}", "--prompt").fill({"review": "x"})
    error = no_such_column("reveiw", ["id", "review"], option="--prompt", where="t.csv")
    assert error.message == "t.csv has no column 'reveiw', which --prompt names; it has id, review"
    assert error.hint == "did you mean 'review'?"


def test_cells_as_prompts_show_them() -> None:
    """Mutant: a list as Python writes it."""
    shows = {"ä": "ä", None: "", True: "true", 1.5: "1.5", datetime.date(2025, 11, 1): "2025-11-01"}
    assert {value: shown(value) for value in shows} == shows
    assert shown(["a", 1, None]) == '["a", 1, null]'
    with pytest.raises(TypeError):
        shown(b"x")
