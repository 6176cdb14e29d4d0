"""Check that a request for audio names a file that can be fetched; nothing is fetched here."""

from __future__ import annotations

import msgspec

from vbatch.outbound import fetch
from vbatch.outbound.http import Refused
from vbatch.protocol import BodyHead


def defect(head: BodyHead) -> tuple[str, str, str] | None:
    """Return what is wrong with the audio of a body: code, message, and the field. None for a good one."""
    if head.file is not msgspec.UNSET:
        message = "A line of JSON holds no file: name it in 'file_url' (https://… or data:TYPE;base64,DATA)."
        return "unsupported_parameter", message, "file"
    if head.file_url is msgspec.UNSET:
        return "missing_required_parameter", "'body.file_url' is missing.", "file_url"
    try:
        fetch.check_form(msgspec.json.decode(head.file_url, type=str))
    except msgspec.ValidationError:
        return "invalid_type", "'body.file_url' must be a string.", "file_url"
    except Refused as error:
        return "invalid_value", f"'body.file_url' cannot be used: {error}.", "file_url"
    return None
