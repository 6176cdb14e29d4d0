"""The real vLLM, left behind: without its guard it outlives its worker, and the ledger is what finds it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.rigs.commands import Home
from tests.rigs.model import ENGINE_ARGS, small_model  # noqa: F401  (a fixture)
from tests.rigs.waiting import cpu_seconds, until
from vbatch.engine import smollm
from vbatch.store import COMMAND_PATIENCE, Store, registry
from vbatch.system import processes
from vbatch.system.processes import ProcessIdentity

# Python runs this at each start: the guard arms itself as ever, but never acts.
_WITHOUT_THE_GUARDS_END = """
import vbatch.engine.guard
vbatch.engine.guard._end_with = lambda parent: None
"""

GIB = 1 << 30


@pytest.mark.vllm
def test_a_real_engine_that_was_left_behind(tmp_path: Path, small_model: Path) -> None:  # noqa: F811
    """Killed in the middle of a load or at work, its processes are in the ledger. Mutant: ``_record`` not called."""
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'vbatch.db'}")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_WITHOUT_THE_GUARDS_END)
    (tmp_path / "config" / "vbatch").mkdir(parents=True)
    (tmp_path / "config" / "vbatch" / "config.toml").write_text(
        f'[models."smol"]\npath = "{small_model}"\nargs = {json.dumps(list(ENGINE_ARGS))}\n'
    )
    path = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    home.extra |= smollm.ENVIRONMENT | {"PYTHONPATH": ":".join(path)}
    store = Store(home.database_url, patience=COMMAND_PATIENCE)
    store.prepare()

    with home.worker("--preload", "smol") as worker:
        until(lambda: "engine.loaded" in home.worker_log, progress=lambda: cpu_seconds(worker.pid))
        engine = _engine_core(store)
        worker.kill()
        worker.wait()
    assert processes.identify(engine.pid) == engine  # it lives on, as vLLM's own engines do
    held = sum(processes.resident_memory(entry.identity.pid) for entry in registry.ledger(store))
    assert held > GIB // 4

    found = json.loads(home.run("doctor", "gpu", "--json", check=False).stdout)
    (orphan,) = [finding for finding in found["findings"] if finding["id"] == "gpu.orphan"]
    assert (found["exit_code"], orphan["level"]) == (1, "fail")
    assert str(engine.pid) in orphan["what"]
    assert processes.identify(engine.pid) == engine

    mended = json.loads(home.run("doctor", "gpu", "--fix", "--yes", "--json").stdout)
    (orphan,) = [finding for finding in mended["findings"] if finding["id"] == "gpu.orphan"]
    assert orphan["level"] == "fixed"
    said = re.search(r"ended, (\d+\.\d) GiB came back", orphan["what"])
    assert said is not None
    assert float(said[1]) == pytest.approx(held / GIB, abs=0.3)
    assert processes.identify(engine.pid) is None
    assert registry.ledger(store) == []
    store.close()


def _engine_core(store: Store) -> ProcessIdentity:
    """Return the biggest process of the ledger: where the model is."""
    entries = [entry.identity for entry in registry.ledger(store)]
    return max(entries, key=lambda identity: processes.resident_memory(identity.pid))
