"""Real vbatch processes for tests: run a command to its end, or keep a worker in hand."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rigs import waiting
from vbatch.store import Store, catalog

VBATCH = [sys.executable, "-m", "vbatch"]


def heed_hangups() -> None:
    """Let SIGHUP do what it does for a program at a terminal: the tests may run under ``nohup``."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@dataclass
class Home:
    """A user's home with a store of its own; every command runs in it."""

    path: Path
    database_url: str
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def state_dir(self) -> Path:
        return self.path / "state" / "vbatch"

    @property
    def env(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VBATCH_")}
        return inherited | {
            "HOME": str(self.path),
            "XDG_CONFIG_HOME": str(self.path / "config"),
            "XDG_DATA_HOME": str(self.path / "data"),
            "XDG_STATE_HOME": str(self.path / "state"),
            "XDG_CACHE_HOME": str(self.path / "cache"),
            "VBATCH_DATABASE_URL": self.database_url,
            **self.extra,
        }

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        done = waiting.run([*VBATCH, *map(str, arguments)], env=self.env, cwd=self.path)
        if check and done.returncode != 0:
            raise AssertionError(
                f"vbatch {arguments} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done

    def submit(self, lines: Sequence[dict[str, object]], *options: str, name: str = "prompts") -> str:
        """Write an input file and submit it; return the batch id."""
        return self.run("submit", self.write(name, lines), *options).stdout.strip()

    def write(self, name: str, lines: Sequence[dict[str, object]]) -> Path:
        """Write an input file."""
        source = self.path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return source

    @contextlib.contextmanager
    def worker(self, *options: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """Keep a worker running; it is killed at the end if it still lives."""
        log = (self.path / "worker.log").open("ab")
        process = subprocess.Popen(
            [*VBATCH, "run-worker", *options],
            env=self.env | environment,
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # the kernel keeps SIGTSTP from a group without a parent in its session
            preexec_fn=heed_hangups,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
            log.close()

    @property
    def worker_log(self) -> str:
        return (self.path / "worker.log").read_text(errors="replace")

    def batch(self, batch_id: str) -> dict[str, object]:
        """The batch object as ``status --json`` prints it."""
        document: dict[str, object] = json.loads(self.run("status", batch_id, "--json").stdout)
        return document

    def finished(self, batch_id: str) -> int:
        """How many requests have a result, read from the store itself: cheap enough to be asked all the time."""
        store = Store(self.database_url)
        try:
            counts = catalog.find(store, batch_id).counts
        finally:
            store.close()
        return counts.completed + counts.failed


def chat(custom_id: str, text: str, *, model: str = "echo", echo: str | None = None) -> dict[str, object]:
    """One chat request line; ``echo`` is what the echo engine is told to do."""
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": text}]}
    if echo is not None:
        body["metadata"] = {"vbatch_echo": echo}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def chats(count: int, *, model: str = "echo", prefix: str = "r") -> list[dict[str, object]]:
    """Many chat requests whose echo answer names their custom_id."""
    return [chat(f"{prefix}-{i}", f"{prefix}-{i}", model=model) for i in range(count)]


@dataclass(frozen=True)
class Lines:
    """What became of each request, read from the output and error files of a batch."""

    answers: dict[str, str]
    errors: dict[str, dict[str, Any]]
    times_seen: Counter[str]

    @classmethod
    def of(cls, batch: dict[str, object]) -> Lines:
        answers: dict[str, str] = {}
        errors: dict[str, dict[str, Any]] = {}
        seen: Counter[str] = Counter()
        for key, target in (("output_path", answers), ("error_path", errors)):
            path = batch[key]
            if not isinstance(path, str) or not Path(path).exists():
                continue
            for raw in Path(path).read_bytes().splitlines():
                line = json.loads(raw)
                seen[line["custom_id"]] += 1
                if target is answers:
                    answers[line["custom_id"]] = line["response"]["body"]["choices"][0]["message"]["content"]
                else:
                    errors[line["custom_id"]] = line
        return cls(answers, errors, seen)

    def lost(self, expected: Sequence[dict[str, object]]) -> set[str]:
        return {str(line["custom_id"]) for line in expected} - self.times_seen.keys()

    @property
    def doubled(self) -> set[str]:
        return {custom_id for custom_id, times in self.times_seen.items() if times > 1}
