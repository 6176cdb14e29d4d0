"""JSON Lines files: read and validate one of any size in one pass."""

from __future__ import annotations

from vbatch.jsonl.reading import LineReader
from vbatch.jsonl.validation import Defects, Validator

__all__ = ["Defects", "LineReader", "Validator"]
