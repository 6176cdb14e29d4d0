"""Checks of the engine: whether vLLM can be imported, is a tested version, fits the driver, and loads the guard."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from vbatch.doctor.checks.driver import update_commands
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding
from vbatch.engine import import_check, vllm_names
from vbatch.engine.installed import FRAGILE, Installed
from vbatch.engine.kinds import KINDS

IMPORT = Entry(
    id="engine.import",
    means="vLLM or what it needs cannot be imported, so no model can be loaded",
    commands=(
        "python -c 'import vllm'",
        "pip install --force-reinstall 'vbatch[gpu]'   # in a fresh environment",
    ),
)
MISSING = Entry(
    id="engine.missing",
    means="without vLLM, batches can be submitted and read here, but not answered",
    commands=("pip install 'vbatch[gpu]'", "pip install 'vbatch[cpu]'   # to try it without a GPU"),
)
ECHO = Entry(
    id="engine.echo",
    means="the settings name an engine that needs no vLLM and loads no model: echo or endpoint",
)
VERSION = Entry(
    id="engine.version",
    means="this vLLM is newer than those that vbatch is tested with; it has all that vbatch uses, so it may work",
    commands=("vbatch demo",),
)
UNSUPPORTED = Entry(
    id="engine.unsupported",
    means="this vLLM is too old for vbatch, or lacks what vbatch uses of it, so no model can be loaded",
    commands=("pip install --upgrade 'vbatch[gpu]'",),
)
TORCHVISION = Entry(
    id="engine.torchvision",
    means="a package was built for another torch and breaks every import of a model; text models do not use it",
    commands=(f"pip uninstall --yes {' '.join(FRAGILE)}",),
)
CUDA = Entry(
    id="engine.cuda",
    means="torch was built for a newer CUDA than the driver supports, or for no GPU: no model can be loaded, or all "
    "works a hundred times slower",
    commands=("nvidia-smi",),
    advice="update the driver, or install the torch that fits it: pip install 'vbatch[gpu]' in a fresh environment",
)
GUARD = Entry(
    id="engine.guard",
    means="without vbatch's guard, an engine continues to run when its worker is killed, and keeps the GPU's memory",
    commands=("pip install vbatch",),
    advice="a folder on PYTHONPATH is not enough: vbatch must be installed as a package",
)

_EARLIER = "found by an earlier check, and nothing has changed since; doctor engine --fresh repeats it"


def _import(facts: Facts) -> Iterator[Finding]:
    """Have a child import vLLM and what must not break it, unless it has since the last change."""
    kind = KINDS[facts.settings.engine]
    if not kind.needs_files:
        yield ECHO.skip(f"{kind.title} needs no vLLM")
        return
    driver = facts.gpu.driver if facts.needs_gpu else None
    found, earlier = import_check.look(facts.settings.state_dir, driver=driver, fresh=facts.fresh)
    if broken := [name for name in FRAGILE if name in found.failures]:
        evidence = tuple(found.failures[name] for name in broken)
        yield TORCHVISION.fail(f"{' and '.join(broken)} cannot load", evidence=evidence)
    if found.hanging:
        yield IMPORT.fail("importing vLLM took too long", why="a slow disk, or something that it waits for")
    elif found.vllm is None and "vllm" not in found.failures:
        yield MISSING.warn("vLLM is not installed here")
    elif found.unsupported is not None:
        yield UNSUPPORTED.fail(found.unsupported, commands=(vllm_names.pip_command(),))
    else:
        wrong = {name: words for name, words in found.failures.items() if name not in FRAGILE}
        for name, words in wrong.items():
            yield IMPORT.fail(f"{name} cannot be imported: {words}")
        if not wrong:
            yield _version(found, earlier=earlier)
            yield from _cuda(facts, found)
    if not found.guard_registered and not found.hanging:
        yield GUARD.fail("vLLM will not load vbatch's guard")


def _version(found: Installed, *, earlier: bool) -> Finding:
    words = f"vLLM {found.vllm} with torch {found.torch}"
    if vllm_names.newer(found.vllm or ""):
        return VERSION.warn(words)
    return IMPORT.ok(f"{words} can be imported", *([_EARLIER] if earlier else []))


def _cuda(facts: Facts, found: Installed) -> Iterator[Finding]:
    """Compare torch's CUDA with the driver's: a driver runs what was built for its own major version or older."""
    supported = facts.gpu.cuda
    if not facts.gpu.gpus:
        return
    if found.cuda is None:
        yield CUDA.warn(
            f"torch {found.torch} computes on the CPU, and there is a GPU here",
            why="everything works, some hundred times slower",
            commands=("pip install 'vbatch[gpu]'   # in a fresh environment",),
        )
    elif supported is not None and int(found.cuda.partition(".")[0]) > supported[0]:
        yield CUDA.fail(
            f"torch was built for CUDA {found.cuda}; the driver supports {supported[0]}.{supported[1]}",
            why="no model can be loaded before the driver is newer",
            commands=(*update_commands(), "nvidia-smi"),
        )


CHECKS = (
    Check(
        name="engine.import",
        finds=(IMPORT, MISSING, ECHO, VERSION, UNSUPPORTED, TORCHVISION, CUDA, GUARD),
        run=_import,
        limit=timedelta(minutes=2),
    ),
)
