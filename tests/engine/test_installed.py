"""What the installed vLLM computes on, and which type the small model is computed in."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from vbatch.engine import installed, smollm

X86 = "processor\t: {}\nmodel name\t: a CPU with bf16 in its name\nflags\t\t: fpu sse2 {}\nbugs\t\t: spectre_v1\n\n"
ARM = "processor\t: {}\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd {}\nCPU architecture: 8\n\n"


def cpus(form: str, *features: str) -> str:
    """Return the text of ``/proc/cpuinfo``, with the features of one CPU after another."""
    return "".join(form.format(number, words) for number, words in enumerate(features))


@pytest.mark.parametrize(
    ("cpuinfo", "native"),
    [
        pytest.param(cpus(X86, "avx2", "avx2"), False, id="AVX2 alone"),
        pytest.param(cpus(X86, "avx2 avx512f avx512_vnni"), False, id="AVX-512 without bfloat16"),
        pytest.param(cpus(X86, "avx2 avx512f avx512_bf16"), True, id="AVX-512 with bfloat16"),
        pytest.param(cpus(X86, "avx2 amx_tile amx_int8 amx_bf16"), True, id="AMX"),
        pytest.param(cpus(X86, "avx2 amx_tile amx_int8"), False, id="AMX of whose types bfloat16 is hidden"),
        pytest.param(cpus(ARM, "sve i8mm bf16", "sve i8mm bf16"), True, id="ARM with bfloat16"),
        pytest.param(cpus(ARM, "asimddp lrcpc"), False, id="ARM without"),
        pytest.param(cpus(ARM, "bf16", "lrcpc"), False, id="two kinds of cores"),
        pytest.param("cpu\t\t: POWER9\nmachine\t\t: bf16\n", False, id="a CPU that lists no features"),
    ],
)
def test_a_cpu_with_instructions_for_bfloat16(cpuinfo: str, native: bool) -> None:
    """Mutants: the whole text searched for the words; the first CPU alone; one of the three features left out."""
    assert installed.has_bfloat16(cpuinfo) is native


def test_the_small_model_is_computed_in_float32_where_bfloat16_is_emulated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never on a GPU, whatever CPU is beside it. Mutants: ``flags`` without the type; without the GPU's build."""
    chosen = {}
    for native in (True, False):
        for gpu in (True, False):
            monkeypatch.setattr(installed, "has_bfloat16", lambda _cpuinfo, native=native: native)
            monkeypatch.setattr(installed, "computes_on_gpu", lambda gpu=gpu: gpu)
            chosen[native, gpu] = "float32" in smollm.flags()

    assert chosen == {(True, True): False, (True, False): False, (False, True): False, (False, False): True}


@pytest.mark.parametrize(
    ("version", "target", "platform"),
    [
        ("0.33.0", None, "NVIDIA"),
        ("0.33.0+cu130", None, "NVIDIA"),
        ("0.33.0", "cuda", "NVIDIA"),
        ("0.33.0+cpu", None, "none"),
        ("0.33.0+g0123abc.cpu", None, "none"),
        ("0.33.0", "cpu", "none"),
        ("0.33.0+rocm700", None, "AMD (ROCm)"),
        ("0.33.0+g0123abc.d20261101.rocm700", None, "AMD (ROCm)"),
        ("0.33.0+xpu", None, "Intel (XPU)"),
        (None, None, "none"),
    ],
)
def test_the_version_names_the_build(
    monkeypatch: pytest.MonkeyPatch, version: str | None, target: str | None, platform: str
) -> None:
    """Read from a wheel's metadata. Mutants: ``+cpu`` only at the beginning; every GPU called NVIDIA's."""
    monkeypatch.setattr(installed, "JETSON", Path("/no/such/file"))
    monkeypatch.delenv("VLLM_TARGET_DEVICE", raising=False)
    if target is not None:
        monkeypatch.setenv("VLLM_TARGET_DEVICE", target)
    monkeypatch.setattr(metadata, "version", _versions({"vllm": version} if version else {}))
    assert installed.computes_on_gpu() is (platform != "none")
    assert installed.has_nvml() is (platform == "NVIDIA")
    assert installed.without_nvml() == (None if platform in ("none", "NVIDIA") else platform)


def _versions(known: dict[str, str]) -> Callable[[str], str]:
    def version(name: str) -> str:
        try:
            return known[name]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    return version
