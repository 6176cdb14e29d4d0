"""Count the tokens of prompts without vLLM: by the model's own tokenizer where it is on this machine, else by bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vbatch.config import Settings
from vbatch.engine import models, names, shape
from vbatch.engine.flag_values import CONTEXT, read

BYTES_PER_TOKEN = 4  # of English; other scripts have fewer
_MESSAGE_TOKENS = 5  # which a chat template adds to each message, about
_AT_ONCE = 256  # texts

# The parts of a body that become tokens, of all endpoints.
_ASKED = (
    "messages",
    "prompt",
    "input",
    "instructions",
    "system",
    "tools",
    "query",
    "documents",
    "queries",
    "text",
)
_NO_TEXT = frozenset({"role", "type", "url", "image_url", "data", "id", "detail"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How tokens are counted. ``tokenizer`` is None where they are guessed by bytes; so is an unknown ``context``."""

    tokenizer: Any | None
    context: int | None


def measure(settings: Settings, model: str) -> Measure:
    """Return how the prompts of a model are counted here, and how many tokens it takes."""
    base = names.base(settings, model)
    folder = models.folder(settings.model_path(base))
    context = read(settings.engine_args(base)).number(CONTEXT)
    if folder is None:
        return Measure(tokenizer=None, context=context)
    return Measure(tokenizer=_tokenizer(folder), context=context or shape.of(folder).context)


def _tokenizer(folder: Any) -> Any | None:
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except (
        Exception
    ):  # not installed, no such file, or a kind that this version does not know: all raise their own
        return None


def count(measured: Measure, bodies: Sequence[dict[str, Any]]) -> list[int]:
    """Return how many tokens each body has, about: the template of a chat is not applied."""
    texts = ["\n".join(_texts({name: body[name] for name in _ASKED if name in body})) for body in bodies]
    added = [_added(body) for body in bodies]
    if measured.tokenizer is None:
        counted = [-(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN) for text in texts]
    else:
        counted = []
        rest = iter(texts)
        while some := list(islice(rest, _AT_ONCE)):
            found = measured.tokenizer.encode_batch(some, add_special_tokens=False)
            counted += [len(each.ids) for each in found]
    return [tokens + more for tokens, more in zip(counted, added, strict=True)]


def _texts(part: Any) -> Iterator[str]:
    match part:
        case str():
            yield part
        case dict():
            for name, value in part.items():
                if name not in _NO_TEXT:
                    yield from _texts(value)
        case list():
            for value in part:
                yield from _texts(value)


def _added(body: dict[str, Any]) -> int:
    """Return the tokens that are no text: those of a template, and of a prompt that is tokens already."""
    messages = body.get("messages")
    if isinstance(messages, list):
        return _MESSAGE_TOKENS * len(messages)
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, list):
        return sum(1 for each in prompt if isinstance(each, int))
    return 0
