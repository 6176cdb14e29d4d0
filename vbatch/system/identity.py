"""Who a process is, as a value that outlives it: comparable across crashes and reboots.

Knows nothing of how to find a process (that is ``vbatch.system.processes``).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process of one boot of one machine.

    A pid alone is recycled; with the boot id and the start time it never is. The host says only where a boot
    was, and is not compared: its name may change while the process lives (DHCP). ``start_ticks`` is field 22
    of ``/proc/PID/stat`` (clock ticks since boot, proc_pid_stat(5)). ``pid_namespace`` is the inode of
    ``/proc/PID/ns/pid``: a pid means nothing outside its namespace.
    """

    host: str = field(compare=False)
    boot_id: str
    pid_namespace: int
    pid: int
    start_ticks: int
