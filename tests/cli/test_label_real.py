"""The round trip through a real Label Studio: 1 GB and some minutes at the first run, so it is asked for.

pytest -m long tests/cli/test_label_real.py
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.rigs.commands import VBATCH, Home, chats
from tests.rigs.label_studio import TOKEN
from tests.rigs.label_studio_real import label_studio
from tests.rigs.waiting import until
from vbatch.outbound.api import Api


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_real_label_studio(home: Home, tmp_path: Path) -> None:
    """A killed push is continued without doubles; one task is annotated through the API, and comes back.

    With the legacy token, and with a personal one. Mutant: a push that does not ask the server which tasks it has.
    """
    batch_id = home.submit(chats(2500))
    home.run("run-worker", "--engine", "echo", "--drain")
    data = tmp_path / "label-studio"
    data.mkdir()
    with label_studio(data) as api:
        home.extra |= {"VBATCH_LABEL_STUDIO_TOKEN": TOKEN, "VBATCH_LABEL_STUDIO_URL": api.url}
        with subprocess.Popen(
            [*VBATCH, "label", "push", batch_id, "--project", "new"], env=home.env, cwd=home.path
        ) as killed:
            until(lambda: total(api) >= 1000)
            killed.kill()
        home.run("label", "push", batch_id, "--project", "new")
        assert total(api) == 2500
        personal = api.post("/api/token/", {}).document["token"]
        home.extra |= {"VBATCH_LABEL_STUDIO_TOKEN": personal}
        again = json.loads(home.run("label", "push", batch_id, "--project", "1", "--json").stdout)
        assert (again["added"], again["present"]) == (0, 2500)

        (task,) = api.get("/api/tasks", project=1, page=7, page_size=1).document["tasks"]
        shown = api.get(f"/api/tasks/{task['id']}/").document
        assert shown["predictions"][0]["result"][0]["value"] == {"text": [task["data"]["model_answer"]]}
        result = {
            "from_name": "answer",
            "to_name": "dialogue",
            "type": "textarea",
            "value": {"text": ["better"]},
        }
        assert api.post(f"/api/tasks/{task['id']}/annotations/", {"result": [result]}).status == 201
        home.run("label", "pull", "--project", "1", "-o", "corrected.jsonl")
        (line,) = map(json.loads, (home.path / "corrected.jsonl").read_text().splitlines())
        assert (line["custom_id"], line["corrected"]) == (task["data"]["custom_id"], "better")

        for template in ("grade", "classify"):
            few = home.submit(
                [{**each, "custom_id": f"{template}-{n}"} for n, each in enumerate(chats(3))], name=template
            )
            home.run("run-worker", "--engine", "echo", "--drain")
            home.run("label", "push", few, "--project", "new", "--template", template)


def total(api: Api) -> int:
    """Return how many tasks the first project has."""
    reply = api.get("/api/tasks", project=1, page=1, page_size=1)
    return int(reply.document["total"]) if reply.succeeded else 0
