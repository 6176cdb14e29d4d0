"""Which GPUs a launcher has given to a worker: Slurm by the local id, a container by its device plugin."""

from __future__ import annotations

import pytest

from tests.rigs.commands import Home, chats
from tests.rigs.nvml import StandInDriver
from vbatch import gpu
from vbatch.errors import ConfigError
from vbatch.gpu_memory.granted import visible


@pytest.fixture
def database_url(tmp_path: object) -> str:
    """One kind of store: nothing here depends on it."""
    return f"sqlite:///{tmp_path}/store/vbatch.db"


@pytest.fixture
def four(driver: StandInDriver) -> StandInDriver:
    driver.says("gpu", "gpu", "gpu", "gpu")
    return driver


def step(place: int, *, per_node: str = "4", **more: str) -> dict[str, str]:
    """What srun sets for a task."""
    return {"SLURM_LOCALID": str(place), "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": per_node, **more}


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("environment", "own"),
    [
        pytest.param({}, None, id="no launcher"),
        pytest.param(step(2), "2", id="one GPU for each of four tasks"),
        pytest.param(step(1, per_node="2"), "2,3", id="two GPUs for each of two tasks"),
        pytest.param(step(3, CUDA_VISIBLE_DEVICES="4,5,6,7"), "7", id="of those that Slurm shows"),
        pytest.param(step(0, per_node="1"), None, id="a task that is alone has all of them"),
        pytest.param(step(1, per_node="1(x3),2", SLURM_NODEID="3"), "2,3", id="this node's tasks count"),
        pytest.param(step(2, CUDA_VISIBLE_DEVICES="2"), None, id="each sees its own"),
        pytest.param(step(2, SLURM_GPUS_PER_TASK="2", CUDA_VISIBLE_DEVICES="0,1"), None, id="two of its own"),
        pytest.param(step(2, SLURM_TRES_PER_TASK="cpu=4,gres/gpu=2"), None, id="the same, of a newer Slurm"),
        pytest.param(step(2, SLURM_GPU_BIND="map_gpu:3"), None, id="bound by Slurm"),
        pytest.param({"SLURM_LOCALID": "0", "SLURM_TASKS_PER_NODE": "4"}, None, id="the batch script itself"),
        pytest.param(step(7), None, id="an id beyond the tasks"),
        pytest.param({"NVIDIA_VISIBLE_DEVICES": "all"}, None, id="an image's default"),
        pytest.param({"NVIDIA_VISIBLE_DEVICES": "2"}, None, id="a number of the host's"),
        pytest.param({"NVIDIA_VISIBLE_DEVICES": "GPU-none-of-here"}, None, id="a GPU that is not here"),
    ],
)
def test_the_share(environment: dict[str, str], own: str | None) -> None:
    """Mutants: SLURM_PROCID in place of the local id; the tasks of the whole step; no look at how GPUs are bound;
    SLURM_TASKS_PER_NODE, which a batch script has too.
    """
    assert visible(environment, gpu.probe) == own


@pytest.mark.usefixtures("four")
def test_a_privileged_container_keeps_to_what_the_device_plugin_gave() -> None:
    """Mutant: NVIDIA_VISIBLE_DEVICES is not read. A choice of the user's own goes first."""
    uuids = [card.uuid for card in gpu.probe().gpus]
    given = {"NVIDIA_VISIBLE_DEVICES": f"{uuids[2]},{uuids[1]}"}
    assert visible(given, gpu.probe) == f"{uuids[2]},{uuids[1]}"
    assert visible({**given, "CUDA_VISIBLE_DEVICES": "0"}, gpu.probe) is None
    assert visible({"NVIDIA_VISIBLE_DEVICES": ",".join(uuids)}, gpu.probe) is None
    assert visible({**given, **step(1, per_node="2")}, gpu.probe) == uuids[1]


@pytest.mark.usefixtures("four")
def test_more_tasks_than_gpus_are_refused() -> None:
    """Mutant: the last tasks get none, and so all of them."""
    with pytest.raises(
        ConfigError, match=r"5 tasks of Slurm run on this node, and it shows each of them the same 4 GPUs"
    ):
        visible(step(4, per_node="5"), gpu.probe)


@pytest.mark.usefixtures("four")
def test_a_worker_under_slurm_takes_the_gpus_of_its_task(home: Home) -> None:
    """The real command. Mutant: ``run_worker`` does not keep to its share (it starts four workers)."""
    home.extra |= step(1, per_node="2")
    home.submit(chats(8))
    done = home.run("run-worker", "--engine", "echo", "--gpu", "all", "--drain")
    ran = {line.split()[0] for line in done.stderr.splitlines() if "worker.stopped" in line}
    assert ran == {"gpu=2", "gpu=3"}
    home.extra |= step(4, per_node="5")
    refused = home.run("run-worker", "--engine", "echo", "--gpu", "all", "--drain", check=False)
    assert refused.returncode == 78
    assert "srun --ntasks-per-node=4" in refused.stderr


def test_a_container_with_one_gpu_takes_it(home: Home, driver: StandInDriver) -> None:
    """One GPU is there, under the number 0, whatever number it has on the host."""
    driver.says("gpu")
    home.extra["NVIDIA_VISIBLE_DEVICES"] = gpu.probe().gpus[0].uuid
    home.submit(chats(8))
    done = home.run("run-worker", "--engine", "echo", "--gpu", "all", "--drain")
    assert done.stderr.count("worker.stopped") == 1
