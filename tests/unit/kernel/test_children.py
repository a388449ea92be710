"""Workflows that do a step of another one: started, waited for, cancelled and undone with it."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.engine.kernel.effects import Dispatch, Effect, Emit
from sagalog.schemas import ids
from sagalog.schemas.definitions import (
    Budget,
    Child,
    Compensation,
    Definition,
    Fallback,
    Map,
    Retry,
    Step,
    Usage,
    fields,
    from_input,
    from_item,
    from_step,
)
from sagalog.schemas.errors import InvalidDefinition
from sagalog.schemas.events import (
    Action,
    CancelRequested,
    ChildEnded,
    Decision,
    FailureKind,
    OnDuplicate,
    Parent,
    ParentEnded,
    Timer,
    TimerFired,
    UndoRequested,
    WorkflowStarted,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import CHILD_DEPTH_MAX, PAYLOAD_BYTES_MAX, REMEMBER_MS
from sagalog.schemas.statuses import WorkflowStatus

from .driver import WORKFLOW, Driver, ignored, result, shown, step

CHILD = f"{WORKFLOW}/ship.1"

SHIP = Definition(
    name="ship", steps=(step("pick", compensate={}), step("send", "pick", compensate={})), output=from_step("send")
)


def by_child(name: str, *needs: str, **more: Any) -> Step:
    return Step(**{"name": name, "needs": needs, "workflow": Child(definition="ship", timeout_ms=60_000), **more})


ORDER = Definition(name="order", steps=(by_child("ship"), step("thank", "ship", retry=Retry(attempts=1))))


def started(parent: Definition = ORDER, child: Definition = SHIP, value: Any = None, **more: Any) -> Driver:
    """A parent whose child's first step is out."""
    driver = Driver(child, parent, round_trip=True)
    driver.start(parent.name, value, **more)
    driver.deliver()
    return driver


def child_does(driver: Driver, name: str, output: Any = None, child: str = CHILD, **more: Any) -> list[Effect]:
    """An agent of the child answers."""
    return driver.answer(child, name, output, **more)


def status(driver: Driver, workflow_id: str = CHILD) -> str:
    state = driver.partition.get(workflow_id)
    assert state is not None
    return str(state.status)


def test_a_child_is_started_and_its_output_is_the_steps() -> None:
    driver = Driver(SHIP, ORDER, round_trip=True)
    assert shown(driver.start("order", {"to": "x"})) == [
        "workflow None -> running by started",
        "ship waiting -> running by dispatched",
        f"emit WorkflowStarted to {CHILD}",
    ]
    assert shown(driver.deliver()) == [
        "workflow None -> running by started",
        "pick waiting -> running by dispatched",
        f"send {CHILD.removeprefix(WORKFLOW + '/')}/pick/1/execute",
    ]
    child = driver.partition.get(CHILD)
    assert child is not None and child.input == {"to": "x"}
    child_does(driver, "pick")
    assert shown(child_does(driver, "send", "parcel-1"))[-2:] == [
        "finished completed",
        f"emit ChildEnded to {WORKFLOW}",
    ]
    assert shown(driver.deliver()) == [
        "answered ship/1/execute",
        "ship running -> done by completed",
        "thank waiting -> running by dispatched",
        "send thank/1/execute",
    ]
    assert driver.state.steps[0].output == "parcel-1"
    effects = driver.done("thank")
    assert result(effects)["status"] == "completed"
    assert shown(effects)[-1] == f"emit ParentEnded to {CHILD}"


def test_a_childs_result_says_whose_it_is_and_not_how_to_speak_for_it() -> None:
    driver = started()
    child_does(driver, "pick")
    found = result(child_does(driver, "send"))
    assert found["parent"] == {"workflow_id": WORKFLOW, "root": WORKFLOW, "step": "ship"}


def test_a_child_is_kept_until_its_parent_is_over_and_then_forgotten_like_any() -> None:
    driver = started()
    child_does(driver, "pick")
    child_does(driver, "send")
    kept = driver.partition.get(CHILD)
    assert kept is not None and kept.steps and kept.due_ms() > driver.now_ms + REMEMBER_MS
    driver.deliver()
    driver.done("thank")
    driver.deliver()
    let_go = driver.partition.get(CHILD)
    assert let_go is not None and not let_go.steps and let_go.report is None and let_go.input is None
    assert let_go.due_ms() == driver.now_ms + REMEMBER_MS


def test_a_child_is_undone_with_its_parents_step() -> None:
    driver = started()
    child_does(driver, "pick", "box")
    child_does(driver, "send", "parcel")
    driver.deliver()
    assert shown(driver.fail("thank", FailureKind.TERMINAL))[-3:] == [
        "workflow running -> compensating by step_failed",
        "undo ship pending -> running by dispatched",
        f"emit UndoRequested to {CHILD}",
    ]
    assert shown(driver.deliver()) == [
        "workflow completed -> compensating by undo_requested",
        "undo send pending -> running by dispatched",
        "send ship.1/send/1/compensate",
    ]
    child_does(driver, "send", undo=True)
    assert shown(child_does(driver, "pick", undo=True))[-3:] == [
        "workflow compensating -> cancelled by undone_after_cancel",
        "finished cancelled",
        f"emit ChildEnded to {WORKFLOW}",
    ]
    assert shown(driver.deliver()) == [
        "answered ship/1/compensate",
        "undo ship running -> done by completed",
        "workflow compensating -> compensated by undone",
        "finished compensated",
        f"emit ParentEnded to {CHILD}",
    ]


def test_a_child_that_cannot_be_undone_fails_the_undoing_of_the_step() -> None:
    driver = started()
    child_does(driver, "pick")
    child_does(driver, "send")
    driver.deliver()
    driver.fail("thank", FailureKind.TERMINAL)
    driver.deliver()
    child_does(driver, "send", undo=True, fails=True)
    child_does(driver, "pick", undo=True)
    effects = driver.deliver()
    assert result(effects)["status"] == "compensation_failed"
    assert status(driver) == "compensation_failed"


def test_a_child_past_its_pivot_says_that_it_cannot_be_undone() -> None:
    child = SHIP.model_copy(update={"steps": (step("pick", compensate={}), step("send", "pick", pivot=True))})
    driver = started(child=child)
    child_does(driver, "pick")
    child_does(driver, "send")
    driver.deliver()
    driver.fail("thank", FailureKind.TERMINAL)
    assert result(driver.deliver())["steps"][0]["undo"]["failures"][0]["message"].endswith(
        "it is past a pivot, so that nothing of it can be undone"
    )
    assert status(driver) == "completed"


def test_a_child_with_nothing_to_undo_is_undone_at_once() -> None:
    driver = started(child=Definition(name="ship", steps=(step("pick"),)))
    child_does(driver, "pick")
    driver.deliver()
    driver.fail("thank", FailureKind.TERMINAL)
    assert result(driver.deliver())["status"] == "compensated"


def test_an_irreversible_child_is_not_undone() -> None:
    driver = started(Definition(name="order", steps=(by_child("ship", irreversible=True), step("thank", "ship"))))
    child_does(driver, "pick")
    child_does(driver, "send")
    driver.deliver()
    assert result(driver.fail("thank", FailureKind.TERMINAL))["status"] == "failed"


def test_an_agent_may_undo_what_a_child_did() -> None:
    undo = Compensation(agent="carrier", input=fields(parcel=from_step("ship")))
    driver = started(Definition(name="order", steps=(by_child("ship", compensate=undo), step("thank", "ship"))))
    child_does(driver, "pick")
    child_does(driver, "send", "p-1")
    driver.deliver()
    (sent,) = (e for e in driver.fail("thank", FailureKind.TERMINAL) if isinstance(e, Dispatch))
    assert (sent.command.agent, sent.command.input) == ("carrier", {"parcel": "p-1"})


def test_a_parent_that_stops_cancels_its_child_and_waits_until_it_is_undone() -> None:
    driver = started()
    child_does(driver, "pick")
    assert shown(driver.cancel()) == [
        "workflow running -> compensating by cancelled",
        "thank waiting -> cancelled by stopped",
        f"emit CancelRequested to {CHILD}",
    ]
    driver.deliver()
    assert status(driver) == "compensating"
    child_does(driver, "send", "late")
    child_does(driver, "send", undo=True)
    child_does(driver, "pick", undo=True)
    assert status(driver) == "cancelled"
    assert result(driver.deliver())["status"] == "cancelled"


def test_a_child_that_ends_before_its_cancel_arrives_is_undone() -> None:
    driver = started()
    child_does(driver, "pick")
    child_does(driver, "send")
    driver.cancel()
    driver.deliver()
    assert status(driver) == "compensating"
    child_does(driver, "send", undo=True)
    child_does(driver, "pick", undo=True)
    assert result(driver.deliver())["status"] == "cancelled"


def test_a_terminated_parent_takes_its_child_with_it() -> None:
    driver = started()
    effects = driver.act(Action.TERMINATE)
    assert shown(effects)[-1] == f"emit ParentEnded to {CHILD}"
    effects = driver.deliver()
    assert status(driver) == "terminated"
    assert not [e for e in effects if isinstance(e, Emit)], "nobody is there to be told"
    kept = driver.partition.get(CHILD)
    assert kept is not None and not kept.steps and kept.due_ms() == driver.now_ms + REMEMBER_MS


def test_a_child_whose_start_comes_after_its_parents_end_is_let_go_once_it_reports() -> None:
    """Both were sent by different owners of the parent's partition: nothing keeps their order."""
    driver = Driver(SHIP, ORDER, round_trip=True)
    driver.start("order")
    driver.act(Action.TERMINATE)
    driver.emitted.reverse()
    assert shown(driver.deliver())[0] == "ignored unknown_workflow"
    child_does(driver, "pick")
    child_does(driver, "send")
    assert shown(driver.deliver())[:2] == [f"emit ParentEnded to {CHILD}", "ignored already_finished"]
    kept = driver.partition.get(CHILD)
    assert kept is not None and not kept.steps and kept.due_ms() == driver.now_ms + REMEMBER_MS


def test_a_child_that_failed_fails_the_step_and_is_not_tried_again() -> None:
    driver = started()
    child_does(driver, "pick", fails=True)
    found = result(driver.deliver())
    assert found["status"] == "failed"
    failure = found["steps"][0]["failures"][0]
    assert (failure["kind"], failure["message"]) == ("terminal", f"workflow '{CHILD}' ended failed: no")


def test_a_child_whose_deadline_passed_is_tried_again_as_another_one() -> None:
    driver = started()
    driver.now_ms += 60_000
    child = driver.partition.get(CHILD)
    assert child is not None
    driver.append(_timer("deadline"), key=CHILD.encode())
    child_does(driver, "pick", fails=True)
    driver.deliver()
    assert status(driver) == "failed"
    driver.wait(60_000)
    driver.deliver()
    assert status(driver, f"{WORKFLOW}/ship.2") == "running"


def _timer(name: str) -> Any:
    return TimerFired(1, Timer(name))


def test_a_degraded_child_degrades_the_step_and_the_manifest_says_why() -> None:
    child = SHIP.model_copy(
        update={"steps": (step("pick", compensate={}), step("send", "pick", critical=False, default="by hand"))}
    )
    driver = started(child=child)
    child_does(driver, "pick")
    child_does(driver, "send", fails=True)
    driver.deliver()
    effects = driver.done("thank")
    found = result(effects)
    assert found["status"] == "degraded"
    (gap,) = found["missing"]
    assert gap["stand_in"] == "workflow"
    assert gap["why"] == f"workflow '{CHILD}' ended degraded: send: no"


def test_a_degraded_child_is_undone_too() -> None:
    child = SHIP.model_copy(
        update={"steps": (step("pick", compensate={}), step("send", "pick", critical=False, default="by hand"))}
    )
    driver = started(child=child)
    child_does(driver, "pick")
    child_does(driver, "send", fails=True)
    driver.deliver()
    driver.fail("thank", FailureKind.TERMINAL)
    assert "workflow degraded -> compensating by undo_requested" in shown(driver.deliver())
    child_does(driver, "pick", undo=True)
    assert result(driver.deliver())["status"] == "compensated"


def test_a_fallback_agent_does_what_a_child_could_not_and_undoes_it() -> None:
    driver = started(
        Definition(name="order", steps=(by_child("ship", fallback=Fallback(agent="courier")), step("thank", "ship")))
    )
    child_does(driver, "pick", fails=True)
    (sent,) = (e for e in driver.deliver() if isinstance(e, Dispatch))
    assert (sent.command.agent, sent.command.attempt) == ("courier", 2)
    driver.done("ship", "by bike", attempt=2)
    (sent,) = (e for e in driver.fail("thank", FailureKind.TERMINAL) if isinstance(e, Dispatch))
    assert (sent.command.agent, sent.command.direction) == ("courier", Direction.COMPENSATE)


def test_items_may_be_done_by_children() -> None:
    mapped = by_child("ship", map=Map(over=from_input("boxes"), concurrency=2), input=from_item())
    driver = started(Definition(name="order", steps=(mapped,)), value={"boxes": ["a", "b", "c"]})
    for number in range(3):
        child = f"{WORKFLOW}/ship[{number}].1"
        child_does(driver, "pick", child=child)
        child_does(driver, "send", number, child=child)
        effects = driver.deliver()
    assert result(effects)["output"] == {"ship": [0, 1, 2]}


def test_every_event_between_the_two_counts_once() -> None:
    driver = Driver(SHIP, ORDER, round_trip=True)
    driver.start("order")
    driver.deliver(times=2)
    child_does(driver, "pick")
    child_does(driver, "send")
    driver.deliver(times=3)
    driver.fail("thank", FailureKind.TERMINAL)
    driver.deliver(times=2)
    assert status(driver) == "compensating"
    child_does(driver, "send", undo=True)
    child_does(driver, "pick", undo=True)
    effects = driver.deliver(times=2)
    assert result(effects)["status"] == "compensated"


def test_a_report_that_a_stopped_parent_missed_is_told_again_when_it_is_resumed() -> None:
    driver = started()
    driver.stop()
    child_does(driver, "pick")
    child_does(driver, "send", "parcel")
    assert "ignored stopped" in shown(driver.deliver())
    driver.act(Action.RESUME)
    driver.deliver()
    assert driver.state.steps[0].output == "parcel"


def test_an_undoing_that_a_stopped_parent_missed_is_told_again_when_it_is_resumed() -> None:
    driver = started()
    child_does(driver, "pick")
    child_does(driver, "send")
    driver.deliver()
    driver.fail("thank", FailureKind.TERMINAL)
    driver.deliver()
    driver.stop()
    child_does(driver, "send", undo=True)
    child_does(driver, "pick", undo=True)
    driver.deliver()
    driver.act(Action.RESUME)
    assert result(driver.deliver())["status"] == "compensated"


def test_a_child_whose_id_is_taken_fails_the_step() -> None:
    driver = Driver(SHIP, ORDER, round_trip=True)
    driver.start("ship", workflow_id=CHILD)
    driver.start("order")
    found = result(driver.deliver())
    assert found["steps"][0]["failures"][0]["message"].endswith("is taken by another workflow")
    assert status(driver) == "running"


def test_workflows_within_workflows_end_somewhere() -> None:
    itself = Definition(name="ship", steps=(Step(name="again", workflow=Child(definition="ship", timeout_ms=60_000)),))
    driver = Driver(itself, round_trip=True)
    driver.start("ship")
    effects = driver.deliver()
    assert result([e for e in effects if getattr(e, "result", {}).get("workflow_id") == WORKFLOW])["status"] == "failed"
    assert len(driver.dumps()) == CHILD_DEPTH_MAX + 2


def test_a_child_of_an_unknown_definition_fails_the_step_after_a_while() -> None:
    driver = Driver(ORDER, round_trip=True)
    driver.start("order")
    driver.deliver()
    assert status(driver) == "waiting"
    driver.now_ms += 60_000
    driver.append(_timer("definition"), key=CHILD.encode())
    assert result(driver.deliver())["status"] == "failed"


def test_a_child_shares_its_parents_budget() -> None:
    child = SHIP.model_copy(
        update={"steps": (step("pick", reserve=Usage(tokens=60)), step("send", "pick", reserve=Usage(tokens=60)))}
    )
    driver = started(ORDER.model_copy(update={"budget": Budget(tokens=100)}), child)
    child_does(driver, "pick", tokens=50)
    found = result(driver.deliver())
    assert found["status"] == "failed"
    failure = found["steps"][0]["failures"][0]
    assert failure["kind"] == "over_budget"
    assert "the parent's budget of 100 tokens does not suffice: 50 used or reserved, 60 more" in failure["message"]
    assert found["usage"] == {"attempts": 1, "tokens": 50, "cost": 0}


def test_a_reserve_is_what_the_child_may_use() -> None:
    driver = started(
        Definition(name="order", steps=(by_child("ship", reserve=Usage(tokens=10)),), budget=Budget(tokens=100))
    )
    child = driver.partition.get(CHILD)
    assert child is not None and child.parent is not None and child.parent["tokens"] == 10


def test_an_input_that_no_start_may_have_fails_the_step() -> None:
    big = {"a": "x" * (PAYLOAD_BYTES_MAX // 2)}
    step_ = by_child("ship", input=fields(one=from_input(), two=from_input(), three=from_input()))
    driver = Driver(SHIP, Definition(name="order", steps=(step_,)), round_trip=True)
    found = result(driver.start("order", big))
    assert found["steps"][0]["failures"][0]["message"].startswith("input: is ")
    assert not driver.emitted


def test_an_output_that_no_result_may_have_fails_the_step_and_the_child_is_undone() -> None:
    child = SHIP.model_copy(update={"output": fields(one=from_step("send"), two=from_step("send"))})
    driver = started(child=child)
    child_does(driver, "pick")
    child_does(driver, "send", "x" * (PAYLOAD_BYTES_MAX - 100))
    driver.deliver()
    assert driver.state.steps[0].failures[0]["kind"] == "invalid_output"
    assert status(driver) == "compensating"
    child_does(driver, "send", undo=True)
    child_does(driver, "pick", undo=True)
    assert result(driver.deliver())["status"] == "compensated"


def test_an_output_that_does_not_fit_is_not_tried_again_and_the_child_is_undone() -> None:
    driver = started(
        Definition(name="order", steps=(by_child("ship", output_schema={"type": "integer"}), step("thank", "ship")))
    )
    child_does(driver, "pick")
    child_does(driver, "send", "no integer")
    driver.deliver()
    assert status(driver) == "compensating"
    assert driver.state.steps[0].failures[0]["message"].startswith("output: ")


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (UndoRequested("forged", 1, "t", "because"), "wrong_token"),
        (ParentEnded("forged"), "wrong_token"),
        (ChildEnded("pick", 1, Direction.EXECUTE, "forged", "x", "completed"), "wrong_token"),  # type: ignore[arg-type]
    ],
)
def test_what_is_not_of_the_parent_or_child_is_ignored(event: Any, reason: str) -> None:
    driver = started()
    before = driver.everything()
    assert ignored(driver.append(event, key=CHILD.encode())) == reason
    assert driver.everything()[0] == before[0]


def test_an_undoing_of_a_child_that_runs_is_ignored() -> None:
    driver = started()
    child = driver.partition.get(CHILD)
    assert child is not None and child.parent is not None
    event = UndoRequested(child.parent["token"], 1, "t", "because")
    assert ignored(driver.append(event, key=CHILD.encode())) == "not_possible"


def test_a_parent_that_is_over_twice_changes_nothing_the_second_time() -> None:
    driver = started()
    child = driver.partition.get(CHILD)
    assert child is not None and child.parent is not None
    event = ParentEnded(child.parent["token"])
    driver.append(event, key=CHILD.encode())
    assert ignored(driver.append(event, key=CHILD.encode())) == "duplicate"


def test_a_long_id_becomes_a_hash() -> None:
    long = "ü" * 127
    found = ids.child_id(long, "ship", 1)
    assert len(found.encode()) <= 255 and found != ids.child_id(long, "ship", 2)
    assert ids.child_id("short", "ship", 1) == "short/ship.1"


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"agent": "x"}, "needs exactly one of agent, workflow, sleep, wait_for, task"),
        ({"service": "bank"}, "a workflow does this step"),
        ({"timeout_ms": 1_000}, "see workflow.timeout_ms"),
        ({"compensate": Compensation()}, "without a compensation the workflow is undone"),
    ],
)
def test_what_a_child_cannot_have_is_refused(more: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidDefinition, match=problem):
        Definition(name="order", steps=(by_child("ship", **more),))


def test_timeouts_are_of_the_agents_that_stand_in_for_a_child() -> None:
    step = by_child("ship", timeout_ms=1_000, start_timeout_ms=2_000, fallback=Fallback(agent="courier"))
    driver = Driver(SHIP, Definition(name="order", steps=(step,)))
    (emitted,) = (e for e in driver.start("order") if isinstance(e, Emit))
    assert isinstance(emitted.event, WorkflowStarted) and emitted.event.parent is not None
    token = emitted.event.parent.token
    failed = ChildEnded(
        "ship", 1, Direction.EXECUTE, token, emitted.workflow_id, WorkflowStatus.FAILED, kind=FailureKind.TERMINAL
    )
    (sent,) = (e for e in driver.append(failed) if isinstance(e, Dispatch))
    assert (sent.command.agent, sent.command.timeout_ms, sent.patience_ms) == ("courier", 1_000, 3_000)


def test_the_events_between_the_two_are_what_they_say() -> None:
    driver = Driver(SHIP, ORDER)
    (emitted,) = (e for e in driver.start("order", correlation_id="c-1") if isinstance(e, Emit))
    event = emitted.event
    assert isinstance(event, WorkflowStarted)
    assert (event.definition, event.deadline_ms, event.correlation_id) == ("ship", 60_000, "c-1")
    assert isinstance(event.parent, Parent)
    assert (event.parent.workflow_id, event.parent.root, event.parent.depth) == (WORKFLOW, WORKFLOW, 1)
    cancel = driver.cancel()
    (emitted,) = (e for e in cancel if isinstance(e, Emit))
    assert emitted.event == CancelRequested("its parent stopped", f"workflow {WORKFLOW}")


def test_a_child_that_may_be_undone_is_not_replaced() -> None:
    driver = started()
    child_does(driver, "pick")
    child_does(driver, "send")
    effects = driver.append(WorkflowStarted("ship", on_duplicate=OnDuplicate.REPLACE), key=CHILD.encode(), ce_id="new")
    assert shown(effects)[0] == "ignored not_possible"
    assert status(driver) == "completed"


def test_a_later_run_has_children_of_its_own_and_hands_on_tenant_and_priority() -> None:
    driver = started()
    event = WorkflowStarted("order", tenant="acme", priority=8, on_duplicate=OnDuplicate.REPLACE)
    driver.append(event, ce_id="again")
    driver.deliver()
    child_does(driver, "pick", fails=True)
    driver.deliver()
    run = driver.state.run
    assert run > 1 and driver.state.status == "running"
    child = driver.partition.get(f"{WORKFLOW}/ship.1@{run}")
    assert child is not None and (child.status, child.tenant, child.priority) == ("running", "acme", 8)
    child_does(driver, "pick", child=child.workflow_id)
    child_does(driver, "send", "second", child=child.workflow_id)
    driver.deliver()
    assert driver.state.steps[0].output == "second"


def held() -> Driver:
    """A parent whose child's step failed for good, and is held."""
    driver = started(Definition(name="order", steps=(by_child("ship", when_failed="review"), step("thank", "ship"))))
    child_does(driver, "pick", fails=True)
    driver.deliver()
    return driver


def test_a_step_done_by_hand_in_place_of_its_child_is_not_undone_by_that() -> None:
    driver = held()
    driver.decide("ship", Decision.COMPLETE, "by hand")
    found = result(driver.fail("thank", FailureKind.TERMINAL))
    assert (found["status"], found["steps"][0]["undo"]["status"]) == ("failed", "not_needed")


def test_a_stub_stays_of_the_offset_of_its_end() -> None:
    driver = started()
    child_does(driver, "pick")
    child_does(driver, "send")
    driver.deliver()
    ended = driver.partition.get(CHILD)
    assert ended is not None
    at_offset = ended.at_offset
    driver.done("thank")
    driver.deliver()
    let_go = driver.partition.get(CHILD)
    assert let_go is not None and let_go.report is None and let_go.at_offset == at_offset
