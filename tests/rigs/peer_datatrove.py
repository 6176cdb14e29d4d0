"""Answer a file with datatrove's InferenceRunner: run by ``bench_peers`` in an environment that has datatrove.

python peer_datatrove.py INPUT OUTPUT-FOLDER MODEL -- FLAGS OF VLLM SERVE
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(source: str, target: str, model: str, flags: list[str]) -> None:
    """Run the pipeline. datatrove itself writes "server is ready." when its server has loaded the model."""
    inference = importlib.import_module("datatrove.pipeline.inference.run_inference")
    writers = importlib.import_module("datatrove.pipeline.writers")
    executor = importlib.import_module("datatrove.executor")
    document = importlib.import_module("datatrove.data").Document
    lines = [json.loads(line) for line in Path(source).read_text().splitlines()]
    documents = [document(text=json.dumps(line["body"]), id=line["custom_id"]) for line in lines]

    async def rollout(asked: Any, generate: Any) -> Any:
        return await generate({**json.loads(asked.text), "model": model})

    config = inference.InferenceConfig(
        server_type="vllm",
        model_name_or_path=model,
        model_max_context=2048,
        max_concurrent_generations=160,
        model_kwargs=_mapping(flags),
        server_start_timeout_sec=300,
        server_ready_delay_sec=0.5,
        server_ready_max_attempts=1200,
    )
    writer = writers.JsonlWriter(target, "${rank}_${chunk_index}.jsonl", compression=None)
    runner = inference.InferenceRunner(
        rollout_fn=rollout,
        config=config,
        output_writer=writer,
        checkpoints_local_dir=f"{target}.checkpoints",
        records_per_chunk=32,
    )
    executor.LocalPipelineExecutor(pipeline=[documents, runner], tasks=1, logging_dir=f"{target}.logs").run()


def _mapping(flags: Sequence[str]) -> dict[str, Any]:
    """Return flags as a mapping: a name that no value follows is a switch."""
    found: dict[str, Any] = {}
    for word, following in zip(flags, [*flags[1:], "--"], strict=True):
        if word.startswith("--") and word != "--max-model-len":
            found[word[2:]] = True if following.startswith("--") else following
    return found


if __name__ == "__main__":
    place = sys.argv.index("--")
    source, target, model = sys.argv[1:place]
    main(source, target, model, sys.argv[place + 1 :])
