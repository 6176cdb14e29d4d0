"""Who a process is, as a value that outlives it: comparable across crashes and reboots.

Knows nothing of how to find a process (that is ``vbatch.processes``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process of one boot of one machine.

    A pid alone is recycled; with the boot id and the start time it never is. ``start_ticks`` is field 22
    of ``/proc/PID/stat`` (clock ticks since boot, proc_pid_stat(5)). ``pid_namespace`` is the inode of
    ``/proc/PID/ns/pid``: a pid means nothing outside its namespace.
    """

    host: str
    boot_id: str
    pid_namespace: int
    pid: int
    start_ticks: int
