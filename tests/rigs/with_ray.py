"""Run the tests that need Ray, and start the peers of a benchmark, in an environment of their own.

    python -m tests.rigs.with_ray [PYTEST ARGUMENTS]

Ray and datatrove lie there alone; everything else, vLLM with it, is that of the environment this runs in. The folder is
made once, beside the small model (``VBATCH_TEST_CACHE``): half a gigabyte, a minute or two.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.rigs.docs import ROOT
from tests.rigs.model import CACHE

RAY = "2.60.0"
PEERS = (f"ray[default,data,serve]=={RAY}", "datatrove==0.10.1", "orjson", "aiosqlite", "aiofiles")
TESTS = ("tests/launchers/test_ray.py", "tests/engine/endpoint/test_ray_serve.py")


def python() -> Path:
    """Return the interpreter of that environment; make the environment where it is not there yet."""
    folder = CACHE / f"ray-{RAY}"
    found = folder / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        # Its own packages come first on the path; pip takes those that it sees there for installed.
        (below,) = folder.glob("lib/python*/site-packages")
        (below / "of_vbatch.pth").write_text(sysconfig.get_path("purelib") + "\n")
        subprocess.run([found, "-m", "pip", "install", "--quiet", *PEERS], check=True)
        (folder / "ready").touch()
    return found


def environment() -> dict[str, str]:
    """Return the variables that a process there needs: vbatch is that of this folder, and Ray sends nothing home."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"}


def main(arguments: list[str]) -> int:
    """Run pytest there; all the tests that need Ray where no argument says otherwise."""
    command: list[str | Path] = [python(), "-m", "pytest", *(arguments or ["-m", "long", *TESTS])]
    return subprocess.run(command, env=environment(), cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
