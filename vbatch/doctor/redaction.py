"""What may go into a bug report: text without secrets, and of an engine's log the lines that quote no request.

A request can be anywhere in a log (vLLM prefixes every line of a message, and an exception may quote anything), so
a line is kept for its shape, not dropped for its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

_NAME = r"[\w-]*(?:key|token|password|passwd|passphrase|secret)(?:[_-][\w-]*)?"
_VALUE = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;'"&)\]}]+)"""
_SECRETS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"(\w+://[^\s:/@\"']*):[^\s\"']*@", r"\1:***@"),  # a password in a URL
        (r"(https?://)[^\s/@\"']+@", r"\1***@"),  # there a user may be a token
        (r"(https?://[^\s?\"']*\?)[^\s\"'#]+", r"\1***"),
        (r"(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic|token)\s+)?[^\s'\"]+", r"\1***"),
        (r"\b(bearer\s+)[^\s'\"]+", r"\1***"),
        (r"\b(hf_|sk-|ghp_|AKIA)[A-Za-z0-9_-]{8,}", r"\1***"),
        (r"\b(eyJ)[\w-]{8,}\.[\w-]+\.[\w.-]*", r"\1***"),  # JSON Web Tokens, as of Label Studio
        (rf"(--{_NAME}['\"]?(?:\s*[=,]\s*|\s+)){_VALUE}", r"\1***"),  # a flag: --api-key X, '--api-key', 'X'
        (rf"(\b{_NAME}['\"]?\s*[:=]\s*){_VALUE}", r"\1***"),  # a variable, a key of JSON or of a URL's query
    )
)

# vLLM's own lines: (EngineCore_DP0 pid=7) INFO 11-25 03:52:01 [core.py:58] …
_OWN = re.compile(
    r"(?:\([\w ]+=\d+\) )?(DEBUG|INFO|WARNING|ERROR|CRITICAL) [\d-]+ [\d:]+ \[([\w./-]+):\d+\] "
)
_FAILED = re.compile(r"\s*((?:\w+\.)*\w+(?:Error|Exception|Interrupt))(?::|$)")
_FRAME = re.compile(r"\s*(?:Traceback \(most recent call last\):|File \"[^\"]+\", line \d+, in [\w<>.]+)$")
_KNOWN_WORDS = re.compile(
    r"Free memory on device [^'\"{]*|CUDA (?:error|out of memory)[^'\"{]*|No module named '[\w.]+'|"
    r"[\w./+-]+: cannot open shared object file[^'\"{]*|undefined symbol: \w+|No available memory for the cache blocks"
)
_MAY_QUOTE = re.compile(
    r"prompt[^_ ]|prompt:|message|content|custom_id|\bbody\b|\binput|\btext\b|request \w+-|[{}]",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"'[^']{20,}'|\"[^\"]{20,}\"|'[^'\s]* [^']*'|\"[^\"\s]* [^\"]*\"")


def clean(text: str) -> str:
    """Remove what looks like a secret."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def cleaned(document: Any) -> Any:
    """Remove what looks like a secret from every string of a document."""
    match document:
        case str():
            return clean(document)
        case dict():
            return {name: cleaned(value) for name, value in document.items()}
        case list() | tuple():
            return [cleaned(value) for value in document]
    return document


def harmless_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of an engine's log that quote no request, and how many were left out between them."""
    left_out = 0
    quoting = ""  # the beginning of a message that may quote: its further lines begin alike
    for line in lines:
        own = _OWN.match(line)
        kept = None
        if own is not None and own[0] != quoting:
            kept = _kept(own, line[own.end() :])
            quoting = "" if kept is not None or own[1] == "ERROR" else own[0]
        if kept is None:
            left_out += 1
            continue
        if left_out:
            yield _count(left_out)
            left_out = 0
        yield clean(kept)
    if left_out:
        yield _count(left_out)


def _kept(own: re.Match[str], words: str) -> str | None:
    """Return what of a line of vLLM's may be shown; of an exception its type, and words of vLLM's and CUDA's alone."""
    if own[1] in ("ERROR", "CRITICAL"):
        if _FRAME.match(words):
            return own[0] + words
        if (failed := _FAILED.match(words)) is not None:
            known = _KNOWN_WORDS.search(words)
            return f"{own[0]}{failed[1]}: {known[0] if known is not None else '…'}"
        return None
    return None if _MAY_QUOTE.search(words) else own[0] + _QUOTED.sub("'…'", words)


def _count(lines: int) -> str:
    return f"({lines} line{'s' if lines > 1 else ''} that may quote a request)"
