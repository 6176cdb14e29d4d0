"""Read the fields of requests, and name the one that is wrong, as OpenAI does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

import msgspec
from starlette.requests import Request

from vbatch.batches.find import RESERVED
from vbatch.batches.submit import METADATA_KEY, METADATA_PAIRS, METADATA_VALUE
from vbatch.server.errors import ApiError

_MOST = 1 << 20  # bytes of a document
_PATIENCE = 60.0  # seconds for all of it
_SHORTEST, _LONGEST = 3600, 2_592_000  # seconds of expires_after
_BATCH_ID = re.compile(r"batch_[0-9a-f]{24}")


async def bounded_body(request: Request, *, most: int, seconds: float) -> bytes:
    """Read a body that has at most so many bytes and comes within this time. Raises ApiError 413 and 408."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for block in request.stream():
                body += block
                if len(body) > most:
                    raise ApiError(413, f"The body has more than {most:,} bytes.", close=True)
    except TimeoutError:
        raise ApiError(408, "The request came too slowly.", close=True) from None
    return bytes(body)


async def document(request: Request, *, known: Collection[str], optional: bool = False) -> dict[str, Any]:
    """Return the JSON object of a body. Raises ApiError for anything else, and for a field that is not known."""
    body = await bounded_body(request, most=_MOST, seconds=_PATIENCE)
    if optional and not body.strip():
        return {}
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        raise ApiError(400, "We could not parse the JSON body of your request.") from None
    if not isinstance(found, dict):
        raise ApiError(400, "The body must be a JSON object.")
    for name in found:
        if name not in known:
            raise ApiError(
                400,
                f"Unrecognized request argument supplied: {name[:64]}",
                param=name[:64],
                code="unknown_parameter",
            )
    return found


def text(found: Mapping[str, Any], name: str, *, needed: bool = False, most: int = 4096) -> str | None:
    """Return a text. Raises ApiError."""
    value = found.get(name)
    if value is None:
        if needed:
            raise ApiError(
                400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
        return None
    if not isinstance(value, str) or not value or len(value) > most or "\0" in value or not _encodable(value):
        raise invalid(name, f"a text of 1 to {most} characters")
    return value


def needed_text(found: Mapping[str, Any], name: str) -> str:
    """Return a text that must be there. Raises ApiError."""
    value = text(found, name, needed=True)
    assert value is not None
    return value


def number(found: Mapping[str, Any], name: str, *, least: int, most: int, default: int) -> int:
    """Return a whole number, also of a query or a form. Raises ApiError."""
    value = found.get(name)
    if value is None:
        return default
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise invalid(name, f"a whole number from {least:,} to {most:,}")
    return value


def flag(found: Mapping[str, Any], name: str) -> bool:
    """Return true or false; false where it is not there. Raises ApiError."""
    value = found.get(name)
    if not isinstance(value, bool | None):
        raise invalid(name, "true or false")
    return bool(value)


def expires_after(found: Mapping[str, Any], name: str) -> timedelta | None:
    """Return ``{anchor: "created_at", seconds}`` as a duration. Raises ApiError."""
    value = found.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise invalid(name, "an object with anchor and seconds")
    if value.get("anchor") != "created_at":
        raise invalid(f"{name}[anchor]", "'created_at'")
    field = f"{name}[seconds]"
    seconds = number({field: value.get("seconds")}, field, least=_SHORTEST, most=_LONGEST, default=0)
    if not seconds:
        raise invalid(field, f"a whole number from {_SHORTEST:,} to {_LONGEST:,}")
    return timedelta(seconds=seconds)


def form_expires_after(fields: Mapping[str, str]) -> timedelta | None:
    """Return the same of a form, where clients send two bracketed fields. Raises ApiError."""
    given = {
        key: fields[name] for key in ("anchor", "seconds") if (name := f"expires_after[{key}]") in fields
    }
    return expires_after({"expires_after": given}, "expires_after") if given else None


def metadata(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata: at most 16 pairs of short texts. Raises ApiError."""
    value = found.get("metadata")
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > METADATA_PAIRS:
        raise invalid("metadata", f"an object with at most {METADATA_PAIRS} keys")
    for key, each in value.items():
        fits = isinstance(each, str) and 0 < len(key) <= METADATA_KEY and len(each) <= METADATA_VALUE
        if key in RESERVED:
            raise invalid(f"metadata.{key}", "no key of yours: vbatch sets it itself")
        if not fits or "\0" in key + each or not _encodable(key + each):
            raise invalid(f"metadata.{key[:64]}", f"a text of at most {METADATA_VALUE} characters")
    return value


def is_batch_id(given: str) -> bool:
    """Return whether this is a whole id: here a part of one is none, nor is ``last``."""
    return _BATCH_ID.fullmatch(given) is not None


def batch_id(request: Request) -> str:
    """Return the id of the path. Raises ApiError."""
    given: str = request.path_params["batch_id"]
    if not is_batch_id(given):
        raise no_batch(given)
    return given


def no_batch(given: str) -> ApiError:
    """Return the error for a batch that is not there."""
    return ApiError(404, f"No batch found with id '{given[:100]}'.", param="batch_id")


def invalid(name: str, wanted: str) -> ApiError:
    """Return the error for a wrong value."""
    return ApiError(
        400, f"Invalid value for '{name}': it must be {wanted}.", param=name, code="invalid_value"
    )


def _encodable(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)
