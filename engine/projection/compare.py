"""Rows in a form that can be compared: what a record amounts to, beside what the database holds. `verify` is made of it.

Rule: both sides go through the same `canonical`. PostgreSQL keeps numbers as decimals, so 1.0, 1 and 1e0 are one value, and
integers beyond 2**53 are compared as doubles; times are whole milliseconds. What is an annotation (`withheld`) is not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from .rows import (
    CompensationRow,
    Rank,
    Record,
    ScheduleRow,
    StepRow,
    WorkflowRow,
    compensation_rows,
    schedule_row,
    step_rows,
    without_nul,
    workflow_row,
)
from .sql import Row, Sql

PAGE_ROWS: Final = 1_000
EXACT_MAX: Final = 2**53
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)

_STUB_FIELDS: Final = (
    "name",
    "definition",
    "status",
    "terminal",
    "partition",
    "at_offset",
    "started_ms",
    "finished_ms",
    "paused",
    "signals",
    "run",
)
_NOT_COMPARED: Final = frozenset({"rank", "withheld"})


@dataclass(frozen=True, slots=True)
class WorkflowRows:
    """One workflow's rows, as plain values: times are milliseconds, JSON is canonical."""

    rank: Rank
    workflow: dict[str, Any]
    steps: dict[str, dict[str, Any]]
    compensations: dict[str, dict[str, Any]]


def expected_rows(workflow_id: str, record: Record, partition: int) -> WorkflowRows:
    """What a checkpoint or a result should have become. Raises InvalidRecord, as the projector would have."""
    record = without_nul(dict(record))
    workflow_id = without_nul(workflow_id)
    return WorkflowRows(
        Rank(workflow_row(workflow_id, record, partition).rank),
        _from_staged(workflow_row(workflow_id, record, partition)),
        {row.step: _from_staged(row) for row in step_rows(workflow_id, record)},
        {row.step: _from_staged(row) for row in compensation_rows(workflow_id, record)},
    )


def expected_schedule(record: Record, partition: int) -> dict[str, Any]:
    """What a schedule's checkpoint should have become. Raises InvalidRecord, as the projector would have."""
    return _from_staged(schedule_row(without_nul(dict(record)), partition))


async def fetch_schedules(sql: Sql, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows of the schedules named; those that the database does not know are left out."""
    async with sql.transaction(snapshot=True) as transaction:
        found = await transaction.fetch("rows_schedules", {"names": list(names)})
    return {row["name"]: _from_stored(row) for row in found}


def schedule_differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """One line per value that is not as expected."""
    return _compare("schedule", expected, found)


async def fetch_rows(sql: Sql, workflow_ids: Sequence[str] | None = None) -> dict[str, WorkflowRows]:
    """The rows of the workflows named, or of all; those that the database does not know are left out.

    The rows of one workflow are of one moment; two workflows may be of different ones.
    """
    found: dict[str, WorkflowRows] = {}
    if workflow_ids is not None:
        for start in range(0, len(workflow_ids), PAGE_ROWS):
            await _fetch_page(sql, list(workflow_ids[start : start + PAGE_ROWS]), "", found)
        return found
    after = ""
    while (last := await _fetch_page(sql, None, after, found)) is not None:
        after = last
    return found


async def _fetch_page(sql: Sql, ids: list[str] | None, after: str, found: dict[str, WorkflowRows]) -> str | None:
    """Adds a page to `found`. Returns the last id of the page, None when it is empty."""
    async with sql.transaction(snapshot=True) as transaction:
        page = await transaction.fetch("rows_workflows", {"ids": ids, "after": after, "limit": PAGE_ROWS})
        params = {"ids": [row["workflow_id"] for row in page]}
        steps = await transaction.fetch("rows_steps", params)
        compensations = await transaction.fetch("rows_compensations", params)
    for row in page:
        found[row["workflow_id"]] = WorkflowRows(Rank(row["rank"]), _from_stored(row), {}, {})
    for row in steps:
        found[row["workflow_id"]].steps[row["step"]] = _from_stored(row)
    for row in compensations:
        found[row["workflow_id"]].compensations[row["step"]] = _from_stored(row)
    return page[-1]["workflow_id"] if page else None


def differences(expected: WorkflowRows, found: WorkflowRows) -> list[str]:
    """One line per value that is not as expected. Of a stub, only what a stub says is compared."""
    if expected.rank is Rank.STUB:
        return _compare("workflow", _only(expected.workflow, _STUB_FIELDS), _only(found.workflow, _STUB_FIELDS))
    lines = _compare("workflow", expected.workflow, found.workflow)
    for what, wanted, have in (
        ("steps", expected.steps, found.steps),
        ("compensations", expected.compensations, found.compensations),
    ):
        for name in sorted(wanted.keys() | have.keys()):
            if name not in have:
                lines.append(f"{what}.{name}: is missing")
            elif name not in wanted:
                lines.append(f"{what}.{name}: should not be there")
            else:
                lines.extend(_compare(f"{what}.{name}", wanted[name], have[name]))
    return lines


def canonical(value: Any) -> Any:
    """A JSON value in the one form that equal values share."""
    match value:
        case bool() | str() | None:
            return value
        case int():
            return value if abs(value) <= EXACT_MAX else float(value)
        case float():
            return int(value) if value.is_integer() and abs(value) <= EXACT_MAX else value
        case dict():
            return {key: canonical(value[key]) for key in sorted(value)}
        case list():
            return [canonical(inner) for inner in value]
        case _:
            raise TypeError(f"{type(value).__name__} is not a JSON value")


_JSON_COLUMNS: Final = frozenset(
    {
        "input",
        "output",
        "missing",
        "failure",
        "withheld",
        "paused",
        "signals",
        "failures",
        "usage",
        "attributes",
        "next",
        "migrated",
        "parent",
        "skipped",
        "waiting",
        "runs",
        "skips",
        "removed",
        "forked_from",
        "rewinds",
    }
)


def _from_staged(row: WorkflowRow | StepRow | CompensationRow | ScheduleRow) -> dict[str, Any]:
    return {
        name: canonical(orjson.loads(value) if name in _JSON_COLUMNS and value is not None else value)
        for name, value in row._asdict().items()
        if name not in _NOT_COMPARED
    }


def _from_stored(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if name in _NOT_COMPARED:
            continue
        if name.endswith("_at"):
            # To the nearest: `to_timestamp` takes a double, which is microseconds off for a time a few centuries from now.
            found[f"{name.removesuffix('at')}ms"] = None if value is None else (value - _EPOCH + _MS / 2) // _MS
        else:
            found[name] = canonical(value)
    return found


def _only(values: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in fields}


def _compare(where: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [
        f"{where}.{name}: is {str(found.get(name))[:200]} where {str(value)[:200]} is expected"
        for name, value in expected.items()
        if found.get(name) != value
    ]
