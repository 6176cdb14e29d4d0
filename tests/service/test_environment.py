"""Which of a shell's variables the service gets, and that systemd reads back what is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbatch.service import environment

names = st.from_regex(r"\A[A-Z][A-Z0-9_]{0,8}\Z")
values = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("VBATCH_DATABASE_URL", True),
        ("VBATCH_GPU", False),  # that is the instance's
        ("CUDA_VISIBLE_DEVICES", False),
        ("CUDA_HOME", True),
        ("CC", True),
        ("NCCL_P2P_DISABLE", True),
        ("PYTORCH_CUDA_ALLOC_CONF", True),
        ("TRITON_CACHE_DIR", True),
        ("https_proxy", True),
        ("PATH", False),
        ("SSH_AUTH_SOCK", False),
    ],
)
def test_what_the_service_is_to_see(name: str, kept: bool) -> None:
    """Mutant: fewer; a terminal and the service then compute with different kernels."""
    assert (name in environment.worth_keeping({name: "x"})) is kept
    assert environment.worth_keeping({name: ""}) == {}


@given(st.dictionaries(names, values))
def test_an_environment_file_is_read_back(variables: dict[str, str]) -> None:
    assert environment.parse(environment.assignments(variables)) == variables


def test_a_person_may_write_the_environment_file_plainly() -> None:
    text = "# mine=1\nVBATCH_ENGINE=echo \n; old=2\n  HF_HOME=\nHF_TOKEN='x $y'\nVBATCH_NAME=a b\n"
    assert environment.parse(text) == {
        "VBATCH_ENGINE": "echo",
        "HF_HOME": "",
        "HF_TOKEN": "x $y",
        "VBATCH_NAME": "a b",
    }


def test_a_variable_whose_name_would_set_others_is_left_out() -> None:
    """root runs commands with this file. Mutant: worth_keeping without ``_can_be_written``."""
    hostile = {
        "HF_X\nLD_PRELOAD": "/home/alice/x.so",
        "HF_A B": "1",
        "VLLM_\udcff": "1",
        "HF_NOT_UTF8": "\udcff",
        "HF_ESCAPE": "\x1b[2J",
        "HF_RETURN": "a\rb",
    }
    assert environment.worth_keeping(hostile) == {}
    told = environment.left_out(hostile)
    assert len(told) == len(hostile)
    assert all(line.isprintable() for line in told)


def test_a_value_of_several_lines_sets_one_variable() -> None:
    """Mutant: ``assignments`` that writes values as they are, without quotes."""
    text = environment.assignments({"HF_X": 'a\nLD_PRELOAD=/tmp/x.so\n"\nLD_PRELOAD=/tmp/x.so\n\\'})
    assert list(environment.parse(text)) == ["HF_X"]


def test_libraries_of_an_earlier_version_leave_the_file() -> None:
    """Mutant: ``updated`` without ``without``."""
    sealed = environment.updated("", {"LD_LIBRARY_PATH": "/home/alice/lib", "HF_HOME": "/srv"})
    assert environment.parse(environment.updated(sealed, {}, without="LD_LIBRARY_PATH")) == {
        "HF_HOME": "/srv"
    }
