"""Strangers' text cannot steer a terminal, and stays readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbatch.text import harmless, is_obeyed, one_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("Grüße, 世界, 👩‍🔬", "Grüße, 世界, 👩‍🔬"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b31m", r"\x9b31m"),  # the one-character CSI
        ("a\rb\nc\x00", r"a\rb\nc\x00"),
        ("user\u202etxt.exe", r"user\u202etxt.exe"),
        ("\udcff", r"\udcff"),  # a byte of a file name that is not UTF-8
        ("\u2028", r"\u2028"),
    ],
)
def test_harmless(text: str, expected: str) -> None:
    assert harmless(text) == expected


@given(st.text(alphabet=st.characters(categories=["Cc", "Cf", "Cs", "L", "Zs"])))
def test_nothing_obeyed_is_left(text: str) -> None:
    assert not any(is_obeyed(character) for character in harmless(text))


def test_one_line_squeezes_and_cuts() -> None:
    assert one_line("two\n  lines\tand more", limit=100) == "two lines and more"
    assert one_line("abcdefghij", limit=5) == "abcd…"
