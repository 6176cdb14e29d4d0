"""The files of cluster.md for Kubernetes, compose and Slurm, as those who read them check them, and what a pod runs."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rigs import readme, waiting
from tests.rigs.commands import Home, Lines, chats
from tests.rigs.docs import DOCS
from tests.rigs.waiting import until
from vbatch.errors import ExitCode

CLUSTER = DOCS / "cluster.md"
NEEDED = "needs a validator: pip install -e '.[dev]'"
KUBERNETES = "1.33"  # the oldest that has all fields of the Job for good


def block(language: str) -> str:
    (found,) = readme.blocks(language, CLUSTER)
    return found


def job() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason=NEEDED)
    document: dict[str, Any] = yaml.safe_load(block("yaml job"))
    return document


def test_the_job_is_one_of_kubernetes() -> None:
    """By Kubernetes' own schema, and without unknown fields. Mutant: ``backoffLimitPerIndx``."""
    validate = pytest.importorskip("kubernetes_validate", reason=NEEDED)
    validate.validate(job(), KUBERNETES, strict=True)


def test_the_job_keeps_the_rules_that_no_schema_knows() -> None:
    """Kubernetes' API server refuses a Job that breaks the first three. Mutants: each line of the page without them."""
    spec = job()["spec"]
    pod = spec["template"]["spec"]
    (worker,) = pod["containers"]
    assert spec["completionMode"] == "Indexed", "backoffLimitPerIndex"
    assert pod["restartPolicy"] == "Never", "podFailurePolicy"
    assert spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["containerName"] == worker["name"]
    codes = spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    assert codes == [ExitCode.USAGE, ExitCode.ENGINE_UNAVAILABLE, ExitCode.MISCONFIGURED]
    assert {each["name"] for each in pod["volumes"]} == {each["name"] for each in worker["volumeMounts"]}


def test_the_compose_file_is_valid(tmp_path: Path) -> None:
    """By the schema of the compose specification. Mutant: ``stop_grace_periods``."""
    pytest.importorskip("check_jsonschema", reason=NEEDED)
    file = tmp_path / "compose.yaml"
    file.write_text(block("yaml compose"))
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = waiting.run([*check, str(file)])
    assert done.returncode == 0, done.stdout


def test_what_the_compose_file_names_is_defined_in_it() -> None:
    """Mutants: a volume or a secret that is used and not defined."""
    yaml = pytest.importorskip("yaml", reason=NEEDED)
    document = yaml.safe_load(block("yaml compose"))
    services = document["services"].values()
    volumes = {volume.partition(":")[0] for service in services for volume in service["volumes"]}
    assert {name for name in volumes if not name.startswith(".")} == set(document["volumes"])
    assert {name for service in services for name in service["secrets"]} == set(document["secrets"])


# What sbatch's manual (22.05) names, and what a value of it may be.
DIRECTIVES = {
    "job-name": r"[\w-]+",
    "array": r"\d+-\d+(%\d+)?",
    "gres": r"gpu:\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]",
    "time": r"\d\d:\d\d:\d\d",
    "signal": r"B:TERM@\d+",
    "requeue": r"",
    "open-mode": r"append|truncate",
    "output": r"[\w-]+%A_%a\.log",
}


def test_the_sbatch_script_is_one(tmp_path: Path) -> None:
    """The shell parses it, and sbatch reads each directive: they are all before the first command.

    A real Slurm runs it in test_slurm.py. Mutants: a directive after ``export``; ``--signal=TERM@300``, which goes to
    the steps and not to the script.
    """
    script = tmp_path / "vbatch.sh"
    script.write_text(block("sh sbatch"))
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    head, *lines = script.read_text().splitlines()
    assert head == "#!/bin/bash"
    found = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line) for line in lines if line.startswith("#")]
    assert all(found)
    assert {each[1] for each in found if each} == set(DIRECTIVES)
    assert all(re.fullmatch(DIRECTIVES[each[1]], each[2] or "") for each in found if each)
    assert lines[len(DIRECTIVES)].startswith("export "), "nothing but directives comes before it"
    assert lines[-1].startswith("exec vbatch run-worker ")


def test_the_ray_script_is_short_and_no_host_needs_more() -> None:
    """Mutant: a line more."""
    script = block("python ray")
    compile(script, "vbatch_on_ray.py", "exec")
    assert len([line for line in script.splitlines() if line and not line.startswith("#")]) <= 15


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_pod_that_is_stopped_saves_and_has_not_succeeded(
    home: Home, environment: dict[str, str], tmp_path: Path
) -> None:
    """The command of the Job's container, as it is: SIGTERM ends with 1, so that another pod continues; then 0.

    Mutants: the worker as the command itself, which a SIGTERM ends with 0, and the Job is complete; a shell that does
    not pass the signal on, which leaves the worker running.
    """
    command = job()["spec"]["template"]["spec"]["containers"][0]["command"]
    requests = chats(3000)
    batch_id = home.submit(requests)
    slow = environment | {"VBATCH_ECHO_LATENCY_MS": "500"}
    with (tmp_path / "pod.log").open("wb") as log:
        pod = subprocess.Popen(command, env=slow, cwd=home.path, stdout=log, stderr=log)
        try:
            until(lambda: pod.poll() is not None or home.finished(batch_id) > 200)
            pod.send_signal(signal.SIGTERM)
            assert waiting.exit_code(pod) == 1
        finally:
            pod.kill()
            pod.wait()
    said = (tmp_path / "pod.log").read_text()
    assert "worker.stopped" in said, said
    assert home.finished(batch_id) < len(requests), "it was stopped in the middle"
    assert home.batch(batch_id)["status"] == "in_progress"
    assert waiting.run(command, env=environment, cwd=home.path).returncode == 0
    lines = Lines.of(home.batch(batch_id))
    assert not lines.lost(requests)
    assert not lines.doubled
