"""The invariants themselves: a state that breaks one is told from those that do not. The driver asserts that they hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sagalog.engine.kernel.invariants import problems
from sagalog.engine.kernel.state import StepState, WorkflowState
from sagalog.schemas.events import FailureKind
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from .driver import Driver, chain


def _nothing_moves(state: WorkflowState) -> None:
    state.steps[1].status = StepStatus.WAITING


def _two_of_one_number(state: WorkflowState) -> None:
    state.steps[1].status, state.steps[1].order, state.steps[1].finished_ms = StepStatus.DONE, 1, 1
    state.steps[2].status = StepStatus.RUNNING


def _has_failed(state: WorkflowState) -> None:
    state.failure = {"kind": "terminal", "message": "no", "at_ms": 1}


def _less_than_nothing(state: WorkflowState) -> None:
    state.bytes = -1


def _question_about_nothing(state: WorkflowState) -> None:
    state.steps[1].status = StepStatus.RECONCILING


def _items_of_no_map(state: WorkflowState) -> None:
    state.steps[1].items = [StepState(1, 0)]


def _undone_while_out(state: WorkflowState) -> None:
    state.status = WorkflowStatus.COMPENSATING
    _has_failed(state)
    assert state.steps[0].undo is None
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    driver.done("a")
    driver.fail("b", FailureKind.TERMINAL)
    state.steps[0].undo = driver.state.steps[0].undo
    assert state.steps[0].undo is not None and state.steps[0].undo.status is UndoStatus.RUNNING


def _kept_for_nobody(state: WorkflowState) -> None:
    state.status, state.finished_ms = WorkflowStatus.COMPLETED, 1


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (_nothing_moves, "nothing will move it"),
        (_two_of_one_number, "b ended as number 1, as another one did"),
        (_has_failed, "runs, and has failed"),
        (_less_than_nothing, "holds -1 bytes of payloads"),
        (_question_about_nothing, "b is reconciling, and a question about it is not open"),
        (_items_of_no_map, "b has items, and neither maps nor repeats"),
        (_undone_while_out, "something is undone while attempts are out"),
        (_kept_for_nobody, "has ended, and keeps its steps for nobody"),
    ],
)
def test_what_does_not_hold_is_said(breaks: Callable[[WorkflowState], None], said: str) -> None:
    driver = Driver(chain("a", "b", "c"))
    driver.start("saga")
    driver.done("a")
    state = driver.state
    plan = driver.partition.plan_of(state)
    assert problems(state, plan) == []

    breaks(state)

    assert any(said in line for line in problems(state, plan))
