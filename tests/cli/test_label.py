"""Label Studio: folders of tasks, push, pull; against a stand-in with the real server's answers."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import VBATCH, Home, chat, chats
from tests.rigs.label_studio import LOST, REFRESH, TOKEN, StandIn, stand_in
from tests.rigs.receiver import Page, receiver
from tests.rigs.waiting import until
from vbatch.outbound import label_studio
from vbatch.service.environment import worth_keeping
from vbatch.tabular.label_config import Config, NotFitting, Template, config_of

CORRECTED = [
    {"from_name": "answer", "to_name": "dialogue", "type": "textarea", "value": {"text": ["better"]}}
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in whose legacy token is in the variable, and no waiting between tries."""
    monkeypatch.setenv("VBATCH_LABEL_STUDIO_TOKEN", TOKEN)
    monkeypatch.setattr(label_studio, "PAUSE", 0.01)
    with stand_in() as running:
        monkeypatch.setenv("VBATCH_LABEL_STUDIO_URL", running.url)
        yield running


def choice(control: str, value: str) -> list[dict[str, Any]]:
    return [{"from_name": control, "to_name": "dialogue", "type": "choices", "value": {"choices": [value]}}]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_push_annotate_pull(cli: Cli, server: StandIn) -> None:
    """Every answer once; a second push adds nothing; corrections come back by custom_id, skipped ones do not."""
    batch_id = cli.submit("a.jsonl", [*chats(1200), chat("bad", "no", echo="error400")])
    cli.drain()
    pushed = cli("label", "push", batch_id, "--project", "new")
    assert pushed.code == 0, pushed.err
    assert "1,200 tasks pushed to project 1" in pushed.err
    assert "1 request left out" in pushed.err
    assert server.custom_ids(1) == [f"r-{n}" for n in range(1200)]
    assert server.imports == 2  # pages of 1,000
    task = server.tasks[1]
    assert task["data"]["messages"] == [{"role": "user", "content": "r-0"}]
    assert task["data"]["model_answer"] == "r-0"
    assert task["predictions"][0]["model_version"] == f"echo@{batch_id}"
    again = cli("label", "push", batch_id, "--project", "new", "--json")
    assert list(again.document) == [
        *("object", "project", "title", "created", "added", "present", "doubled", "left_out", "unfinished")
    ]
    assert (again.document["added"], again.document["present"], again.document["project"]) == (0, 1200, 1)
    server.annotate(3, CORRECTED)
    server.annotate(4, CORRECTED, cancelled=True)
    pulled = cli("label", "pull", "--project", "1", "-o", "corrected.jsonl")
    assert pulled.code == 0, pulled.err
    (line,) = lines((cli.folder / "corrected.jsonl").read_text())
    assert (line["custom_id"], line["model_answer"], line["corrected"]) == ("r-2", "r-2", "better")
    (line,) = lines(cli("label", "pull", "--project", "1", "--to", "sft").out)
    assert line["messages"][-1] == {"role": "assistant", "content": "better"}
    (line,) = lines(cli("label", "pull", "--project", "1", "--to", "preference").out)
    assert (line["chosen"][0]["content"], line["rejected"][0]["content"]) == ("better", "r-2")
    assert "exists" in cli("label", "pull", "--project", "1", "-o", "corrected.jsonl").err


@pytest.mark.parametrize("fault", [LOST, 500, 429])
def test_a_page_whose_answer_is_lost_is_not_sent_twice(cli: Cli, server: StandIn, fault: int) -> None:
    """Mutant: a retry that does not ask the server which tasks it has."""
    batch_id = cli.submit("a.jsonl", chats(30))
    cli.drain()
    server.before_import = lambda number: fault if number == 1 else 201
    assert cli("label", "push", batch_id, "--project", "new").code == 0
    assert server.custom_ids(1) == [f"r-{n}" for n in range(30)]
    assert server.imports == (1 if fault == LOST else 2)
    assert not [request for request in server.requests if request.startswith("DELETE")]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_killed_push_is_continued_without_doubles(home: Home, server: StandIn) -> None:
    """Its last page reaches the project only while the next push runs. Mutant: no look for doubles at the end."""
    batch_id = home.submit(chats(2500))
    home.run("run-worker", "--engine", "echo", "--drain")
    home.extra |= {"VBATCH_LABEL_STUDIO_TOKEN": TOKEN, "VBATCH_LABEL_STUDIO_URL": server.url}
    arrived, released = threading.Event(), threading.Event()

    def hold(number: int) -> int:
        if number == 2:
            arrived.set()
            released.wait(60)
        elif number == 3:
            released.set()
            until(lambda: len(server.custom_ids(1)) == 2000)
        return 201

    server.before_import = hold
    command = [*VBATCH, "label", "push", batch_id, "--project", "new"]
    with subprocess.Popen(command, env=home.env, cwd=home.path, stderr=subprocess.PIPE) as process:
        until(arrived.is_set)
        assert TOKEN not in Path(f"/proc/{process.pid}/cmdline").read_text()
        process.kill()
    done = home.run("label", "push", batch_id, "--project", "new")
    assert "1,000 were there already" in done.stderr
    assert "removed" in done.stderr
    assert len(server.projects) == 1
    assert sorted(server.custom_ids(1)) == sorted(f"r-{n}" for n in range(2500))


def test_a_personal_token_is_exchanged_and_renewed(
    cli: Cli, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent to the exchange alone. Mutant: an access token that has expired ends the push."""
    monkeypatch.delenv("VBATCH_LABEL_STUDIO_TOKEN")
    file = cli.folder / "token"
    file.write_text(REFRESH + "\n")
    file.chmod(0o644)
    monkeypatch.setenv("VBATCH_LABEL_STUDIO_TOKEN_FILE", str(file))
    batch_id = cli.submit("a.jsonl", chats(1001))  # two pages: the token expires after the first
    cli.drain()
    refused = cli("label", "push", batch_id, "--project", "new")
    assert (refused.code, server.requests) == (78, [])
    assert f"chmod 600 {file}" in refused.err
    file.chmod(0o600)

    def expire(_number: int) -> int:
        server.expired = True
        return 201

    server.before_import = expire
    assert cli("label", "push", batch_id, "--project", "new").code == 0
    assert cli("label", "push", batch_id, "--project", "new").code == 0
    assert server.access >= 2
    assert {header.split(" ")[0] for header in server.headers} == {"", "Bearer"}
    file.write_text(REFRESH + "x")
    wrong = cli("label", "push", batch_id, "--project", "new")
    assert wrong.code == 78
    assert REFRESH not in wrong.err


def test_a_wrong_token_a_wrong_project_and_no_server(
    cli: Cli, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_id = cli.submit("a.jsonl", chats(3))
    cli.drain()
    missing = cli("label", "push", batch_id, "--project", "7")
    assert (missing.code, "has no project 7" in missing.err) == (1, True)
    assert cli("label", "pull", "--project", "seven").code == 2
    monkeypatch.setenv("VBATCH_LABEL_STUDIO_TOKEN", "wrong" * 8)
    refused = cli("label", "push", batch_id, "--project", "new")
    assert refused.code == 78
    assert "wrong" not in refused.err
    monkeypatch.delenv("VBATCH_LABEL_STUDIO_TOKEN")
    assert cli("label", "push", batch_id, "--project", "new").code == 78
    monkeypatch.setenv("VBATCH_LABEL_STUDIO_TOKEN", TOKEN)
    unreachable = cli("label", "pull", "--project", "1", "--url", "http://127.0.0.1:9")
    assert (unreachable.code, "connection refused" in unreachable.err) == (1, True)
    assert cli("label", "pull", "--project", "1", "--url", "ftp://x").code == 2


def test_another_service_is_no_label_studio(cli: Cli, server: StandIn) -> None:
    """Also one that answers with JSON. Mutant: a traceback, or an empty list of tasks."""
    batch_id = cli.submit("a.jsonl", chats(1))
    cli.drain()
    for body in (b"<html>", b"[]", b"{}", b'{"results": 1}'):
        with receiver() as other:
            page = Page(body=body)
            other.pages = {path: [page] for path in ("/api/projects/1/", "/api/projects/1")}
            done = cli("label", "push", batch_id, "--project", "1", "--url", other.url(""))
            assert (done.code, "is no Label Studio" in done.err) == (1, True), done.err


def test_tasks_must_fit_the_project(cli: Cli, server: StandIn) -> None:
    """Label Studio itself takes such predictions, and shows nothing of them. Mutant: no look at the configuration."""
    batch_id = cli.submit("a.jsonl", chats(3))
    cli.drain()
    for config, words in [
        (config_of(Template.GRADE), "has no textarea 'answer'"),
        (
            config_of(Template.CORRECT).replace('name="answer"', 'name="prompt"'),
            "'prompt' has the name of a field",
        ),
        (config_of(Template.CORRECT).replace("$messages", "$text"), "shows $text"),
    ]:
        number = len(server.projects) + 1
        server.projects[number] = {"id": number, "title": "mine", "label_config": config}
        refused = cli("label", "push", batch_id, "--project", str(number))
        assert refused.code == 2
        assert words in refused.err
    assert server.tasks == {}


def test_a_folder_of_tasks(cli: Cli) -> None:
    """Pages of 1,000 tasks and the configuration, whole or not at all."""
    batch_id = cli.submit("a.jsonl", chats(1001))
    cli.drain()
    done = cli("results", batch_id, "--to", "label-studio", "-o", "tasks", "--template", "grade")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (cli.folder / "tasks").iterdir()) == [
        "labeling-config.xml",
        "tasks-0001.json",
        "tasks-0002.json",
    ]
    first, second = (json.loads((cli.folder / f"tasks/tasks-000{n}.json").read_text()) for n in (1, 2))
    assert [task["data"]["custom_id"] for task in first + second] == [f"r-{n}" for n in range(1001)]
    assert cli("results", batch_id, "--to", "label-studio", "-o", "tasks").code == 2
    assert cli("results", batch_id, "--to", "label-studio").code == 2
    assert cli("results", batch_id, "--template", "grade").code == 2
    long = cli("results", batch_id, "--to", "label-studio", "-o", "other", "--template", "classify")
    assert (long.code, "more than 25 values" in long.err) == (2, True)
    assert {path.name for path in cli.folder.iterdir() if path.is_dir()} == {"tasks"}


def test_classify_takes_the_values_of_the_schema(cli: Cli, server: StandIn) -> None:
    """A corrected label is put back into the JSON answer."""
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["good", "bad", "<&"]}, "why": {"type": "string"}},
    }
    asked = [chat(f"r-{n}", json.dumps({"mood": "good", "why": "x"})) for n in range(3)]
    for request in asked:
        request["body"]["response_format"] = {  # type: ignore[index]
            "type": "json_schema",
            "json_schema": {"name": "m", "schema": schema},
        }
    batch_id = cli.submit("a.jsonl", asked)
    cli.drain()
    assert cli("label", "push", batch_id, "--project", "new", "--template", "classify").code == 0
    config = Config.of(server.projects[1]["label_config"])
    assert config.controls["label"].choices == {"good", "bad", "<&"}
    assert server.tasks[1]["predictions"][0]["result"][0]["value"] == {"choices": ["good"]}
    server.annotate(2, choice("label", "bad"))
    (line,) = lines(cli("label", "pull", "--project", "1").out)
    assert json.loads(line["corrected"]) == {"mood": "bad", "why": "x"}


def test_pairwise_joins_two_batches_by_custom_id(cli: Cli, server: StandIn) -> None:
    """The files have different orders, and one request is in one of them alone."""
    first = cli.submit("a.jsonl", [chat(f"r-{n}", f"one {n}") for n in range(20)])
    second = cli.submit("b.jsonl", [chat(f"r-{n}", f"two {n}") for n in reversed(range(19))])
    cli.drain()
    assert cli("label", "push", first, "--project", "new", "--template", "pairwise").code == 2
    done = cli("label", "push", first, "--project", "new", "--template", "pairwise", "--against", second)
    assert done.code == 0, done.err
    sides = {
        task["data"]["custom_id"]: (task["data"]["answer_a"], task["data"]["answer_b"])
        for task in server.tasks.values()
    }
    assert {name: set(pair) for name, pair in sides.items()} == {
        f"r-{n}": {f"one {n}", f"two {n}"} for n in range(19)
    }
    assert len({pair[0][:3] for pair in sides.values()}) == 2  # neither model has a side of its own
    server.annotate(1, choice("better", "B"))
    server.annotate(2, choice("better", "tie"))
    (line,) = lines(cli("label", "pull", "--project", "1", "--to", "preference").out)
    assert (line["chosen"][0]["content"], line["rejected"][0]["content"]) == sides["r-0"][::-1]


def test_predictions_are_checked_against_the_choices() -> None:
    config = Config.of(config_of(Template.CLASSIFY, ["a"]))
    result = {"from_name": "label", "to_name": "dialogue", "type": "choices", "value": {"choices": ["b"]}}
    with pytest.raises(NotFitting, match="have no 'b'"):
        config.check_predictions([{"result": [result]}])
    with pytest.raises(NotFitting, match="not XML"):
        Config.of("<View")


def test_the_token_is_not_kept_for_the_service() -> None:
    """install-service writes what this shell sets into a file. Mutant: the token with it."""
    kept = worth_keeping({"VBATCH_LABEL_STUDIO_TOKEN": TOKEN, "VBATCH_LABEL_STUDIO_URL": "http://x"})
    assert kept == {"VBATCH_LABEL_STUDIO_URL": "http://x"}
