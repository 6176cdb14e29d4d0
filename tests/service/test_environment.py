"""Which of a shell's variables the service gets."""

from __future__ import annotations

import pytest

from vbatch.service import environment


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
