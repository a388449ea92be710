"""Results and failures of attempts as records of the events topic, within the limits of the records.

Rule: whatever a handler returned or raised, there is an answer that the engine can read.
"""

from __future__ import annotations

from typing import Any, Final

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from sagalog.schemas.codec import check_json, check_raw, decode_object
from sagalog.schemas.commands import Command
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import (
    ASKED_ABOUT,
    REPORTED,
    TYPE_OF,
    FailureKind,
    Outcome,
    StepCompleted,
    StepFailed,
    encode_event,
)
from sagalog.schemas.limits import (
    BACKOFF_MS_MAX,
    FAILURE_DETAILS_BYTES_MAX,
    FAILURE_MESSAGE_CHARS_MAX,
    PAYLOAD_BYTES_MAX,
)
from sagalog.topics.log import Headers, Out

from .agent import DidNotHappen, Happened
from .errors import NeedsReview, Refused, Retryable, Terminal

ERROR_TYPE_CHARS_MAX: Final = 200
_PROBLEMS_NAMED_MAX: Final = 3

_VERSION: Final = ("ce_specversion", b"1.0")
_JSON: Final = ("content-type", b"application/json")
_COMPLETED: Final = ("ce_type", TYPE_OF[StepCompleted].encode())
_FAILED: Final = ("ce_type", TYPE_OF[StepFailed].encode())
_TYPE_AT: Final = 1
"""Where the headers of an answer have its type."""


Usage = tuple[int, int]
"""Tokens and cost."""
NO_USAGE: Final[Usage] = (0, 0)

Kept = tuple[bytes, bool, bytes | None]
"""What is remembered of an answer: its value, whether it is a failure, and its trace context. The command gives the rest."""


class InvalidOutput(Exception):
    """What a handler returned breaks its own contract. The message says where."""


def completed(
    command: Command,
    source: bytes,
    trace: bytes | None,
    output: Any,
    duration_ms: int,
    usage: Usage = NO_USAGE,
    outcome: Outcome | None = None,
) -> Out:
    """The attempt did what it was asked. `output` is what `dump_output` made, `usage` are tokens and cost.

    `outcome` answers a question: `output` is then what the attempt asked about gave.
    """
    # What `encode_event` makes of a StepCompleted, without the detour over one; once per command.
    event = {
        "step": command.step,
        "attempt": command.attempt,
        "direction": command.direction,
        "token": command.token,
        "output": output,
        "agent": command.agent,
        "duration_ms": duration_ms,
    }
    if output is None:
        del event["output"]
    if usage != NO_USAGE:
        event["tokens"], event["cost"] = usage
    if outcome is not None:
        event["outcome"] = outcome
    return Out(command.workflow_id.encode(), orjson.dumps(event), _headers(_COMPLETED, command, source, trace))


def failed(
    command: Command,
    source: bytes,
    trace: bytes | None,
    kind: FailureKind,
    message: str,
    *,
    error_type: str | None = None,
    details: Any = None,
    retry_after_ms: int | None = None,
    duration_ms: int | None = None,
    usage: Usage = NO_USAGE,
) -> Out:
    """The attempt failed. What is too long is cut, details that do not fit are replaced by the reason."""
    event = StepFailed(
        command.step,
        command.attempt,
        command.direction,
        command.token,
        kind,
        _text(message, FAILURE_MESSAGE_CHARS_MAX) or error_type or kind.value,
        _text(error_type, ERROR_TYPE_CHARS_MAX) if error_type is not None else None,
        _details(details),
        _retry_after(retry_after_ms),
        command.agent,
        duration_ms,
        *(usage if usage != NO_USAGE else ()),
    )
    return Out(command.workflow_id.encode(), encode_event(event), _headers(_FAILED, command, source, trace))


def raised(
    command: Command,
    source: bytes,
    trace: bytes | None,
    error: BaseException,
    duration_ms: int,
    usage: Usage = NO_USAGE,
) -> tuple[FailureKind, Out]:
    """The answer to an exception of a handler."""
    details = retry_after_ms = None
    error_type: str | None = None
    match error:
        case Retryable():
            kind, message, retry_after_ms = FailureKind.RETRYABLE, error.message, error.retry_after_ms
            error_type = None if type(error) is Retryable else type(error).__name__
        case Terminal():
            kind, message, details = FailureKind.TERMINAL, error.message, error.details
            error_type = None if type(error) is Terminal else type(error).__name__
        case Refused():
            kind, message, details = FailureKind.REFUSAL, error.message, error.details
            error_type = None if type(error) is Refused else type(error).__name__
        case NeedsReview():
            kind, message, details = FailureKind.REVIEW_NEEDED, error.message, error.details
            error_type = None if type(error) is NeedsReview else type(error).__name__
        case InvalidOutput():
            kind, message = FailureKind.INVALID_OUTPUT, str(error)
        case _:
            kind, message, error_type = FailureKind.RETRYABLE, _said(error), type(error).__name__
    return kind, failed(
        command,
        source,
        trace,
        kind,
        message,
        error_type=error_type,
        details=details,
        retry_after_ms=retry_after_ms,
        duration_ms=duration_ms,
        usage=usage,
    )


def said(value: Any) -> tuple[Outcome, Any]:
    """What a handler answered to a question: the outcome, and the output if it happened. Raises InvalidOutput."""
    match value:
        case Happened(output=output):
            return Outcome.HAPPENED, output
        case DidNotHappen():
            return Outcome.DID_NOT_HAPPEN, None
        case _:
            raise InvalidOutput(f"output: is {type(value).__name__}; return Happened(output) or DidNotHappen()")


def tells(answer: Kept) -> bool:
    """Whether an answer that was kept says what became of its attempt. Not so a timeout, or that another command came between."""
    value, is_failure, _ = answer
    if not is_failure:
        return True
    kind = decode_object(value)["kind"]
    return kind in REPORTED and kind not in ASKED_ABOUT


def kept(out: Out, trace: bytes | None) -> Kept:
    """An answer, to be remembered."""
    assert out.value is not None
    return out.value, out.headers[_TYPE_AT] is _FAILED, trace


def again(answer: Kept, command: Command, source: bytes) -> Out:
    """The answer that was kept, once more."""
    value, is_failure, trace = answer
    ce_type = _FAILED if is_failure else _COMPLETED
    return Out(command.workflow_id.encode(), value, _headers(ce_type, command, source, trace))


def dump_output(adapter: TypeAdapter[Any], value: Any) -> Any:
    """The JSON of what a handler returned, ready to be put into an event. Raises InvalidOutput."""
    try:
        # The methods of the adapter itself pass on 8 and 15 defaults.
        raw = adapter.serializer.to_json(adapter.validator.validate_python(value), warnings="error")
        check_raw(raw, "output", PAYLOAD_BYTES_MAX)
    except ValidationError as error:
        raise InvalidOutput(problems(error, "output")) from None
    except PydanticSerializationError as error:
        raise InvalidOutput(f"output: cannot be written as JSON ({error})") from None
    except InvalidRecord as error:
        raise InvalidOutput(str(error)) from None
    return orjson.Fragment(raw) if raw != b"null" else None


def problems(error: ValidationError, root: str) -> str:
    """What does not fit, as "path: problem", without the values: they may be secret."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    named = [f"{'.'.join([root, *map(str, one['loc'])])}: {one['msg']}" for one in found[:_PROBLEMS_NAMED_MAX]]
    if len(found) > _PROBLEMS_NAMED_MAX:
        named.append(f"and {len(found) - _PROBLEMS_NAMED_MAX} more")
    return "; ".join(named)


def _headers(ce_type: tuple[str, bytes], command: Command, source: bytes, trace: bytes | None) -> Headers:
    # A list, as the client wants it: another sequence is copied into one.
    headers = [_VERSION, ce_type, ("ce_source", source), ("ce_id", f"{command.command_id}/result".encode()), _JSON]
    if trace is not None:
        headers.append(("traceparent", trace))
    return headers


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ of somebody's exception must not cost the answer
        return f"{type(error).__name__} (its message cannot be read)"


def _text(text: Any, chars_max: int) -> str:
    """Cut, and without the halves of surrogate pairs that no JSON can hold."""
    return str(text)[:chars_max].encode("utf-8", "replace").decode()


def _details(details: Any) -> Any:
    if details is None:
        return None
    try:
        return orjson.Fragment(check_json(details, "details", FAILURE_DETAILS_BYTES_MAX))
    except InvalidRecord as error:
        return {"dropped": _text(error, FAILURE_MESSAGE_CHARS_MAX)}


def _retry_after(retry_after_ms: Any) -> int | None:
    if not isinstance(retry_after_ms, int | float) or retry_after_ms != retry_after_ms:
        return None
    return int(min(max(retry_after_ms, 0), BACKOFF_MS_MAX))
