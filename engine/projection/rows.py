"""Records to rows: pure functions, shared by the projector and by `verify`.

Rules:
- What does not fit (an unknown status, a time beyond the year 9999, a number beyond the column) raises InvalidRecord here, so
  that one bad record never reaches a batch.
- PostgreSQL stores no NUL in text: it becomes U+FFFD, in values and in keys of objects (`without_nul`). Everything else is
  stored as it is; numbers are what a double and a 64-bit integer can hold, because the fold holds no others.
- Rows depend on one record only, never on what the database holds.
- A step that maps or repeats is a row, and so is each of its items; no two rows of a record have one name, which is their key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import Any, Final, NamedTuple

from sagalog.schemas.codec import encode
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import Decision
from sagalog.schemas.ids import FIRST_RUN, item_name
from sagalog.schemas.limits import PRIORITY_DEFAULT, PRIORITY_MAX, TIME_MS_MAX
from sagalog.schemas.statuses import (
    TERMINAL,
    CircuitStatus,
    ScheduleStatus,
    StepStatus,
    UndoStatus,
    WorkflowStatus,
)

INTEGER_MAX: Final = 2**31 - 1
OFFSET_MAX: Final = 2**63 - 1
KEY_BYTES_MAX: Final = 2_000
"""An entry of PostgreSQL's index may have 2,704 bytes."""
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"

Record = Mapping[str, Any]
Json = str | None
"""An encoded document; None for null, and for what is not there."""


class Rank(IntEnum):
    """Which of two records of one offset counts: the higher. The numbers are stored."""

    STUB = 0
    """Of a finished workflow: says how it ended, not what it was about."""
    FILLED_STUB = 1
    """With what an earlier checkpoint in the same batch said."""
    CHECKPOINT = 2
    RESULT = 3


class ReviewRank(IntEnum):
    """Which of two records of one review and one offset counts: the higher. The numbers are stored.

    One event can close a review and open it again (a step is tried anew and cannot begin), or open it and close it (a step
    is held and another one stops the workflow).
    """

    RETRIED = 0
    """Closed because the step is tried anew."""
    OPENED = 1
    CLOSED = 2


class WorkflowRow(NamedTuple):
    workflow_id: str
    name: str
    definition: str
    status: str
    terminal: bool
    partition: int
    at_offset: int
    rank: int
    started_ms: int
    updated_ms: int
    finished_ms: int | None
    deadline_ms: int | None
    completeness: float | None
    correlation_id: str | None
    stopped: str | None
    input: Json
    output: Json
    missing: Json
    failure: Json
    withheld: Json
    paused: Json
    signals: Json
    usage: Json
    tenant: str | None
    priority: int
    attributes: Json
    run: int
    next: Json
    """The start that waits for this run's end, without its seed: who knows that can answer in its agents' names."""
    migrated: Json
    parent: Json
    """Whose step it does, or whose run it is."""
    forked_from: Json
    rewinds: Json


class StepRow(NamedTuple):
    workflow_id: str
    step: str
    place: int
    status: str
    attempt: int
    agent: str | None
    started_ms: int | None
    finished_ms: int | None
    ended_order: int | None
    retry_ms: int | None
    unknown: bool
    stand_in: str | None
    output: Json
    failed_attempts: int
    failures: Json
    until_ms: int | None
    escalated: bool
    item: int | None
    """Which item of its step the row is; None for the step itself."""
    tokens: int
    cost: int
    """Of a step that maps its items have them, so that a sum over all rows counts nothing twice."""


class CompensationRow(NamedTuple):
    workflow_id: str
    step: str
    place: int
    status: str
    attempt: int
    undone_order: int | None
    started_ms: int | None
    finished_ms: int | None
    retry_ms: int | None
    failed_attempts: int
    failures: Json
    item: int | None


class CircuitRow(NamedTuple):
    service: str
    partition: int
    at_offset: int
    status: str
    since_ms: int
    updated_ms: int
    opened: int
    reason: str | None
    half_open_ms: int | None
    probe: int | None
    probe_until_ms: int | None
    candidates: Json
    calls: int
    faults: int
    policy: Json


class ReviewRow(NamedTuple):
    id: str
    workflow_id: str
    definition: str
    name: str
    step: str | None
    kind: str
    reason: str
    details: Json
    input: Json
    partition: int
    at_offset: int
    rank: int
    opened_offset: int | None
    """Of the record from which everything above is; None when that one closes the review."""
    created_ms: int
    decided_ms: int | None
    decision: str | None
    decided_by: str | None
    decided_reason: str | None


class DeadLetterRow(NamedTuple):
    id: str
    workflow_id: str
    definition: str
    name: str
    step: str
    agent: str
    direction: str
    input: Json
    failures: Json
    failed_attempts: int
    partition: int
    at_offset: int
    created_ms: int


class DefinitionRow(NamedTuple):
    hash: str
    name: str
    agents: Json
    document: Json


class HealthRow(NamedTuple):
    agent: str
    at_ms: int
    window_ms: int
    ok: int
    failed: int
    error_rate: float
    alert: bool
    since_ms: int


class ScheduleRow(NamedTuple):
    name: str
    partition: int
    at_offset: int
    status: str
    definition: str
    cron: str
    zone: str
    overlap: str
    catch_up_ms: int
    jitter_ms: int
    input: Json
    next_ms: int | None
    started: int
    skipped: Json
    running: int
    waiting: Json
    runs: Json
    skips: Json
    paused: Json
    removed: Json
    set_by: str
    set_ms: int
    updated_ms: int


class MarkerRow(NamedTuple):
    topic: str
    partition: int
    at_offset: int
    epoch: int
    member: str
    digest: str
    workflows: int
    definitions: Json


_WORKFLOW_STATUSES: Final = {str(status): status in TERMINAL for status in WorkflowStatus}
_STEP_STATUSES: Final = frozenset(map(str, StepStatus))
_UNDO_STATUSES: Final = frozenset(map(str, UndoStatus))
_SCHEDULE_STATUSES: Final = frozenset(map(str, ScheduleStatus))
_CIRCUIT_STATUSES: Final = frozenset(map(str, CircuitStatus))
_HAVE_OUTPUT: Final = frozenset({str(StepStatus.DONE), str(StepStatus.DEGRADED)})


def rank_of(record: Record) -> Rank:
    """What kind of record of a workflow this is, by its content."""
    if "completeness" in record:
        return Rank.RESULT
    return Rank.STUB if "finished_ms" in record else Rank.CHECKPOINT


def result_id(record: Record) -> str:
    """Whose result this is."""
    return _text(record, "workflow_id")


def workflow_row(workflow_id: str, record: Record, partition: int) -> WorkflowRow:
    """The workflow's row, of a checkpoint or a result."""
    rank = rank_of(record)
    status = _text(record, "status")
    terminal = _WORKFLOW_STATUSES.get(status)
    if terminal is None:
        raise _unknown("status", status)
    if terminal is (rank is Rank.CHECKPOINT):
        raise InvalidRecord("status", f"is {status!r}, but finished_ms says {'not ' if terminal else ''}finished")
    started = _time(record, "started_ms")
    finished = None if rank is Rank.CHECKPOINT else _time(record, "finished_ms")
    completeness = _number(record, "completeness") if rank is Rank.RESULT else None
    withheld = record.get("withheld")
    return WorkflowRow(
        _key(workflow_id, "workflow_id"),
        _text(record, "name"),
        _text(record, "definition"),
        status,
        terminal,
        partition,
        _integer(record, "at_offset", OFFSET_MAX, -1),
        int(rank),
        started,
        _time(record, "now_ms") if finished is None else finished,
        finished,
        # A stub's deadline is until when its id is remembered, which is the engine's business.
        None if finished is not None else _time_or_none(record, "deadline_ms"),
        completeness,
        _text_or_none(record, "correlation_id"),
        _text_or_none(record, "stopped"),
        _json(record.get("input")),
        _json(record.get("output")),
        _json(record["missing"]) if record.get("missing") else None,
        _json(record.get("failure")),
        _json(withheld) if withheld else None,
        _json(_object_or_none(record, "paused")),
        _json(_objects(record, "signals") or None),
        _json(_object_or_none(record, "usage")),
        _text_or_none(record, "tenant"),
        _integer(record, "priority", PRIORITY_MAX) if "priority" in record else PRIORITY_DEFAULT,
        _json(_object_or_none(record, "attributes")),
        _integer(record, "run", OFFSET_MAX) if "run" in record else FIRST_RUN,
        _json(_next(record)),
        _json(_objects(record, "migrated") or None),
        _json(_parent(record)),
        _json(_object_or_none(record, "forked_from")),
        _json(_objects(record, "rewinds") or None),
    )


def _parent(record: Record) -> dict[str, Any] | None:
    parent = _object_or_none(record, "parent")
    # Without the token: who knows that can speak for the child.
    return None if parent is None else {name: parent.get(name) for name in ("workflow_id", "root", "step")}


def _next(record: Record) -> dict[str, Any] | None:
    following = _object_or_none(record, "next")
    if following is None:
        return None
    return {"definition": _text(following, "definition"), "at_ms": _time(following, "at_ms")}


def step_rows(workflow_id: str, record: Record) -> list[StepRow]:
    """A row per step and per item, of a checkpoint or a result; none for a stub."""
    shortened = record.get("shortened")
    with_payloads = type(shortened) is not list or "steps" not in shortened
    rows = []
    for place, item, step in _steps_and_items(record):
        status = _text(step, "status")
        if status not in _STEP_STATUSES:
            raise _unknown(f"{_where(place, item)}.status", status)
        rows.append(
            StepRow(
                workflow_id,
                _text(step, "name"),
                place,
                status,
                _integer(step, "attempt"),
                _text_or_none(step, "agent") or _text_or_none(step, "asked"),
                _time_or_none(step, "started_ms"),
                _time_or_none(step, "finished_ms"),
                _integer_or_none(step, "order"),
                _time_or_none(step, "retry_at_ms"),
                step.get("unknown") is True,
                _text_or_none(step, "stand_in"),
                _json(_output(step, item, status, with_payloads)),
                _integer_or_none(step, "failed_attempts") or 0,
                _json(step["failures"]) if step.get("failures") else None,
                _time_or_none(step, "until_ms"),
                step.get("escalated") is True,
                item,
                _integer_or_none(step, "tokens", OFFSET_MAX) or 0,
                _integer_or_none(step, "cost", OFFSET_MAX) or 0,
            )
        )
    return rows


def compensation_rows(workflow_id: str, record: Record) -> list[CompensationRow]:
    """A row per entry in the ledger, of a checkpoint or a result. Of a step that maps, its items have the entries."""
    rows = []
    for place, item, step in _steps_and_items(record):
        undo = step.get("undo")
        if undo is None:
            continue
        if type(undo) is not dict:
            raise InvalidRecord(f"{_where(place, item)}.undo", f"is a {type(undo).__name__}; an object is expected")
        status = _text(undo, "status")
        if status not in _UNDO_STATUSES:
            raise _unknown(f"{_where(place, item)}.undo.status", status)
        rows.append(
            CompensationRow(
                workflow_id,
                _text(step, "name"),
                place,
                status,
                _integer(undo, "attempt"),
                _integer_or_none(undo, "order"),
                _time_or_none(undo, "started_ms"),
                _time_or_none(undo, "finished_ms"),
                _time_or_none(undo, "retry_at_ms"),
                _integer_or_none(undo, "failed_attempts") or 0,
                _json(undo["failures"]) if undo.get("failures") else None,
                item,
            )
        )
    return rows


def _steps_and_items(record: Record) -> Iterator[tuple[int, int | None, dict[str, Any]]]:
    """(place, item, record) of each step, followed by its items. Their names are keys: no two are alike."""
    # Two rows of one key in one statement are an error to PostgreSQL that no halving of the batch would bring to its record.
    names: set[str] = set()
    for place, step in enumerate(_objects(record, "steps")):
        name = _key(_text(step, "name"), "name")
        if name in names:
            raise InvalidRecord(f"{_where(place, None)}.name", f"is {name[:80]!r}, which an earlier one is called")
        names.add(name)
        yield place, None, step
        for item, found in enumerate(_objects(step, "items")):
            called = _key(_text(found, "name"), "name")
            if called != item_name(name, item) or called in names:
                raise InvalidRecord(
                    f"{_where(place, item)}.name",
                    f"is {called[:80]!r} where {item_name(name, item)[:80]!r} is expected",
                )
            names.add(called)
            yield place, item, found


def _where(place: int, item: int | None) -> str:
    return f"steps.{place}" if item is None else f"steps.{place}.items.{item}"


def _output(step: Record, item: int | None, status: str, with_payloads: bool) -> Any:
    """The output, also where the record leaves it out because it is that of the items (the kernel's `restore`).

    `with_payloads` False: the outputs did not fit into the record, and a list of what is left of them would be made up.
    """
    items = _objects(step, "items") if item is None else None
    if items and status in _HAVE_OUTPUT and step.get("stand_in") in (None, "items"):
        if step.get("repeats") is True:
            return items[-1].get("output")
        return [found.get("output") for found in items] if with_payloads else None
    return step.get("output")


def circuit_row(record: Record, partition: int) -> CircuitRow:
    """A service's circuit."""
    status = _text(record, "status")
    if status not in _CIRCUIT_STATUSES:
        raise _unknown("status", status)
    window = record.get("window") or []
    if type(window) is not list or not all(type(call) is list and len(call) == 2 for call in window):
        raise InvalidRecord("window", "is not a list of [at_ms, ok]")
    return CircuitRow(
        _key(_text(record, "service"), "service"),
        partition,
        _integer(record, "at_offset", OFFSET_MAX, -1),
        status,
        _time(record, "since_ms"),
        _time(record, "now_ms"),
        _integer(record, "opened"),
        _text_or_none(record, "reason"),
        _time_or_none(record, "half_open_at_ms"),
        _integer_or_none(record, "probe"),
        _time_or_none(record, "probe_until_ms"),
        _json(record["candidates"]) if record.get("candidates") else None,
        len(window),
        sum(not ok for _, ok in window),
        _json(_object(record, "policy")),
    )


def review_row(record: Record, partition: int) -> ReviewRow:
    """Work that waits for a person, or what was decided about it."""
    at_offset = _integer(record, "at_offset", OFFSET_MAX, -1)
    decided = _object_or_none(record, "decided")
    decision = _text(decided, "decision") if decided is not None else None
    rank = ReviewRank.CLOSED if decided is not None else ReviewRank.OPENED
    return ReviewRow(
        _key(_text(record, "id"), "id"),
        _key(_text(record, "workflow_id"), "workflow_id"),
        _text(record, "definition"),
        _text(record, "name"),
        _text_or_none(record, "step"),
        _text(record, "kind"),
        _text(record, "reason"),
        _json(record.get("details")),
        _json(record.get("input")),
        partition,
        at_offset,
        int(ReviewRank.RETRIED if decision == Decision.RETRY else rank),
        at_offset if decided is None else None,
        _time(record, "at_ms"),
        _time(decided, "at_ms") if decided is not None else None,
        decision,
        _text(decided, "who") if decided is not None else None,
        _text(decided, "reason") if decided is not None else None,
    )


def merge_reviews(one: ReviewRow, other: ReviewRow) -> ReviewRow:
    """What two rows of one review amount to, in whatever order they came: what `review_merge` does in the table."""
    asked = max(other, one, key=lambda row: (-2 if row.opened_offset is None else row.opened_offset, row.at_offset))
    newest = max(other, one, key=lambda row: (row.at_offset, row.rank))
    return asked._replace(
        at_offset=newest.at_offset,
        rank=newest.rank,
        decided_ms=newest.decided_ms,
        decision=newest.decision,
        decided_by=newest.decided_by,
        decided_reason=newest.decided_reason,
    )


def dead_letter_row(record: Record, partition: int) -> DeadLetterRow:
    """A command that failed for good."""
    return DeadLetterRow(
        _key(_text(record, "id"), "id"),
        _key(_text(record, "workflow_id"), "workflow_id"),
        _text(record, "definition"),
        _text(record, "name"),
        _text(record, "step"),
        _text(record, "agent"),
        _text(record, "direction"),
        _json(record.get("input")),
        encode(_objects(record, "failures")).decode(),
        _integer(record, "failed_attempts"),
        partition,
        _integer(record, "at_offset", OFFSET_MAX, -1),
        _time(record, "at_ms"),
    )


def definition_row(hash_: str, record: Record) -> DefinitionRow:
    """A definition; it is not checked again whether it can run."""
    agents = {
        _text(step, "name"): agent
        for step in _objects(record, "steps")
        if (agent := _text_or_none(step, "agent") or _child(step)) is not None
    }
    return DefinitionRow(_key(hash_, "hash"), _text(record, "name"), _json(agents), _json(record))


def _child(step: Record) -> str | None:
    """What stands for the agent of a step that another workflow does."""
    child = _object_or_none(step, "workflow")
    return None if child is None else f"@{_text(child, 'definition')}"


def health_row(record: Record) -> HealthRow:
    """An agent's health."""
    return HealthRow(
        _key(_text(record, "agent"), "agent"),
        _time(record, "at_ms"),
        _integer(record, "window_ms", OFFSET_MAX),
        _integer(record, "ok", OFFSET_MAX),
        _integer(record, "failed", OFFSET_MAX),
        _number(record, "error_rate"),
        record.get("alert") is True,
        _time(record, "since_ms"),
    )


def schedule_row(record: Record, partition: int) -> ScheduleRow:
    """A schedule's row, of its checkpoint. What the reports of its runs are believed by is left out."""
    status = _text(record, "status")
    if status not in _SCHEDULE_STATUSES:
        raise _unknown("status", status)
    runs = [{name: value for name, value in run.items() if name != "token"} for run in _objects(record, "runs")]
    return ScheduleRow(
        _key(_text(record, "name"), "name"),
        partition,
        _integer(record, "at_offset", OFFSET_MAX, -1),
        status,
        _text(record, "definition"),
        _text(record, "cron"),
        _text(record, "zone"),
        _text(record, "overlap"),
        _integer(record, "catch_up_ms", OFFSET_MAX),
        _integer_or_none(record, "jitter_ms", OFFSET_MAX) or 0,
        _json(record.get("input")),
        _time_or_none(record, "next_ms"),
        _integer(record, "started", OFFSET_MAX),
        _json(_object_or_none(record, "skipped")),
        sum(run.get("status") == "running" for run in runs),
        _json(_object_or_none(record, "waiting")),
        _json(runs or None),
        _json(_objects(record, "skips") or None),
        _json(_object_or_none(record, "paused")),
        _json(_object_or_none(record, "removed")),
        _text(record, "set_by"),
        _time(record, "set_ms"),
        _time(record, "now_ms"),
    )


def marker_row(topic: str, partition: int, record: Record) -> MarkerRow:
    """What a partition's checkpoints amount to."""
    definitions = record.get("definitions", [])
    return MarkerRow(
        topic,
        partition,
        _integer(record, "at_offset", OFFSET_MAX, -1),
        _integer(record, "epoch", OFFSET_MAX),
        _text(record, "member"),
        _text(record, "digest"),
        _integer(record, "workflows", OFFSET_MAX),
        encode(definitions).decode(),
    )


# --- NUL


def holds_nul(raw: bytes) -> bool:
    """Whether a JSON document may hold a NUL; cheap, and right whenever it says no."""
    return b"\\u0000" in raw


def without_nul(value: Any) -> Any:
    """The document with U+FFFD for every NUL. Its depth is bounded by `decode`."""
    match value:
        case str():
            return value.replace("\0", REPLACEMENT)
        case dict():
            return {key.replace("\0", REPLACEMENT): without_nul(inner) for key, inner in value.items()}
        case list():
            return [without_nul(inner) for inner in value]
        case _:
            return value


# --- fields


def _unknown(field: str, status: str) -> InvalidRecord:
    return InvalidRecord(
        field, f"{status[:80]!r} is unknown; a newer version may have written it: upgrade the projector"
    )


def _key(value: str, field: str) -> str:
    size = len(value.encode())
    if not 1 <= size <= KEY_BYTES_MAX:
        raise InvalidRecord(field, f"is {size:,} bytes; 1 to {KEY_BYTES_MAX:,} can be a key in PostgreSQL")
    return value


def _text(record: Record, field: str) -> str:
    value = record.get(field)
    if type(value) is not str:
        raise _wrong(field, value, "text")
    return value


def _text_or_none(record: Record, field: str) -> str | None:
    value = record.get(field)
    if value is not None and type(value) is not str:
        raise _wrong(field, value, "text")
    return value


def _integer(record: Record, field: str, most: int = INTEGER_MAX, least: int = 0) -> int:
    value = record.get(field)
    if type(value) is not int or not least <= value <= most:
        raise _wrong(field, value, f"an integer within {least} to {most}")
    return value


def _integer_or_none(record: Record, field: str, most: int = INTEGER_MAX) -> int | None:
    return _integer(record, field, most) if record.get(field) is not None else None


def _time(record: Record, field: str) -> int:
    value = record.get(field)
    if type(value) is not int or not 0 <= value <= TIME_MS_MAX:
        raise _wrong(field, value, f"milliseconds since the epoch, at most {TIME_MS_MAX}")
    return value


def _time_or_none(record: Record, field: str) -> int | None:
    return _time(record, field) if record.get(field) is not None else None


def _number(record: Record, field: str) -> float:
    value = record.get(field)
    if type(value) is not float and type(value) is not int:
        raise _wrong(field, value, "a number")
    return float(value)


def _object(record: Record, field: str) -> dict[str, Any]:
    value = record.get(field)
    if type(value) is not dict:
        raise _wrong(field, value, "an object")
    return value


def _object_or_none(record: Record, field: str) -> dict[str, Any] | None:
    return _object(record, field) if record.get(field) is not None else None


def _objects(record: Record, field: str) -> list[dict[str, Any]]:
    value = record.get(field)
    if value is None:
        return []
    if type(value) is not list or not all(type(inner) is dict for inner in value):
        raise _wrong(field, value, "a list of objects")
    return value


def _wrong(field: str, value: Any, expected: str) -> InvalidRecord:
    if value is None:
        return InvalidRecord(field, f"is missing; {expected} is expected")
    return InvalidRecord(field, f"is {str(value)[:80]!r}; {expected} is expected")


def _json(value: Any) -> Json:
    return None if value is None else encode(value).decode()
