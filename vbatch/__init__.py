"""Run huge OpenAI Batch files through vLLM on your own GPU, and lose nothing when something fails.

Nothing is imported here: this module runs in every engine process. What a program uses of it (``vbatch.submit`` …) is
found when it is first asked for; ``docs/python.md`` describes it.
"""

__version__ = "0.2.0"

TYPE_CHECKING = False  # as typing has it, which takes time to import
if TYPE_CHECKING:
    from vbatch.batches import ForeignFile, InvalidInput, Record, RecordStatus
    from vbatch.errors import (
        AmbiguousBatch,
        ConfigError,
        EngineUnavailable,
        InputUnreadable,
        NoSuchBatch,
        OnlyBlocked,
        OutputPathError,
        StoreUnreachable,
        TableError,
        UsageError,
        VbatchError,
        WrongStatus,
    )
    from vbatch.protocol import BatchStatus
    from vbatch.python import Batch, WaitTimeout, batch, chat, list_batches, submit

__all__ = [
    "AmbiguousBatch",
    "Batch",
    "BatchStatus",
    "ConfigError",
    "EngineUnavailable",
    "ForeignFile",
    "InputUnreadable",
    "InvalidInput",
    "NoSuchBatch",
    "OnlyBlocked",
    "OutputPathError",
    "Record",
    "RecordStatus",
    "StoreUnreachable",
    "TableError",
    "UsageError",
    "VbatchError",
    "WaitTimeout",
    "WrongStatus",
    "batch",
    "chat",
    "list_batches",
    "submit",
]

_HOMES = {
    "vbatch.python": ("Batch", "WaitTimeout", "batch", "chat", "list_batches", "submit"),
    "vbatch.batches": ("ForeignFile", "InvalidInput", "Record", "RecordStatus"),
    "vbatch.protocol": ("BatchStatus",),
}


if not TYPE_CHECKING:  # a checker of types knows the names from above, and no others

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        home = next((home for home, names in _HOMES.items() if name in names), "vbatch.errors")
        found = getattr(import_module(home), name)
        globals()[name] = found  # the next time it is there
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
