"""Events that end an attempt: its result, its failure, its loss, its refusal by an open circuit."""

from __future__ import annotations

from typing import Any

from sagalog.schemas import ids
from sagalog.schemas.codec import encode
from sagalog.schemas.definitions import WhenFailed, WhenOpen
from sagalog.schemas.events import (
    REPORTED,
    RETRIED,
    SERVICE_FAULTS,
    UNKNOWN_OUTCOME,
    AttemptLost,
    AttemptRefused,
    ChildEnded,
    FailureKind,
    Outcome,
    StepCompleted,
    StepFailed,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import (
    ENVELOPE_BYTES_MAX,
    ERROR_TYPE_CHARS_MAX,
    FAILURE_DETAILS_BYTES_MAX,
    FAILURE_MESSAGE_CHARS_MAX,
    NAME_CHARS_MAX,
    PAYLOAD_BYTES_MAX,
    STATE_BYTES_MAX,
)
from sagalog.schemas.records import FailureRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from . import budgets, children, late, reconcile, rewind
from .closing import dead_letter, note_failure, review
from .effects import Answered, Called, Effect, Ignored, Reason
from .fallbacks import fall_back
from .plan import Plan, PlanStep
from .progress import (
    back_off,
    back_off_undo,
    backoff_ms,
    drop_step,
    end_step,
    end_undo,
    give_up,
    hold_undo,
    past_pivot,
)
from .state import DEGRADED_CHILD, StepState, WorkflowState, undo_agent

AnyResult = StepCompleted | StepFailed | ChildEnded | AttemptLost | AttemptRefused


def completed(state: WorkflowState, plan: Plan, event: StepCompleted, size: int, effects: list[Effect]) -> None:
    """An agent did what it was asked."""
    going_back = state.status is WorkflowStatus.COMPENSATING or state.status is WorkflowStatus.REWINDING
    if going_back and event.direction is Direction.EXECUTE:
        found = plan.find(state, event.step)
        if found is not None and late.landed(state, plan, found, event, effects):
            return
    step = _awaited(state, plan, event, event.direction, event.token, effects)
    if step is None:
        return
    spec = plan.steps[step.index]
    if event.direction is Direction.COMPENSATE:
        _called(state, spec, undo_agent(step, spec), True, False, event.duration_ms, effects)
        end_undo(state, plan, step, UndoStatus.DONE, "completed", effects)
        return
    if event.direction is Direction.RECONCILE:
        _said(state, plan, step, event, size, effects)
        return
    overtaken = reconcile.overtaken(state, spec, step, Outcome.HAPPENED, effects)
    problem = _output_problem(state, spec, step, event.output, size)
    budgets.settle(state, spec, step, event.tokens, event.cost, unknown=False)
    if not overtaken:
        _called(state, spec, spec.agent_of(step), problem is None, False, event.duration_ms, effects)
    _deliver(state, plan, step, event, size, problem, effects)


def _deliver(
    state: WorkflowState,
    plan: Plan,
    step: StepState,
    event: StepCompleted,
    size: int,
    problem: str | None,
    effects: list[Effect],
) -> None:
    """The step's output has come. `problem` is what is wrong with it."""
    if problem is not None:
        failure = _failure(state, FailureKind.INVALID_OUTPUT, problem, event)
        failure["attempt"] = step.attempt
        _step_failed(state, plan, step, failure, None, effects)
        return
    step.output = event.output
    state.bytes += size
    if step.agent is None:
        end_step(state, plan, step, StepStatus.DONE, "completed", effects)
    else:
        step.stand_in = f"fallback:{step.agent}"
        # The step's own agent did not deliver: the manifest must say so, even though there is an output.
        end_step(state, plan, step, StepStatus.DEGRADED, "completed", effects)


def child_ended(state: WorkflowState, plan: Plan, event: ChildEnded, size: int, effects: list[Effect]) -> None:
    """The workflow that does a step has ended, or is undone."""
    step = _awaited(state, plan, event, event.direction, event.token, effects)
    if step is None:
        return
    spec = plan.steps[step.index]
    well = event.status in children.ENDED_WELL and event.kind is None
    if event.direction is Direction.COMPENSATE:
        if children.undo_succeeded(event):
            end_undo(state, plan, step, UndoStatus.DONE, "completed", effects)
        else:
            kind, message = children.failure_of(event)
            _undo_failed(state, plan, step, _failure(state, kind, message, event), None, effects)
        return
    budgets.settle(state, spec, step, event.tokens, event.cost, unknown=False)
    problem = _output_problem(state, spec, step, event.output, size) if well else None
    if not well or problem is not None:
        kind, message = (FailureKind.INVALID_OUTPUT, problem) if problem is not None else children.failure_of(event)
        _step_failed(state, plan, step, _failure(state, kind, message, event), None, effects)
        return
    step.output = event.output
    state.bytes += size
    if event.status is WorkflowStatus.COMPLETED:
        end_step(state, plan, step, StepStatus.DONE, "completed", effects)
        return
    step.stand_in = DEGRADED_CHILD
    message = f"workflow {event.child!r} ended degraded: {event.message}"
    note_failure(state, step.failures, _failure(state, FailureKind.TERMINAL, message, event))
    end_step(state, plan, step, StepStatus.DEGRADED, "completed", effects)


def failed(state: WorkflowState, plan: Plan, event: StepFailed, effects: list[Effect]) -> None:
    """An agent reports that an attempt failed."""
    step = _awaited(state, plan, event, event.direction, event.token, effects)
    if step is None:
        return
    # Only the engine knows of cancels, deadlines and circuits: an agent that reports one just failed.
    kind = event.kind if event.kind in REPORTED else FailureKind.TERMINAL
    failure = _failure(state, kind, event.message, event)
    if event.error_type is not None:
        failure["error_type"] = event.error_type[:ERROR_TYPE_CHARS_MAX]
    if event.details is not None:
        failure["details"] = _bounded_details(event.details)
    spec = plan.steps[step.index]
    charged, overtaken = (0, 0), False
    if event.direction is Direction.EXECUTE:
        outcome = Outcome.HAPPENED if kind is FailureKind.INVALID_OUTPUT else Outcome.DID_NOT_HAPPEN
        overtaken = reconcile.overtaken(state, spec, step, outcome, effects)
        unknown = kind in UNKNOWN_OUTCOME
        charged = budgets.settle(state, spec, step, event.tokens, event.cost, unknown=unknown)
    if overtaken:
        # When it was given up for lost, it was counted for the circuit already.
        _step_failed(state, plan, step, failure, event.retry_after_ms, effects)
    else:
        _fail(state, plan, step, event.direction, failure, event.retry_after_ms, event.duration_ms, effects, charged)


def lost(state: WorkflowState, plan: Plan, event: AttemptLost, effects: list[Effect]) -> None:
    """Nobody answered in time."""
    step = _awaited(state, plan, event, event.direction, None, effects)
    if step is not None:
        failure = _failure(state, event.kind, event.message, event)
        if event.kind is FailureKind.LOST:
            charged = (0, 0)
            if event.direction is Direction.EXECUTE:
                charged = budgets.settle(state, plan.steps[step.index], step, None, None, unknown=True)
            _fail(state, plan, step, event.direction, failure, None, None, effects, charged)
        elif event.direction is Direction.COMPENSATE:
            _undo_failed(state, plan, step, failure, None, effects)
        elif event.direction is Direction.RECONCILE:
            _question_failed(state, plan, step, failure, None, effects)
        else:
            # It could not even be sent: nobody was called, so nothing is counted for or against the service.
            _step_failed(state, plan, step, failure, None, effects)


def refused(state: WorkflowState, plan: Plan, event: AttemptRefused, effects: list[Effect]) -> None:
    """The service's circuit is open, and the step does not wait. Nothing was called, unless an owner before did it."""
    step = _awaited(state, plan, event, Direction.EXECUTE, None, effects)
    if step is None:
        return
    spec = plan.steps[step.index]
    message = f"the circuit of service {event.service!r} is open"
    failure = _failure(state, FailureKind.CIRCUIT_OPEN, message, event)
    if event.maybe_sent and spec.reconcile is not None:
        reconcile.begin(state, plan, step, failure, None, (0, 0), effects)
        return
    note_failure(state, step.failures, failure)
    step.failed_attempts += 1
    if event.maybe_sent:
        _suspect(step, spec)
    _go_on(state, plan, step, failure, None, effects)


# --- answers to the question whether an attempt happened


def _said(
    state: WorkflowState, plan: Plan, step: StepState, event: StepCompleted, size: int, effects: list[Effect]
) -> None:  # fmt: skip
    """The agent says what became of the attempt."""
    spec = plan.steps[step.index]
    outcome = event.outcome
    _called(state, spec, spec.agent_of(step), outcome is not None, False, event.duration_ms, effects)
    if outcome is None:
        message = f"outcome: is missing; answer a question with one of {', '.join(Outcome)}"
        failure = _failure(state, FailureKind.INVALID_OUTPUT, message, event)
        _question_failed(state, plan, step, failure, None, effects)
        return
    retry_after_ms = reconcile.answered(state, step, outcome)
    if outcome is Outcome.HAPPENED:
        problem = _output_problem(state, spec, step, event.output, size)
        _deliver(state, plan, step, event, size, problem, effects)
    else:
        _go_on(state, plan, step, step.failures[-1], retry_after_ms, effects)


def _question_failed(
    state: WorkflowState,
    plan: Plan,
    step: StepState,
    failure: FailureRecord,
    retry_after_ms: int | None,
    effects: list[Effect],
) -> None:
    """It is asked again, or else the outcome stays unknown."""
    spec = plan.steps[step.index]
    if reconcile.ask_again(state, spec, step, failure, retry_after_ms):
        return
    retry_after_ms = reconcile.unanswered(state, spec, step, effects)
    _suspect(step, spec)
    _go_on(state, plan, step, step.failures[-1], retry_after_ms, effects)


# --- which attempt an event speaks of


def _awaited(
    state: WorkflowState, plan: Plan, event: AnyResult, direction: Direction, token: str | None, effects: list[Effect]
) -> StepState | None:
    """The step whose running attempt the event ends; None, with the reason among the effects, when there is none."""
    step = plan.find(state, event.step)
    if step is None:
        effects.append(Ignored(Reason.UNKNOWN_STEP, type(event).__name__))
        return None
    if step.items:
        effects.append(Ignored(Reason.NOT_WAITED_FOR, type(event).__name__))  # its items have attempts, not itself
        return None
    command = state.command_id(event.step, event.attempt, direction)
    if direction is Direction.EXECUTE:
        asked_about = (
            step.status is StepStatus.RECONCILING and not isinstance(event, ChildEnded) and reconcile.tells(event)
        )
        running, attempt = step.status is StepStatus.RUNNING or asked_about, step.attempt
        if token and token == step.token and event.attempt == attempt:
            token = None  # as it was given out: it need not be derived again
    elif direction is Direction.RECONCILE:
        running, attempt = step.question is not None and step.question.out, step.questions
    else:
        running = step.undo is not None and step.undo.status is UndoStatus.RUNNING
        attempt = step.undo.attempt if step.undo is not None else 0
    reason = None
    if token is not None and token != ids.token(state.seed, command):
        reason = Reason.WRONG_TOKEN
    elif event.attempt != attempt:
        reason = Reason.STALE_ATTEMPT
    elif not running:
        reason = Reason.NOT_WAITED_FOR
    if reason is not None:
        effects.append(Ignored(reason, type(event).__name__))
        return None
    effects.append(Answered(command))
    return step


# --- what a failure leads to


def _fail(
    state: WorkflowState,
    plan: Plan,
    step: StepState,
    direction: Direction,
    failure: FailureRecord,
    retry_after_ms: int | None,
    duration_ms: int | None,
    effects: list[Effect],
    charged: tuple[int, int] = (0, 0),
) -> None:
    spec = plan.steps[step.index]
    kind = FailureKind(failure["kind"])
    agent = undo_agent(step, spec) if direction is Direction.COMPENSATE else spec.agent_of(step)
    # A step that asks for a person did its work: neither its agent nor its service is at fault.
    _called(state, spec, agent, kind is FailureKind.REVIEW_NEEDED, kind in SERVICE_FAULTS, duration_ms, effects)
    if direction is Direction.COMPENSATE:
        _undo_failed(state, plan, step, failure, retry_after_ms, effects)
    elif direction is Direction.RECONCILE:
        _question_failed(state, plan, step, failure, retry_after_ms, effects)
    elif reconcile.asks(spec, kind):
        reconcile.begin(state, plan, step, failure, retry_after_ms, charged, effects)
    else:
        _step_failed(state, plan, step, failure, retry_after_ms, effects)


def _step_failed(
    state: WorkflowState,
    plan: Plan,
    step: StepState,
    failure: FailureRecord,
    retry_after_ms: int | None,
    effects: list[Effect],
) -> None:
    spec = plan.steps[step.index]
    kind = FailureKind(failure["kind"])
    note_failure(state, step.failures, failure)
    step.failed_attempts += 1
    if kind in UNKNOWN_OUTCOME:
        _suspect(step, spec)
    _go_on(state, plan, step, failure, retry_after_ms, effects)


def _go_on(
    state: WorkflowState,
    plan: Plan,
    step: StepState,
    failure: FailureRecord,
    retry_after_ms: int | None,
    effects: list[Effect],
) -> None:
    """What follows from a failure that is noted: the next attempt, a fallback, or none of them."""
    spec = plan.steps[step.index]
    kind = FailureKind(failure["kind"])
    if state.status is WorkflowStatus.COMPENSATING or rewind.concerns(state, plan, step):
        drop_step(state, plan, step, effects)
        return
    if kind is FailureKind.CIRCUIT_OPEN and spec.when_open is not WhenOpen.FALL_BACK:
        give_up(state, plan, step, failure, effects)
        return
    retried = kind in RETRIED and failure.get("error_type") not in spec.retry.terminal
    if kind is FailureKind.INVALID_OUTPUT and children.by_child(spec, step):
        retried = False  # what it did is done: the next child would do it once more
    delay_ms = _next_attempt_in_ms(state, spec, step, retry_after_ms) if retried else None
    if delay_ms is not None:
        back_off(state, spec, step, delay_ms, effects)
    else:
        fall_back(state, plan, step, failure, effects)


def _next_attempt_in_ms(
    state: WorkflowState, spec: PlanStep, step: StepState, retry_after_ms: int | None
) -> int | None:  # fmt: skip
    """How long to back off; None when no attempt is left. A fallback agent has as many, and as long, of its own."""
    tried = step.attempt - step.fell_back_after
    if tried >= spec.retry.attempts:
        return None
    command = state.command_id(spec.name_of(step), step.attempt, Direction.EXECUTE)
    delay_ms = backoff_ms(spec.retry, state, command, tried, retry_after_ms)
    total_ms = spec.retry.total_ms
    return delay_ms if total_ms is None or state.now_ms + delay_ms <= step.since_ms + total_ms else None


def _undo_failed(
    state: WorkflowState,
    plan: Plan,
    step: StepState,
    failure: FailureRecord,
    retry_after_ms: int | None,
    effects: list[Effect],
) -> None:
    spec = plan.steps[step.index]
    undo = step.undo
    assert undo is not None and spec.compensate is not None
    note_failure(state, undo.failures, failure)
    undo.failed_attempts += 1
    retry = spec.compensate.retry
    retried = FailureKind(failure["kind"]) in RETRIED and failure.get("error_type") not in retry.terminal
    tried = undo.attempt - undo.tried_before
    if retried and tried < retry.attempts:
        command = state.command_id(spec.name_of(step), undo.attempt, Direction.COMPENSATE)
        back_off_undo(state, spec, step, backoff_ms(retry, state, command, tried, retry_after_ms), effects)
        return
    # Recorded and handed to a person; the rest is undone all the same.
    # A rewinding past a pivot has no way back: there, an operator decides in any case.
    rewinding = state.status is WorkflowStatus.REWINDING
    held = spec.compensate.when_failed is WhenFailed.REVIEW or (rewinding and past_pivot(state, plan))
    if not held:
        dead_letter(state, spec, step, Direction.COMPENSATE, effects)
    review(
        state,
        "undo_failed" if held else "compensation_failed",
        f"step {spec.name_of(step)!r} could not be undone: {failure['message']}"[:FAILURE_MESSAGE_CHARS_MAX],
        spec.name_of(step),
        effects,
        {"input": spec.resolve_undo_input(state, step.item), "failures": list(undo.failures)},
    )
    if held:
        hold_undo(state, plan, step, effects)
        return
    end_undo(state, plan, step, UndoStatus.FAILED, "given_up", effects)


# --- helpers


def _suspect(step: StepState, spec: PlanStep) -> None:
    """Nobody can say whether the present agent did it."""
    step.unknown = True
    agent = spec.agent_of(step)
    if agent not in step.suspects:
        step.suspects.append(agent)


def _output_problem(state: WorkflowState, spec: PlanStep, step: StepState, output: Any, size: int) -> str | None:
    if size > PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX:
        return f"output: is {size:,} bytes, more than {PAYLOAD_BYTES_MAX:,}; store it elsewhere and return a reference"
    if state.bytes + size > STATE_BYTES_MAX:
        return (
            f"output: with its {size:,} bytes the workflow's payloads would exceed {STATE_BYTES_MAX:,}; "
            "store it elsewhere and return a reference"
        )
    # A fallback agent must keep the step's contract too.
    return spec.output_validator.problem(output) if spec.output_validator is not None else None


def _failure(state: WorkflowState, kind: FailureKind, message: str, event: AnyResult) -> FailureRecord:
    failure: FailureRecord = {
        "kind": kind,
        "message": message[:FAILURE_MESSAGE_CHARS_MAX],
        "at_ms": state.now_ms,
        "attempt": event.attempt,
    }
    agent = getattr(event, "agent", None)
    if agent is not None:
        failure["agent"] = agent[:NAME_CHARS_MAX]
    return failure


def _bounded_details(details: Any) -> Any:
    size = len(encode(details))
    return details if size <= FAILURE_DETAILS_BYTES_MAX else {"dropped": f"{size:,} bytes of details"}


def _called(
    state: WorkflowState,
    spec: PlanStep,
    agent: str,
    ok: bool,
    service_fault: bool,
    duration_ms: int | None,
    effects: list[Effect],
) -> None:
    service = spec.service if agent == spec.agent else None
    effects.append(
        Called(
            agent=agent,
            service=service,
            ok=ok,
            service_fault=service_fault,
            at_ms=state.now_ms,
            duration_ms=duration_ms or 0,
            definition=state.definition,
        )
    )
