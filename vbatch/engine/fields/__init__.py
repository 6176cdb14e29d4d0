"""The fields of a request that an engine knows, for each endpoint: tables as JSON, one for each version of vLLM.

``python -m vbatch.engine.fields.write`` writes the table of the installed vLLM. A table is a tree: the name of a field,
and what is known of its parts; null where any part is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Tree = Mapping[str, Any]  # a field's name, and the tree of its parts or None


def path_of(version: str, folder: Path = FOLDER) -> Path:
    """Return where the table of this version of vLLM is, or would be."""
    return folder / f"vllm-{version.partition('+')[0]}.json"


def newest(*folders: Path) -> Path:
    """Return the table of the newest version in these folders; those of the package come last."""
    found = [path for folder in (*folders, FOLDER) for path in folder.glob("vllm-*.json")]
    return max(found, key=lambda path: [int(part) for part in path.stem[5:].split(".") if part.isdigit()])


@cache
def table(path: Path) -> Mapping[str, Tree]:
    """Return the trees of a table by endpoint."""
    trees: Mapping[str, Tree] = json.loads(path.read_text())["endpoints"]
    return trees
