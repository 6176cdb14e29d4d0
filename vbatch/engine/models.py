"""Whether a model can be had on this machine, and what its folder lacks; nothing of vLLM is imported.

A model is a folder or a file, or a name on the Hugging Face hub, of which a copy may be in the hub's cache. Whether the
hub has a name that is not in the cache is only known by asking it, which is left to vLLM; so are an address
(``s3://…``), and every name where vLLM loads from ModelScope.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vbatch.config import Settings
from vbatch.engine import names
from vbatch.system.disks import exists, hub_cache, is_folder
from vbatch.text import one_line

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json")
# What the hub takes for a name (validate_repo_id of huggingface_hub), and vLLM's ``:Q4_K_M`` of one file in it.
_HUB_NAME = re.compile(r"(?P<name>(?=[^:]{1,96}(:|$))([\w.-]+/)?[\w.-]+)(:[\w.-]{1,32})?", re.ASCII)
_YES = ("1", "on", "yes", "true")
SHOWN = 200  # characters of a name
_ALIKE = 0.6  # of difflib's ratio: "qwen-8b" and "Qwen3-8B" are alike


class Availability(StrEnum):
    """What is known of a model here."""

    HERE = "here"
    MISSING = "missing"  # it cannot be loaded as things are
    REMOTE = "remote"  # not on this disk; the hub, or another source of vLLM, may have it


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is known of a model. ``place`` is its folder, its name on the hub, or an address.

    ``nearest`` is a model that is here. ``refused``: the folder may be there, but this user may not look.
    """

    availability: Availability
    place: str
    nearest: str | None = None
    refused: bool = False

    @property
    def reason(self) -> str:
        """Say in one line what is the matter with a model that is not here."""
        place = _shown(self.place)
        if self.refused:
            return f"this user may not read the model folder {place}"
        if _is_path(self.place):
            return f"there is no model folder {place}"
        if "://" not in self.place and _HUB_NAME.fullmatch(self.place) is None:
            return f"{place} is no folder here, and cannot be a name on the Hugging Face hub"
        if self.availability is Availability.REMOTE:
            return f"{place} is not on this machine; the first load tries to download it"
        return f"{place} is not on this machine, and nothing can be downloaded"

    def hint(self, model: str) -> str | None:
        """Return what a person can do about it."""
        if self.nearest is not None:
            return f"did you mean {_shown(self.nearest)}?"
        if self.refused:
            return f"namei -l {shlex.quote(_shown(self.place))}   # shows which folder is closed"
        if _is_path(self.place):
            return f'give its folder: [models."{_shown(model)}"] path = … in config.toml'
        if "://" in self.place or _modelscope():
            return None
        if _HUB_NAME.fullmatch(self.place) is None:
            return f'give its folder or its name there: [models."{_shown(model)}"] path = … in config.toml'
        ownerless = self.availability is Availability.REMOTE and "/" not in self.place
        download = f"hf download {_repository(self.place)}"
        return "most names on the Hugging Face hub are OWNER/NAME" if ownerless else download


def find(settings: Settings, model: str, flags: Sequence[str] = ()) -> Found:
    """Return whether a model can be had on this machine, by its configuration, its folder or the hub's cache.

    Of an alias that is its model; of an adapter its own place, where the model is here. ``flags`` are vLLM's, of a
    command line.
    """
    base = names.base(settings, model, flags)
    if base != model and (found := find(settings, base)).availability is not Availability.HERE:
        return found
    place = names.adapter(settings, model, flags) or settings.model_path(base)
    if folder(place) is not None or exists(place):
        return Found(availability=Availability.HERE, place=place)
    if "://" in place:
        return Found(availability=Availability.REMOTE, place=place)
    named = _HUB_NAME.fullmatch(place) is not None
    return Found(
        availability=Availability.REMOTE if named and _may_download() else Availability.MISSING,
        place=place,
        nearest=nearest(model, known(settings) - {model}),
        refused=_is_path(place) and _refused(place),
    )


def known(settings: Settings) -> set[str]:
    """Return the models that are configured, in vbatch's own cache, or in the hub's."""
    return {*settings.models, *_folders(settings), *_cached()}


def state(settings: Settings, model: str, flags: Sequence[str] = ()) -> object:
    """Return a value that changes when the folder or the configuration of a model or adapter does."""
    base = names.base(settings, model, flags)
    places = (settings.model_path(base), names.adapter(settings, model, flags))
    configured = settings.models.get(base)
    others = (configured.aliases, tuple(configured.adapters.items()), configured.gpus) if configured else ()
    return places, settings.engine_args(base), others, tuple(_held(place) for place in places if place)


def _held(place: str) -> tuple[tuple[str, int, int], ...]:
    """Return what a folder holds: names, sizes and times."""
    found = folder(place)
    held = []
    with suppress(OSError, ValueError):  # it may not be read, or a name cannot be one of a file
        for path in sorted(found.iterdir()) if found is not None else [Path(place)]:
            with suppress(OSError):
                status = path.stat()
                held.append((path.name, status.st_size, status.st_mtime_ns))
    return tuple(held)


def nearest(model: str, choices: Collection[str]) -> str | None:
    """Return the name that is most like this one; None where none is like it."""
    by_key = {_key(name): name for name in sorted(choices)}
    close = difflib.get_close_matches(_key(model), by_key, n=1, cutoff=_ALIKE)
    return by_key[close[0]] if close else None


def _key(name: str) -> str:
    """Return what is compared: the last part of a name, in lower case."""
    return name.rstrip("/").rpartition("/")[2].lower()


def folder(place: str) -> Path | None:
    """Return where the files are: a folder, or the newest snapshot in the hub's cache; None for nowhere."""
    if is_folder(place):
        return Path(place)
    if _HUB_NAME.fullmatch(place) is None:
        return None
    snapshots = hub_cache() / f"models--{_repository(place).replace('/', '--')}" / "snapshots"
    found: list[tuple[float, Path]] = []
    for snapshot in snapshots.glob("*/"):
        with suppress(OSError):  # it was deleted meanwhile
            found.append((snapshot.stat().st_mtime, snapshot))
    return max(found)[1] if found else None


def _is_path(place: str) -> bool:
    return place.startswith(("/", "~", "."))


def _repository(place: str) -> str:
    """Return the hub's name in a place that may name one file of it."""
    return place.partition(":")[0]


def _shown(name: str) -> str:
    """Return a name as it is printed: a request may give any text for one."""
    return one_line(name, limit=SHOWN)


def _refused(place: str) -> bool:
    try:
        Path(place).stat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def _may_download() -> bool:
    """Return whether vLLM may ask the hub, by the variables of huggingface_hub, or ModelScope."""
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return _modelscope() or offline.lower() not in _YES


def _modelscope() -> bool:
    """Return whether vLLM takes names for those of ModelScope."""
    return os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in _YES


def _cached() -> list[str]:
    """Return the models in the hub's cache."""
    names = (path.name.removeprefix("models--").replace("--", "/") for path in hub_cache().glob("models--*"))
    return [name for name in names if folder(name) is not None]


def _folders(settings: Settings) -> list[str]:
    """Return the models in vbatch's own cache: OWNER/NAME, or NAME."""
    top = settings.cache_dir / "models"
    found = {path.parent for depth in ("*", "*/*") for path in top.glob(f"{depth}/config.json")}
    return [path.relative_to(top).as_posix() for path in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A model's folder. ``missing`` names what is not there; ``weights`` are the bytes of its weights in ``names``."""

    folder: Path
    missing: tuple[str, ...]
    weights: int
    names: frozenset[str] = frozenset()


def look(folder: Path) -> Files:
    """Return what is in a model's folder, and what it lacks."""
    missing = [] if (folder / "config.json").exists() or any(folder.glob("*.gguf")) else ["config.json"]
    if not any((folder / name).exists() for name in _TOKENIZERS) and not any(folder.glob("*.gguf")):
        missing.append("the tokenizer")
    names, lacking = _weights(folder)
    missing += sorted(lacking)
    if not names:
        missing.append("the weights")
    sizes = [(folder / name).stat().st_size for name in names - lacking]
    present = frozenset(names - lacking)
    return Files(folder=folder, missing=tuple(missing), weights=sum(sizes), names=present)


def _weights(folder: Path) -> tuple[set[str], set[str]]:
    """Return the files of the weights that vLLM would read, and those of them that are not there.

    A repository may hold them in several formats, of which a download need not bring all.
    """
    indices = sorted(folder.glob("*.index.json"), reverse=True)  # model.safetensors before pytorch_model.bin
    indexed = [
        (names, {name for name in names if not (folder / name).exists()}) for names in map(_shards, indices)
    ]
    formats = {Path(index.name.removesuffix(".index.json")).suffix for index in indices}
    others = [pattern for pattern in _WEIGHTS if Path(pattern).suffix not in formats]
    loose = [{path.name for path in folder.glob(pattern) if path.exists()} for pattern in others]
    complete = [found for found in indexed if not found[1]]
    found = [*complete, *((names, set[str]()) for names in loose if names), *indexed]
    return found[0] if found else (set(), set())


def _shards(index: Path) -> set[str]:
    """Return the files that an index of weights names."""
    try:
        return set(json.loads(index.read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return {f"a readable {index.name}"}
