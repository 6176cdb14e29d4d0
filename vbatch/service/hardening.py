"""What the system service gives up: everything that neither CUDA, nor a JIT compiler, nor a batch needs.

Measured with ``systemd-analyze security``; a test keeps the score. What is left out, and why:

* MemoryDenyWriteExecute: Triton, Inductor and CUDA compile into memory and run it.
* PrivateDevices, DevicePolicy, and ProtectClock, which implies a device list: they hide the GPU.
* PrivateTmp, ProtectHome, ProtectSystem=strict: an output file is written beside its input, wherever that is.
* ProtectProc, ProcSubset: doctor names the processes that hold GPU memory.
* A list of *allowed* system calls: PyTorch shares memory with pidfd_getfd, NCCL with process_vm_readv.
* RemoveIPC: it removes the shared memory of everything else that the same person runs.
* PrivateNetwork, IPAddressDeny: the store may be remote, and models come from a hub.
"""

from __future__ import annotations

KEYS: tuple[tuple[str, str], ...] = (
    ("NoNewPrivileges", "yes"),
    ("UMask", "0077"),
    ("ProtectSystem", "full"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap"),
    ("SystemCallErrorNumber", "EPERM"),
)

# root without these would not be able to write beside a person's file, nor to end an engine of his;
# another account has no capabilities to begin with.
CAPABILITIES_OF_ROOT = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_KILL CAP_SYS_PTRACE"
