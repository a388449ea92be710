"""What people and the engine's waits bring, as rows: steps that await, pauses, kept signals, reviews that open, close, open again.

The records are the kernel's own where a sequence matters, so that the rows hold for what it really writes.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import orjson
import pytest

from sagalog.engine.kernel.effects import Effect, ReviewClosed, ReviewNeeded
from sagalog.engine.projection import rows
from sagalog.engine.projection.batch import Batch
from sagalog.engine.projection.compare import differences, expected_rows
from sagalog.engine.projection.rows import ReviewRank, ReviewRow
from sagalog.schemas.definitions import Definition, Sleep, Step, Task, WaitFor
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import Action, Decision
from sagalog.schemas.statuses import TERMINAL, StepStatus, UndoStatus, WorkflowStatus
from sagalog.topics.specs import Topics

from .kernel.driver import Driver, saga, step, waiting
from .test_projection_rows import T0, batch_of, checkpoint, result, staged, stub

TOPICS = Topics("unit")
PAUSED = {"who": "ann", "reason": "month's end", "at_ms": T0 + 3}
SIGNAL = {"id": "s-1", "name": "paid", "at_ms": T0 + 4, "bytes": 90, "payload": {"amount": 3}}


def review(at_offset: int, decision: str | None = None, **more: Any) -> dict[str, Any]:
    """A record that opens a review, or closes it."""
    record = {
        "id": "w/pay/task", "workflow_id": "w", "definition": "d" * 16, "name": "order", "step": "pay", "kind": "task",
        "reason": f"asked at {at_offset}", "details": {"at": at_offset}, "input": {"at": at_offset},
        "at_ms": T0 + at_offset, "at_offset": at_offset,
    }  # fmt: skip
    if decision is not None:
        del record["details"]
        record["decided"] = {"decision": decision, "who": "ann", "reason": "checked", "at_ms": T0 + at_offset}
        record["reason"] = "it was waiting for a decision"
    return record | more


def merged(*records: dict[str, Any]) -> ReviewRow:
    (row,) = staged(batch_of(*((TOPICS.reviews, "w", record) for record in records)))["review"]
    assert isinstance(row, ReviewRow)
    return row


def reviews_in(effects: list[Effect]) -> list[Any]:
    return [effect.record for effect in effects if isinstance(effect, ReviewNeeded | ReviewClosed)]


# --- workflows and steps


def test_a_paused_workflow_says_who_and_why_and_shows_the_signals_it_keeps() -> None:
    row = rows.workflow_row("w", checkpoint(paused=PAUSED, signals=[SIGNAL]), 0)
    assert row.paused is not None and orjson.loads(row.paused) == PAUSED
    assert row.signals is not None and orjson.loads(row.signals) == [SIGNAL]
    for record in (checkpoint(), checkpoint(signals=[]), result(), stub()):
        row = rows.workflow_row("w", record, 0)
        assert (row.paused, row.signals) == (None, None)


def test_the_end_takes_pause_and_signals_away() -> None:
    found = staged(
        batch_of(
            (TOPICS.checkpoints, "w", checkpoint(5, paused=PAUSED, signals=[SIGNAL])),
            (TOPICS.checkpoints, "w", stub(9) | {"status": "terminated"}),
        )
    )
    (row,) = found["workflow"]
    assert (row.status, row.terminal, row.input) == ("terminated", True, '{"order":1}')
    assert (row.paused, row.signals) == (None, None)


def test_a_step_that_awaits_says_until_when_and_whether_it_was_escalated() -> None:
    record = checkpoint()
    record["steps"][1] = {
        "name": "charge", "status": "awaiting", "attempt": 1, "started_ms": T0, "until_ms": T0 + 60_000, "escalated": True,
    }  # fmt: skip
    first, second = rows.step_rows("w", record)
    assert (first.until_ms, first.escalated) == (None, False)
    assert (second.status, second.agent, second.until_ms, second.escalated) == ("awaiting", None, T0 + 60_000, True)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"paused": True}, "paused"),
        ({"paused": [PAUSED]}, "paused"),
        ({"signals": {"a": 1}}, "signals"),
        ({"signals": ["paid"]}, "signals"),
        ({"steps": [{"name": "a", "status": "awaiting", "attempt": 1, "until_ms": -1}]}, "until_ms"),
        ({"steps": [{"name": "a", "status": "awaiting", "attempt": 1, "until_ms": "noon"}]}, "until_ms"),
        ({"steps": [{"name": "a", "status": "awaiting", "attempt": 1, "until_ms": 1e30}]}, "until_ms"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(change: dict[str, Any], field: str) -> None:
    record = checkpoint() | change
    with pytest.raises(InvalidRecord) as refused:
        rows.workflow_row("w", record, 0)
        rows.step_rows("w", record)
    assert refused.value.field == field


def test_every_status_there_is_can_be_projected() -> None:
    for status in WorkflowStatus:
        record = (result() if status in TERMINAL else checkpoint()) | {"status": str(status)}
        assert rows.workflow_row("w", record, 0).terminal is (status in TERMINAL)
    for step_status in StepStatus:
        record = checkpoint(steps=[{"name": "a", "status": str(step_status), "attempt": 1}])
        assert rows.step_rows("w", record)[0].status == step_status
    for undo_status in UndoStatus:
        undo = {"status": str(undo_status), "attempt": 1}
        record = checkpoint(steps=[{"name": "a", "status": "done", "attempt": 1, "undo": undo}])
        assert rows.compensation_rows("w", record)[0].status == undo_status


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"paused": PAUSED | {"who": "bob"}}, "workflow.paused"),
        ({"paused": None}, "workflow.paused"),
        ({"signals": [SIGNAL, SIGNAL]}, "workflow.signals"),
        ({"signals": []}, "workflow.signals"),
        ({"until_ms": T0 + 61}, "steps.charge.until_ms"),
        ({"escalated": True}, "steps.charge.escalated"),
    ],
)
def test_verify_sees_a_difference_in_what_is_new(change: dict[str, Any], line: str) -> None:
    def record() -> dict[str, Any]:
        made = checkpoint(paused=PAUSED, signals=[SIGNAL])
        made["steps"][1] |= {"status": "awaiting", "until_ms": T0 + 60}
        return made

    changed = record()
    (changed["steps"][1] if line.startswith("steps") else changed).update(change)
    (found,) = differences(expected_rows("w", record(), 0), expected_rows("w", changed, 0))
    assert found.startswith(f"{line}: is ")


def test_verify_sees_that_a_finished_workflow_is_still_shown_as_paused() -> None:
    wrong = expected_rows("w", result(), 0)
    wrong.workflow["paused"] = PAUSED
    (found,) = differences(expected_rows("w", stub(), 0), wrong)
    assert found.startswith("workflow.paused: is ")


# --- definitions


def test_a_definition_with_steps_that_have_no_agent_is_projected_without_agents_for_them() -> None:
    definition = Definition(
        name="order",
        steps=(
            Step(name="reserve", agent="stock"),
            Step(name="nap", needs=("reserve",), sleep=Sleep(ms=100)),
            Step(name="payment", needs=("nap",), wait_for=WaitFor(signal="paid", timeout_ms=1_000)),
            Step(name="approve", needs=("payment",), task=Task(title="Approve", timeout_ms=1_000)),
        ),
    )
    document = orjson.loads(definition.encoded)
    batch = batch_of(
        (TOPICS.checkpoints, f"@definition/{definition.hash}", document),
        (TOPICS.definitions, "e" * 16, document | {"steps": [{"name": "a", "agent": None}]}),
    )
    assert batch.rejected == []
    first, second = staged(batch)["definition"]
    assert (first.hash, first.agents) == (definition.hash, '{"reserve":"stock"}')
    assert orjson.loads(first.document) == document
    assert second.agents == "{}"
    with pytest.raises(InvalidRecord, match="agent"):
        rows.definition_row("h", document | {"steps": [{"name": "a", "agent": 7}]})


# --- reviews


def test_a_review_is_open_until_a_record_closes_it() -> None:
    row = rows.review_row(review(5), 3)
    assert (row.at_offset, row.rank, row.opened_offset) == (5, ReviewRank.OPENED, 5)
    assert (row.decided_ms, row.decision, row.decided_by, row.decided_reason) == (None, None, None, None)
    row = rows.review_row(review(7, "approve"), 3)
    assert (row.at_offset, row.rank, row.opened_offset, row.details) == (7, ReviewRank.CLOSED, None, None)
    assert (row.decided_ms, row.decision, row.decided_by, row.decided_reason) == (T0 + 7, "approve", "ann", "checked")


def test_closing_keeps_what_was_asked() -> None:
    row = merged(review(5), review(7, "approve"))
    assert (row.reason, row.details, row.input, row.created_ms) == ("asked at 5", '{"at":5}', '{"at":5}', T0 + 5)
    assert (row.at_offset, row.decision, row.decided_ms) == (7, "approve", T0 + 7)


def test_a_closing_that_is_seen_first_brings_what_it_has() -> None:
    row = merged(review(5, "reject"), review(7, "approve"))
    assert (row.reason, row.details, row.input) == ("it was waiting for a decision", None, '{"at":7}')
    assert (row.created_ms, row.decision, row.opened_offset) == (T0 + 7, "approve", None)


def test_opening_again_clears_the_decision_and_asks_anew() -> None:
    row = merged(review(5), review(7, "retry"), review(9))
    assert (row.reason, row.details, row.input, row.created_ms) == ("asked at 9", '{"at":9}', '{"at":9}', T0 + 9)
    assert (row.at_offset, row.decided_ms, row.decision, row.decided_by, row.decided_reason) == (
        9,
        None,
        None,
        None,
        None,
    )


def test_the_order_of_arrival_and_duplicates_do_not_matter() -> None:
    records = [review(5), review(7, "retry"), review(7), review(9, "moot")]
    wanted = merged(*records)
    assert (wanted.details, wanted.decision, wanted.at_offset) == ('{"at":7}', "moot", 9)
    for order in permutations(records):
        assert merged(*order) == wanted
        assert merged(*order, *order[:2]) == wanted
        # As two batches: the second meets what the first left in the table.
        assert rows.merge_reviews(merged(*order[:2]), merged(*order[2:])) == wanted


@pytest.mark.parametrize("decided", [True, 7, "yes", {}, {"decision": "approve"}, {"decision": 7, "who": "a"}])
def test_a_decision_that_does_not_fit_is_refused(decided: Any) -> None:
    batch = batch_of((TOPICS.reviews, "w", review(5, decided=decided)))
    assert staged(batch) == {} and len(batch.rejected) == 1


def test_a_step_that_cannot_begin_anew_has_its_review_closed_and_opened_by_one_event() -> None:
    """The kernel closes and opens the review at one offset; in the end it is open."""
    driver = Driver(saga(step("a", when="input.x", when_failed="review")))
    opened = reviews_in(driver.start("saga", {}))
    again = reviews_in(driver.decide("a", Decision.RETRY))
    assert ["decided" in record for record in again] == [True, False]
    assert {(record["id"], record["at_offset"]) for record in again} == {(opened[0]["id"], again[0]["at_offset"])}
    for order in permutations([*opened, *again]):
        assert merged(*order).decision is None
        assert merged(*order).at_offset == again[0]["at_offset"]
    closed = reviews_in(driver.decide("a", Decision.SKIP))
    for order in permutations([*opened, *again, *closed]):
        row = merged(*order)
        assert (row.decision, row.opened_offset, row.created_ms) == ("skip", again[1]["at_offset"], again[1]["at_ms"])


def test_a_step_that_is_held_while_another_stops_the_workflow_has_its_review_opened_and_closed_by_one_event() -> None:
    """The kernel opens and closes the review at one offset; in the end it is closed, and says what had been asked."""
    driver = Driver(saga(step("a", when="input.x", when_failed="review"), step("b", when="input.x")))
    both = reviews_in(driver.start("saga", {}))
    assert ["decided" in record for record in both] == [False, True]
    assert both[0]["id"] == both[1]["id"] and both[0]["at_offset"] == both[1]["at_offset"]
    for order in permutations(both):
        row = merged(*order)
        assert row.decision == "moot" and row.details is not None and row.reason == both[0]["reason"]


def test_a_terminated_workflow_leaves_no_task_open() -> None:
    driver = Driver(saga(waiting("approve", task={"title": "Approve", "timeout_ms": 1_000})))
    records = [*reviews_in(driver.start("saga", {"order": 1})), *reviews_in(driver.act(Action.TERMINATE))]
    row = merged(*records)
    assert (row.decision, row.decided_by, row.reason) == ("moot", "sagalog", "Approve")
    assert row.details is not None and orjson.loads(row.details)["input"] == {"order": 1}


def test_two_reviews_of_one_batch_stay_two() -> None:
    batch: Batch = batch_of(
        (TOPICS.reviews, "w", review(5)),
        (TOPICS.reviews, "w", review(6, id="w/pay/step_failed", kind="step_failed")),
        (TOPICS.reviews, "w", review(7, "approve")),
    )
    assert [(row.kind, row.decision) for row in staged(batch)["review"]] == [("task", "approve"), ("step_failed", None)]
