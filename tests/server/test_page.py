"""The page for people: who may see it, what it shows, what it lets them do, and that nothing written by others runs."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from openai import OpenAI

from tests.rigs.pages import BIDI, SCRIPT, Filled, Visitor, entered, fill, paged, samples_of, work_off
from tests.rigs.serving import KEY
from vbatch import pausing
from vbatch.batches import Store, create, files
from vbatch.config import Settings
from vbatch.server.errors import ApiError
from vbatch.server.keys import Keys
from vbatch.server.samples import ALL, MOST, Samples
from vbatch.server.sessions import LIFETIME, Sessions
from vbatch.store import COMMAND_PATIENCE, catalog, registry
from vbatch.system import processes


class Place:
    """A filled store with its page."""

    def __init__(self, store: Store, filled: Filled, port: int, settings: Settings) -> None:
        self.store, self.filled, self.port, self.settings = store, filled, port, settings

    def visitor(self) -> Visitor:
        return Visitor(self.port)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One for all tests of this file, which change nothing that another one looks at."""
    folder = tmp_path_factory.mktemp("page")
    store = Store(f"sqlite:///{folder}/vbatch.db", patience=COMMAND_PATIENCE)
    store.prepare()
    filled = fill(store, folder)
    with paged(store, folder, samples=samples_of(filled.running)) as (port, settings):
        yield Place(store, filled, port, settings)
    store.close()


def test_only_a_login_shows_anything(place: Place) -> None:
    """Mutant: a page that does not ask for the session."""
    stranger, batch = place.visitor(), f"/batches/{place.filled.ended.id}"
    for path in ("/", batch, f"{batch}/requests", "/batches/none", "/?after=x"):
        status, headers, body = stranger.ask(path)
        assert (status, headers["location"], body) == (303, "/login", ""), path
    for path in ("/pause", "/resume", f"{batch}/cancel", "/logout"):
        assert stranger.ask(path, form={"token": "x"})[1]["location"] == "/login"
    assert stranger.ask("/v1/batches")[0] == 401
    assert stranger.ask(f"/?key={KEY}")[0] == 303
    assert not pausing.shown(place.settings)


def test_the_key_is_given_once(place: Place) -> None:
    """Mutants: a cookie that scripts can read, or that other sites send; a wrong key that costs no time."""
    person = place.visitor()
    began = time.monotonic()
    status, headers, body = person.ask("/login", form={"key": f"{KEY}x"})
    assert time.monotonic() - began > 0.9
    assert status == 401
    assert "This key is wrong" in body
    assert "set-cookie" not in headers
    status, headers, _ = person.ask("/login", form={"key": KEY})
    assert (status, headers["location"]) == (303, "/")
    flags = {part.strip().lower() for part in headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/", f"max-age={int(LIFETIME.total_seconds())}"} == flags
    status, headers, body = person.ask("/")
    assert status == 200
    assert KEY not in body
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert person.ask("/login")[0] == 303


def test_many_wrong_keys_wait_in_line() -> None:
    """Mutant: each attempt with a pause of its own, side by side."""

    async def attempts() -> tuple[list[object], float]:
        sessions = Sessions(Keys([KEY]), pause=0.05)
        began = time.monotonic()
        found = await asyncio.gather(*(sessions.log_in("wrong") for _ in range(11)), return_exceptions=True)
        return list(found), time.monotonic() - began

    found, seconds = asyncio.run(attempts())
    assert [answer for answer in found if answer is None] == [None] * 8
    assert all(isinstance(each, ApiError) and each.status == 429 for each in found if each is not None)
    assert seconds >= 8 * 0.05


def test_a_logout_ends_the_cookie(place: Place) -> None:
    """Mutant: a logout that only removes the cookie of this browser."""
    person = place.visitor().log_in()
    kept = dict(person.cookies)
    assert person.ask("/logout", form={"token": person.token()})[0] == 303
    thief = Visitor(place.port, kept)
    assert thief.ask("/")[0] == 303
    assert thief.ask("/v1/batches")[0] == 401


async def _log_in(sessions: Sessions) -> str:
    found = await sessions.log_in(KEY)
    assert found is not None
    return found


def test_a_session_ends_by_itself() -> None:
    """Mutant: sessions without an end, or without a number."""
    now = [0.0]
    sessions = Sessions(Keys([KEY]), clock=lambda: now[0])

    def scope(value: str) -> dict[str, object]:
        return {"server": ("127.0.0.1", 80), "headers": [(b"cookie", f"a=b; vbatch_80={value}".encode())]}

    first = asyncio.run(_log_in(sessions))
    assert sessions.of(scope(first)) is not None
    assert sessions.of(scope("x" * 9000)) is None
    now[0] = LIFETIME.total_seconds() + 1
    assert sessions.of(scope(first)) is None

    async def many() -> list[str]:
        return [await _log_in(sessions) for _ in range(101)]

    values = asyncio.run(many())
    assert [sessions.of(scope(value)) is None for value in (values[0], values[1], values[-1])] == [
        True,
        False,
        False,
    ]


def test_a_form_is_of_a_page_of_the_same_login(place: Place) -> None:
    """A token that is missing, made up, or of another login. Mutant: a token that is the same for all."""
    person, other = place.visitor().log_in(), place.visitor().log_in()
    cancel = f"/batches/{place.filled.running.id}/cancel"
    assert person.token() != other.token()
    for form in ({}, {"token": ""}, {"token": "x"}, {"token": other.token()}, {"token": "\u0394"}):
        for path in (cancel, "/pause", "/logout"):
            status, _, body = person.ask(path, form=form)
            assert status == 403, form
            assert "load the page again" in body
    right = {"token": person.token()}
    assert person.ask(cancel, form=right, headers={"Origin": "http://evil.example"})[0] == 403
    assert person.ask(cancel, form=right, headers={"Sec-Fetch-Site": "same-site"})[0] == 403
    assert person.ask(cancel, form=right | {"filler": "x" * 20_000})[0] == 413
    assert person.ask(cancel)[0] == 405
    assert catalog.find(place.store, place.filled.running.id).status == "in_progress"
    assert not pausing.shown(place.settings)
    assert person.ask("/")[0] == 200


def test_the_cookie_changes_nothing_of_the_api(place: Place) -> None:
    """It reads, for downloads. Mutant: a cookie that is as good as the key."""
    person = place.visitor().log_in()
    assert person.ask("/v1/batches")[0] == 200
    running = place.filled.running.id
    assert person.ask(f"/v1/batches/{running}/cancel", method="POST")[0] == 401
    assert person.ask(f"/v1/batches/{running}", method="DELETE")[0] == 401


def test_the_overview(place: Place) -> None:
    page = place.visitor().log_in().page("/")
    for found in (
        "translations",
        "in progress",
        "67 %",
        "larger model",
        "blocked",
        "completed",
        "GPU-8f3c21aa",
    ):
        assert found in page
    assert "the model needs 160 GiB, and the GPU has 80 GiB" in page
    assert "vbatch run-worker --gpu 0,1" in page
    assert "12.5 requests/s" in page
    assert "2 unfinished batches" in page
    assert re.search(r'<path class="line" d="M0\.0 [\d. L]+"/>', page)
    assert re.search(r"[\d.]+ requests/s now, [\d.]+ at most", page)


def test_what_others_wrote_is_text(place: Place) -> None:
    """Markup in a name, an answer and an error, and characters that move text. Mutants: no autoescape, no finalize."""
    person, batch = place.visitor().log_in(), f"/batches/{place.filled.ended.id}"
    for path in ("/", batch, f"{batch}/requests", f"{batch}/requests?show=failed"):
        page = person.page(path)
        assert "&lt;script&gt;" in page
        assert "<script>" not in page
        assert "<img" not in page
        assert not set(BIDI) & set("\u202e\u2066\u2069\u0007") & set(page)
    assert "user\\u202e\\u2066 // admin\\u2069\\x07" in person.page(batch)
    assert "user\\u202e\\u2066" in person.page(f"{batch}/requests")
    assert SCRIPT not in person.ask(f"/batches/{SCRIPT.replace('/', '').replace(' ', '%20')}")[2]


def test_a_batch(place: Place) -> None:
    """Failures in groups, cut-off answers, files to download with the cookie alone."""
    person, ended = place.visitor().log_in(), place.filled.ended
    page = person.page(f"/batches/{ended.id}")
    assert re.search(r'http_400</th><td[^>]*>3</td><td class="wide">maximum context length is 4096', page)
    assert "the engine crashed 3 times" in page
    assert "after 3 attempts" in page
    assert "2 answers ended at the limit of tokens" in page
    assert "Cancel the batch" not in page
    assert "data-refresh" not in page
    files = re.findall(r'href="(/v1/[^"]+)" download="([^"]+)"', page)
    suffix = ended.id.removeprefix("batch_")
    assert [name for _, name in files] == [f"{suffix}.output.jsonl", f"{suffix}.errors.jsonl"]
    assert [person.ask(where)[2].count("\n") for where, _ in files] == [56, 4]
    page = person.page(f"/batches/{place.filled.running.id}")
    assert "Download 470 lines of output so far" in page
    assert "data-refresh" in page
    page = person.page(f"/batches/{place.filled.blocked.id}")
    assert "the model needs 160 GiB" in page
    assert f"vbatch retry {place.filled.blocked.id} -m MODEL" in page
    status, _, body = person.ask("/batches/batch_000000000000000000000000")
    assert status == 404
    assert "there is no batch" in body


def lines(page: str) -> list[int]:
    """Return which requests a page shows."""
    return [int(line) for line in re.findall(r'<h2 id="r(\d+)"', page)]


def link(page: str, which: str) -> str | None:
    found = re.search(rf'<a rel="{which}" href="([^"]+)"', page)
    return None if found is None else found[1].replace("&amp;", "&")


def test_leafing_through(place: Place) -> None:
    """Forwards to the end and back again, each request once; filters; one alone. Mutant: a page that skips one."""
    person, base = place.visitor().log_in(), f"/batches/{place.filled.ended.id}/requests"
    seen: list[list[int]] = []
    where: str | None = base
    while where is not None:
        page = person.page(where)
        seen.append(lines(page))
        last, where = page, link(page, "next")
    assert [line for each in seen for line in each] == list(range(1, 61))
    where, back = link(last, "prev"), [seen[-1]]
    while where is not None:
        page = person.page(where)
        back.append(lines(page))
        where = link(page, "prev")
    assert back[::-1] == seen
    assert lines(person.page(f"{base}?show=failed")) == [5, 25, 45, 60]
    assert lines(person.page(f"{base}?show=cut_off")) == [3, 26]
    assert lines(person.page(f"{base}?show=failed&after=5&alone=1")) == [25]
    assert lines(person.page(f"{base}?show=failed&before=60&alone=1")) == [45]
    assert "There are no such requests" in person.page(f"{base}?after=60")
    assert "There are no such requests in this batch" in person.page(
        f"/batches/{place.filled.running.id}/requests?show=failed"
    )
    assert "Not finished yet." in person.page(f"/batches/{place.filled.running.id}/requests?after=690")
    for wrong in ("show=none", "after=-1", "before=x", "after=" + "9" * 30):
        assert person.ask(f"{base}?{wrong}")[0] == 400


def test_cancel_pause_and_resume(store: Store, tmp_path: Path) -> None:
    """The three things that can be done. A long text is shortened, and whole alone."""
    long = "word " * 2000
    batch = entered(store, [long, "short"])
    with paged(store, tmp_path) as (port, settings):
        person = Visitor(port).log_in()
        assert "No worker is running" in person.page("/")
        page = person.page(f"/batches/{batch.id}/requests")
        assert page.count("word") < 500
        whole = re.search(r'href="([^"]+)">The whole text', page)
        assert whole is not None
        page = person.page(whole[1].replace("&amp;", "&"))
        assert (lines(page), page.count("word ")) == ([1], 2000)
        token = {"token": person.token()}
        assert person.ask("/pause", form=token)[0] == 303
        assert pausing.shown(settings) is not None
        assert "The workers are paused" in person.page("/")
        assert person.ask("/resume", form=token)[0] == 303
        assert pausing.shown(settings) is None
        assert person.ask(f"/batches/{batch.id}/cancel", form=token)[0] == 303
        assert catalog.find(store, batch.id).status in ("cancelling", "finalizing", "cancelled")
        status, _, body = person.ask(f"/batches/{batch.id}/cancel", form=token)
        assert status in (303, 409), body
        assert "Cancel the batch" not in person.page(f"/batches/{batch.id}")


def test_an_empty_store_without_a_key(own_store: Store, tmp_path: Path) -> None:
    """Without keys nobody logs in, and a form still needs the page's token. Mutant: no token without keys."""
    with paged(own_store, tmp_path, keys=()) as (port, settings):
        person = Visitor(port)
        page = person.page("/")
        assert "There is no batch yet." in page
        assert "No pace to show yet" in page
        assert "Log out" not in page
        assert person.ask("/login")[0] == 303
        assert person.ask("/pause", form={"token": "x"})[0] == 403
        assert pausing.shown(settings) is None
        assert person.ask("/static/page.css")[1]["content-type"].startswith("text/css")
        assert person.ask("/static/../page.py")[0] == 404


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[Store]:
    """A fresh store on SQLite."""
    opened = Store(f"sqlite:///{tmp_path}/vbatch.db", patience=COMMAND_PATIENCE)
    opened.prepare()
    yield opened
    opened.close()


def test_many_batches_are_paged(own_store: Store, tmp_path: Path) -> None:
    """Mutant: an overview that shows them all."""
    for number in range(53):
        entered(own_store, ["x"], name=f"batch number {number}")
    with paged(own_store, tmp_path) as (port, _):
        person = Visitor(port).log_in()
        page = person.page("/")
        assert page.count('id="b-batch_') == 50
        older = re.search(r'href="([^"]+)">Older batches', page)
        assert older is not None
        assert person.page(older[1]).count('id="b-batch_') == 3
        assert person.ask("/?after=nonsense")[0] == 404


def test_samples_see_the_pace_and_stay_small(own_store: Store) -> None:
    """From the store, with the last piece of a batch that has ended. Mutant: a dictionary that only grows."""
    now = [0.0]
    found = Samples(clock=lambda: now[0])
    worker = registry.register(own_store, identity=processes.current(), engine="vllm")
    batch = entered(own_store, ["x"] * 300)
    found.look(own_store)
    work_off(own_store, worker, {}, most=150)
    now[0] = 15.0
    found.look(own_store)
    assert [point.requests for point in found.pace(batch.id)] == [10.0]
    assert [point.requests for point in found.pace(ALL)] == [10.0]
    for _ in range(3 * MOST):
        now[0] += 15
        found.add([replace(batch, id=f"batch_{now[0]}")])
    assert len(found._of) == MOST + 1
    assert found.pace("unknown") == []


def test_a_file_that_is_not_valid(own_store: Store, tmp_path: Path) -> None:
    """The batch of a program that failed shows its bad lines. Mutant: a page that expects requests."""
    with paged(own_store, tmp_path) as (port, settings):
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
        file = client.files.create(file=("x.jsonl", b'{"custom_id": "a"}\nnot json\n'), purpose="batch")
        made = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        person = Visitor(port).log_in()
        assert "validating" in person.page(f"/batches/{made.id}")
        (waiting,) = create.waiting(own_store)
        create.validate(own_store, files.folder_of(settings.data_dir), waiting)
        page = person.page(f"/batches/{made.id}")
        assert "The file is not valid" in page
        assert "line 2: This is not JSON" in page
        assert "Download" not in page
        assert "There are no such requests" in person.page(f"/batches/{made.id}/requests")
