"""Checks of the engine: whether vLLM can be imported, is one we know, fits the driver, and will be guarded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level, info, ok, skip
from vbatch.engine import installed
from vbatch.engine.installed import FRAGILE, Installed

KNOWN = ((0, 32), (0, 33))  # versions of vLLM that vbatch is tested with, or whose source was read

MEANINGS = {
    "engine.import": Meaning(
        means="vLLM can be imported, in a process of its own as a worker does it; or it cannot, and why.",
        remedy="pip install --force-reinstall 'vbatch[gpu]' in a fresh environment.",
    ),
    "engine.missing": Meaning(
        means="vLLM is not installed here; this machine can submit and read, not answer.",
        remedy="pip install 'vbatch[gpu]', or 'vbatch[cpu]' to try it.",
    ),
    "engine.echo": Meaning(
        means="The settings name the echo engine, which needs nothing and answers nothing.",
        remedy="Nothing to do.",
    ),
    "engine.version": Meaning(
        means="This vLLM is older or newer than those vbatch is tested with; it may well work.",
        remedy="vbatch selftest and vbatch demo tell.",
    ),
    "engine.torchvision": Meaning(
        means="torchvision, torchaudio or torchcodec is installed and cannot load: no model can be imported.",
        remedy="pip uninstall --yes torchvision torchaudio torchcodec (text models do not use them).",
    ),
    "engine.cuda": Meaning(
        means="torch was built for a newer CUDA than the driver supports, or for no GPU at all.",
        remedy="Update the driver, or install the torch for this driver; for a CPU build: pip install 'vbatch[gpu]'.",
    ),
    "engine.guard": Meaning(
        means="vLLM will not load vbatch's guard, without which an engine outlives a worker that is killed.",
        remedy="pip install vbatch as a package; a folder on PYTHONPATH is not enough.",
    ),
}


def _import(facts: Facts) -> Iterator[Finding]:
    """Have a child import vLLM and what must not break it."""
    if facts.settings.engine == "echo":
        yield skip("engine.echo", "the echo engine needs nothing")
        return
    found = installed.look()
    yield from _fragile(found)
    if found.hanging:
        yield _broken("importing vLLM took too long", "a slow disk, or something that it waits for")
    elif found.vllm is None and "vllm" not in found.failures:
        yield Finding(
            id="engine.missing",
            level=Level.WARN,
            what="vLLM is not installed here",
            why="batches can be submitted and read, not answered",
            commands=("pip install 'vbatch[gpu]'", "pip install 'vbatch[cpu]'   # to try it without a GPU"),
        )
    else:
        wrong = {name: words for name, words in found.failures.items() if name not in FRAGILE}
        for name, words in wrong.items():
            yield _broken(f"{name} cannot be imported: {words}", "no model can be loaded")
        if not wrong:
            yield from _version(found)
            yield from _cuda(facts, found)
    if not found.guard_registered and not found.hanging:
        yield Finding(
            id="engine.guard",
            level=Level.FAIL,
            what="vLLM will not load vbatch's guard",
            why="an engine would outlive a worker that is killed, and keep the GPU's memory",
            commands=("pip install vbatch",),
        )


def _fragile(found: Installed) -> Iterator[Finding]:
    broken = [name for name in FRAGILE if name in found.failures]
    if broken:
        yield Finding(
            id="engine.torchvision",
            level=Level.FAIL,
            what=f"{' and '.join(broken)} cannot load",
            why="it was built for another torch, and breaks every import of a model; text models do not use it",
            evidence=tuple(found.failures[name] for name in broken),
            commands=(f"pip uninstall --yes {' '.join(FRAGILE)}",),
        )


def _broken(what: str, why: str) -> Finding:
    return Finding(
        id="engine.import",
        level=Level.FAIL,
        what=what,
        why=why,
        commands=("python -c 'import vllm'",),
    )


def _version(found: Installed) -> Iterator[Finding]:
    numbers = re.match(r"(\d+)\.(\d+)", found.vllm or "")
    words = f"vLLM {found.vllm} with torch {found.torch}"
    if numbers is None or (int(numbers[1]), int(numbers[2])) in KNOWN:
        yield ok("engine.import", f"{words} can be imported")
        return
    known = " and ".join(f"{major}.{minor}" for major, minor in KNOWN)
    yield info("engine.version", words, f"vbatch is tested with {known}; others may well work")


def _cuda(facts: Facts, found: Installed) -> Iterator[Finding]:
    """Compare torch's CUDA with the driver's: a driver runs what was built for its own major version or older."""
    supported = facts.gpu.cuda
    if not facts.gpu.gpus:
        return
    if found.cuda is None:
        yield Finding(
            id="engine.cuda",
            level=Level.WARN,
            what=f"torch {found.torch} computes on the CPU, and there is a GPU here",
            why="everything works, some hundred times slower",
            commands=("pip install 'vbatch[gpu]'   # in a fresh environment",),
        )
    elif supported is not None and int(found.cuda.partition(".")[0]) > supported[0]:
        yield Finding(
            id="engine.cuda",
            level=Level.FAIL,
            what=f"torch was built for CUDA {found.cuda}; the driver supports {supported[0]}.{supported[1]}",
            why="no model can be loaded before the driver is newer",
            commands=("sudo ubuntu-drivers install", "nvidia-smi"),
        )


CHECKS = (Check(name="engine.import", group=Group.ENGINE, run=_import, limit=timedelta(minutes=2)),)
