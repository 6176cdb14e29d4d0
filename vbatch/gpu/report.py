"""What the driver reports about itself and each GPU: plain values, sent as JSON from the probe's child process."""

from __future__ import annotations

from typing import Literal

import msgspec

TroubleCode = Literal[
    "library_missing",
    "driver_not_loaded",
    "mismatch",
    "lost",
    "reset_required",
    "no_permission",
    "hanging",
    "crashed",
    "no_gpu",
    "other",
]

POWER_LIMIT = "power limit"

_TEMPORARY: frozenset[TroubleCode] = frozenset({"driver_not_loaded", "hanging", "no_gpu"})


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why the driver, or one GPU, gives no answer. ``message`` is for people."""

    code: TroubleCode
    message: str

    @property
    def passing(self) -> bool:
        """Whether it ends by itself while a machine boots; the others need a person."""
        return self.code in _TEMPORARY


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process that the driver lists. ``used`` is in bytes, None where the driver does not report it (WSL, MIG)."""

    pid: int
    used: int | None
    kind: Literal["compute", "graphics"]


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. Sizes are in bytes; None means that this driver or this GPU does not report the value.

    Without ``memory_known`` the sizes are 0. ``throttle`` names what slows it down now. ``instances`` are the UUIDs of
    the parts of a card that is split (MIG).
    """

    index: int
    uuid: str
    name: str
    total: int = 0
    free: int = 0
    used: int = 0
    memory_known: bool = False
    persistence_mode: bool | None = None
    compute_mode: str | None = None
    temperature: int | None = None
    utilization: int | None = None
    throttle: tuple[str, ...] = ()
    ecc_uncorrected: int | None = None
    retirement_pending: bool | None = None
    holders: tuple[Holder, ...] = ()
    display_active: bool | None = None
    instances: tuple[str, ...] = ()

    @property
    def drives_display(self) -> bool:
        """Whether a screen hangs on it, by the driver or by a program that draws on it."""
        return bool(self.display_active) or any(holder.kind == "graphics" for holder in self.holders)


class GpuReport(msgspec.Struct, frozen=True, kw_only=True):
    """The driver and its GPUs. ``lost`` are the GPUs that do not answer, by number."""

    driver: str | None = None
    cuda: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    lost: tuple[tuple[int, Trouble], ...] = ()
    trouble: Trouble | None = None
