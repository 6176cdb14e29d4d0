"""JSON Lines files: read and validate one of any size in one pass, and write one so that it is never torn."""

from __future__ import annotations

from vbatch.jsonl.reading import LineReader
from vbatch.jsonl.validation import Defects, Validator
from vbatch.jsonl.writing import AtomicFile, abandoned, atomic_file, second_name, temporary_name

__all__ = [
    "AtomicFile",
    "Defects",
    "LineReader",
    "Validator",
    "abandoned",
    "atomic_file",
    "second_name",
    "temporary_name",
]
