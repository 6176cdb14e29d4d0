"""The official clients, as they are, through everything: files, uploads in parts, batches, errors."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import openai
import pytest

from tests.rigs.commands import Home, chat, chats
from tests.rigs.model import CACHE
from tests.rigs.serving import KEY, Served, served
from tests.rigs.waiting import cpu_seconds, run, until
from vbatch.store import Store

ENDPOINT: Final = "/v1/chat/completions"


def client_of(server: Served, *, retries: int = 2) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=retries)


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def ended(client: openai.OpenAI, batch_id: str, server: Served) -> openai.types.Batch:
    """Poll a batch as programs do."""
    until(
        lambda: client.batches.retrieve(batch_id).status in ("completed", "failed", "cancelled", "expired"),
        progress=lambda: client.batches.retrieve(batch_id).request_counts,
        pause=0.2,
    )
    return client.batches.retrieve(batch_id)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("clients")
    return Home(folder, f"sqlite:///{folder / 'store' / 'vbatch.db'}")


@pytest.fixture(scope="module")
def busy(place: Home) -> Iterator[Served]:
    """A server with a real worker beside it."""
    with served(place, VBATCH_FLUSH_INTERVAL="200ms") as server, place.worker("--engine", "echo"):
        yield server


def test_the_python_client_walks_through_everything(busy: Served, place: Home) -> None:
    """Upload, create, poll, read, cancel, delete. Mutant: an answer that lacks a field the client needs."""
    client = client_of(busy)
    lines = [*chats(300), chat("bad", "x", echo="error400")]
    source = place.write("prompts", lines)
    with source.open("rb") as stream:
        file = client.files.create(
            file=stream, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert (file.filename, file.bytes, file.purpose) == ("prompts.jsonl", source.stat().st_size, "batch")
    assert file.expires_at == file.created_at + 3600
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert client.files.content(file.id).content == source.read_bytes()

    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=ENDPOINT,
        completion_window="24h",
        metadata={"night": "one"},
        extra_body={"name": "nightly", "priority": 3, "strict": True},
    )
    assert (batch.status, batch.completion_window, batch.expires_at) == ("validating", "24h", None)
    with pytest.raises(openai.ConflictError, match="needs this file"):
        client.files.delete(file.id)
    done = ended(client, batch.id, busy)
    assert (done.status, done.metadata, done.input_file_id) == ("completed", {"night": "one"}, file.id)
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (301, 300, 1)
    assert (done.model_extra or {})["name"] == "nightly"
    assert done.output_file_id is not None
    assert done.error_file_id is not None
    output = client.files.content(done.output_file_id).text
    assert [json.loads(line)["custom_id"] for line in output.splitlines()] == [f"r-{i}" for i in range(300)]
    (failed,) = client.files.content(done.error_file_id).text.splitlines()
    assert json.loads(failed)["response"]["status_code"] == 400
    assert place.run("status", batch.id, "-q").stdout.strip() == batch.id
    made = {found.id for found in client.files.list(purpose="batch_output")}
    assert made >= {done.output_file_id, done.error_file_id}

    with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
        client.batches.cancel(batch.id)
    again = client.post(f"/batches/{batch.id}/retry", body={}, cast_to=openai.types.Batch)
    retried = ended(client, again.id, busy)
    assert (retried.status, retried.error_file_id is not None) == ("completed", True)
    assert client.files.content(str(retried.error_file_id)).text
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match=f"No such File object: {file.id}") as missing:
        client.files.retrieve(file.id)
    assert missing.value.param == "id"
    assert client.delete(f"/batches/{batch.id}", cast_to=object) == {
        "id": batch.id, "object": "batch", "deleted": True,
    }  # fmt: skip
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve(batch.id)
    assert client.files.content(done.output_file_id).text == output  # its files stay


def test_a_file_in_parts(busy: Served, place: Home) -> None:
    """The way for files that do not fit the memory of the client.

    Mutants: parts in the order in which they came; a repeated completion that is refused.
    """
    client = client_of(busy)
    data = jsonl(chats(2000))
    source = place.path / "parts.jsonl"
    source.write_bytes(data)
    upload = client.uploads.upload_file_chunked(
        file=source, purpose="batch", mime_type="text/jsonl", part_size=30_000
    )
    assert upload.status == "completed"
    assert upload.file is not None
    assert client.files.content(upload.file.id).content == data

    begun = client.uploads.create(filename="two.jsonl", purpose="batch", bytes=6, mime_type="text/jsonl")
    second = client.uploads.parts.create(begun.id, data=b"def")
    first = client.uploads.parts.create(begun.id, data=b"abc")
    with pytest.raises(openai.BadRequestError, match="more than the 6 bytes"):
        client.uploads.parts.create(begun.id, data=b"g")
    with pytest.raises(openai.BadRequestError, match="has no part"):
        client.uploads.complete(begun.id, part_ids=[first.id, "../../etc/passwd"])
    with pytest.raises(openai.BadRequestError, match="md5"):
        client.uploads.complete(begun.id, part_ids=[first.id, second.id], md5="0" * 32)
    completed = client.uploads.complete(begun.id, part_ids=[first.id, second.id])
    assert completed.file is not None
    again = client.uploads.complete(begun.id, part_ids=[first.id, second.id])  # the answer was lost
    assert again.file is not None
    assert again.file.id == completed.file.id
    with pytest.raises(openai.ConflictError, match="is completed"):
        client.uploads.complete(begun.id, part_ids=[second.id, first.id])
    assert client.files.content(completed.file.id).content == b"abcdef"
    with pytest.raises(openai.ConflictError):
        client.uploads.cancel(begun.id)
    given_up = client.uploads.create(filename="x", purpose="batch", bytes=6, mime_type="text/jsonl")
    client.uploads.parts.create(given_up.id, data=b"abc")
    assert client.uploads.cancel(given_up.id).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        client.uploads.complete(f"upload_{'0' * 24}", part_ids=["x"])


def test_a_wrong_file_fails_with_every_bad_line(busy: Served) -> None:
    """Mutant: a validation whose errors are not kept."""
    client = client_of(busy)
    lines: list[dict[str, Any]] = [
        *chats(3),
        {"custom_id": "r-0"},
        {"custom_id": 5, "method": "POST", "url": ENDPOINT, "body": {}},
    ]
    file = client.files.create(file=("bad.jsonl", jsonl(lines)), purpose="batch")
    batch = ended(
        client,
        client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h").id,
        busy,
    )
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert {error.line for error in batch.errors.data or []} == {4, 5}
    other = client.files.create(file=("other.jsonl", jsonl(chats(2))), purpose="batch")
    wrong = client.batches.create(input_file_id=other.id, endpoint="/v1/embeddings", completion_window="24h")
    batch = ended(client, wrong.id, busy)
    assert batch.errors is not None
    assert [error.code for error in batch.errors.data or []] == ["invalid_url"]
    assert ended(client, batch.id, busy).status == "failed"
    zipped = client.files.create(file=("x.jsonl", b"PK\x03\x04nonsense"), purpose="batch")
    batch = client.batches.create(input_file_id=zipped.id, endpoint=ENDPOINT, completion_window="24h")
    assert ended(client, batch.id, busy).status == "failed"


def test_errors_are_the_right_exceptions_and_no_storm(busy: Served) -> None:
    """Mutant: a 409 without ``x-should-retry: false``, which the client repeats twice."""
    client = client_of(busy)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{busy.url}/v1", api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_000000000000000000000000")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("last")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.batches.create(input_file_id="file-none", endpoint=ENDPOINT, completion_window="24h")
    assert wrong.value.param == "input_file_id"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.files.create(file=b"x", purpose="fine-tune")
    assert wrong.value.param == "purpose"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.files.create(file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 10})
    assert wrong.value.param == "expires_after[seconds]"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.batches.list(limit=101)
    assert wrong.value.param == "limit"
    file = client.files.create(file=("x.jsonl", jsonl(chats(1))), purpose="batch")
    for window in ("soon", "0h"):
        with pytest.raises(openai.BadRequestError) as wrong:
            client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window=window)  # type: ignore[arg-type]
        assert wrong.value.param == "completion_window"
    honoured = client.batches.create(
        input_file_id=file.id,
        endpoint=ENDPOINT,
        completion_window="72h",  # type: ignore[arg-type]
    )
    assert honoured.expires_at is not None
    assert abs(honoured.expires_at - honoured.created_at - 72 * 3600) <= 1
    with pytest.raises(openai.BadRequestError) as wrong:
        client.batches.create(
            input_file_id=file.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            extra_body={"output_path": "/etc/x"},
        )
    assert wrong.value.code == "unknown_parameter"
    ended(client, honoured.id, busy)
    _, headers, _ = busy.ask(f"/v1/batches/{honoured.id}/cancel", method="POST", body=b"{}")
    assert headers["x-should-retry"] == "false"
    begin = time.monotonic()
    with pytest.raises(openai.ConflictError) as conflict:
        client.batches.cancel(honoured.id)
    assert time.monotonic() - begin < 5
    assert (conflict.value.request_id or "").startswith("req_")


def test_the_same_request_makes_one_batch(busy: Served) -> None:
    """A lost answer, asked again. Mutant: a server that ignores ``Idempotency-Key``, or the client's retry count."""
    client = client_of(busy)
    file = client.files.create(file=("x.jsonl", jsonl(chats(1))), purpose="batch")

    def create(**headers: str) -> str:
        return client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", extra_headers=headers
        ).id

    first = create()
    assert create(**{"x-stainless-retry-count": "1"}) == first
    assert create() != first
    keyed = create(**{"Idempotency-Key": "one"})
    assert create(**{"Idempotency-Key": "one"}) == keyed != create(**{"Idempotency-Key": "two"})
    with pytest.raises(openai.BadRequestError, match="another request"):
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h",
            extra_headers={"Idempotency-Key": "one"},
        )  # fmt: skip


def test_lists_page_through_everything(own: Home) -> None:
    """250 batches and files, each once. Mutants: ``after`` is ignored; ``has_more`` is true on the last page."""
    from vbatch import batches
    from vbatch.batches import InputFile, SubmitOptions

    source = own.write("one", chats(1))
    store = Store(own.database_url)
    store.prepare()
    made = [
        batches.submit(
            store, InputFile.at(source), SubmitOptions(output=own.path / f"{number}.jsonl")
        ).batch.id
        for number in range(250)
    ]
    store.close()
    with served(own) as server:
        client = client_of(server)
        assert [batch.id for batch in client.batches.list(limit=100)] == made[::-1]
        page = client.batches.list(limit=50, after=made[50])
        assert (page.has_more, len(page.data)) == (False, 50)
        assert [batch.id for batch in client.batches.list()] == made[::-1]
        with pytest.raises(openai.NotFoundError):
            client.batches.list(after="batch_000000000000000000000000")
        files = [client.files.create(file=(f"{n}.jsonl", b"x"), purpose="batch").id for n in range(5)]
        assert [file.id for file in client.files.list(limit=2)] == files[::-1]
        assert [file.id for file in client.files.list(limit=2, order="asc")] == files


def test_a_download_that_is_cut_off_is_resumed(busy: Served) -> None:
    """With Range and If-Range. Mutant: an ETag that is weak, or not that of the content."""
    client = client_of(busy)
    data = os.urandom(3 << 20)
    file = client.files.create(file=("big.jsonl", data), purpose="batch")
    path = f"/v1/files/{file.id}/content"
    with socket.create_connection(("127.0.0.1", busy.port)) as connection:
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
        )
        got = b""
        while len(got) < 1 << 20:
            got += connection.recv(65536)
    head, _, begun = got.partition(b"\r\n\r\n")
    etag = head.lower().partition(b"\r\netag: ")[2].partition(b"\r\n")[0].decode()
    assert etag.startswith('"')
    ranges = {"Range": f"bytes={len(begun)}-", "If-Range": etag}
    status, headers, rest = busy.ask(path, headers=ranges)
    assert (status, headers["content-range"]) == (206, f"bytes {len(begun)}-{len(data) - 1}/{len(data)}")
    assert begun + rest == data
    assert busy.ask(path, headers=ranges | {"If-Range": '"other"'})[0] == 200
    status, headers, body = busy.ask(path, headers={"Range": "bytes=99999999-"})
    assert (status, headers["content-range"]) == (416, f"bytes */{len(data)}")
    assert set(json.loads(body)["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }  # mutant: the framework's own
    assert headers["content-length"] == str(len(body))
    many = ",".join(f"{n}-{n}" for n in range(0, 4000, 2))
    assert busy.ask(path, headers={"Range": f"bytes={many}"})[0] in (200, 400, 416)
    with client.files.with_streaming_response.content(file.id) as response:
        assert b"".join(response.iter_bytes()) == data


def test_a_download_of_a_batch_of_the_command_line_is_resumed(own: Home) -> None:
    """Mutants: a part begins at its line; a part of other bytes than the client has; the size is that of the part."""
    batch = own.submit([*chats(30), chat("bad", "x", echo="error400")])
    own.run("run-worker", "--engine", "echo", "--drain")
    with served(own) as server:
        for kind, file in (("output", "prompts.output.jsonl"), ("errors", "prompts.errors.jsonl")):
            path = f"/v1/files/file-{kind}-{batch.removeprefix('batch_')}"
            whole = (own.path / file).read_bytes()
            size = len(whole)
            status, headers, body = server.ask(f"{path}/content")
            assert (status, body) == (200, whole)
            tag = headers["etag"]
            assert server.json(path)["bytes"] == size
            for asked, expected in [
                ("bytes=100-", whole[100:]),
                ("bytes=0-0", whole[:1]),
                (f"bytes={size // 2}-{size // 2 + 300}", whole[size // 2 : size // 2 + 301]),
                ("bytes=-7", whole[-7:]),
                (f"bytes=5-{size * 2}", whole[5:]),
            ]:
                for condition in ({}, {"if-range": tag}):
                    status, headers, body = server.ask(
                        f"{path}/content", headers={"range": asked, **condition}
                    )
                    assert (status, body) == (206, expected)
                    assert headers["content-length"] == str(len(expected))
                    assert headers["content-range"].endswith(f"/{size}")
                    assert headers["etag"] == tag
            for sent in ({"range": "bytes=5-", "if-range": '"another"'}, {"range": "bytes=0-1,5-6"}):
                status, _, body = server.ask(f"{path}/content", headers=sent)
                assert (status, body) == (200, whole)
            for asked in (f"bytes={size}-", "bytes=-0"):
                status, headers, body = server.ask(f"{path}/content", headers={"range": asked})
                assert (status, headers["content-range"]) == (416, f"bytes */{size}")
                assert json.loads(body)["error"]["param"] == "range"


def test_a_running_batch_shows_what_is_there_and_is_cancelled(own: Home) -> None:
    """Mutant: a cancelled batch whose files nobody writes."""
    with served(own) as server:
        client = client_of(server)
        file = client.files.create(
            file=("x.jsonl", jsonl([*chats(40), *[chat(f"s{i}", "x", echo="hang") for i in range(3)]])),
            purpose="batch",
        )
        batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
        with own.worker("--engine", "echo", VBATCH_FLUSH_INTERVAL="200ms", VBATCH_DRAIN_LIMIT="1s"):
            until(lambda: (client.batches.retrieve(batch.id).request_counts or batch).completed == 40)  # type: ignore[union-attr]
            status, headers, lines = server.ask(f"/v1/batches/{batch.id}/output")
            assert (status, headers["x-incomplete"], len(lines.splitlines())) == (200, "true", 40)
            assert client.batches.cancel(batch.id).status == "cancelling"
            done = ended(client, batch.id, server)
        assert (done.status, done.request_counts and done.request_counts.completed) == ("cancelled", 40)
        assert len(client.files.content(str(done.output_file_id)).text.splitlines()) == 40
        assert len(client.files.content(str(done.error_file_id)).text.splitlines()) == 3


WALK = """
import fs from 'node:fs';
import OpenAI from 'openai';
const client = new OpenAI({baseURL: process.env.URL + '/v1', apiKey: process.env.KEY});
const file = await client.files.create({file: fs.createReadStream(process.env.SOURCE), purpose: 'batch'});
await client.files.waitForProcessing(file.id);
let batch = await client.batches.create(
  {input_file_id: file.id, endpoint: '/v1/chat/completions', completion_window: '24h'});
while (!['completed', 'failed'].includes(batch.status)) {
  await new Promise(done => setTimeout(done, 200));
  batch = await client.batches.retrieve(batch.id);
}
const text = await (await client.files.content(batch.output_file_id)).text();
let listed = 0;
for await (const each of client.batches.list({limit: 2})) listed += each.id === batch.id ? 1 : 0;
let conflict = '';
try { await client.batches.cancel(batch.id); } catch (error) { conflict = error.constructor.name; }
let missing = '';
try { await client.files.retrieve('file-none'); } catch (error) { missing = error.constructor.name; }
console.log(JSON.stringify({status: batch.status, lines: text.trim().split('\\n').length, listed, conflict, missing}));
"""


def test_the_javascript_client(busy: Served, place: Home) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node is not installed")
    cache = CACHE / "openai-js"
    if not (cache / "node_modules" / "openai").is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        installed = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "openai"],
            cwd=cache,
            capture_output=True,
            check=False,
        )
        if installed.returncode != 0:
            pytest.skip("the package openai of npm cannot be installed")
    (cache / "walk.mjs").write_text(WALK)
    source = place.write("js", chats(50))
    environment = os.environ | {"URL": busy.url, "KEY": KEY, "SOURCE": str(source)}
    done = run(
        ["node", "walk.mjs"], env=environment, cwd=cache, progress=lambda: cpu_seconds(busy.process.pid)
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "status": "completed", "lines": 50, "listed": 1, "conflict": "ConflictError", "missing": "NotFoundError",
    }  # fmt: skip


OLD_WALK = """
import os, time
import openai
client = openai.OpenAI(base_url=os.environ["URL"] + "/v1", api_key=os.environ["KEY"])
with open(os.environ["SOURCE"], "rb") as source:
    file = client.files.create(file=source, purpose="batch")
client.files.wait_for_processing(file.id)
batch = client.batches.create(
    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status not in ("completed", "failed"):
    time.sleep(0.2)
    batch = client.batches.retrieve(batch.id)
lines = client.files.content(batch.output_file_id).text.splitlines()
listed = sum(each.id == batch.id for each in client.batches.list(limit=2))
try:
    client.batches.cancel(batch.id)
except openai.ConflictError:
    print(batch.status, len(lines), listed, "conflict")
"""


@pytest.mark.long
def test_the_python_client_of_a_year_ago(busy: Served, place: Home) -> None:
    """In an environment of its own: needs a package index."""
    folder = place.path / "old"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "openai>=2.6,<2.9"], check=True)
    source = place.write("old", chats(50))
    environment = os.environ | {"URL": busy.url, "KEY": KEY, "SOURCE": str(source), "PYTHONPATH": ""}
    done = run([python, "-c", OLD_WALK], env=environment, progress=lambda: cpu_seconds(busy.process.pid))
    assert (done.stdout.split(), done.returncode) == (["completed", "50", "1", "conflict"], 0), done.stderr
