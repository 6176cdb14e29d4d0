"""JSON Lines files: read and validate one of any size in one pass."""

from __future__ import annotations

from vbatch.jsonl.defects import Defects, kind_of
from vbatch.jsonl.formats import BOM
from vbatch.jsonl.reading import ForeignInput, LineReader, Overlong, numbered
from vbatch.jsonl.validation import Checked, Fields, Validator

__all__ = [
    "BOM",
    "Checked",
    "Defects",
    "Fields",
    "ForeignInput",
    "LineReader",
    "Overlong",
    "Validator",
    "kind_of",
    "numbered",
]
