"""What is written for systemd is read back by it letter for letter (the guest's test asks systemd itself)."""

from __future__ import annotations

import pytest

from vbatch.errors import UsageError
from vbatch.service import quoting


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("/usr/bin/python3", "/usr/bin/python3"),
        ("/opt/my env/bin", '"/opt/my env/bin"'),
        ("100%", "100%%"),
        ("%i", "%%i"),
        ("$HOME", '"$HOME"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("", '""'),
        (";", '";"'),
    ],
)
def test_words(text: str, written: str) -> None:
    assert quoting.word(text) == written


def test_a_command_expands_no_variable() -> None:
    assert quoting.command("-+", "/bin/a$b", "$c") == '"-+:/bin/a$b" "$c"'
    assert quoting.command("", "/bin/true") == ":/bin/true"


@pytest.mark.parametrize("program", ['/a"b/python', "/a'b/python", "/a\\b/python"])
def test_a_program_that_systemd_would_refuse_is_refused_in_words(program: str) -> None:
    with pytest.raises(UsageError, match="quote or a backslash"):
        quoting.command("", program)


def test_control_characters_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\\n"):
        quoting.word("a\nb")
