"""Name the fields of requests that an engine takes and ignores: misspelt, removed, or never known.

vLLM answers a request with such fields as if they were not there (it logs them at most once). What it does not know
comes from a table of its version (``vbatch.engine.fields``), so nothing of vLLM is imported here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from vbatch.engine.fields import Tree

MOST = 100  # fields that are kept; a file of random names needs no more
_ALIKE = 0.75

# Fields that once did something, or do elsewhere, and what is used in their place (vLLM's own warnings and manuals).
DEAD = {
    "guided_json": 'use "structured_outputs": {"json": …}',
    "guided_regex": 'use "structured_outputs": {"regex": …}',
    "guided_choice": 'use "structured_outputs": {"choice": […]}',
    "guided_grammar": 'use "structured_outputs": {"grammar": …}',
    "structural_tag": 'use "structured_outputs": {"structural_tag": …}',
    "guided_decoding_backend": "the engine chooses the backend",
    "guided_whitespace_pattern": 'use "structured_outputs": {"whitespace_pattern": …}',
    "extra_body": "put its fields at the top of the body: only OpenAI's client unpacks it",
    "extra_headers": "a batch sends no headers",
    "best_of": 'use "n"',
    "max_output_tokens": 'use "max_tokens"',
    "functions": 'use "tools"',
    "function_call": 'use "tool_choice"',
    "enable_thinking": 'use "chat_template_kwargs": {"enable_thinking": …}',
}
# Fields that the schema has, and that change nothing in a batch.
WITHOUT_EFFECT = {
    ("/v1/chat/completions", "use_beam_search"): "beam search works at /v1/completions",
    ("", "stream_options"): "a batch does not stream: remove it",
}

BESIDE = 'put it into "body"'

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True, kw_only=True)
class IgnoredField:
    """A field that is ignored, the number of lines that have it, and what to do about it."""

    field: str
    lines: int
    hint: str | None


@dataclass(slots=True)
class Ignored:
    """Counts the ignored fields of many requests. ``look`` is on the hot path of ``submit``.

    Requests of one file have few shapes: what is unknown among the same names in the same place is found out once.
    """

    tables: Mapping[str, Tree]
    _shapes: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)
    _known: dict[tuple[int, tuple[str, ...]], tuple[str, ...]] = field(default_factory=dict)
    _deep: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _beside: dict[str, int] = field(default_factory=dict)

    def knows(self, url: str, shapes: Iterable[tuple[str, ...]]) -> bool:
        """Return whether bodies with fields of these names have none that is ignored, whatever the values are."""
        tree = self.tables.get(url)
        return tree is None or not any(any(self._shape((url, *names), tree)) for names in shapes)

    def look(self, url: str, fields: Mapping[str, msgspec.Raw]) -> Sequence[str]:
        """Count the ignored fields of one request's body and return them."""
        tree = self.tables.get(url)
        if tree is None:
            return ()
        unknown, deep = self._shape((url, *fields), tree)
        if not (unknown or deep):
            return unknown
        found = [*unknown]
        for name in deep:
            found += self._walk(_decode(fields[name]), tree[name], f"{name}.", url)
        for path in found:
            if (url, path) in self._counts or len(self._counts) < MOST:
                self._counts[url, path] = self._counts.get((url, path), 0) + 1
        return found

    def look_beside(self, url: str, names: Iterable[str]) -> list[str]:
        """Count the fields that one request has beside its body, and that work in it; return them.

        Others (a note, a category) are a person's own.
        """
        tree = self.tables.get(url, {})
        found = [name for name in names if name in tree]
        for name in found:
            self._beside[name] = self._beside.get(name, 0) + 1
        return found

    def _shape(self, shape: tuple[str, ...], tree: Tree) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return which of a body's fields are unknown, and which have parts that are to be looked at."""
        if shape in self._shapes:
            return self._shapes[shape]
        url, *names = shape
        unknown = self._unknown(names, tree, "", url)
        learnt = unknown, tuple(name for name in self._deep_in(tree) if name in names)
        if len(self._shapes) < MOST * MOST:
            self._shapes[shape] = learnt
        return learnt

    @property
    def fields(self) -> list[IgnoredField]:
        """What was found, the most frequent first."""
        found = [
            IgnoredField(field=path, lines=lines, hint=hint(path, self.tables[url], url))
            for (url, path), lines in self._counts.items()
        ] + [IgnoredField(field=name, lines=lines, hint=BESIDE) for name, lines in self._beside.items()]
        return sorted(found, key=lambda each: -each.lines)

    def _walk(self, value: Any, tree: Tree, place: str, url: str) -> Iterator[str]:
        if isinstance(value, list):
            for item in value[:MOST]:
                yield from self._walk(item, tree, place, url)
            return
        if not isinstance(value, dict):
            return
        for name in self._unknown(value, tree, place, url):
            yield f"{place}{name}"
        for name in self._deep_in(tree):
            if name in value:
                yield from self._walk(value[name], tree[name], f"{place}{name}.", url)

    def _unknown(self, value: Iterable[str], tree: Tree, place: str, url: str) -> tuple[str, ...]:
        key = (id(tree), tuple(value))
        unknown = self._known.get(key)
        if unknown is None:
            unknown = tuple(
                name for name in value if name not in tree or _is_without_effect(url, place, name)
            )
            if len(self._known) < MOST * MOST:
                self._known[key] = unknown
        return unknown

    def _deep_in(self, tree: Tree) -> tuple[str, ...]:
        """Return the fields whose parts are known."""
        deep = self._deep.get(id(tree))
        if deep is None:
            deep = self._deep[id(tree)] = tuple(name for name, below in tree.items() if below)
        return deep


def hint(path: str, tree: Tree, url: str = "") -> str | None:
    """Return what to use in place of an ignored field: its replacement, or the known field of a name like it."""
    place, _, name = path.rpartition(".")
    for part in filter(None, place.split(".")):
        tree = tree.get(part) or {}
    if not place:
        for where in (url, ""):
            if (where, name) in WITHOUT_EFFECT:
                return WITHOUT_EFFECT[where, name]
        if name in DEAD:
            return DEAD[name]
    near = difflib.get_close_matches(name, tree, n=1, cutoff=_ALIKE)
    return f"did you mean {near[0]}?" if near else None


def _is_without_effect(url: str, place: str, name: str) -> bool:
    return not place and ((url, name) in WITHOUT_EFFECT or ("", name) in WITHOUT_EFFECT)
