"""What ``submit`` accepts is what vLLM's own app answers: no url that is taken in and then fails for each request."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from vbatch.protocol import ENDPOINTS

# Every task that a model can have (vllm.tasks, 0.32), so that every router is mounted.
TASKS = (
    "generate",
    "embed",
    "token_embed",
    "classify",
    "token_classify",
    "score",
    "plugin",
    "render",
    "pooling",
)


@pytest.mark.vllm
def test_every_endpoint_is_routed_by_vllm() -> None:
    """Mutant: a misspelt url in ENDPOINTS."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.launchers.api_server.entry import build_app

    from vbatch.engine import server

    arguments = server._parse(["--model", "m"])
    posted: set[str] = set()
    for task in ("embed", "classify", "token_embed", "score", "plugin"):
        model = MagicMock()  # a model of this kind: nothing but its kind is asked for here
        model.get_pooling_task.return_value = task
        routes = build_app(arguments, TASKS, model).routes
        posted |= {route.path for route in routes if "POST" in (getattr(route, "methods", None) or ())}
    assert set(ENDPOINTS) - posted == set()
