"""An attempt whose outcome nobody knows, of a step with `reconcile`: its agent is asked whether it happened.

Rules:
- Asked before all else: while a question is open, the step is neither tried again, nor given to a fallback, nor undone.
- The answer ends it: the attempt happened, with that output, or it did not, and then its failure has a known outcome. A late answer
  of the attempt itself ends it, too. A question that failed is asked again by its policy; past that the outcome stays unknown.
- A question begins something: while the workflow is paused it is held back. A workflow that stops goes on asking, because what
  is to be undone depends on the answer.
- Questions are counted over the life of the step, whichever attempt they are about: so no two have one id. What answering
  them used is in no budget, as with undoing.
"""

from __future__ import annotations

from sagalog.schemas import ids
from sagalog.schemas.commands import Question
from sagalog.schemas.definitions import WhenOpen
from sagalog.schemas.events import (
    ASKED_ABOUT,
    REPORTED,
    RETRIED,
    AttemptLost,
    AttemptRefused,
    FailureKind,
    Outcome,
    StepCompleted,
    StepFailed,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.records import FailureRecord
from sagalog.schemas.statuses import StepStatus

from . import progress
from .closing import dead_letter, forget_failures, mark_outcome, move_step_to, note_failure
from .effects import Answered, Dispatch, Effect
from .plan import Plan, PlanStep
from .state import NEVER, QuestionState, StepState, WorkflowState


def asks(spec: PlanStep, kind: FailureKind) -> bool:
    """Whether the agent is asked what became of an attempt that ended like that."""
    return spec.reconcile is not None and kind in ASKED_ABOUT


def tells(event: StepCompleted | StepFailed | AttemptLost | AttemptRefused) -> bool:
    """Whether a late answer of the attempt asked about says what became of it.

    A host that gave the attempt up itself (it timed out, another command took its place) knows no more than the engine.
    """
    if isinstance(event, StepFailed):
        return event.kind in REPORTED and event.kind not in ASKED_ABOUT
    return isinstance(event, StepCompleted)


# --- asking


def begin(
    state: WorkflowState,
    plan: Plan,
    step: StepState,
    failure: FailureRecord,
    retry_after_ms: int | None,
    charged: tuple[int, int],
    effects: list[Effect],
) -> None:
    """The newest attempt has failed, and nobody knows whether it happened. `charged` are the tokens and the cost it counts for."""
    note_failure(state, step.failures, failure)
    step.failed_attempts += 1
    tokens, cost = charged
    step.question = QuestionState(
        since_ms=state.now_ms, retry_after_ms=retry_after_ms, tokens=tokens, cost=cost, asked_before=step.questions
    )
    move_step_to(state, step, plan.steps[step.index], StepStatus.RECONCILING, "outcome_unknown", effects)
    if state.paused is None:
        ask(state, plan, step, effects)


def ask(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """Sends the next question about a step, or an item."""
    assert step.question is not None
    step.questions += 1
    step.question.out = True
    step.retry_at_ms = NEVER
    effects.append(question_dispatch(state, plan, step))


def question_dispatch(state: WorkflowState, plan: Plan, step: StepState) -> Dispatch:
    """The effect that sends the current question; the same each time it is made."""
    spec = plan.steps[step.index]
    assert spec.reconcile is not None
    service = spec.service if step.agent is None and step.asked is None else None
    name = spec.name_of(step)
    command_id = state.command_id(name, step.questions, Direction.RECONCILE)
    question = Question(
        command_id=command_id,
        workflow_id=state.workflow_id,
        definition=state.definition,
        step=name,
        agent=spec.agent_of(step),
        attempt=step.questions,
        direction=Direction.RECONCILE,
        token=ids.token(state.seed, command_id),
        idempotency_key=ids.idempotency_key(state.workflow_id, name, state.run, step.round),
        input=spec.resolve_input(state, step.item),
        timeout_ms=spec.reconcile.timeout_ms,
        heartbeat_timeout_ms=spec.heartbeat_timeout_ms,
        service=service,
        priority=state.priority,
        about=step.attempt,
    )
    policy = plan.policy(service) if service else None
    return Dispatch(question, WhenOpen.PARK, spec.question_patience_ms, policy, state.trace)


def ask_held(state: WorkflowState, plan: Plan, step: StepState, effects: list[Effect]) -> None:
    """Asks what a pause has held back."""
    if step.question is not None and not step.question.out and step.retry_at_ms == NEVER:
        ask(state, plan, step, effects)


def ask_again(
    state: WorkflowState,
    spec: PlanStep,
    step: StepState,
    failure: FailureRecord,
    retry_after_ms: int | None,
) -> bool:
    """A question failed: it is asked again later. False when its policy allows no more."""
    question = step.question
    assert question is not None and spec.reconcile is not None
    note_failure(state, question.failures, failure)
    question.failed_attempts += 1
    question.out = False
    retry = spec.reconcile.retry
    tried = step.questions - question.asked_before
    if FailureKind(failure["kind"]) not in RETRIED or failure.get("error_type") in retry.terminal:
        return False
    if tried >= retry.attempts:
        return False
    command = state.command_id(spec.name_of(step), step.questions, Direction.RECONCILE)
    at_ms = state.now_ms + progress.backoff_ms(retry, state, command, tried, retry_after_ms)
    if retry.total_ms is not None and at_ms > question.since_ms + retry.total_ms:
        return False
    step.retry_at_ms = at_ms
    return True


# --- the end of a question


def answered(state: WorkflowState, step: StepState, outcome: Outcome) -> int | None:
    """Somebody knows now. Returns what the attempt's failure, the step's newest, asked for as `retry_after_ms`."""
    mark_outcome(state, step.failures, outcome)
    if outcome is Outcome.HAPPENED:
        step.failed_attempts -= 1  # what happened did not fail
    return _end(state, step).retry_after_ms


def unanswered(state: WorkflowState, spec: PlanStep, step: StepState, effects: list[Effect]) -> int | None:
    """Nobody will know. The question goes to the dead letters; the same is returned."""
    dead_letter(state, spec, step, Direction.RECONCILE, effects)
    return _end(state, step).retry_after_ms


def overtaken(state: WorkflowState, spec: PlanStep, step: StepState, outcome: Outcome, effects: list[Effect]) -> bool:
    """A real answer of the attempt came: whether there was a question about it, which is over now."""
    question = step.question
    if question is None:
        return False
    if question.out:
        asked = state.command_id(spec.name_of(step), step.questions, Direction.RECONCILE)
        effects.append(Answered(asked))
    # What the attempt used is what this answer says.
    step.tokens -= question.tokens
    step.cost -= question.cost
    mark_outcome(state, step.failures, outcome)
    step.failed_attempts -= 1  # it is about to be counted, if it failed
    _end(state, step)
    return True


def _end(state: WorkflowState, step: StepState) -> QuestionState:
    question, step.question = step.question, None
    assert question is not None
    forget_failures(state, question.failures)
    return question
