"""How vLLM's flags spread a model: over how many GPUs, over which of them, and how much of it stays in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbatch.engine import flag_values as flags

TENSOR = "--tensor-parallel-size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One engine by its flags. ``devices`` are the entries of ``--device-ids``, numbers or UUIDs, none where not given.

    ``weights`` parts of the model stand on as many GPUs; each data-parallel rank (``ranks``) has all of them.
    ``offload`` is in GiB per GPU. ``given``: a flag says how it is spread.
    """

    tensor: int
    pipeline: int
    ranks: int
    devices: tuple[str, ...]
    offload: float
    given: bool

    @property
    def weights(self) -> int:
        """Over how many GPUs the weights are split."""
        return self.tensor * self.pipeline

    @property
    def gpus(self) -> int:
        """How many GPUs the engine uses."""
        return self.weights * self.ranks


def of(args: Sequence[str]) -> Spread:
    """Read vLLM's flags. A value that is no number counts as not given: vLLM itself refuses it."""
    words = flags.read(args)
    tensor, pipeline = words.number(flags.TENSOR_PARALLEL), words.number(flags.PIPELINE_PARALLEL)
    data, here = words.number(flags.DATA_PARALLEL), words.number(flags.DATA_PARALLEL_HERE)
    devices = words.last(flags.DEVICES) or ""
    return Spread(
        tensor=tensor or 1,
        pipeline=pipeline or 1,
        ranks=here or data or 1,
        devices=tuple(entry.strip() for entry in devices.split(",") if entry.strip()),
        offload=_float(words.last(flags.CPU_OFFLOAD)),
        given=any((tensor, pipeline, data, here)),
    )


def over(args: Sequence[str], gpus: int) -> tuple[str, ...]:
    """Return the flags with the tensor parallel size for so many GPUs, unless they say how to spread the model."""
    if gpus <= 1 or of(args).given:
        return tuple(args)
    return (TENSOR, str(gpus), *args)


def _float(value: str | None) -> float:
    try:
        return float(value or 0)
    except ValueError:
        return 0.0
