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
