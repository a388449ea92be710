"""Schedules as rows: what their checkpoints amount to, what is never shown, and what `verify` compares."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sagalog.engine.kernel.schedules import dump_schedule
from sagalog.engine.projection import rows
from sagalog.engine.projection.compare import expected_schedule, schedule_differences
from sagalog.schemas.codec import decode, encode
from sagalog.schemas.errors import InvalidRecord
from sagalog.topics.specs import Topics

from .kernel.timetable import FIRST_MS, KEY, MINUTE_MS, Timetable, run_id
from .test_projection_rows import batch_of, staged

TOPICS = Topics("unit")


def record(**more: Any) -> dict[str, Any]:
    """A schedule with a run that goes on, one that waits and a due time that was left out."""
    table = Timetable()
    table.set(overlap="buffer_one", input={"n": 1})
    table.minutes(1)
    table.deliver()
    table.minutes(2)
    table.ask("pause")
    found: dict[str, Any] = decode(encode(dump_schedule(table.schedule)))
    return found | more


def test_a_schedule_is_a_row_with_its_runs_and_what_was_left_out() -> None:
    row = rows.schedule_row(record(), 3)

    assert (row.name, row.partition, row.status, row.overlap) == ("nightly", 3, "paused", "buffer_one")
    assert (row.next_ms, row.started, row.running) == (FIRST_MS + 3 * MINUTE_MS, 1, 1)
    assert (row.skipped, row.input) == ('{"overlap":1}', '{"n":1}')
    (run,) = orjson.loads(row.runs or "")
    assert (run["id"], run["status"]) == (run_id(0), "running")
    assert orjson.loads(row.waiting or "")["id"] == run_id(1)
    assert orjson.loads(row.paused or "")["who"] == "bob"


def test_what_the_reports_of_runs_are_believed_by_is_not_shown() -> None:
    found = record()
    secrets = [found["seed"], found["runs"][0]["token"]]

    row = rows.schedule_row(found, 0)

    assert not [secret for secret in secrets if any(secret in str(value) for value in row)]


def test_the_newest_record_of_a_batch_counts_and_one_that_is_forgotten_goes() -> None:
    later = record(at_offset=99, status="removed")
    batch = batch_of((TOPICS.checkpoints, KEY.decode(), later), (TOPICS.checkpoints, KEY.decode(), record()))
    (row,) = staged(batch)["schedule"]
    assert (row.at_offset, row.status, batch.unknown_keys) == (99, "removed", 0)

    batch = batch_of((TOPICS.checkpoints, KEY.decode(), later), (TOPICS.checkpoints, KEY.decode(), None))
    assert staged(batch) == {} and batch.forgotten_schedules == {"nightly"}
    batch = batch_of((TOPICS.checkpoints, KEY.decode(), None), (TOPICS.checkpoints, KEY.decode(), later))
    assert len(staged(batch)["schedule"]) == 1 and batch.forgotten_schedules == set()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"status": "gone"}, "status"),
        ({"next_ms": "noon"}, "next_ms"),
        ({"started": -1}, "started"),
        ({"runs": {"a": 1}}, "runs"),
        ({"runs": ["a"]}, "runs"),
        ({"paused": True}, "paused"),
        ({"set_ms": 1 << 60}, "set_ms"),
        ({"cron": None}, "cron"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        rows.schedule_row(record() | change, 0)
    assert refused.value.field == field
    assert len(batch_of((TOPICS.checkpoints, KEY.decode(), record() | change)).rejected) == 1


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"status": "active"}, "schedule.status"),
        ({"next_ms": 7}, "schedule.next_ms"),
        ({"started": 9}, "schedule.started"),
        ({"skipped": {"overlap": 2}}, "schedule.skipped"),
        ({"runs": []}, "schedule.running"),
        ({"waiting": None}, "schedule.waiting"),
    ],
)
def test_verify_sees_a_difference(change: dict[str, Any], line: str) -> None:
    found = schedule_differences(expected_schedule(record(), 0), expected_schedule(record() | change, 0))
    assert any(one.startswith(f"{line}: is ") for one in found)
    assert schedule_differences(expected_schedule(record(), 0), expected_schedule(record(), 0)) == []
