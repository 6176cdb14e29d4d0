"""``demo``: a real small model, two small batches, the answers on the screen; in a store of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from vbatch import batches, pausing
from vbatch.batches import Batch, InputFile, Store, SubmitOptions
from vbatch.cli.output import Output
from vbatch.cli.startup import settings as load_settings
from vbatch.cli.worker import work
from vbatch.config.tables import DefaultSettings, ModelSettings
from vbatch.engine import smollm
from vbatch.errors import ExitCode
from vbatch.text import count, duration, harmless

INPUTS = ("chat.jsonl", "completions.jsonl")
WRONG_ON_PURPOSE = "too-long"  # the custom_id of the request that the model has to refuse


def demo() -> int:
    """Run the demo and return the exit code: 0 when everything was answered but the one wrong request."""
    output = Output()
    settings = load_settings(output, engine="vllm")
    pausing.require_none(settings)
    model = smollm.prepare(settings.cache_dir, report=output.note)
    for name, value in smollm.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    folder = _fresh_folder(settings.cache_dir / "demo")
    url = f"sqlite:///{quote(str(folder / 'demo.db'))}"
    with batches.open_store(url) as store:
        submitted = [_submit(store, folder / name) for name in INPUTS]
        requests = sum(batch.counts.total for batch in submitted)
        output.note(
            f"{count(requests, 'request')} accepted; loading {smollm.NAME}, a real model, but a tiny one"
        )
        of_demo = {
            "database_url": SecretStr(url),
            "preload": None,
            "defaults": DefaultSettings(),
            "models": {smollm.NAME: ModelSettings(path=str(model), args=smollm.flags())},
            "log_level": "error",
        }
        ended = work(output, settings.model_copy(update=of_demo), drain=True)
        finished = [batches.find(store, batch.id) for batch in submitted]
    if ended.stopped:
        return ExitCode.INTERRUPTED
    if not all(batch.status.final for batch in finished):
        pausing.require_none(settings)  # a pause that began meanwhile
    exchanges = [exchange for batch in finished for exchange in _exchanges(batch)]
    output.print(Group(*(exchange.screen() for exchange in exchanges)))
    output.print(_closing(folder, requests=requests, seconds=ended.seconds))
    failed = {exchange.custom_id for exchange in exchanges if exchange.error is not None}
    return ExitCode.DONE if failed == {WRONG_ON_PURPOSE} else ExitCode.FAILED


def _fresh_folder(folder: Path) -> Path:
    """Make the demo's folder, without the files of an earlier demo."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.jsonl"), *folder.glob("demo.db*")):
        old.unlink()
    return folder


def _submit(store: Store, path: Path) -> Batch:
    path.write_bytes((resources.files("vbatch.cli") / "demo_data" / path.name).read_bytes())
    return batches.submit(store, InputFile.at(path), SubmitOptions(name=f"demo: {path.stem}")).batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question and what the model answered, or why it did not."""

    custom_id: str
    setting: str | None
    question: str
    answer: str | None
    error: str | None

    def screen(self) -> RenderableType:
        """Return it as a person reads it: who the model had to be, the question, the answer."""
        lines: list[RenderableType] = []
        if self.setting is not None:
            lines.append(Text(harmless(self.setting), style="dim italic"))
        lines.append(Text(harmless(self.question, keep="\n"), style="bold"))
        if self.answer is not None:
            lines.append(Padding(Text(harmless(self.answer, keep="\n"), style="green"), (0, 0, 0, 2)))
        else:
            lines.append(Padding(Text(harmless(self.error or ""), style="red"), (0, 0, 0, 2)))
        return Padding(Group(*lines), (0, 0, 1, 0))


def _exchanges(batch: Batch) -> list[Exchange]:
    """Read input, output and error file of a batch, as any program would, and put them together."""
    assert batch.input_path is not None
    lines = {line["custom_id"]: line for path in _written(batch) for line in _read(path)}
    return [_exchange(request, lines[request["custom_id"]]) for request in _read(Path(batch.input_path))]


def _written(batch: Batch) -> Sequence[Path]:
    return [path for path in (Path(batch.output_path), Path(batch.error_path)) if path.exists()]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _exchange(request: dict[str, Any], line: dict[str, Any]) -> Exchange:
    body = request["body"]
    messages = body.get("messages", [])
    setting = next((message["content"] for message in messages if message["role"] == "system"), None)
    spoken = [message["content"] for message in messages if message["role"] != "system"]
    response = line["response"]
    answer = error = None
    if response is None:
        error = f"{line['error']['code']}: {line['error']['message']}"
    elif response["status_code"] == 200:
        choice = response["body"]["choices"][0]
        answer = choice["message"]["content"] if "message" in choice else choice["text"]
        answer = _compact(answer) + (" …" if choice["finish_reason"] == "length" else "")
    else:
        error = f"refused with {response['status_code']}: {response['body']['error']['message']}"
    return Exchange(
        custom_id=request["custom_id"],
        setting=setting,
        question="\n".join(spoken) or body["prompt"],
        answer=answer,
        error=error,
    )


def _compact(answer: str) -> str:
    """Return an answer without empty lines."""
    return "\n".join(line.rstrip() for line in answer.strip().splitlines() if line.strip())


def _closing(folder: Path, *, requests: int, seconds: float) -> RenderableType:
    """Return where everything is, and what to try next."""
    lines = [
        f"{count(requests, 'request')} in {duration(seconds)}, loading included; one was wrong on purpose.",
        "",
        f"Questions, answers and errors are in {folder}:",
        *(f"  {path.name}" for path in sorted(folder.glob("*.jsonl"))),
        "",
        "Next, your own file, with a model that you have or that vLLM can download:",
        "  vbatch submit prompts.jsonl -m MODEL",
        "  vbatch run-worker",
    ]
    return Text("\n".join(lines))
