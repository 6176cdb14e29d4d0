"""Answer a file with Ray Data LLM: run by ``bench_peers`` in an environment that has Ray.

python peer_ray.py INPUT OUTPUT-FOLDER MODEL -- FLAGS OF VLLM
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(source: str, target: str, model: str, flags: list[str]) -> None:
    """Run the pipeline. vLLM itself writes "init engine" when it has loaded the model."""
    ray, llm = importlib.import_module("ray"), importlib.import_module("ray.data.llm")
    ray.init(
        num_cpus=8, num_gpus=1, include_dashboard=False
    )  # what the stages ask for, also where vLLM uses none
    lines = [json.loads(line) for line in Path(source).read_text().splitlines()]
    embeds = lines[0]["url"] == "/v1/embeddings"
    rows = ray.data.from_items(
        [{"id": line["custom_id"], "body": json.dumps(line["body"])} for line in lines]
    )

    def asked(row: dict[str, Any]) -> dict[str, Any]:
        body = json.loads(row["body"])
        if embeds:
            return {"prompt": body["input"], "id": row["id"]}
        names = ("max_tokens", "temperature", "ignore_eos")
        sampling = {name: body[name] for name in names if name in body}
        return {"messages": body["messages"], "sampling_params": sampling, "id": row["id"]}

    def answered(row: dict[str, Any]) -> dict[str, Any]:
        answer = list(row["embeddings"]) if embeds else row["generated_text"]
        return {"id": row["id"], "answer": answer}

    # Its metrics of the engine need more of Ray than its data part.
    config = llm.vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=_mapping(flags),
        concurrency=1,
        batch_size=32,
        log_engine_metrics=False,
        task_type="embed" if embeds else "generate",
        chat_template_stage=not embeds,
    )
    process = llm.build_processor(config, preprocess=asked, postprocess=answered)
    process(rows).write_json(target)


def _mapping(flags: list[str]) -> dict[str, Any]:
    """Return flags as keyword arguments: a name that no value follows is a switch."""
    found: dict[str, Any] = {}
    for word, following in zip(flags, [*flags[1:], "--"], strict=True):
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            if name in ("runner", "convert"):  # it sets them itself, by the task
                continue
            found[name] = True if following.startswith("--") else _number(following)
    return found


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


if __name__ == "__main__":
    place = sys.argv.index("--")
    source, target, model = sys.argv[1:place]
    main(source, target, model, sys.argv[place + 1 :])
