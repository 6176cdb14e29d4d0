"""Which endpoints a loaded model answers at, and in words what another one needs.

vLLM's server has the routes of a model's tasks alone: a model that was loaded for text has no ``/v1/embeddings``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from vbatch.protocol import AUDIO_ENDPOINTS
from vbatch.text import harmless

NOTHING: Mapping[str, str] = MappingProxyType({})
_EMBED = "an embedding model, or the flags --runner pooling --convert embed"
_SCORE = "a reranking or embedding model, loaded with --runner pooling"
_CLASSIFY = "a classification model, or the flags --runner pooling --convert classify"
_SPEECH = "a model for speech, such as openai/whisper-large-v3"
_NEEDS = {
    "/v1/embeddings": _EMBED,
    "/v2/embed": _EMBED,
    "/pooling": "a pooling model, loaded with --runner pooling",
    "/classify": _CLASSIFY,
    "/v1/score": _SCORE,
    "/score": _SCORE,
    "/v1/rerank": _SCORE,
    "/v2/rerank": _SCORE,
    "/rerank": _SCORE,
    "/v1/audio/transcriptions": _SPEECH,
    "/v1/audio/translations": _SPEECH,
}

SINCE = {"/v1/decisions": (0, 33)}  # the first version of vLLM that has it


def missing(
    model: str, url: str, served: Collection[str], lacking: Mapping[str, str] = NOTHING
) -> tuple[str, str]:
    """Return why a loaded model does not answer at an endpoint, and what to do: reason and hint.

    ``lacking`` are the urls at which it would answer with a package that is missing, and what that is.
    """
    if url in lacking:
        return (
            f"{url} needs {lacking[url]}, which is not installed where the worker runs",
            "pip install 'vbatch[audio]' there, then restart the worker",
        )
    generates = "/v1/completions" in served
    hears = lacking or not AUDIO_ENDPOINTS.isdisjoint(served)
    what = "text" if generates else "speech" if hears else "pooling (embeddings, scores, classes)"
    need = _NEEDS.get(
        url, "a model that generates text" if not generates else "another model or version of vLLM"
    )
    if url in SINCE:
        need = f"vLLM {'.'.join(map(str, SINCE[url]))} or newer, and a model that generates text"
    name = harmless(model)
    return (
        f"{name} was loaded for {what}; {url} needs {need}",
        f'configure it beside this one: [models."{name}-2"] path = …, args = […], or: vbatch retry ID -m MODEL',
    )
