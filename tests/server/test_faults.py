"""What may go wrong: the server is killed, a client is slow or hostile, a row is forged, the disk or quota is full."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import pytest
from sqlalchemy import update

from tests.faults.test_store_file import by_rename, copy, in_place
from tests.rigs.commands import Home, chats
from tests.rigs.serving import KEY, Served, served
from tests.rigs.waiting import until
from vbatch.store import Store
from vbatch.store.tables import BATCH

ENDPOINT = "/v1/chat/completions"
FORM = {"content-type": "multipart/form-data; boundary=x"}


def form(data: bytes, *, name: str = "x.jsonl", last: bytes = b"") -> bytes:
    """Return a form as curl writes it: the purpose may come after the file."""
    return (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n'
        + data + b'\r\n--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n' + last + b"--x--\r\n"
    )  # fmt: skip


def upload(server: Served, data: bytes, *, name: str = "x.jsonl") -> str:
    status, _, body = server.ask("/v1/files", method="POST", body=form(data, name=name), headers=FORM)
    assert status == 200, body
    return str(json.loads(body)["id"])


def jsonl(count: int) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in chats(count)).encode()


def create(server: Served, file_id: str) -> str:
    wanted = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
    return str(server.json("/v1/batches", document=wanted)["id"])


def names(own: Home) -> set[str]:
    folder = own.path / "data" / "vbatch" / "files"
    return {path.name for path in folder.iterdir() if path.is_file()} - {".lock"}


def begin_upload(server: Served, sent: int) -> socket.socket:
    """Send the beginning of a large file, and keep the connection."""
    connection = server.connect()
    head = form(b"").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    connection.sendall(
        b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000000\r\n\r\n" + head
    )
    connection.sendall(b"y" * sent)
    return connection


def test_a_kill_during_an_upload_leaves_nothing(own: Home) -> None:
    """Neither a file nor a row; the next start sweeps the half. Mutant: a sweep that is left out."""
    with served(own) as server:
        whole = upload(server, b"abc")
        with begin_upload(server, 3 << 20):
            until(lambda: any(name.endswith(".vbatch-tmp") for name in names(own)))
            assert [file["id"] for file in server.json("/v1/files")["data"]] == [whole]
            server.kill()
    orphan = own.path / "data" / "vbatch" / "files" / f"file-{'0' * 24}"
    orphan.write_bytes(b"whole, but killed before its row")
    assert len(names(own)) == 3
    with served(own) as server:
        assert names(own) == {whole}
        assert [file["id"] for file in server.json("/v1/files")["data"]] == [whole]
        assert server.ask(f"/v1/files/{whole}/content")[2] == b"abc"


def test_a_client_that_goes_away_leaves_nothing(own: Home, server: Served) -> None:
    with begin_upload(server, 3 << 20):
        until(lambda: any(name.endswith(".vbatch-tmp") for name in names(own)))
    until(lambda: not names(own))
    assert server.json("/v1/files")["data"] == []


def test_kills_during_validation_and_finalization_lose_nothing(own: Home) -> None:
    """Killed again and again at any moment: in the end each batch is completed, whole. Mutant: no resumption."""
    with served(own) as server:
        file_id = upload(server, jsonl(20_000))
        batch_id = create(server, file_id)
        server.kill()  # at once: it is validating
        assert own.batch(batch_id)["status"] in ("validating", "in_progress")
    with served(own) as server, own.worker("--engine", "echo"):
        until(lambda: server.json(f"/v1/batches/{batch_id}")["request_counts"]["total"] == 20_000)
        until(lambda: own.finished(batch_id) == 20_000, progress=lambda: own.finished(batch_id), pause=0.2)
        server.kill()  # its files are being written, or about to be
    for _ in range(2):
        with served(own) as server:
            server.kill()
    with served(own) as server:
        until(lambda: server.json(f"/v1/batches/{batch_id}")["status"] == "completed")
        output = server.json(f"/v1/batches/{batch_id}")["output_file_id"]
        lines = server.ask(f"/v1/files/{output}/content")[2].splitlines()
        assert [json.loads(line)["custom_id"] for line in lines] == [f"r-{i}" for i in range(20_000)]
        listed = [file["id"] for file in server.json("/v1/files")["data"]]
        assert sorted(listed) == sorted([file_id, output])
        assert names(own) == {file_id, output}
        place = own.path / "data" / "vbatch" / "files" / output
        assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_cancel_while_it_is_validated(own: Home) -> None:
    """It stays cancelled, also over a crash. Mutant: a validation that takes a cancelled batch for its own."""
    with served(own) as server:
        file_id = upload(server, jsonl(20_000))
        batch_id = create(server, file_id)
        ended = server.json(f"/v1/batches/{batch_id}/cancel", method="POST")
        assert ended["status"] in ("cancelled", "cancelling")
        server.kill()
    with served(own) as server:
        until(lambda: server.json(f"/v1/batches/{batch_id}")["status"] == "cancelled")
        assert server.ask(f"/v1/files/{file_id}", method="DELETE")[0] == 200
        assert own.run("delete", batch_id).returncode == 0


def test_no_path_of_a_row_or_a_name_is_opened(own: Home) -> None:
    """A forged row that names /etc/passwd, and traversal. Mutant: a content that is read from ``output_path``."""
    mine = own.submit(chats(3))
    with own.worker("--engine", "echo"):
        until(lambda: own.batch(mine)["status"] == "completed")
    expected = Path(str(own.batch(mine)["output_path"])).read_bytes()
    store = Store(own.database_url)
    with served(own) as server:
        file_id = upload(server, jsonl(2), name="../../../../tmp/pwned.jsonl")
        assert server.json(f"/v1/files/{file_id}")["filename"] == "pwned.jsonl"
        batch_id = create(server, file_id)
        store.write(
            lambda connection: connection.execute(
                update(BATCH).values(
                    output_path="/etc/passwd", error_path="/etc/passwd", input_path="/etc/passwd"
                )
            )
        )
        with own.worker("--engine", "echo"):
            until(lambda: server.json(f"/v1/batches/{batch_id}")["status"] == "completed")
        for each in (mine, batch_id):
            found = server.json(f"/v1/batches/{each}")
            assert "passwd" not in json.dumps(found)
            status, _, body = server.ask(f"/v1/files/{found['output_file_id']}/content")
            assert status == 200
            assert b"root:" not in body
            assert len(body.splitlines()) == (3 if each == mine else 2)
        rendered = server.json(f"/v1/batches/{mine}")["output_file_id"]
        assert server.ask(f"/v1/files/{rendered}/content")[2] == expected
        assert server.json(f"/v1/files/{rendered}")["bytes"] == len(expected)
        assert server.ask(f"/v1/files/{rendered}", method="DELETE")[0] == 409
        for path in ("..%2f..%2fvbatch.db", "%2e%2e/api-key", "file-..", ".lock", "%00", "file-output-zz"):
            for tail in ("", "/content"):
                assert server.ask(f"/v1/files/{path}{tail}")[0] == 404
            assert server.ask(f"/v1/files/{path}", method="DELETE")[0] == 404
    store.close()


def test_forms_that_flood_or_lie(server: Served) -> None:
    """Mutant: no limit on the fields of a form."""
    part = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
    floods = [
        (part + b"b" * 100_000 + b"\r\n--x--\r\n", 400),
        ((part + b"b\r\n") * 1000 + b"--x--\r\n", 400),
        (b"--x\r\n" + b"H: v\r\n" * 5000 + b"\r\n\r\n--x--\r\n", 400),
        (b"--x\r\nH: " + b"v" * 100_000 + b"\r\n\r\n\r\n--x--\r\n", 400),
        (b"nonsense", 400),
        (form(b"abc")[:-10], 400),
        (form(b"abc") + form(b"def"), 200),  # what follows the end is not read
        (form(b"abc", last=form(b"def")[:-5]), 400),
        (part + b"b\r\n--x--\r\n", 400),
        (b"", 400),
    ]
    for body, expected in floods:
        status, _, answer = server.ask("/v1/files", method="POST", body=body, headers=FORM)
        assert status == expected, (body[:80], answer)
    assert (
        server.ask("/v1/files", method="POST", body=b"{}", headers={"content-type": "application/json"})[0]
        == 400
    )
    for document in (
        b"[1]",
        b"{",
        b"[" * 100_000,
        b'{"endpoint": 5}',
        b'{"metadata": {"a": "\\ud800"}}',
        b"\xff",
    ):
        assert server.ask("/v1/batches", method="POST", body=document)[0] == 400
    assert server.ask("/health")[0] == 200


def test_limits_hold_before_a_byte_is_stored(own: Home) -> None:
    """Mutants: the size is only looked at when the file is whole; a quota that forgets what is coming in, or parts."""
    config = own.path / "config.toml"
    config.write_text('[serve]\nmax_upload = "1MiB"\nfiles_quota = "3MiB"\nuploads = 2\n')
    with served(own, VBATCH_CONFIG=str(config)) as server:
        status, headers, body = server.ask(
            "/v1/files", method="POST", body=form(b"y" * (3 << 20)), headers=FORM
        )
        assert (status, headers["connection"]) == (413, "close"), body
        assert not names(own)
        with begin_upload(server, 0) as first:
            assert first.recv(100).startswith(b"HTTP/1.1 413 ")
        slow = [server.connect() for _ in range(2)]
        for each in slow:
            each.sendall(
                b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
                + KEY.encode()
                + b"\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n--x\r\n"
            )
        until(lambda: b"vbatch_server_uploads 2.0" in server.ask("/metrics", key=None)[2])
        status, headers, _ = server.ask("/v1/files", method="POST", body=form(b"abc"), headers=FORM)
        assert (status, headers["retry-after"]) == (429, "10")
        for each in slow:
            each.close()
        until(lambda: b"vbatch_server_uploads 0.0" in server.ask("/metrics", key=None)[2])
        for _ in range(2):
            upload(server, b"y" * (1 << 20))
        status, headers, body = server.ask(
            "/v1/files", method="POST", body=form(b"y" * (1 << 20)), headers=FORM
        )
        assert (status, headers["x-should-retry"]) == (507, "false"), body
        assert len(names(own)) == 2
        # A file in parts is no way around: neither its announcement, nor parts that were never made a file.
        wanted = {"filename": "x", "purpose": "batch", "mime_type": "text/jsonl", "bytes": 900_000}
        begun = server.json("/v1/uploads", document=wanted)["id"]
        part = form(b"y" * 900_000).replace(b'"file"', b'"data"')
        assert server.ask(f"/v1/uploads/{begun}/parts", method="POST", body=part, headers=FORM)[0] == 200
        for _ in range(2):
            assert server.json("/v1/uploads", document=wanted)["error"]["code"] == "quota_exceeded"
        rules = (files("vbatch.service") / "alerts.yml").read_text()
        text = server.ask("/metrics", key=None)[2].decode()
        assert set(re.findall(r"vbatch_server_[a-z_]+", rules)) <= set(
            re.findall(r"vbatch_server_[a-z_]+", text)
        )
        done = own.run("doctor", "server", "--json", check=False)
        levels = {found["id"]: found["level"] for found in json.loads(done.stdout)["findings"]}
        seen = {name: levels[f"server.{name}"] for name in ("key", "running", "open", "quota")}
        assert seen == {"key": "skip", "running": "ok", "open": "ok", "quota": "ok"}


def test_two_hundred_clients_at_once(own: Home, server: Served) -> None:
    """Each gets its own answer. Mutant: threads that wait for each other's connection to the database."""
    file_id = upload(server, jsonl(1))

    def one(number: int) -> bool:
        if number % 4 == 0:
            return server.ask(f"/v1/files/{file_id}/content")[2] == jsonl(1)
        if number % 4 == 1:
            return bool(server.json("/v1/batches")["object"] == "list")
        if number % 4 == 2:
            return create(server, file_id).startswith("batch_")
        return server.ask("/health")[0] == 200

    start = threading.Barrier(200)

    def at_once(number: int) -> bool:
        start.wait()
        return one(number)

    with ThreadPoolExecutor(200) as pool:
        assert all(pool.map(at_once, range(200)))
    assert len(server.json("/v1/batches?limit=100")["data"]) == 50
    assert server.stop() == 0


def test_files_expire_but_not_what_is_needed(own: Home) -> None:
    """Mutant: an expiry that does not look at the batches."""
    from vbatch.store.tables import FILE

    with served(own) as server:
        needed, other = upload(server, jsonl(1)), upload(server, b"abc")
        create(server, needed)
        store = Store(own.database_url)
        from datetime import UTC, datetime, timedelta

        store.write(
            lambda connection: connection.execute(
                update(FILE).values(expires_at=datetime.now(UTC) - timedelta(seconds=1))
            )
        )
        store.close()
        until(lambda: names(own) == {needed}, silence=120)
        assert server.ask(f"/v1/files/{other}")[0] == 404
        assert server.ask(f"/v1/files/{needed}")[0] == 200


def test_it_answers_while_there_is_no_database(own: Home) -> None:
    """503 at once, and a stop ends it with 0. Mutant: it listens, and answers when it has a store."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # nobody speaks for the database there
        url = f"postgresql://x:x@127.0.0.1:{silent.getsockname()[1]}/x"
        with served(own, ready=r"server\.listening url=\S+:(\d+)", VBATCH_DATABASE_URL=url) as server:
            status, _, body = server.ask("/health", key=None)
            assert (status, json.loads(body)["store"]) == (503, False)
            status, headers, body = server.ask("/v1/files")
            assert (status, json.loads(body)["error"]["code"]) == (503, "store_unreachable")
            assert headers["retry-after"] == "5"
            assert server.ask("/v1/files", key=None)[0] == 401
            assert server.stop() == 0


@pytest.mark.parametrize("restore", [by_rename, in_place])
def test_a_store_that_is_replaced_is_followed(own: Home, restore: Callable[[Path, Path], None]) -> None:
    """A backup is restored under the server. Mutant: ``reopen`` does nothing; all is 503 until a person restarts it.

    What was uploaded since stays on the disk: another backup may know it.
    """
    path = Path(own.database_url.removeprefix("sqlite:///"))
    own.run("list")
    backup = copy(path, path.with_name("backup.db"))
    with served(own) as server:
        lost = upload(server, jsonl(1))
        restore(backup, path)
        until(lambda: server.log.read_text().count("server.ready") == 2)
        assert "server.store_replaced" in server.log.read_text()
        assert server.ask(f"/v1/files/{lost}")[0] == 404
        assert (own.path / "data" / "vbatch" / "files" / lost).exists()
        wanted = {"input_file_id": upload(server, jsonl(3)), "endpoint": ENDPOINT}
        batch = server.json("/v1/batches", document=wanted)["id"]
        own.run("run-worker", "--engine", "echo", "--drain")
        until(lambda: server.json(f"/v1/batches/{batch}")["status"] == "completed")
        assert server.stop() == 0


def test_a_damaged_upload_does_not_keep_the_server_down(own: Home) -> None:
    """Mutant: what is written there is believed to be as it should."""
    place = own.path / "data" / "vbatch" / "files" / "uploads" / f"upload_{'0' * 24}"
    place.mkdir(parents=True)
    (place / "upload.json").write_text('{"id": "upload_')
    with served(own) as server:
        assert server.ask(f"/v1/uploads/{place.name}/cancel", method="POST")[0] == 404
        assert place.is_dir()
    os.utime(place, (0, 0))
    with served(own):
        assert not place.exists()


def test_one_server_for_a_folder(own: Home, server: Served) -> None:
    """Mutant: a second server, which sweeps the uploads of the first."""
    done = own.run("serve", "--port", "0", check=False)
    assert done.returncode == 78
    assert "another vbatch serve" in done.stderr


def test_memory_is_flat(server: Served) -> None:
    """Mutant: a body that is read whole. The benchmark bench_serve.py measures it for 10 GB."""
    status = Path(f"/proc/{server.process.pid}/status")

    def peak() -> int:
        return int(status.read_text().partition("VmHWM:")[2].split()[0])

    upload(server, b"y" * (4 << 20))
    before = peak()
    head, tail = form(b"@").split(b"@")
    size = 200 << 20
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY.encode()
            + b"\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: "
            + str(len(head) + size + len(tail)).encode() + b"\r\n\r\n" + head
        )  # fmt: skip
        block = os.urandom(1 << 20)
        for _ in range(200):
            connection.sendall(block)
        connection.sendall(tail)
        connection.settimeout(120)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert peak() - before < 30_000  # KiB


@pytest.mark.long
def test_a_slow_client_ends(own: Home, server: Served) -> None:
    """A byte now and then: refused after a minute or so. Mutant: no lower limit on the speed of a body."""
    with begin_upload(server, 10) as connection:
        started = time.monotonic()
        connection.settimeout(1)
        answer = b""
        while not answer and time.monotonic() - started < 200:
            try:
                answer = connection.recv(100)
            except TimeoutError:
                connection.sendall(b"y")
        assert answer.startswith(b"HTTP/1.1 408 ")
    until(lambda: not names(own))
