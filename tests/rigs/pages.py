"""A store with something of everything to look at, and the page over it, served in this process."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import uvicorn

from tests.rigs.filling import new_batch
from tests.rigs.serving import KEY
from tests.rigs.waiting import until
from tests.rigs.workers import settings_in
from vbatch import batches, pausing
from vbatch.config import Settings
from vbatch.server.app import make_app
from vbatch.server.context import Context
from vbatch.server.keys import Keys
from vbatch.server.samples import Samples
from vbatch.store import Store, blocked, catalog, ingest, queue, registry
from vbatch.store.records import Batch, BlockedModel, Outcome, Result
from vbatch.system import processes

SCRIPT = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
BIDI = "user\u202e\u2066 // admin\u2069\u0007"
MODEL = "Qwen/Qwen3-8B"
URL = "/v1/chat/completions"


def entered(store: Store, texts: Sequence[str], *, models: Sequence[str] = (MODEL,), **fields: Any) -> Batch:
    """Store a batch of chats, the models in turn."""
    with ingest.ingest(store, new=new_batch(**fields), submitter=processes.current()) as storing:
        for line, text in enumerate(texts, start=1):
            model = models[line % len(models)]
            body = {"model": model, "messages": [{"role": "user", "content": text}]}
            storing.add(line, f"review-{line:04}", model, json.dumps(body).encode(), URL)
        return storing.accept(endpoint=URL, input_sha256="sha")


def work_off(store: Store, worker: str, outcomes: Mapping[int, Outcome], *, most: int = 1 << 30) -> None:
    """Answer what waits, chunk by chunk, so many requests at most; ``outcomes`` by line are not the usual ones."""
    done = 0
    while done < most:
        leases = queue.claim(store, worker=worker, models=[MODEL], chunks=1, held=frozenset(), room=1 << 40)
        if not leases:
            return
        results = [
            Result(
                key=leases[0].key,
                seq=each.seq,
                outcome=outcomes.get(each.line) or said(f"Answer {each.line}."),
            )
            for each in leases[0].requests[: most - done]
        ]
        queue.flush(store, worker=worker, results=results)
        done += len(results)


def said(text: str, *, finish: str = "stop") -> Outcome:
    """Return an answer of the engine."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    body = json.dumps({"choices": [choice]}).encode()
    return Outcome(
        status_code=200,
        request_id="r",
        body=body,
        prompt_tokens=21,
        completion_tokens=40,
        finish="length" if finish == "length" else None,
    )


def refused(message: str) -> Outcome:
    """Return an error of the engine."""
    return Outcome(status_code=400, request_id="r", body=json.dumps({"error": {"message": message}}).encode())


@dataclass
class Filled:
    """What is in the store."""

    ended: Batch
    running: Batch
    blocked: Batch


def fill(store: Store, folder: Path) -> Filled:
    """Enter an ended batch with a script in an answer, failures and cut-off answers; one that runs; a blocked one."""
    worker = registry.register(
        store, identity=processes.current(), engine="vllm", gpus=["GPU-8f3c21aa-1111-2222-3333-444455556666"]
    )
    registry.heartbeat(store, worker=worker, models=[MODEL], note=None, requests_per_second=12.5)
    prompts = [
        f"Summarise review {line}: the battery lasts long, the case is loose." for line in range(1, 61)
    ]
    paths = {"output_path": str(folder / "o.jsonl"), "error_path": str(folder / "e.jsonl")}
    ended = entered(store, prompts, name=f"reviews {SCRIPT}", metadata={"owner": BIDI}, **paths)
    outcomes = {
        2: said(f"{SCRIPT} {BIDI}"),
        3: said("The battery is praised, the case is", finish="length"),
        **{line: refused(f"maximum context length is 4096, {SCRIPT}") for line in (5, 25, 45)},
        26: said("cut here too", finish="length"),
        60: Outcome(error_code="engine_crash", error_message="the engine crashed 3 times", attempts=3),
    }
    work_off(store, worker, outcomes)
    batches.finalize(store, catalog.find(store, ended.id), by=worker)
    running = entered(
        store, [f"Translate sentence {n} into French." for n in range(1, 701)], name="translations"
    )
    work_off(store, worker, {}, most=470)
    waiting = entered(store, ["Hello."] * 3, models=["Qwen/Qwen3-80B"], name="larger model")
    blocked.record(
        store,
        BlockedModel(
            configuration="c",
            model="Qwen/Qwen3-80B",
            url="",
            host=processes.current().host,
            reason="the model needs 160 GiB, and the GPU has 80 GiB",
            hint="vbatch run-worker --gpu 0,1",
            since=datetime.now(UTC) - timedelta(minutes=12),
        ),
    )
    return Filled(*(catalog.find(store, batch.id) for batch in (ended, running, waiting)))


def samples_of(batch: Batch) -> Samples:
    """Return looks of three hours at a batch that ran all the time."""
    clock = [0.0]
    found = Samples(clock=lambda: clock[0])
    done = 0.0
    for look in range(720):
        clock[0] = look * 15.0
        done += 15 * (9 + 4 * ((look // 60) % 3) + (look % 7) / 3) if not 300 < look < 340 else 0
        counts = replace(batch.counts, completed=int(done), failed=0)
        found.add([replace(batch, counts=counts)])
    return found


@dataclass
class Visitor:
    """A person with a browser's cookie."""

    port: int
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        *,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] = {},
        method: str = "",
    ) -> tuple[int, dict[str, str], str]:
        """Send one request; return status, headers and body. Cookies are kept."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = dict(headers)
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        body = None
        if form is not None:
            body, sent["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
        try:
            connection.request(method or ("GET" if form is None else "POST"), path, body, sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            if match := re.match(r"(\w+)=([^;]*)", found.get("set-cookie", "")):
                self.cookies[match[1]] = match[2]
            return answer.status, found, answer.read().decode()
        finally:
            connection.close()

    def page(self, path: str) -> str:
        """Return a page that is there."""
        status, _, body = self.ask(path)
        assert status == 200, body
        return body

    def token(self, path: str = "/") -> str:
        """Return the form token of a page."""
        (found, *_) = re.findall(r'name="token" value="([^"]+)"', self.page(path))
        return str(found)

    def log_in(self) -> Visitor:
        """Give the key."""
        assert self.ask("/login", form={"key": KEY})[0] == 303
        return self


@contextlib.contextmanager
def paged(
    store: Store, folder: Path, *, keys: Sequence[str] = (KEY,), samples: Samples | None = None
) -> Iterator[tuple[int, Settings]]:
    """Serve the app over a store, in a thread of this process; yield its port and settings."""
    settings = settings_in(folder)
    context = Context(store=store, settings=settings, samples=samples or Samples())
    config = uvicorn.Config(
        make_app(context, keys=Keys(keys), hosts=()), port=0, log_config=None, lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    machine, pausing.MACHINE_FILE = (
        pausing.MACHINE_FILE,
        folder / "of-the-machine.json",
    )  # not of another test
    try:
        until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1], settings
    finally:
        pausing.MACHINE_FILE = machine
        server.should_exit = True
        thread.join(timeout=30)
        context.close()
