"""Ask NVML in this process. Only the child processes of ``probe`` and ``watch`` do that: a wedged driver hangs them.

NVML numbers GPUs by their PCI address and takes no notice of CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import pynvml

from vbatch.gpu.report import POWER_LIMIT, Gpu, GpuReport, Holder, Trouble, TroubleCode

T = TypeVar("T")

PAUSE = 2.0  # seconds between two readings for a worker

# The return codes of NVML that name a cause (nvml.h, nvmlReturn_t).
_DIAGNOSES: dict[int, tuple[TroubleCode, str]] = {
    pynvml.NVML_ERROR_NO_PERMISSION: ("no_permission", "this user may not use the GPU's device files"),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: ("driver_not_loaded", "the NVIDIA driver is not loaded"),
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: ("library_missing", "there is no NVIDIA driver library"),
    pynvml.NVML_ERROR_GPU_IS_LOST: ("lost", "the GPU is lost: it does not answer on its bus"),
    pynvml.NVML_ERROR_RESET_REQUIRED: ("reset_required", "the GPU must be reset"),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "mismatch",
        "the driver's library and its kernel module have different versions",
    ),
}

_COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}

# The reasons that cost speed (nvml.h, nvmlClocksEventReason*). "Hardware slowdown" (8) also means a change of clocks.
_THROTTLE = {
    0x0000000000000004: POWER_LIMIT,
    0x0000000000000020: "heat (software)",
    0x0000000000000040: "heat (hardware)",
    0x0000000000000080: "power brake",
}


def look() -> GpuReport:
    """Return what the driver reports. A query that fails leaves out its value; a GPU that fails is listed as lost."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuReport(trouble=_trouble(error))
    gpus: list[Gpu] = []
    lost: list[tuple[int, Trouble]] = []
    for index in range(_ask(pynvml.nvmlDeviceGetCount) or 0):
        try:
            gpus.append(_gpu(index))
        except pynvml.NVMLError as error:
            lost.append((index, _trouble(error)))
    cuda = _ask(pynvml.nvmlSystemGetCudaDriverVersion)
    return GpuReport(
        driver=_text(_ask(pynvml.nvmlSystemGetDriverVersion)),
        cuda=(cuda // 1000, cuda % 1000 // 10) if cuda is not None else None,
        gpus=tuple(gpus),
        lost=tuple(lost),
    )


def _gpu(index: int) -> Gpu:
    """Ask one GPU. Raises NVMLError if it does not give its name, or its memory for a reason that names a cause."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = _memory(handle)
    persistence = _ask(pynvml.nvmlDeviceGetPersistenceMode, handle)
    mode = _ask(pynvml.nvmlDeviceGetComputeMode, handle)
    utilization = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
    return Gpu(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)) or "",
        name=_text(pynvml.nvmlDeviceGetName(handle)) or "",
        total=memory.total if memory else 0,
        free=memory.free if memory else 0,
        used=memory.used if memory else 0,
        memory_known=memory is not None,
        persistence_mode=bool(persistence) if persistence is not None else None,
        compute_mode=_COMPUTE_MODES.get(mode) if mode is not None else None,
        temperature=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        utilization=utilization.gpu if utilization is not None else None,
        throttle=_throttle(_ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)),
        ecc_uncorrected=_ask(
            pynvml.nvmlDeviceGetTotalEccErrors,
            handle,
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
        retirement_pending=_retirement_pending(handle),
        holders=_holders(handle),
        display_active=bool(_ask(pynvml.nvmlDeviceGetDisplayActive, handle)),
        instances=tuple(_instances(handle)),
    )


def _memory(handle: Any) -> Any:
    """Return NVML's figures, None where this GPU has none. Version 2 counts what the driver reserves apart from used.

    For a card that is split into instances (MIG) they are of no use: the whole card's figures, or "no permission".
    """
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    if mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    for version in (pynvml.nvmlMemory_v2, None):
        try:
            return pynvml.nvmlDeviceGetMemoryInfo(handle, version=version)
        except pynvml.NVMLError as error:
            if error.value in _DIAGNOSES and error.value != pynvml.NVML_ERROR_NO_PERMISSION:
                raise
    return None


def _instances(handle: Any) -> Iterator[str]:
    """Yield the UUIDs of the parts of a card that is split (MIG)."""
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return
    for place in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
        if part is not None and (uuid := _text(_ask(pynvml.nvmlDeviceGetUUID, part))):
            yield uuid


def _holders(handle: Any) -> tuple[Holder, ...]:
    """List the processes that hold memory; one that both computes and draws counts once, as the driver counts it."""
    found: dict[int, Holder] = {}
    kinds: tuple[tuple[Literal["compute", "graphics"], Callable[..., Any]], ...] = (
        ("graphics", pynvml.nvmlDeviceGetGraphicsRunningProcesses),
        ("compute", pynvml.nvmlDeviceGetComputeRunningProcesses),
    )
    for kind, listing in kinds:
        for process in _ask(listing, handle) or ():
            found[process.pid] = Holder(pid=process.pid, used=process.usedGpuMemory, kind=kind)
    return tuple(found.values())


def _retirement_pending(handle: Any) -> bool | None:
    """Whether memory cells wait for a reset to be taken out of use (row remapping, or page retirement before it)."""
    remapped = _ask(pynvml.nvmlDeviceGetRemappedRows, handle)
    if remapped is not None:
        return bool(remapped[2])
    pending = _ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
    return bool(pending) if pending is not None else None


def _throttle(reasons: int | None) -> tuple[str, ...]:
    return tuple(words for bit, words in _THROTTLE.items() if (reasons or 0) & bit)


def _ask(query: Callable[..., T], *arguments: Any) -> T | None:
    """Ask for one value; None where the driver does not give it."""
    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None


def _trouble(error: pynvml.NVMLError) -> Trouble:
    code, message = _DIAGNOSES.get(error.value, ("other", f"the driver reports: {error}"))
    return Trouble(code=code, message=message)


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def main(argv: Sequence[str]) -> int:
    """Print the report of this process as JSON or, given the numbers of GPUs, a list of these every two seconds."""
    if not argv:
        sys.stdout.buffer.write(msgspec.json.encode(look()))
        return 0
    wanted = {int(index) for index in argv}
    nothing_yet = True
    while nothing_yet or not select.select([sys.stdin], [], [], PAUSE)[0]:
        nothing_yet = False
        cards = [card for card in look().gpus if card.index in wanted]
        sys.stdout.buffer.write(msgspec.json.encode(cards) + b"\n")
        sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
