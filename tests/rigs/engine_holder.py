"""A process that holds a real engine with requests running, for tests that send it signals.

Run as ``python -m tests.rigs.engine_holder MODEL-FOLDER LOG-FOLDER [VLLM-FLAG …]``. It ignores SIGINT, as a worker
does that drains; prints the engine's pids, then ``running``, then the status of each reply; and waits to be killed.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.engine.conftest import TITLE_PREFIX, at_work, started
from tests.rigs.model import ENGINE_ARGS
from vbatch.engine import vllm

REQUESTS = 4
TOKENS = 150


async def hold(model: Path, logs: Path, args: Sequence[str]) -> None:
    """Load, let requests run to their end, and keep the engine."""
    engine = await vllm.load(
        model="smol", path=str(model), args=args, title_prefix=TITLE_PREFIX, log_dir=logs
    )
    print(*started(), flush=True)
    body = {"model": "smol", "prompt": "Once", "max_tokens": TOKENS, "ignore_eos": True}
    posts = [
        asyncio.create_task(engine.post("/v1/completions", msgspec.json.encode(body)))
        for _ in range(REQUESTS)
    ]
    await at_work(engine)
    print("running", flush=True)
    print(*[(await post).status for post in posts], flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(hold(Path(sys.argv[1]), Path(sys.argv[2]), [*ENGINE_ARGS, *sys.argv[3:]]))
