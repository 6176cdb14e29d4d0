"""JSON Lines files: read and validate one of any size in one pass."""

from __future__ import annotations

from vbatch.jsonl.formats import BOM
from vbatch.jsonl.reading import ForeignInput, LineReader
from vbatch.jsonl.validation import Defects, Validator, kind_of

__all__ = ["BOM", "Defects", "ForeignInput", "LineReader", "Validator", "kind_of"]
