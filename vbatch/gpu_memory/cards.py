"""Which GPUs a worker has, and which of them an engine with these flags uses.

The numbers are those of NVML and nvidia-smi, also in CUDA_VISIBLE_DEVICES (the engine sets CUDA_DEVICE_ORDER). What
names no GPU of this machine is refused: CUDA would silently ignore it, and what follows it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vbatch.config import Settings, gpu_setting
from vbatch.engine import Blame, EngineStartFailed, installed, parallel
from vbatch.engine.kinds import KINDS
from vbatch.errors import ConfigError, EngineUnavailable, VbatchError
from vbatch.gpu import Gpu, GpuReport
from vbatch.text import harmless

VARIABLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its number, or one instance (MIG) of it by the instance's UUID."""

    number: int
    instance: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """The GPUs of a worker. ``visible`` is what CUDA shows to its engines, in this order; ``held`` is what it locks.

    ``variable`` is what CUDA_VISIBLE_DEVICES must be for that; None: as it is. ``report`` is what the driver said then.
    """

    visible: tuple[Card, ...]
    held: tuple[Card, ...]
    report: GpuReport
    variable: str | None = None

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the GPUs that are locked, each once."""
        return tuple(dict.fromkeys(card.number for card in self.held))

    @property
    def uuids(self) -> list[str]:
        """Return the UUIDs of what is locked, as far as the driver gives them."""
        by_number = {card.index: card.uuid for card in self.report.gpus}
        found = [card.instance or by_number.get(card.number, "") for card in self.held]
        return [uuid for uuid in found if uuid]

    def of_engine(self, args: Sequence[str]) -> tuple[Card, ...]:
        """Return the GPUs that an engine with these flags uses.

        Raises EngineStartFailed where it needs more than the worker has, with the command of a worker that has them.
        """
        spread = parallel.of(args)
        try:
            chosen = _chosen(spread.devices, self.visible, self.report)
        except (ConfigError, EngineUnavailable) as error:
            raise EngineStartFailed(
                error.message, transient=False, blame=Blame.MODEL, hint=error.hint
            ) from error
        cards = chosen or self.held
        outside = [card for card in cards if card not in self.held]
        if len(cards) < spread.gpus or outside:
            have = ", ".join(str(number) for number in self.numbers)
            what = f"{spread.gpus} GPUs" if not outside else f"GPU {outside[0].number}"
            raise EngineStartFailed(
                f"the model needs {what}, and this worker has {'GPU' if len(self.held) == 1 else 'the GPUs'} {have}",
                transient=False,
                blame=Blame.MODEL,
                hint=_command(spread, cards, self.report),
            )
        return cards[: spread.gpus]


def assign(settings: Settings, report: GpuReport, vllm_flags: Sequence[str] = ()) -> Assigned:
    """Return the GPUs of a worker with these settings; ``vllm_flags`` are those of its command line.

    Without the setting ``gpu`` it is the first GPU that CUDA_VISIBLE_DEVICES leaves and that drives no display, or as
    many as the flags of all models ask for, if there are so many. Raises ConfigError for a name that is no GPU's,
    EngineUnavailable where the driver would have to be asked what a name means and does not answer.
    """
    if numbers := gpu_setting.numbers(settings.gpu):
        cards = tuple(_whole(number, report) for number in numbers)
        return Assigned(visible=cards, held=cards, report=report, variable=",".join(map(str, numbers)))
    visible = shown(report)
    spreads = [parallel.of(args) for args in _all_flags(settings, vllm_flags)]
    most = max(spread.gpus for spread in spreads)
    chosen = [card for spread in spreads for card in _chosen(spread.devices, visible, report)]
    if chosen:  # vLLM counts --device-ids in the list as it is
        only = all(spread.devices for spread in spreads)
        taken = tuple(dict.fromkeys(chosen if only else [*visible[:most], *chosen]))
        return Assigned(visible=visible, held=taken, report=report)
    given = [entry.strip() for entry in os.environ.get(VARIABLE, "").split(",") if entry.strip()]
    names = given or [str(card.number) for card in visible]
    by_name = {card: name for name, card in zip(names, visible, strict=True)}
    held = _without_display(tuple(by_name), report)[:most]
    pinned = ",".join(by_name[card] for card in held) if len(held) < len(visible) else None
    return Assigned(visible=held, held=held, report=report, variable=pinned)


def one_per_gpu(settings: Settings, report: GpuReport, vllm_flags: Sequence[str] = ()) -> bool:
    """Whether ``run-worker`` is one worker on each of several GPUs: by the setting, or by what there is.

    Without the setting it is, where no display hangs on one of them and no flag or model wants several or certain ones.
    """
    if settings.gpu is not None or not KINDS[settings.engine].needs_gpu or not installed.has_nvml():
        return settings.gpu == gpu_setting.ALL
    try:
        visible = shown(report)
    except VbatchError:
        return False  # what is wrong with it is reported where it is used
    numbers = {card.number for card in visible}
    in_parts = VARIABLE in os.environ and any(card.instance is not None for card in visible)
    return (
        len(numbers) > 1
        and not in_parts
        and not any(card.drives_display for card in report.gpus if card.index in numbers)
        and all(
            spread.gpus == 1 and not spread.devices
            for spread in map(parallel.of, _all_flags(settings, vllm_flags))
        )
    )


def one_each(report: GpuReport) -> tuple[tuple[int, ...], tuple[Gpu, ...]]:
    """Return the numbers of the GPUs that get a worker each, and those left out because they drive a display.

    They are those that CUDA_VISIBLE_DEVICES leaves. A GPU that drives a display is used where there is no other one.
    Raises what ``assign`` raises.
    """
    cards = shown(report)
    if any(card.instance is not None for card in cards) and os.environ.get(VARIABLE):
        raise ConfigError(
            f"{VARIABLE}={_shown(os.environ[VARIABLE])} names parts of a GPU (MIG); each needs a worker of its own",
            hint=f"{VARIABLE}=MIG-… vbatch run-worker",
        )
    numbers = tuple(dict.fromkeys(card.number for card in cards))
    left = tuple(card.number for card in _without_display([Card(number) for number in numbers], report))
    return left, tuple(card for card in report.gpus if card.index in numbers and card.index not in left)


def of_workers(settings: Settings, report: GpuReport) -> tuple[int, ...]:
    """Return the numbers of the GPUs that ``run-worker`` uses with these settings. Raises what ``assign`` raises."""
    if one_per_gpu(settings, report):
        return one_each(report)[0]
    return assign(settings, report).numbers


def engine_flags(settings: Settings, model: str, vllm_flags: Sequence[str] = ()) -> tuple[str, ...]:
    """Return vLLM's flags for this model, with the tensor parallel size that ``gpus`` or the worker's GPUs make it."""
    args = (*settings.engine_args(model), *vllm_flags)
    configured = settings.models[model].gpus if model in settings.models else None
    return parallel.over(args, configured or len(gpu_setting.numbers(settings.gpu)))


def shown(report: GpuReport) -> tuple[Card, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; without it all, and GPU 0 where none is known."""
    given = os.environ.get(VARIABLE)
    if given is None:
        return tuple(_whole(card.index, report) for card in report.gpus) or (Card(0),)
    names = [name.strip() for name in given.split(",")]
    if names == [""]:
        raise ConfigError(f"{VARIABLE} is set and empty: it hides every GPU", hint=f"unset {VARIABLE}")
    return tuple(_named(name, f"{VARIABLE}={_shown(given)}", report) for name in names)


def _without_display(cards: Sequence[Card], report: GpuReport) -> tuple[Card, ...]:
    """Leave out those that drive a display, unless all of them do."""
    displays = {card.index for card in report.gpus if card.drives_display}
    return tuple(card for card in cards if card.number not in displays) or tuple(cards)


def _all_flags(settings: Settings, vllm_flags: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """Return the flags of every model: of those that are configured, and of any other."""
    yield (*settings.defaults.args, *vllm_flags)
    for model in settings.models:
        yield engine_flags(settings, model, vllm_flags)


def _chosen(devices: Sequence[str], visible: Sequence[Card], report: GpuReport) -> tuple[Card, ...]:
    """Return what ``--device-ids`` names: places in the visible list, or UUIDs."""
    said = f"--device-ids {_shown(','.join(devices))}"
    found = []
    for name in devices:
        if not name.isdecimal():
            found.append(_named(name, said, report))
        elif int(name) < len(visible):
            found.append(visible[int(name)])
        else:
            raise ConfigError(f"{said}: this worker sees {len(visible)} GPUs, so {name} names none of them")
    return tuple(found)


def _named(name: str, said: str, report: GpuReport) -> Card:
    """Find a GPU by its number, a beginning of its UUID, or an instance by its name."""
    if name.isdecimal():
        if (
            not report.gpus
            or any(card.index == int(name) for card in report.gpus)
            or _lost(int(name), report)
        ):
            return _whole(int(name), report)
    elif name.startswith(("GPU-", "MIG-")):
        if report.trouble is not None:
            raise EngineUnavailable(
                f"what {said} means cannot be looked up: {report.trouble.message}", hint="vbatch doctor gpu"
            )
        for card in report.gpus:
            if name.startswith("GPU-") and card.uuid.startswith(name):
                return _whole(card.index, report)
            for instance in card.instances:
                if instance == name:
                    return Card(card.index, instance)
    there = ", ".join(str(card.index) for card in report.gpus) or "none"
    raise ConfigError(
        f"{said}: {_shown(name)} names no GPU of this machine (there are: {there})", hint="nvidia-smi -L"
    )


def _whole(number: int, report: GpuReport) -> Card:
    """Return a GPU by its number; of one that is split, CUDA takes the first instance."""
    split = next((card.instances for card in report.gpus if card.index == number), ())
    return Card(number, split[0] if split else None)


def _lost(number: int, report: GpuReport) -> bool:
    return any(number == lost for lost, _ in report.lost)


def _command(spread: parallel.Spread, cards: Sequence[Card], report: GpuReport) -> str:
    """Return the command of a worker with enough GPUs, or say that this machine has too few."""
    wanted = [card.number for card in cards] if spread.devices else []
    others = [card.index for card in report.gpus if card.index not in wanted]
    wanted = [*wanted, *others][: spread.gpus]
    if len(wanted) < spread.gpus:
        return f"this machine has {len(report.gpus)} GPUs: use a smaller or a quantized model"
    return f"vbatch run-worker --gpu {','.join(map(str, wanted))}"


def _shown(name: str) -> str:
    return harmless(name[:120])
