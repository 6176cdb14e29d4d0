"""vLLM's arithmetic of GPU memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.rigs.nvml import GIB, TOTAL
from vbatch.engine import flag_values as flags
from vbatch.gpu_memory import needs
from vbatch.text import MIB


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
        (["--device-memory-utilization", "0.4"], 0.4),
        (["--device_memory_util=0.4"], 0.4),
        (["--device-m", "0.4", "--gpu-memory-utilization", "0.5"], 0.5),
        (["--device-ids", "0.4"], 0.92),
        (["--max-num-seqs", "9"], 0.92),
        (["--config", "flags.yaml"], None),
        (["--config", "flags.yaml", "--gpu-memory-utilization", "0.5"], 0.5),
    ],
)
def test_the_share_is_read_from_vllms_flags(args: list[str], share: float | None) -> None:
    """Mutants: only the whole name; only the first of its two names; a missing file of flags taken for an empty one."""
    assert needs.utilization(args) == share


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("1024", 1024),
        ("4G", 4 * GIB),
        ("4g", 4_000_000_000),
        ("25.6k", 25_600),
        (" 2M ", 2 << 20),
        ("2.5G", None),
        ("-1", None),
        ("much", None),
    ],
)
def test_numbers_are_read_as_vllm_reads_them(value: str, number: int | None) -> None:
    """human_readable_int of vLLM. Mutant: g and G alike."""
    assert flags.whole(value) == number


@pytest.mark.parametrize(
    "args",
    [
        ("--kv-cache-memory-bytes", "15G"),
        ("--kv_cache_memory_bytes=15G",),
        ("--kv-cache-memory=15G",),
        ("--kv-cache-metrics", "--kv-cache-memory-bytes", "15G"),
    ],
)
def test_a_set_kv_cache_must_fit_too(args: tuple[str, ...]) -> None:
    """vLLM compares the share at its start all the same. Mutants: only the share counts; the share no longer counts."""
    needed, reason = needs.at_start(TOTAL, args) or (0, "")
    assert needed == 15 * GIB + needs.SMALLEST_CONTEXT + needs.CUBLAS
    assert "kv_cache_memory_bytes" in reason
    small = ("--kv-cache-memory-bytes", "1G")
    assert needs.at_start(TOTAL, small) == needs.at_start(TOTAL, ())


def test_the_context_counts() -> None:
    """vLLM measures when its own context exists. Mutant: comparing with what is free before."""
    needed, reason = needs.at_start(TOTAL, ()) or (0, "")
    assert needed == needs.required(TOTAL, 0.92) + needs.SMALLEST_CONTEXT
    assert "a CUDA context" in reason


@pytest.mark.parametrize("total", [6 * GIB, 8 * GIB, 12 * GIB, TOTAL, 24 * GIB, 80 * GIB])
def test_an_empty_card_is_never_refused(total: int) -> None:
    """The driver keeps 250 MiB of an idle card. Mutant: a context as of the biggest cards."""
    needed, _ = needs.at_start(total, ()) or (0, "")
    assert needed < total - 250 * MIB


def test_a_file_of_flags_is_read(tmp_path: Path) -> None:
    """Its flags come first, so the command line's count. Mutants: taking it for unknown; its flags last."""
    pytest.importorskip("yaml", reason="PyYAML comes with vLLM")
    file = tmp_path / "flags.yaml"
    file.write_text("gpu_memory_utilization: 0.5\nenforce-eager: true\nkv-cache-memory-bytes: 9G\n")
    args = ("--config", str(file))
    assert needs.utilization(args) == 0.5
    assert needs.utilization(("--gpu-memory-utilization", "0.7", *args)) == 0.7
    assert flags.read(args).number(flags.CACHE) == 9 * GIB
    assert needs.utilization((f"--config={file}",)) == 0.92, "vLLM reads it only as a word of its own"
    file.write_text("- a list\n")
    assert needs.at_start(TOTAL, args) is None
    assert needs.utilization(("--config",)) is None


@pytest.mark.vllm
def test_abbreviations_are_those_of_vllms_parser() -> None:
    """Mutant: a shorter prefix, which fits another flag."""
    pytest.importorskip("vllm")
    from vbatch.engine import vllm_names

    vllm = vllm_names.load()
    known = vllm.make_arg_parser(vllm.FlexibleArgumentParser(prog="vllm"))._option_string_actions
    for name, flag in vars(flags).items():
        if isinstance(flag, flags.Flag):
            assert set(flag.short) <= set(known), name
            for whole, least in flag.names:
                fits = [each for each in known if each.startswith(least)]
                assert fits == [whole] or least == whole in known, name


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
