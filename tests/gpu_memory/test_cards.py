"""Which GPUs a worker has and an engine uses, by its settings, vLLM's flags and CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.nvml import StandInDriver
from vbatch import config, gpu
from vbatch.config import gpu_setting
from vbatch.config.tables import DefaultSettings, ModelSettings
from vbatch.engine import Blame, EngineStartFailed
from vbatch.errors import ConfigError, EngineUnavailable, VbatchError
from vbatch.gpu import GpuReport
from vbatch.gpu_memory import cards, locks
from vbatch.gpu_memory.cards import Card


def uuid(number: int) -> str:
    return f"GPU-00000000-0000-0000-0000-{number:012}"


def part(number: int, place: int) -> str:
    return f"MIG-00000000-0000-0000-{number:04}-{place:012}"


@pytest.fixture
def four(driver: StandInDriver) -> GpuReport:
    """What the driver reports of four GPUs, the last of them split into two."""
    driver.says("gpu", "gpu", "gpu", "gpu", "mig 1", "parts 2")
    return gpu.probe()


@pytest.mark.parametrize(
    ("setting", "visible", "flags", "held", "variable"),
    [
        (None, None, "", [0], "0"),
        ("2", None, "", [2], "2"),
        ("2,1", None, "", [2, 1], "2,1"),
        ("2", "0", "", [2], "2"),
        (None, "2,1", "", [2], "2"),
        (None, "2", "", [2], None),
        (None, f" {uuid(2)[:-1]}2 , 0", "", [2], uuid(2)),
        (None, None, "--tensor-parallel-size 2", [0, 1], "0,1"),
        (None, None, "-tp=2 --pipeline-par 2", [0, 1, 2, 3], None),
        (None, "1,2,0", "-tp 2", [1, 2], "1,2"),
        (None, None, "-tp 8", [0, 1, 2, 3], None),  # what is missing is said when a model needs it
        (None, None, "--device-ids 2,1 -tp 2", [2, 1], None),
        (None, "2,1,0", "--device-ids 1", [1], None),
        (None, None, f"--device-ids {uuid(1)}", [1], None),
        ("1,2", None, "--device-ids 1", [1, 2], "1,2"),
    ],
)
def test_the_gpus_of_a_worker(  # noqa: PLR0917
    four: GpuReport,
    monkeypatch: pytest.MonkeyPatch,
    setting: str | None,
    visible: str | None,
    flags: str,
    held: list[int],
    variable: str | None,
) -> None:
    """Mutants: the first GPU alone; --device-ids not looked at; CUDA_VISIBLE_DEVICES by position."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assigned = cards.assign(config.load(gpu=setting), four, tuple(flags.split()))
    assert ([card.number for card in assigned.held], assigned.variable) == (held, variable)


@pytest.mark.parametrize(("visible", "card"), [(part(3, 1), Card(3, part(3, 1))), ("3", Card(3, part(3, 0)))])
def test_a_part_of_a_gpu(four: GpuReport, monkeypatch: pytest.MonkeyPatch, visible: str, card: Card) -> None:
    """Mutant: the whole card's lock, which keeps a second worker off its other part."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assigned = cards.assign(config.load(), four)
    assert assigned.held == (card,)
    assert assigned.uuids == [card.instance]


@pytest.mark.parametrize(
    ("visible", "flags", "words"),
    [
        ("7", "", "CUDA_VISIBLE_DEVICES=7: 7 names no GPU of this machine"),
        ("0,GPU-nope", "", "GPU-nope names no GPU"),
        ("MIG-nope", "", "MIG-nope names no GPU"),
        ("NoDevFiles", "", "NoDevFiles names no GPU"),
        ("", "", "set and empty"),
        ("0,1", "--device-ids 2", "--device-ids 2: this worker sees 2 GPUs"),
    ],
)
def test_what_names_no_gpu_is_refused(
    four: GpuReport, monkeypatch: pytest.MonkeyPatch, visible: str, flags: str, words: str
) -> None:
    """Mutant: taking what is unknown for GPU 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ConfigError, match=words.replace("[", "\\[")):
        cards.assign(config.load(), four, tuple(flags.split()))


def test_a_name_waits_for_the_driver(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may still be starting: exit 69, which systemd tries again. Mutant: 78."""
    driver.says("err 9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", uuid(0))
    with pytest.raises(EngineUnavailable, match="not loaded"):
        cards.assign(config.load(), gpu.probe())


@pytest.mark.parametrize(
    ("setting", "args", "gpus", "flags", "used"),
    [
        ("0,1", (), None, ("--tensor-parallel-size", "2"), [0, 1]),
        ("0,1", ("--pipeline-parallel-size", "2"), None, ("--pipeline-parallel-size", "2"), [0, 1]),
        ("0,1", (), 1, (), [0]),
        (None, (), 2, ("--tensor-parallel-size", "2"), [0, 1]),
        ("0,1,2", ("-tp", "1"), 3, ("-tp", "1"), [0]),
        ("0,1", ("-dp", "2"), None, ("-dp", "2"), [0, 1]),
    ],
)
def test_the_tensor_parallel_size_is_set(  # noqa: PLR0917
    four: GpuReport,
    setting: str | None,
    args: tuple[str, ...],
    gpus: int | None,
    flags: tuple[str, ...],
    used: list[int],
) -> None:
    """By the worker's GPUs, or by the model's; the flags win. Mutants: each of the three left out."""
    settings = config.load(gpu=setting, models={"m": ModelSettings(args=args, gpus=gpus)})
    assert cards.engine_flags(settings, "m") == flags
    assert [card.number for card in cards.assign(settings, four).of_engine(flags)] == used


@pytest.mark.parametrize(
    ("gpus", "hint"), [(2, "vbatch run-worker --gpu 0,1"), (5, "this machine has 4 GPUs: use a smaller")]
)
def test_a_model_that_needs_more(four: GpuReport, gpus: int, hint: str) -> None:
    settings = config.load(gpu="0", models={"m": ModelSettings(gpus=gpus)})
    assigned = cards.assign(settings, four)
    with pytest.raises(EngineStartFailed, match=f"needs {gpus} GPUs, and this worker has GPU 0") as refused:
        assigned.of_engine(cards.engine_flags(settings, "m"))
    assert (refused.value.blame, refused.value.transient) == (Blame.MODEL, False)
    assert str(refused.value.hint).startswith(hint)


def test_one_worker_each_leaves_out_the_display(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutants: no look at the display; left out though it is the only one; CUDA_VISIBLE_DEVICES not looked at."""
    driver.says("gpu", "display 1", "gpu", "gpu")
    numbers, screens = cards.one_each(gpu.probe())
    assert (numbers, [card.index for card in screens]) == ((1, 2), [0])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert cards.one_each(gpu.probe())[0] == (2,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert cards.one_each(gpu.probe()) == ((0,), ())


@pytest.mark.parametrize(
    ("facts", "visible", "flags", "each", "held"),
    [
        ("gpu gpu", None, "", True, [0]),
        ("gpu", None, "", False, [0]),
        ("gpu screen gpu", None, "", False, [0]),
        ("screen gpu gpu", None, "", False, [1]),
        ("screen gpu gpu", None, "-tp 3", False, [1, 2]),
        ("screen", None, "", False, [0]),
        ("screen gpu gpu", "2,1", "", True, [2]),
        ("screen gpu gpu", "0,2", "", False, [2]),
        ("gpu gpu gpu", "1", "", False, [1]),
        ("gpu gpu", None, "-tp 2", False, [0, 1]),
        ("gpu gpu", None, "--device-ids 1", False, [1]),
    ],
)
def test_the_default(  # noqa: PLR0917
    driver: StandInDriver,
    monkeypatch: pytest.MonkeyPatch,
    facts: str,
    visible: str | None,
    flags: str,
    each: bool,
    held: list[int],
) -> None:
    """All of them, where none drives a display, else one that drives none. Mutants: each condition left out."""
    monkeypatch.setattr("vbatch.engine.installed.computes_on_gpu", lambda: True)
    driver.says(
        *(line for word in facts.split() for line in (["gpu", "display 1"] if word == "screen" else [word]))
    )
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings, report, args = config.load(), gpu.probe(), tuple(flags.split())
    assert cards.one_per_gpu(settings, report, args) is each
    assert [card.number for card in cards.assign(settings, report, args).held] == held
    assert cards.one_per_gpu(config.load(gpu="0"), report, args) is False
    assert cards.one_per_gpu(config.load(engine="echo"), report, args) is False
    split = config.load(models={"m": ModelSettings(gpus=2)})
    assert cards.one_per_gpu(split, report, args) is False


def test_all_of_the_locks_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: the first lock alone; a lock kept where the next one is taken."""
    monkeypatch.setattr("vbatch.engine.installed.computes_on_gpu", lambda: True)
    with locks.hold(tmp_path, [Card(1), Card(2)]):
        first = locks.hold(tmp_path, [Card(0), Card(1)])
        with pytest.raises(EngineUnavailable, match="GPU 1 already has a worker"), first:
            raise AssertionError
        with locks.hold(tmp_path, [Card(0), Card(3)]):
            pass
        with pytest.raises(EngineUnavailable, match="GPU 2"), locks.hold(tmp_path, [Card(2)]):
            raise AssertionError


@pytest.mark.parametrize(("given", "setting"), [("0_1", "0,1"), (" 1, 0", "1,0"), (3, "3"), ("ALL", "all")])
def test_a_setting(given: str | int, setting: str) -> None:
    """The name of a unit has no comma. Mutant: ``0_1`` read as Python reads it, 1."""
    settings = config.load(gpu=given)
    assert settings.gpu == setting
    assert config.load(gpu=gpu_setting.in_unit(setting)).gpu == setting


@pytest.mark.parametrize("wrong", ["GPU-1", "0,", "1.5", "none", "0,0"])
def test_a_setting_that_is_none(wrong: str) -> None:
    with pytest.raises(VbatchError, match=f"--gpu: it must be .*{wrong}|{wrong} names a GPU twice"):
        config.load(gpu=wrong)


def test_the_flags_of_all_models_count(four: GpuReport) -> None:
    """A model that is split has its GPUs locked from the start. Mutant: the shared flags alone."""
    models = {"big": ModelSettings(args=("-tp", "3")), "small": ModelSettings()}
    settings = config.load(models=models, defaults=DefaultSettings(args=("--max-model-len", "9")))
    assigned = cards.assign(settings, four)
    assert [card.number for card in assigned.held] == [0, 1, 2]
    assert [card.number for card in assigned.of_engine(("--max-model-len", "9"))] == [0]
