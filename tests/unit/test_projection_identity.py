"""Identity and runs in the rows, without a database: what is taken over, which run of an id counts, what is passed over."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sagalog.engine.kernel.effects import Finished, StartAnswered
from sagalog.engine.kernel.state import dump
from sagalog.engine.projection import rows
from sagalog.engine.projection.batch import STEP, WORKFLOW, Batch
from sagalog.engine.runtime.outputs import result as result_out
from sagalog.engine.runtime.outputs import start_answered
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import OnDuplicate, WorkflowStarted

from .kernel.driver import WORKFLOW as ID
from .kernel.driver import Driver, saga, step, waiting
from .test_projection_rows import T0, TOPICS, Read, checkpoint, stub

IDENTITY: dict[str, Any] = {"tenant": "acme", "priority": 8, "attributes": {"customer": 7}}


def test_a_row_has_what_the_start_said() -> None:
    row = rows.workflow_row("w", checkpoint(**IDENTITY), 0)

    assert (row.tenant, row.priority, row.attributes) == ("acme", 8, '{"customer":7}')
    assert (row.run, row.next) == (1, None)


def test_a_row_of_a_record_of_before_has_the_defaults() -> None:
    row = rows.workflow_row("w", checkpoint(), 0)

    assert (row.tenant, row.priority, row.attributes, row.run, row.next) == (None, 5, None, 1, None)


def test_a_start_that_waits_is_shown_without_its_seed() -> None:
    following = {"definition": "order", "input": 1, "seed": "secret", "at_offset": 7, "at_ms": T0, "bytes": 9}
    row = rows.workflow_row("w", checkpoint(next=following), 0)

    assert orjson.loads(row.next or "") == {"definition": "order", "at_ms": T0}


@pytest.mark.parametrize(
    ("field", "value"),
    [("tenant", 7), ("priority", "high"), ("priority", 10), ("attributes", []), ("run", "x"), ("next", 1)],
)
def test_what_does_not_fit_is_refused_with_the_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRecord) as raised:
        rows.workflow_row("w", checkpoint(**{field: value}), 0)

    assert raised.value.field == field


def test_a_stub_keeps_what_the_record_before_it_in_the_batch_said() -> None:
    batch = Batch(TOPICS)
    batch.add(Read(TOPICS.checkpoints, b"w", orjson.dumps(checkpoint(5, **IDENTITY)), 1))
    batch.add(Read(TOPICS.checkpoints, b"w", orjson.dumps(stub(9)), 2))

    (row,) = dict(batch.staged())[WORKFLOW]
    assert isinstance(row, rows.WorkflowRow)
    assert (row.status, row.tenant, row.priority, row.attributes) == ("completed", "acme", 8, '{"customer":7}')


def replaced() -> tuple[bytes, bytes, dict[str, Any], bytes]:
    """Of one event that ends a run and begins the next: (result of the one, answer, checkpoint of the other, its offset)."""
    driver = Driver(saga(waiting("nap", sleep={"ms": 1_000}), step("late", "nap")))
    driver.start("saga", tenant="old")
    event = WorkflowStarted("saga", tenant="new", on_duplicate=OnDuplicate.REPLACE)
    effects = driver.append(event, ce_id="two")
    (finished,) = (effect for effect in effects if isinstance(effect, Finished))
    (answer,) = (effect for effect in effects if isinstance(effect, StartAnswered))
    ended, answered = result_out(finished).value, start_answered(answer).value
    assert ended is not None and answered is not None
    state = driver.state
    following = decode_object(encode(dump(state, driver.partition.plan_of(state))))
    assert decode_object(ended)["at_offset"] == following["at_offset"]
    return ended, answered, following, encode(following)


@pytest.mark.parametrize("result_first", [False, True])
def test_where_one_event_ends_a_run_and_begins_the_next_the_next_is_the_row(result_first: bool) -> None:
    ended, _, following, raw = replaced()
    records = [Read(TOPICS.checkpoints, ID.encode(), raw, 1), Read(TOPICS.results, ID.encode(), ended, 1)]
    batch = Batch(TOPICS)
    for record in reversed(records) if result_first else records:
        batch.add(record)

    staged = dict(batch.staged())
    (row,) = staged[WORKFLOW]
    assert isinstance(row, rows.WorkflowRow)
    assert (row.status, row.tenant, row.run) == ("running", "new", following["run"])
    assert [step.status for step in staged[STEP] if isinstance(step, rows.StepRow)] == ["awaiting", "waiting"]


def test_an_answer_to_a_start_is_no_result() -> None:
    ended, answered, _, _ = replaced()
    batch = Batch(TOPICS)
    answer_headers = [("ce_type", b"sagalog.start-answered.v1")]
    batch.add(Read(TOPICS.results, ID.encode(), ended, 1))
    batch.add(Read(TOPICS.results, ID.encode(), answered, 2, headers=answer_headers))

    (row,) = dict(batch.staged())[WORKFLOW]
    assert isinstance(row, rows.WorkflowRow)
    assert (row.status, batch.rejected, batch.records) == ("cancelled", [], 2)
