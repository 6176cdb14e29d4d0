"""What each finding means and what to do about it: ``vbatch doctor --list``, and the README's table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """One finding explained: a sentence what it means, and one what a person can do."""

    means: str
    remedy: str
