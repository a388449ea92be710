"""What people ask the projection: typed answers for the command line and the console. They only read.

Times are `datetime` with a zone. Sizes of answers are bounded: lists come in pages, or newest first up to a limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from sagalog.schemas.codec import encode
from sagalog.schemas.errors import SagalogError
from sagalog.schemas.statuses import WorkflowStatus

from .sql import Row, Sql

PAGE_MAX: Final = 1_000


class InvalidQuery(SagalogError):
    """A question that cannot be answered."""


@dataclass(frozen=True, slots=True)
class WorkflowSummary:
    """One line of a list."""

    workflow_id: str
    name: str
    definition: str
    status: str
    terminal: bool
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    completeness: float | None
    correlation_id: str | None
    failure_kind: str | None
    failure_message: str | None
    withheld: bool
    """Whether a command is ready but not sent yet."""
    tenant: str | None
    priority: int
    attributes: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class WorkflowPage:
    """A page of a list; `next` is what to pass as `after` for the one behind it, None at the end."""

    workflows: list[WorkflowSummary]
    next: str | None


@dataclass(frozen=True, slots=True)
class Workflow:
    workflow_id: str
    name: str
    definition: str
    status: str
    terminal: bool
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    deadline_at: datetime | None
    input: Any
    output: Any
    completeness: float | None
    missing: list[dict[str, Any]] | None
    failure: dict[str, Any] | None
    correlation_id: str | None
    stopped: str | None
    paused: dict[str, Any] | None
    """{who, reason, at_ms}"""
    signals: list[dict[str, Any]] | None
    """{id, name, at_ms, bytes, payload} each: those that no step has waited for yet."""
    withheld: list[dict[str, Any]] | None
    partition: int
    at_offset: int
    usage: dict[str, int] | None
    """{attempts, tokens, cost} of a finished one whose agents said what they used; the attempts are those at executing."""
    tenant: str | None
    priority: int
    attributes: dict[str, Any] | None
    """Search attributes."""
    run: int
    """1, or which run it is of an id whose start replaced another."""
    next: dict[str, Any] | None
    """{definition, at_ms} of the start that replaces it once it has ended."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step, or one item of a step that maps: `step` is then its name with the item's number, as `read[3]`."""

    workflow_id: str
    step: str
    place: int
    status: str
    attempt: int
    agent: str | None
    started_at: datetime | None
    finished_at: datetime | None
    ended_order: int | None
    retry_at: datetime | None
    until_at: datetime | None
    """Of a step that awaits something: when it wakes, or has waited long enough."""
    escalated: bool
    unknown: bool
    stand_in: str | None
    output: Any
    failed_attempts: int
    failures: list[dict[str, Any]] | None
    item: int | None
    """None for a step's own row."""
    tokens: int
    cost: int
    """What its attempts at executing used. Of a step that maps, its items have it."""


@dataclass(frozen=True, slots=True)
class Compensation:
    """The undoing of a step, or of one item of a step that maps (which has none of its own)."""

    workflow_id: str
    step: str
    place: int
    status: str
    attempt: int
    undone_order: int | None
    started_at: datetime | None
    finished_at: datetime | None
    retry_at: datetime | None
    failed_attempts: int
    failures: list[dict[str, Any]] | None
    item: int | None


@dataclass(frozen=True, slots=True)
class Review:
    id: str
    workflow_id: str
    definition: str
    name: str
    step: str | None
    kind: str
    reason: str
    details: Any
    input: Any
    created_at: datetime
    decided_at: datetime | None
    """None while it is open."""
    decision: str | None
    decided_by: str | None
    decided_reason: str | None
    partition: int
    at_offset: int


@dataclass(frozen=True, slots=True)
class Migration:
    """One move of a workflow to another hash of its definition."""

    workflow_id: str
    number: int
    at: datetime
    before: str
    after: str
    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    id: str
    workflow_id: str
    definition: str
    name: str
    step: str
    agent: str
    direction: str
    input: Any
    failures: list[dict[str, Any]]
    failed_attempts: int
    created_at: datetime
    partition: int
    at_offset: int
    redriven_by: str | None
    """The workflow in which it was tried again."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a workflow comes from, its rewindings, and what was forked from it."""

    forked_from: dict[str, Any] | None
    """{workflow_id, at_offset, dead_letter, who, reason}"""
    rewinds: list[dict[str, Any]] | None
    """{step, undo, who, reason, at_ms, dead_letter} each."""
    forks: list[str] | None


@dataclass(frozen=True, slots=True)
class Circuit:
    service: str
    status: str
    since: datetime
    updated_at: datetime
    opened: int
    reason: str | None
    half_open_at: datetime | None
    probe: int | None
    probe_until: datetime | None
    candidates: list[int] | None
    calls: int
    faults: int
    policy: dict[str, Any]
    partition: int
    at_offset: int


@dataclass(frozen=True, slots=True)
class Schedule:
    name: str
    status: str
    definition: str
    cron: str
    zone: str
    overlap: str
    next_at: datetime | None
    running: int
    """How many of its workflows go on."""
    started: int
    skipped: dict[str, int] | None
    """Due times without a run, by why."""
    waiting: dict[str, Any] | None
    runs: list[dict[str, Any]] | None
    """{id, due_ms, started_ms, status, finished_ms, triggered_by} each, the oldest first."""
    skips: list[dict[str, Any]] | None
    """{due_ms, why} each, the oldest first."""
    paused: dict[str, Any] | None
    removed: dict[str, Any] | None
    """{who, reason, at_ms}"""
    input: Any
    catch_up_ms: int
    jitter_ms: int
    set_by: str
    set_at: datetime
    updated_at: datetime
    partition: int
    at_offset: int


@dataclass(frozen=True, slots=True)
class Lag:
    """One partition. `end_offset` is -1 until a projector has looked; `age_s` is how long ago one last wrote."""

    topic: str
    partition: int
    applied_offset: int
    end_offset: int
    lag_records: int
    updated_at: datetime
    age_s: float


@dataclass(frozen=True, slots=True)
class Health:
    agent: str
    updated_at: datetime
    window_ms: int
    ok: int
    failed: int
    error_rate: float
    alert: bool
    since: datetime


@dataclass(frozen=True, slots=True)
class Child:
    """A workflow that does a step of another one, or a run of a schedule (`parent` is `@schedule/NAME`)."""

    parent: str
    step: str
    workflow_id: str
    root: str
    name: str
    status: str
    terminal: bool
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkflowDetails:
    """All there is of one workflow, of one moment."""

    workflow: Workflow
    steps: list[Step]
    compensations: list[Compensation]
    reviews: list[Review]
    dead_letters: list[DeadLetter]
    migrations: list[Migration]
    """The newest 10 moves to other hashes of its definition, the oldest of them first."""
    parent: Child | None
    """Whose step it does, or whose run it is."""
    children: list[Child]
    """Workflows that do its steps, the oldest first; at most 200."""


async def list_workflows(
    sql: Sql,
    *,
    status: str | None = None,
    name: str | None = None,
    tenant: str | None = None,
    where: Mapping[str, str | int | float | bool] | None = None,
    limit: int = 50,
    after: str | None = None,
) -> WorkflowPage:
    """Workflows, the one started last first. `where`: search attributes that they must have, all of them.

    Raises InvalidQuery for a status, a limit or an `after` that cannot be.
    """
    if status is not None and status not in WorkflowStatus.__members__.values():
        raise InvalidQuery(f"status: {status[:80]!r} is unknown; known are {', '.join(WorkflowStatus)}")
    _check_limit(limit)
    after_started, after_id = (None, None) if after is None else _parse_after(after)
    params = {
        "status": status,
        "name": name,
        "tenant": tenant,
        "where": encode(dict(where)).decode() if where else None,
        "limit": limit + 1,
        "after_started": after_started,
        "after_id": after_id,
    }
    async with sql.transaction(snapshot=True) as transaction:
        found = [_as(WorkflowSummary, row) for row in await transaction.fetch("workflows_list", params)]
    page = found[:limit]
    return WorkflowPage(page, _after(page[-1]) if len(found) > limit else None)


async def show_workflow(sql: Sql, workflow_id: str) -> WorkflowDetails | None:
    """One workflow with its steps and their items, ledger, reviews and dead letters; None when the projection does not know it."""
    params = {"workflow_id": workflow_id}
    async with sql.transaction(snapshot=True) as transaction:
        found = await transaction.fetch("workflow_get", params)
        if not found:
            return None
        return WorkflowDetails(
            _as(Workflow, found[0]),
            [_as(Step, row) for row in await transaction.fetch("workflow_steps", params)],
            [_as(Compensation, row) for row in await transaction.fetch("workflow_compensations", params)],
            [_as(Review, row) for row in await transaction.fetch("workflow_reviews", params)],
            [_as(DeadLetter, row) for row in await transaction.fetch("workflow_dead_letters", params)],
            [_as(Migration, row) for row in await transaction.fetch("workflow_migrations", params)],
            next((_as(Child, row) for row in await transaction.fetch("workflow_parent", params)), None),
            [_as(Child, row) for row in await transaction.fetch("workflow_children", params)],
        )


async def definition_document(sql: Sql, hash: str) -> dict[str, Any] | None:
    """A definition as data; None when the projection does not know it."""
    found = await _fetch(sql, "definition_get", {"hash": hash})
    return found[0]["document"] if found else None


async def counts_by_status(sql: Sql) -> dict[str, int]:
    """How many workflows are in which status; statuses without one are left out."""
    return {row["status"]: row["workflows"] for row in await _fetch(sql, "workflows_counts")}


async def lag(sql: Sql) -> list[Lag]:
    """How far the projection is behind, per partition."""
    return [_as(Lag, row) for row in await _fetch(sql, "lag_list")]


async def circuits(sql: Sql) -> list[Circuit]:
    return [_as(Circuit, row) for row in await _fetch(sql, "circuits_list")]


async def schedules(sql: Sql, *, name: str | None = None, limit: int = 50) -> list[Schedule]:
    """By name; all, or the one of that name."""
    _check_limit(limit)
    return [_as(Schedule, row) for row in await _fetch(sql, "schedules_list", {"name": name, "limit": limit})]


async def health(sql: Sql) -> list[Health]:
    return [_as(Health, row) for row in await _fetch(sql, "health_list")]


async def reviews(sql: Sql, *, limit: int = 50, open_only: bool = False) -> list[Review]:
    """The newest first. `open_only`: without those that are decided."""
    _check_limit(limit)
    params = {"limit": limit, "open_only": open_only}
    return [_as(Review, row) for row in await _fetch(sql, "reviews_list", params)]


async def dead_letters(sql: Sql, *, limit: int = 50) -> list[DeadLetter]:
    """The newest first."""
    _check_limit(limit)
    return [_as(DeadLetter, row) for row in await _fetch(sql, "dead_letters_list", {"limit": limit})]


async def open_dead_letters(
    sql: Sql, *, name: str | None = None, since: datetime | None = None, limit: int = 50
) -> list[DeadLetter]:
    """Those that nobody has tried again, the newest first; of one definition, since a time."""
    _check_limit(limit)
    params = {"name": name, "since": since, "limit": limit}
    return [_as(DeadLetter, row) for row in await _fetch(sql, "dead_letters_open", params)]


async def lineage(sql: Sql, workflow_id: str) -> Lineage | None:
    """None when the projection does not know the workflow."""
    rows = await _fetch(sql, "workflow_lineage", {"workflow_id": workflow_id})
    return _as(Lineage, rows[0]) if rows else None


async def _fetch(sql: Sql, query: str, params: dict[str, Any] | None = None) -> list[Row]:
    async with sql.transaction(snapshot=True) as transaction:
        return await transaction.fetch(query, params)


T = TypeVar("T")


def _as(kind: type[T], row: Row) -> T:
    # Views may gain columns that this version does not know.
    return kind(**{field.name: row[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= PAGE_MAX:
        raise InvalidQuery(f"limit: {limit} is not within 1 to {PAGE_MAX}")


def _after(last: WorkflowSummary) -> str:
    return f"{last.started_at.isoformat()}/{last.workflow_id}"


def _parse_after(after: str) -> tuple[datetime, str]:
    started, separator, workflow_id = after.partition("/")
    try:
        at = datetime.fromisoformat(started)
    except ValueError:
        separator = ""
    if not separator:
        raise InvalidQuery(f"after: {after[:80]!r} is not what a page gave as next") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC), workflow_id
