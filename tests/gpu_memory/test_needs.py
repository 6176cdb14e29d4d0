"""vLLM's arithmetic of GPU memory."""

from __future__ import annotations

import math

import pytest

from tests.rigs.nvml import GIB, TOTAL
from vbatch.gpu_memory import needs


@pytest.mark.parametrize(
    ("args", "share"),
    [
        ([], 0.92),
        (["--gpu-memory-utilization", "0.5"], 0.5),
        (["--gpu-memory-utilization=0.5", "--max-model-len", "9"], 0.5),
        (["--gpu_memory_utilization", "0.5"], 0.5),
        (["--gpu-memory-utilization", "0.5", "--gpu-memory-utilization=0.7"], 0.7),
        (["--gpu-memory-utilization"], 0.92),
        (["--gpu-memory-utilization", "much"], 0.92),
        (["--gpu-memory-util", "0.3"], 0.3),
        (["--max-num-seqs", "9"], 0.92),
        (["--config", "flags.yaml"], None),
        (["--config=flags.yaml", "--gpu-memory-utilization", "0.5"], 0.5),
    ],
)
def test_the_share_is_read_from_vllms_flags(args: list[str], share: float | None) -> None:
    """Mutant: only the whole name; a file of flags that is not looked into."""
    assert needs.utilization(args) == share


def test_the_incidents_own_figures() -> None:
    """1.2 of 15.57 GiB were free, and 0.9 of it wanted: 14.01 GiB, as vLLM's message said."""
    assert f"{needs.required(TOTAL, 0.9) / GIB:.2f}" == "14.01"
    assert needs.required(10, 0.91) == 10  # rounded up, as vLLM does
    assert needs.fitting(round(1.2 * GIB), TOTAL) is None


def test_a_share_that_is_proposed_fits() -> None:
    for free in range(GIB, TOTAL, GIB // 3):
        share = needs.fitting(free, TOTAL)
        if share is not None:
            assert math.ceil(TOTAL * share) <= free


def test_no_memory_no_share() -> None:
    assert needs.fitting(0, 0) is None
