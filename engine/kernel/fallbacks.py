"""What stands in for an agent that did not deliver: the next fallback for that kind of failure, if there is one."""

from __future__ import annotations

from typing import Final

from sagalog.schemas.definitions import FallbackOn
from sagalog.schemas.events import FailureKind
from sagalog.schemas.ids import Direction
from sagalog.schemas.records import FailureRecord
from sagalog.schemas.statuses import StepStatus

from . import budgets, progress
from .closing import dead_letter, note_failure
from .effects import Effect
from .plan import Plan, PlanStep
from .state import NEVER, StepState, WorkflowState

_ON: Final = {
    FailureKind.RETRYABLE: FallbackOn.ERROR,
    FailureKind.TERMINAL: FallbackOn.ERROR,
    FailureKind.INVALID_INPUT: FallbackOn.ERROR,
    FailureKind.TIMEOUT: FallbackOn.TIMEOUT,
    FailureKind.LOST: FallbackOn.TIMEOUT,
    FailureKind.UNKNOWN: FallbackOn.TIMEOUT,
    FailureKind.INVALID_OUTPUT: FallbackOn.INVALID_OUTPUT,
    FailureKind.REFUSAL: FallbackOn.REFUSAL,
    FailureKind.CIRCUIT_OPEN: FallbackOn.CIRCUIT_OPEN,
    FailureKind.OVER_BUDGET: FallbackOn.OVER_BUDGET,
}
"""A step that asks for a person has no fallback: it gets one."""


def fall_back(state: WorkflowState, plan: Plan, step: StepState, failure: FailureRecord, effects: list[Effect]) -> None:
    """No attempt of the present agent is left: the next fallback has its turn, or the step is given up."""
    spec = plan.steps[step.index]
    place = _next(spec, step, FailureKind(failure["kind"]))
    while place is not None:
        fallback = spec.fallbacks[place]
        step.fell_back = place + 1
        if fallback.agent is None:
            dead_letter(state, spec, step, Direction.EXECUTE, effects)
            step.output = fallback.value
            step.stand_in = "fallback"
            progress.end_step(state, plan, step, StepStatus.DEGRADED, "fell_back", effects)
            return
        problem = budgets.breach(state, plan, step, fallback.reserve)
        if problem is None:
            step.agent = fallback.agent
            step.fell_back_after = step.attempt
            if state.paused is None:
                progress.send(state, plan, step, effects)
            else:
                progress.back_off(state, spec, step, NEVER - state.now_ms, effects)  # until the workflow is resumed
            return
        # Not asked, so not the one to undo anything either.
        failure = over_budget(state, step, problem)
        place = _next(spec, step, FailureKind.OVER_BUDGET)
    progress.give_up(state, plan, step, failure, effects)


def over_budget(state: WorkflowState, step: StepState, problem: str) -> FailureRecord:
    """Takes note that an attempt was not made."""
    failure: FailureRecord = {"kind": FailureKind.OVER_BUDGET, "message": problem, "at_ms": state.now_ms}
    note_failure(state, step.failures, failure)
    step.failed_attempts += 1
    return failure


def _next(spec: PlanStep, step: StepState, kind: FailureKind) -> int | None:
    on = _ON.get(kind)
    if on is None:
        return None
    for place in range(step.fell_back, len(spec.fallbacks)):
        if not spec.fallbacks[place].on or on in spec.fallbacks[place].on:
            return place
    return None
