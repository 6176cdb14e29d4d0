"""The lines of output and error files: always the same bytes for the same results."""

from __future__ import annotations

from vbatch.protocol import answer_line, no_answer_line, one_line_json
from vbatch.store.records import Answer


def output_line(batch_id: str, answer: Answer) -> bytes:
    """Return the line of one finished request, newline included."""
    line_id = f"batch_req_{batch_id.removeprefix('batch_')}_{answer.line}"
    result = answer.result
    if result is None or result.status_code is None or result.body is None:
        code = answer.error_code if result is None else result.error_code
        message = answer.error_message if result is None else result.error_message
        return no_answer_line(
            line_id=line_id, custom_id=answer.custom_id, code=code or "unknown", message=message or ""
        )
    return answer_line(
        line_id=line_id,
        custom_id=answer.custom_id,
        status_code=result.status_code,
        request_id=result.request_id or line_id,
        body=one_line_json(result.body),
    )


def succeeded(answer: Answer) -> bool:
    """Whether a finished request belongs into the output file."""
    return answer.result is not None and answer.result.succeeded
