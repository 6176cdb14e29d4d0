"""The lines of output and error files: always the same bytes for the same results."""

from __future__ import annotations

from vbatch.protocol import answer_line, no_answer_line, one_line_json
from vbatch.store.records import Answer, Outcome


def output_line(batch_id: str, answer: Answer) -> bytes:
    """Return the line of one finished request, newline included."""
    line_id = f"batch_req_{batch_id.removeprefix('batch_')}_{answer.line}"
    outcome = answer.outcome or Outcome()
    if outcome.status_code is None or outcome.body is None:
        return no_answer_line(
            line_id=line_id,
            custom_id=answer.custom_id,
            code=outcome.error_code or "unknown",
            message=outcome.error_message or "",
        )
    return answer_line(
        line_id=line_id,
        custom_id=answer.custom_id,
        status_code=outcome.status_code,
        request_id=outcome.request_id or line_id,
        body=one_line_json(outcome.body),
    )


def succeeded(answer: Answer) -> bool:
    """Whether a finished request belongs into the output file."""
    return answer.outcome is not None and answer.outcome.succeeded
