"""Which GPUs a launcher has given to this process, where it shows it more of them.

Slurm shows every task of a step all GPUs of the job on its node, unless each task asked for its own: the task takes the
share of its local id. Kubernetes' device plugin names a container's GPUs in NVIDIA_VISIBLE_DEVICES; a privileged one
sees the others too. Where they show a process its own GPUs alone, there is nothing to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from vbatch.errors import ConfigError
from vbatch.gpu import GpuReport
from vbatch.gpu_memory.cards import VARIABLE

CONTAINER = "NVIDIA_VISIBLE_DEVICES"
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")  # SLURM_STEP_TASKS_PER_NODE: 4(x2),1 is 4, 4, 1


def visible(environment: Mapping[str, str], probe: Callable[[], GpuReport]) -> str | None:
    """Return what CUDA_VISIBLE_DEVICES must be for this process to keep to its share; None: as it is.

    Raises ConfigError where Slurm runs more tasks on this node than it shows GPUs.
    """
    narrowed = None
    if VARIABLE not in environment:
        narrowed = _of_container(environment.get(CONTAINER, ""), probe)
    tasks, place = _tasks(environment)
    if tasks < 2 or _each_has_its_own(environment):
        return narrowed
    shown = environment.get(VARIABLE, narrowed)
    cards = shown.split(",") if shown is not None else [str(card.index) for card in probe().gpus]
    if len(cards) < 2:
        return narrowed
    share = len(cards) // tasks
    if not share:
        raise ConfigError(
            f"{tasks} tasks of Slurm run on this node, and it shows each of them the same {len(cards)} GPUs",
            hint=f"srun --ntasks-per-node={len(cards)}, or one task and vbatch run-worker --gpu all",
        )
    return ",".join(cards[place * share : (place + 1) * share])


def _of_container(given: str, probe: Callable[[], GpuReport]) -> str | None:
    """Return the GPUs that a container was given by their UUIDs, where the driver lists others beside them."""
    names = [name.strip() for name in given.split(",") if name.strip().startswith(("GPU-", "MIG-"))]
    if not names:  # all, none, void; or numbers, which are those of the host
        return None
    gpus = probe().gpus
    known = {card.uuid for card in gpus} | {instance for card in gpus for instance in card.instances}
    own = [name for name in names if name in known]
    return ",".join(own) if own and len(own) < len(gpus) else None


def _tasks(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return how many tasks of this step run on this node, and which of them this is; of a batch script none.

    The variables are those of srun(1); only a step's own tasks have SLURM_STEP_TASKS_PER_NODE.
    """
    try:
        place = int(environment["SLURM_LOCALID"])
        node = int(environment.get("SLURM_NODEID", "0"))
        per_node = [
            int(count)
            for count, times in _TASKS.findall(environment["SLURM_STEP_TASKS_PER_NODE"])
            for _ in range(int(times or 1))
        ]
        tasks = per_node[node]
    except (KeyError, ValueError, IndexError):
        return 0, 0
    return (tasks, place) if 0 <= place < tasks else (0, 0)


def _each_has_its_own(environment: Mapping[str, str]) -> bool:
    bound = environment.get("SLURM_GPU_BIND", "none")
    per_task = "gpu" in environment.get("SLURM_TRES_PER_TASK", "")
    return "SLURM_GPUS_PER_TASK" in environment or per_task or bound not in ("", "none")
