"""``/v1/models``: what can be asked for here."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vbatch import batches
from vbatch.batches import KnownModel
from vbatch.server.context import answer, context_of
from vbatch.server.errors import ApiError


def _document(model: KnownModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "vbatch",
        "vbatch": {"loaded": model.loaded},
    }


async def list_models(request: Request) -> Response:
    """List the models of the configuration, of the models folder, and those that workers have loaded."""
    context = context_of(request)
    found = await context.in_store(batches.known_models, context.store, context.settings)
    return answer({"object": "list", "data": [_document(model) for model in found]})


async def retrieve_model(request: Request) -> Response:
    """Answer one of them."""
    context, name = context_of(request), request.path_params["name"]
    for model in await context.in_store(batches.known_models, context.store, context.settings):
        if model.name == name:
            return answer(_document(model))
    raise ApiError(404, f"The model '{name}' does not exist", param="model", code="model_not_found")


routes = [Route("/v1/models", list_models), Route("/v1/models/{name:path}", retrieve_model)]
