"""What ``submit`` accepts is what vLLM's own app answers: no url that fails for each request, none that is missing."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest

from vbatch.engine.endpoints import SINCE
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
    "transcription",
)


# What vLLM routes under POST, too, and why no batch may ask for it.
NO_ENDPOINTS = {
    "/invocations": "SageMaker's: it guesses from the body which of the others is meant",
    "/ping": "SageMaker's: it answers nothing",
    "/inference/v1/abort_requests": "it ends requests of others",
    "/v1/responses/{response_id}/cancel": "it ends a response that was begun in the background",
    "/scale_elastic_ep": "it rebuilds the engine",
    "/is_scaling_elastic_ep": "it tells of the rebuilding",
}


@pytest.mark.vllm
def test_the_endpoints_are_those_of_vllm() -> None:
    """Mutants: a misspelt url in ENDPOINTS; one that is left out."""
    pytest.importorskip("vllm")
    from vbatch.engine import flags, vllm_names

    vllm = vllm_names.load()
    arguments = flags.parse(["--model", "m"])
    posted: set[str] = set()
    for task in ("embed", "classify", "token_embed", "score", "plugin"):
        model = MagicMock()  # a model of this kind: nothing but its kind is asked for here
        model.get_pooling_task.return_value = task
        routes = vllm.build_app(arguments, TASKS, model).routes
        posted |= {route.path for route in routes if "POST" in (getattr(route, "methods", None) or ())}
    installed = tuple(map(int, vllm.__version__.split(".")[:2]))
    later = {url for url, since in SINCE.items() if since > installed}
    assert posted - NO_ENDPOINTS.keys() == set(ENDPOINTS) - later
