"""What the installed unit was made for: whose account, which options, which GPUs. The next install keeps them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vbatch.service import quoting
from vbatch.system.units import instance

_ACCOUNT = re.compile(r"^User=(.+)$", re.MULTILINE)
_WORKER = re.compile(r"^ExecStart=.*? -m vbatch run-worker( .*)?$", re.MULTILINE)
_GPU = re.compile(r"^Environment=VBATCH_GPU=%i$", re.MULTILINE)
_NUMBERED = re.compile(re.escape(instance("N")).replace("N", r"(\d+)"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """An installed unit; of one that is not there, nothing. ``gpus`` are those whose instances are enabled."""

    account: str | None = None
    worker_arguments: tuple[str, ...] = ()
    one_per_gpu: bool = False
    gpus: tuple[int, ...] = ()


def read(unit: str, enabled: Sequence[str]) -> Before:
    """Read the unit's text, and the names of its enabled instances."""
    account, worker = _ACCOUNT.search(unit), _WORKER.search(unit)
    one_per_gpu = _GPU.search(unit) is not None
    numbers = (_NUMBERED.fullmatch(name) for name in enabled)
    return Before(
        account=account[1] if account else None,
        worker_arguments=tuple(quoting.words(worker[1])) if worker and worker[1] else (),
        one_per_gpu=one_per_gpu,
        gpus=tuple(sorted(int(number[1]) for number in numbers if number)) if one_per_gpu else (),
    )
