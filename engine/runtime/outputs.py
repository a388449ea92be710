"""Effects as records: which topic, which key, which headers."""

from __future__ import annotations

import base64
from functools import cache
from typing import Any, Final

from sagalog.engine.kernel.effects import DeadLettered, Dispatch, Finished, ReviewClosed, ReviewNeeded, StartAnswered
from sagalog.engine.kernel.record import Record
from sagalog.schemas import records
from sagalog.schemas.codec import encode
from sagalog.schemas.commands import TYPE_OF_DIRECTION, encode_command
from sagalog.schemas.events import TYPE_OF, Event, encode_event
from sagalog.schemas.ids import FIRST_RUN, of_run
from sagalog.schemas.limits import QUARANTINE_VALUE_BYTES_MAX, RECORD_BYTES_MAX
from sagalog.topics.log import Message, Out

from .digest import Digest

_VERSION: Final = ("ce_specversion", b"1.0")
_SOURCE: Final = ("ce_source", b"sagalog/engine")
_JSON: Final = ("content-type", b"application/json")

VALUE_BYTES_MAX: Final = RECORD_BYTES_MAX - 8_192
"""Leaves room for the key and the headers."""

WITHHELD: Final = "sagalog_withheld"
"""Header of a checkpoint: the workflow's commands that wait at the owner's gate, as JSON, without the workflow's id and the `/`."""

Headers = list[tuple[str, bytes]]


@cache
def _type_header(ce_type: str) -> tuple[str, bytes]:
    return "ce_type", ce_type.encode()


def headers(ce_type: str, ce_id: str, trace: str | None = None) -> Headers:
    """CloudEvents attributes in binary mode, and the trace context where there is one."""
    found = [_VERSION, _type_header(ce_type), _SOURCE, ("ce_id", ce_id.encode()), _JSON]
    if trace is not None:
        found.append(("traceparent", trace.encode()))
    return found


def to_record(message: Message) -> Record:
    """A message of the log as the fold sees it."""
    ce_type: bytes | None = None
    ce_id: bytes | None = None
    trace: bytes | None = None
    for name, found in message.headers:
        if name == "ce_type":
            ce_type = found
        elif name == "ce_id":
            ce_id = found
        elif name == "traceparent":
            trace = found
    value = message.value
    size = len(value) if value is not None else 0
    return Record(message.offset, message.timestamp, message.key, value, ce_type, ce_id, size, trace)


def command(effect: Dispatch) -> Out:
    """For `commands.<agent>`."""
    sent = effect.command
    return Out(
        sent.workflow_id.encode(),
        encode_command(sent),
        headers(TYPE_OF_DIRECTION[sent.direction], sent.command_id, effect.trace),
    )


def event(workflow_id: str, value: Event, ce_id: str, trace: str | None = None) -> Out:
    """An event of the engine's own, for `events` or `outcomes`."""
    return Out(workflow_id.encode(), encode_event(value), headers(TYPE_OF[type(value)], ce_id, trace))


def result(effect: Finished) -> Out:
    """For `results`."""
    workflow_id = effect.result["workflow_id"]
    value = _fitting(effect.result, ("steps", "input", "output"))
    ce_id = f"{workflow_id}/{of_run('result', effect.result.get('run', FIRST_RUN))}"
    return Out(workflow_id.encode(), value, headers(records.TYPE_RESULT, ce_id, effect.trace))


def start_answered(effect: StartAnswered) -> Out:
    """For `results`, among which it is told by its type."""
    record = effect.record
    ce_id = f"{record['workflow_id']}/start/{record['start_id']}"
    return Out(
        record["workflow_id"].encode(), encode(record), headers(records.TYPE_START_ANSWERED, ce_id, effect.trace)
    )


def dead_letter(effect: DeadLettered) -> Out:
    """For `dead-letters`."""
    record = effect.record
    value = _fitting(record, ("input", "failures"))
    return Out(record["workflow_id"].encode(), value, headers(records.TYPE_DEAD_LETTER, record["id"]))


def _fitting(record: Any, expendable: tuple[str, ...]) -> bytes:
    """The record's JSON. Of one that would not fit, the expendable fields give way one by one, and the record says so.

    A binding may repeat a payload any number of times, so the sum has no bound of its own; the event log has all of it.
    """
    value = encode(record)
    shortened: list[str] = []
    for name in expendable:
        if len(value) <= VALUE_BYTES_MAX:
            break
        shortened.append(name)
        kept = _without_payloads(record[name]) if name == "steps" else None
        record = {**record, name: kept, "shortened": shortened}
        value = encode(record)
    return value


def _without_payloads(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kept = [{key: found for key, found in step.items() if key != "output"} for step in steps]
    for step in kept:
        if "items" in step:
            step["items"] = _without_payloads(step["items"])
    return kept


def review(effect: ReviewNeeded | ReviewClosed) -> Out:
    """For `reviews`."""
    record = effect.record
    value = _fitting(record, ("details", "input"))
    ce_id = record["id"] if isinstance(effect, ReviewNeeded) else f"{record['id']}/decided"
    return Out(record["workflow_id"].encode(), value, headers(records.TYPE_REVIEW, ce_id))


def quarantine(message: Message, reason: str, stage: str, workflow_id: str | None, at_ms: int) -> Out:
    """For `quarantine`: the record as it was, as far as it fits, with where it came from."""
    origin = f"{message.topic}/{message.partition}/{message.offset}"
    value = message.value
    record: records.QuarantineRecord = {
        "origin": origin,
        "reason": reason[:1_000],
        "stage": stage,
        "at_ms": at_ms,
        "key": _base64(message.key),
        "value": _base64(value[:QUARANTINE_VALUE_BYTES_MAX] if value is not None else None),
        "value_bytes": len(value) if value is not None else 0,
        "headers": [[name[:200], _base64(found[:2_000]) or ""] for name, found in list(message.headers)[:50]],
    }
    if workflow_id is not None:
        record["workflow_id"] = workflow_id
    return Out(origin.encode(), encode(record), headers(records.TYPE_QUARANTINE, origin))


def _base64(value: bytes | None) -> str | None:
    return base64.b64encode(value).decode() if value is not None else None


def checkpoint(key: str, document: Any, at_offset: int, extra: Headers) -> Out:
    """For `checkpoints`. `document` is encoded already; `extra` are what a take-over needs to know without decoding it."""
    return Out(key.encode(), document, [*headers(records.TYPE_CHECKPOINT, f"{key}@{at_offset}"), *extra])


def marker_at(offset: int, epoch: int, member: str, definitions: list[str], *, leaving: bool) -> records.MarkerRecord:
    """A marker whose checkpoints are not encoded yet: `marker` says what they amount to."""
    record: records.MarkerRecord = {
        "at_offset": offset,
        "epoch": epoch,
        "member": member,
        "definitions": definitions,
        "workflows": 0,
        "digest": "",
    }
    if leaving:
        record["leaving"] = True
    return record


def marker(record: records.MarkerRecord, digest: Digest) -> Out:
    """For `checkpoints` and `circuits`, behind the checkpoints that it is of."""
    record["workflows"], record["digest"] = len(digest), digest.hex()
    key = records.MARKER_KEY
    return Out(key.encode(), encode(record), headers(records.TYPE_MARKER, f"{key}@{record['at_offset']}"))
