"""Records to rows and batches, without a database: what is taken over, what is refused, which of two records counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from sagalog.engine.projection import rows
from sagalog.engine.projection.batch import COMPENSATION, MARKER, STEP, WORKFLOW, Batch
from sagalog.engine.projection.compare import canonical, differences, expected_rows
from sagalog.engine.projection.migrations import load_migrations
from sagalog.engine.projection.rows import Rank
from sagalog.engine.projection.sql import queries, schema_name
from sagalog.schemas.errors import InvalidRecord
from sagalog.topics.log import TopicPartition
from sagalog.topics.specs import Topics

T0 = 1_760_000_000_000
TOPICS = Topics("unit")


@dataclass
class Read:
    """A record as read."""

    topic: str
    key: bytes | None
    value: bytes | None
    offset: int = 0
    partition: int = 0
    timestamp: int = T0
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def checkpoint(at_offset: int = 5, **more: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "status": "running",
        "definition": "d" * 16,
        "name": "order",
        "seed": "s",
        "started_ms": T0,
        "now_ms": T0 + 10,
        "at_offset": at_offset,
        "input": {"order": 1},
        "steps": [
            {"name": "reserve", "status": "done", "attempt": 1, "started_ms": T0, "finished_ms": T0 + 5, "order": 1},
            {"name": "charge", "status": "running", "attempt": 2, "started_ms": T0 + 5, "unknown": True},
        ],
        **more,
    }


def stub(at_offset: int = 9, **more: Any) -> dict[str, Any]:
    record = checkpoint(at_offset, status="completed", finished_ms=T0 + 20, deadline_ms=T0 + 999, **more)
    del record["steps"], record["input"]
    return record


def result(at_offset: int = 9, **more: Any) -> dict[str, Any]:
    return {
        "workflow_id": "w",
        "definition": "d" * 16,
        "name": "order",
        "status": "completed",
        "started_ms": T0,
        "finished_ms": T0 + 20,
        "at_offset": at_offset,
        "input": {"order": 1},
        "output": {"done": True},
        "completeness": 1.0,
        "missing": [],
        "steps": [{"name": "reserve", "status": "done", "attempt": 1, "output": 7}],
        **more,
    }


def batch_of(*found: tuple[str, str, Any]) -> Batch:
    batch = Batch(TOPICS)
    for offset, (topic, key, value) in enumerate(found):
        batch.add(Read(topic, key.encode(), None if value is None else orjson.dumps(value), offset))
    return batch


def staged(batch: Batch) -> dict[str, list[Any]]:
    return {table.name: list(found) for table, found in batch.staged()}


# --- rows


def test_a_checkpoint_becomes_a_running_row_with_its_steps() -> None:
    record = checkpoint(deadline_ms=T0 + 1000, withheld=[{"step": "charge", "reason": "circuit_open"}])
    row = rows.workflow_row("w", record, 3)
    assert row.status == "running" and not row.terminal
    assert (row.partition, row.at_offset, row.rank) == (3, 5, Rank.CHECKPOINT)
    assert (row.started_ms, row.updated_ms, row.finished_ms, row.deadline_ms) == (T0, T0 + 10, None, T0 + 1000)
    assert row.input == '{"order":1}'
    assert row.withheld == '[{"step":"charge","reason":"circuit_open"}]'
    first, second = rows.step_rows("w", record)
    assert (first.step, first.place, first.ended_order, first.unknown) == ("reserve", 0, 1, False)
    assert (second.step, second.place, second.attempt, second.unknown) == ("charge", 1, 2, True)


def test_a_result_is_terminal_and_a_stub_brings_no_deadline_of_the_engines_memory() -> None:
    row = rows.workflow_row("w", result(), 0)
    assert row.terminal and row.rank == Rank.RESULT and row.completeness == 1.0 and row.output == '{"done":true}'
    row = rows.workflow_row("w", stub(), 0)
    assert row.terminal and row.rank == Rank.STUB and row.deadline_ms is None and row.input is None
    assert rows.step_rows("w", stub()) == []


def test_the_ledger_has_a_row_for_every_step_that_has_an_undoing() -> None:
    record = checkpoint(status="compensating")
    record["steps"][0]["undo"] = {
        "status": "backing_off",
        "attempt": 2,
        "order": 1,
        "started_ms": T0 + 7,
        "retry_at_ms": T0 + 9,
        "failed_attempts": 2,
        "failures": [{"kind": "transient", "message": "no", "at_ms": T0}],
    }
    (row,) = rows.compensation_rows("w", record)
    assert (row.step, row.status, row.attempt, row.undone_order) == ("reserve", "backing_off", 2, 1)
    assert (row.retry_ms, row.failed_attempts) == (T0 + 9, 2)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"status": "resting"}, "status"),
        ({"status": "completed"}, "status"),
        ({"status": None}, "status"),
        ({"started_ms": 10**18}, "started_ms"),
        ({"started_ms": True}, "started_ms"),
        ({"started_ms": -1}, "started_ms"),
        ({"at_offset": 1.5}, "at_offset"),
        ({"name": 7}, "name"),
        ({"steps": {"a": 1}}, "steps"),
        ({"steps": [7]}, "steps"),
        ({"steps": [{"name": "a", "status": "x", "attempt": 1}]}, "steps.0.status"),
        ({"steps": [{"name": "a", "status": "done", "attempt": 2**31}]}, "attempt"),
        ({"steps": [{"name": "a", "status": "done", "attempt": 1, "undo": 3}]}, "steps.0.undo"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(change: dict[str, Any], field: str) -> None:
    record = checkpoint() | change
    with pytest.raises(InvalidRecord) as refused:
        rows.workflow_row("w", record, 0)
        rows.step_rows("w", record)
        rows.compensation_rows("w", record)
    assert refused.value.field == field


def test_an_id_that_no_index_can_hold_is_refused() -> None:
    with pytest.raises(InvalidRecord, match="workflow_id"):
        rows.workflow_row("w" * 2001, checkpoint(), 0)


# --- batches


def test_in_a_batch_the_newer_offset_wins_and_an_older_one_changes_nothing() -> None:
    found = staged(
        batch_of(
            (TOPICS.checkpoints, "w", checkpoint(5)),
            (TOPICS.checkpoints, "w", checkpoint(7, input=2)),
            (TOPICS.checkpoints, "w", checkpoint(6, input=3)),
        )
    )
    ((row),) = found["workflow"]
    assert (row.at_offset, row.input) == (7, "2")
    assert len(found["step"]) == 2


def test_at_one_offset_the_last_checkpoint_wins_because_only_its_annotation_can_differ() -> None:
    withheld = [{"step": "charge", "reason": "ramp"}]
    found = staged(
        batch_of(
            (TOPICS.checkpoints, "w", checkpoint(5, withheld=withheld)),
            (TOPICS.checkpoints, "w", checkpoint(5)),
        )
    )
    assert found["workflow"][0].withheld is None


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_stub_never_hides_the_result_of_its_batch(order: tuple[int, int]) -> None:
    both = [(TOPICS.checkpoints, "w", stub(9)), (TOPICS.results, "w", result(9))]
    found = staged(batch_of(*(both[place] for place in order)))
    assert found["workflow"][0].rank == Rank.RESULT
    assert found["workflow"][0].output == '{"done":true}'
    assert [row.step for row in found["step"]] == ["reserve"]


def test_a_stub_keeps_what_a_checkpoint_of_its_batch_said() -> None:
    found = staged(batch_of((TOPICS.checkpoints, "w", checkpoint(5)), (TOPICS.checkpoints, "w", stub(9))))
    (row,) = found["workflow"]
    assert (row.status, row.rank, row.at_offset, row.input) == ("completed", Rank.FILLED_STUB, 9, '{"order":1}')
    assert len(found["step"]) == 2


def test_a_stub_of_a_later_run_keeps_nothing_of_the_earlier_one() -> None:
    found = staged(
        batch_of((TOPICS.checkpoints, "w", checkpoint(5)), (TOPICS.checkpoints, "w", stub(9, started_ms=T0 + 15)))
    )
    assert found["workflow"][0].input is None and "step" not in found


def test_tombstones_of_checkpoints_change_nothing() -> None:
    batch = batch_of((TOPICS.results, "w", result(9)), (TOPICS.checkpoints, "w", None))
    assert staged(batch)["workflow"][0].status == "completed"
    assert batch.rejected == [] and batch.next == {
        TopicPartition(TOPICS.results, 0): 1,
        TopicPartition(TOPICS.checkpoints, 0): 2,
    }


def test_the_engines_own_keys_are_no_workflows() -> None:
    marker = {"at_offset": 9, "epoch": 2, "member": "m", "definitions": ["d"], "workflows": 1, "digest": "00"}
    definition = {"name": "order", "steps": [{"name": "reserve", "agent": "stock"}]}
    batch = batch_of(
        (TOPICS.checkpoints, "@marker", marker),
        (TOPICS.checkpoints, "@definition/abcd", definition),
        (TOPICS.checkpoints, "@owner", {"x": 1}),
    )
    found = staged(batch)
    assert set(found) == {"marker", "definition"} and batch.unknown_keys == 1
    assert found["definition"][0][:3] == ("abcd", "order", '{"reserve":"stock"}')
    assert found[MARKER.name][0].at_offset == 9


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"w", b"no json"),
        (b"w", b"[1]"),
        (b"w", b'{"status":"running"}'),
        (b"w", b'{"n":1e400}'),
        (b"w", b'{"n":NaN}'),
        (b"w", b'{"n":123456789012345678901}'),
        (b"w", b'"\\ud800"'),
        (b"w", b"[" * 65 + b"]" * 65),
        (b"\xff", orjson.dumps(checkpoint())),
        (None, orjson.dumps(checkpoint())),
        (b"", orjson.dumps(checkpoint())),
    ],
)
def test_a_record_that_cannot_be_read_is_rejected_and_passed(key: bytes | None, value: bytes) -> None:
    batch = Batch(TOPICS)
    batch.add(Read(TOPICS.checkpoints, key, value, 41))
    assert len(batch.rejected) == 1 and batch.rejected[0].reason
    assert batch.next == {TopicPartition(TOPICS.checkpoints, 0): 42}
    assert staged(batch) == {}


def test_a_half_good_workflow_leaves_nothing_behind() -> None:
    record = checkpoint()
    record["steps"][1]["status"] = "unheard of"
    batch = batch_of((TOPICS.checkpoints, "w", record))
    assert staged(batch) == {} and len(batch.rejected) == 1


def test_nul_becomes_the_replacement_character_in_values_keys_and_ids_and_is_reported() -> None:
    record = checkpoint(input={"a\0b": ["\0", {"c": "x\0"}]}, correlation_id="\0")
    batch = batch_of((TOPICS.checkpoints, "w\0", record))
    (row,) = staged(batch)["workflow"]
    assert orjson.loads(row.input) == {"a\ufffdb": ["\ufffd", {"c": "x\ufffd"}]}
    assert (row.workflow_id, row.correlation_id) == ("w\ufffd", "\ufffd")
    assert len(batch.altered) == 1


def test_a_written_out_escape_is_no_nul() -> None:
    batch = batch_of((TOPICS.checkpoints, "w", checkpoint(input="\\u0000")))
    assert orjson.loads(staged(batch)["workflow"][0].input) == "\\u0000"
    assert batch.altered == []


def test_of_a_service_the_last_word_counts_be_it_a_tombstone_or_not() -> None:
    circuit = {
        "v": 1, "service": "bank", "status": "open", "since_ms": T0, "now_ms": T0, "at_offset": 3, "opened": 1,
        "window": [[T0, 0], [T0, 1]], "policy": {},
    }  # fmt: skip
    gone = batch_of((TOPICS.circuits, "bank", circuit), (TOPICS.circuits, "bank", None))
    assert staged(gone) == {} and gone.forgotten_circuits == {"bank"}
    back = batch_of((TOPICS.circuits, "bank", None), (TOPICS.circuits, "bank", circuit))
    assert back.forgotten_circuits == set()
    assert (staged(back)["circuit"][0].calls, staged(back)["circuit"][0].faults) == (2, 1)


# --- comparing


@pytest.mark.parametrize(
    ("a", "b"), [(1.0, 1), (-0.0, 0), (1e300, 10**300), (2.0**60, 2**60), ({"b": 1, "a": 2.0}, {"a": 2, "b": 1})]
)
def test_numbers_that_postgresql_holds_alike_are_alike(a: Any, b: Any) -> None:
    assert orjson.dumps(canonical(a)) == orjson.dumps(canonical(b))


def test_what_differs_differs() -> None:
    assert canonical(True) is True and canonical(1.5) == 1.5 and canonical(2**53 - 1) != canonical(2**53)
    wanted = expected_rows("w", checkpoint(), 0)
    assert differences(wanted, expected_rows("w", checkpoint(), 0)) == []
    changed = checkpoint()
    changed["steps"][1]["attempt"] = 3
    del changed["steps"][0]
    assert differences(wanted, expected_rows("w", changed, 0)) == [
        "steps.charge.place: is 0 where 1 is expected",
        "steps.charge.attempt: is 3 where 2 is expected",
        "steps.reserve: is missing",
    ]


def test_of_a_stub_only_what_it_says_is_compared() -> None:
    assert differences(expected_rows("w", stub(), 0), expected_rows("w", result(), 0)) == []
    assert differences(expected_rows("w", stub(at_offset=8), 0), expected_rows("w", result(), 0)) == [
        "workflow.at_offset: is 9 where 8 is expected"
    ]


# --- names


def test_plain_prefixes_are_their_own_schema_and_others_never_share_one() -> None:
    assert schema_name("sagalog") == "sagalog"
    odd = ["Sagalog", "team.a", "team-a", "team_a", "1st", "pg_x", "PG_x", "public", "-", "a" * 60, "A" * 60, "A" * 59]
    names = [schema_name(prefix) for prefix in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        assert len(name) <= 63 and not name.startswith("pg_") and name not in ("public", "information_schema")
        assert (
            name == name.lower() and not name[0].isdigit() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
        )


def test_every_query_that_a_table_needs_is_there() -> None:
    known = queries()
    for table in (WORKFLOW, STEP, COMPENSATION, MARKER):
        assert all(merge in known for merge in table.merges)
    assert all(text for text in known.values())
    assert [migration.version for migration in load_migrations()] == list(range(1, 10))
