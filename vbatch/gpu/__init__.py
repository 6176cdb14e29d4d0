"""What the driver reports about each GPU, asked in a child process so that a wedged driver cannot hang vbatch."""

from __future__ import annotations

from vbatch.gpu.probe import SETTLED, probe, wait_until_settled, watched
from vbatch.gpu.report import POWER_LIMIT, Gpu, GpuReport, Holder, Trouble
from vbatch.gpu.xid import Xid, xid_errors

__all__ = [
    "POWER_LIMIT",
    "SETTLED",
    "Gpu",
    "GpuReport",
    "Holder",
    "Trouble",
    "Xid",
    "probe",
    "wait_until_settled",
    "watched",
    "xid_errors",
]
