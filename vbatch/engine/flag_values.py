"""The values of some of vLLM's flags, read without vLLM: last one counts, any prefix that fits, a file of flags first.

Follows FlexibleArgumentParser (vllm/utils/argparse_utils.py, 0.32 and 0.33), as far as vbatch looks at flags.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "--config"  # read only as a word of its own: vLLM takes no notice of --config=FILE

_UNITS = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
    "T": 1 << 40,
}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag of vLLM: its long names, each with the shortest prefix that fits no other flag, and its short names."""

    names: tuple[tuple[str, str], ...]
    short: tuple[str, ...] = ()

    def means(self, name: str) -> bool:
        """Whether this name, as it is written, is the flag."""
        if not name.startswith("--"):
            return name in self.short
        name = name.replace("_", "-")
        return any(whole.startswith(name) and name.startswith(least) for whole, least in self.names)


SHARE = Flag(
    names=(("--gpu-memory-utilization", "--gp"), ("--device-memory-utilization", "--device-m")),
)
CACHE = Flag(names=(("--kv-cache-memory-bytes", "--kv-cache-mem"),))
CACHE_DTYPE = Flag(names=(("--kv-cache-dtype", "--kv-cache-dtype"),))
CONTEXT = Flag(names=(("--max-model-len", "--max-m"),))
BATCHED_TOKENS = Flag(names=(("--max-num-batched-tokens", "--max-num-b"),))
SEQUENCES = Flag(names=(("--max-num-seqs", "--max-num-se"),))
DTYPE = Flag(names=(("--dtype", "--dt"),))
QUANTIZATION = Flag(names=(("--quantization", "--quantization"),), short=("-q",))
TENSOR_PARALLEL = Flag(names=(("--tensor-parallel-size", "--te"),), short=("-tp",))
PIPELINE_PARALLEL = Flag(names=(("--pipeline-parallel-size", "--pi"),), short=("-pp",))
ADAPTERS = Flag(names=(("--lora-modules", "--lora-m"),))
SCHEDULING = Flag(names=(("--scheduling-policy", "--schedulin"),))
DATA_PARALLEL = Flag(names=(("--data-parallel-size", "--data-parallel-size"),), short=("-dp",))
DATA_PARALLEL_HERE = Flag(names=(("--data-parallel-size-local", "--data-parallel-size-l"),), short=("-dpl",))
DEVICES = Flag(names=(("--device-ids", "--device-i"),))
CPU_OFFLOAD = Flag(names=(("--cpu-offload-gb", "--cpu-offload-g"),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """vLLM's flags in the order in which they count. ``complete``: no file of flags is unread, which may set more."""

    words: tuple[str, ...]
    complete: bool

    def given(self, flag: Flag) -> tuple[str, ...]:
        """Return all values of a flag, as they are written."""
        return tuple(self._values(flag))

    def _values(self, flag: Flag) -> Iterator[str]:
        for position, word in enumerate(self.words):
            name, equals, value = word.partition("=")
            if flag.means(name):
                yield value if equals else next(iter(self.words[position + 1 :]), "")

    def several(self, flag: Flag) -> Iterator[str]:
        """Yield all values of a flag that takes several, each time that it is given."""
        inside = False
        for word in self.words:
            name, equals, value = word.partition("=")
            if word.startswith("--"):
                inside = flag.means(name)
                if inside and equals:
                    yield value
            elif inside:
                yield word

    def last(self, flag: Flag) -> str | None:
        """Return the value that counts."""
        return next(reversed(self.given(flag)), None)

    def number(self, flag: Flag) -> int | None:
        """Return the value as a whole number; None where none is given, or vLLM would refuse it."""
        return whole(self.last(flag) or "")


def read(args: Sequence[str]) -> Flags:
    """Read flags, with those of a file (``--config``) before them, as vLLM does."""
    words = list(args)
    if CONFIG not in words:
        return Flags(words=tuple(words), complete=True)
    position = words.index(CONFIG)
    of_file = _of_file(words[position + 1]) if position + 1 < len(words) else None
    rest = (*words[:position], *words[position + 2 :])
    return Flags(words=(*(of_file or ()), *rest), complete=of_file is not None)


def _of_file(name: str) -> list[str] | None:
    """Return the flags of a YAML file; None where it cannot be read here. PyYAML comes with vLLM, not with vbatch."""
    try:
        yaml: Any = importlib.import_module("yaml")
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except Exception:
        return None  # vLLM reports what is wrong with it
    if not isinstance(content, dict):
        return None
    return [
        word
        for key, value in content.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)
        for word in (f"--{key}", str(value))
    ]


def whole(text: str) -> int | None:
    """Read a number as vLLM does: ``4096``, ``25.6k`` (thousands), ``4G`` (1024 cubed); None for anything else."""
    text = text.strip()
    if (match := _NUMBER.fullmatch(text)) is not None:
        number, unit = match.groups()
        if unit.islower():
            return int(float(number) * _UNITS[unit])
        return int(number) * _UNITS[unit] if number.isdecimal() else None
    return int(text) if text.isdecimal() else None
