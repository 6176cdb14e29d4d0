"""Write the table of the request fields that the installed vLLM knows, from the schemas of its own server."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vbatch.engine import vllm_names
from vbatch.engine.fields import FOLDER, path_of
from vbatch.protocol import AUDIO_ENDPOINTS, ENDPOINTS
from vbatch.system.files import replace_text

# vLLM adds the routes of pooling models only beside a loaded one.
_POOLING = ("pooling", "classify", "embed", "scoring")
DEEPEST = 6  # levels of a body that are looked at


def write(folder: Path = FOLDER) -> Path:
    """Write the table of the installed vLLM and return where it is. Imports vLLM."""
    path = path_of(version(), folder)
    text = json.dumps(
        {"vllm": version(), "endpoints": dict(sorted(trees().items()))}, sort_keys=True, indent=1
    )
    replace_text(path, text + "\n", mode=0o644)
    return path


def version() -> str:
    """Return the version of the installed vLLM."""
    return str(vllm_names.load().__version__)


def trees() -> dict[str, Any]:
    """Return the tree of each endpoint's fields, as the routes of vLLM's server declare them."""
    vllm = vllm_names.load()
    arguments = vllm.make_arg_parser(vllm.FlexibleArgumentParser()).parse_args([])
    routes = list(vllm.build_app(arguments, ("generate", "transcription")).routes)
    for kind in _POOLING:
        with contextlib.suppress(ImportError):
            routes += importlib.import_module(f"vllm.entrypoints.pooling.{kind}.api_router").router.routes
    found: dict[str, Any] = {}
    for route in routes:
        field = getattr(route, "body_field", None)
        if route.path in ENDPOINTS and field is not None and "POST" in getattr(route, "methods", ()):
            schema = _schema(field.field_info.annotation)
            found[route.path] = _tree(schema, schema.get("$defs", {}), DEEPEST) or {}
    for path in AUDIO_ENDPOINTS & found.keys():
        found[path] = _of_form(found[path])
    return found


def _of_form(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the JSON that is sent as this form: ``file_url``, and lists without brackets too."""
    fields = {name: below for name, below in tree.items() if name != "file"} | {"file_url": None}
    return fields | {name.removesuffix("[]"): below for name, below in fields.items()}


def _schema(annotation: Any) -> dict[str, Any]:
    adapter = importlib.import_module("pydantic").TypeAdapter(annotation)
    schema: dict[str, Any] = adapter.json_schema(mode="validation")
    return schema


def _tree(schema: Mapping[str, Any], named: Mapping[str, Any], depth: int) -> dict[str, Any] | None:
    """Return the fields of a schema; None where it takes any.

    Of alternatives a field of any is known. At the top vLLM allows further fields, and ignores them.
    """
    if "$ref" in schema:
        return _tree(named[schema["$ref"].rpartition("/")[2]], named, depth)
    if kinds := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return _merged([_tree(kind, named, depth) for kind in kinds if kind.get("type") not in _SCALARS])
    if schema.get("type") == "array":
        return _tree(schema.get("items", {}), named, depth)
    properties = schema.get("properties")
    if depth == 0 or not properties or (schema.get("additionalProperties") and depth < DEEPEST):
        return None
    return {name: _tree(part, named, depth - 1) for name, part in properties.items()}


def _merged(parts: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    merged: dict[str, Any] = {}
    for part in parts:
        if part is None:
            return None
        for name, below in part.items():
            both = name in merged and merged[name] is not None and below is not None
            merged[name] = merged[name] | below if both else None if name in merged else below
    return merged or None


_SCALARS = ("string", "integer", "number", "boolean", "null")

if __name__ == "__main__":
    sys.stdout.write(f"{write()}\n")
