"""A start under an id that is in use, or is remembered: what its policy makes of it, and the run that follows the one that ends.

Rules:
- A start counts once: those that came before under the id are known by their hashed ids, so that a copy replaces nothing.
- A run that is to be replaced is not cut off: it is cancelled, and undone, as by anybody's cancel. What cannot be cancelled is
  waited for; what is stopped by a record in quarantine is not replaced.
- One start waits at most, the newest. It counts among the bytes of the run that it waits for, so that one checkpoint holds both.
"""

from __future__ import annotations

from sagalog.schemas import ids
from sagalog.schemas.events import FailureKind, OnDuplicate, WorkflowStarted
from sagalog.schemas.limits import FAILURE_MESSAGE_CHARS_MAX, PRIORITY_DEFAULT, STARTS_KEPT_MAX, STATE_BYTES_MAX
from sagalog.schemas.records import NextRecord, StartAnsweredRecord
from sagalog.schemas.statuses import WorkflowStatus

from . import children, control
from .effects import Effect, Ignored, Reason, StartAnswered
from .plan import Plan
from .record import Record
from .starts import enter, input_problem, reject, seed_of, start_problem, trace_of
from .state import WorkflowState

ASKED: tuple[OnDuplicate, ...] = (OnDuplicate.REJECT, OnDuplicate.REPLACE)
"""Policies whose starts are answered."""


def first(state: WorkflowState, event: WorkflowStarted, effects: list[Effect], *, refused: str | None = None) -> None:
    """A start under an id that was free. `refused`: why there is no workflow of it at all."""
    if event.on_duplicate in ASKED:
        _answer(state, ids.start_id(state.seed), effects, reason=refused)


def again(
    state: WorkflowState,
    plan: Plan | None,
    event: WorkflowStarted,
    record: Record,
    new_plan: Plan | None,
    effects: list[Effect],
) -> bool:
    """A start under an id that is not free. True when it counts: it is `state.next`, and follows once the run has ended."""
    if event.on_duplicate not in ASKED:
        effects.append(Ignored(Reason.DUPLICATE_START, "WorkflowStarted"))
        return False
    start_id = ids.start_id(seed_of(record))
    if _is_known(state, start_id):
        effects.append(Ignored(Reason.DUPLICATE_START, "WorkflowStarted"))
        return False
    problem = _problem(state, event, record, new_plan)
    if problem is not None:
        reason, message = problem
        effects.append(Ignored(reason, "WorkflowStarted"))
        answer = _answered(state, start_id, message, record.time_ms, record.offset)
        effects.append(StartAnswered(answer, trace_of(record)))
        return False
    state.now_ms = max(state.now_ms, record.time_ms)
    state.at_offset = record.offset
    drop_next(state, "a newer start replaced it before it began", effects)
    state.next = _next(event, record)
    if not state.terminal:
        state.bytes += record.size
        # What cannot be cancelled is waited for.
        control.try_cancel(state, plan, "replaced by a newer start", effects)
    return True


def follow(before: WorkflowState, plan: Plan | None, effects: list[Effect]) -> WorkflowState:
    """The run of the start that waited for the end of the one before. `plan` is what its definition's name means now."""
    assert before.next is not None and before.terminal
    following = before.next
    name, _, hash_ = following["definition"].partition("@")
    # Later than the run before by a millisecond at least: rows tell two runs of one id by their starts.
    started_ms = max(before.now_ms, before.started_ms + 1)
    state = WorkflowState(
        workflow_id=before.workflow_id,
        definition=hash_ or (plan.hash if plan else ""),
        name=name,
        seed=following["seed"],
        started_ms=started_ms,
        now_ms=started_ms,
        input=following["input"],
        correlation_id=following.get("correlation_id"),
        trace=following.get("trace"),
        at_offset=before.at_offset,
        bytes=following["bytes"],
        heard=before.heard,
        tenant=following.get("tenant"),
        priority=following.get("priority", PRIORITY_DEFAULT),
        attributes=following.get("attributes"),
        run=following["at_offset"] + 2,
        starts=before.starts,
    )
    _note(state, ids.start_id(before.seed))
    _answer(state, ids.start_id(state.seed), effects)
    problem = input_problem(state.input, plan) if plan is not None else None
    if problem is not None:
        reject(state, FailureKind.INVALID_INPUT, problem, effects)
    else:
        enter(state, plan, following.get("deadline_ms"), effects)
    return state


def drop_next(state: WorkflowState, why: str, effects: list[Effect]) -> None:
    """The start that waits, if there is one, will not run."""
    if state.next is None:
        return
    start_id = ids.start_id(state.next["seed"])
    if not state.terminal:
        state.bytes -= state.next["bytes"]
    state.next = None
    _note(state, start_id)
    _answer(state, start_id, effects, reason=why[:FAILURE_MESSAGE_CHARS_MAX])


def _is_known(state: WorkflowState, start_id: str) -> bool:
    waiting = state.next is not None and ids.start_id(state.next["seed"]) == start_id
    return waiting or start_id == ids.start_id(state.seed) or start_id in state.starts


def _note(state: WorkflowState, start_id: str) -> None:
    state.starts.append(start_id)
    del state.starts[:-STARTS_KEPT_MAX]


def _problem(
    state: WorkflowState, event: WorkflowStarted, record: Record, new_plan: Plan | None
) -> tuple[Reason, str] | None:
    """Why a start does not count."""
    if event.on_duplicate is OnDuplicate.REJECT:
        return Reason.DUPLICATE_START, f"the workflow is {state.status}"
    problem = start_problem(state.workflow_id, event, record.size, new_plan)
    if problem is not None:
        return Reason.INVALID_START, problem[1][:FAILURE_MESSAGE_CHARS_MAX]
    if state.status is WorkflowStatus.QUARANTINED:
        return Reason.STOPPED, f"the workflow is stopped: {state.stopped}"[:FAILURE_MESSAGE_CHARS_MAX]
    if event.forked is not None:
        return Reason.INVALID_START, "forked: a fork replaces nothing; give it an id of its own"
    if children.awaited(state):
        return Reason.NOT_POSSIBLE, "the workflow does a step of another one, which may still have it undone"
    waiting = state.next["bytes"] if state.next is not None else 0
    if not state.terminal and state.bytes - waiting + record.size > STATE_BYTES_MAX:
        return (
            Reason.NO_ROOM,
            f"input: the start's {record.size:,} bytes and what the workflow holds would exceed {STATE_BYTES_MAX:,}; store it "
            "elsewhere and pass a reference, or start again once the workflow has ended",
        )
    return None


def _next(event: WorkflowStarted, record: Record) -> NextRecord:
    following: NextRecord = {
        "definition": event.definition,
        "input": event.input,
        "seed": seed_of(record),
        "at_offset": record.offset,
        "at_ms": record.time_ms,
        "bytes": record.size,
    }
    trace = trace_of(record)
    if trace is not None:
        following["trace"] = trace
    if event.deadline_ms is not None:
        following["deadline_ms"] = event.deadline_ms
    if event.correlation_id is not None:
        following["correlation_id"] = event.correlation_id
    if event.tenant is not None:
        following["tenant"] = event.tenant
    if event.priority is not None and event.priority != PRIORITY_DEFAULT:
        following["priority"] = event.priority
    if event.attributes:
        following["attributes"] = event.attributes
    return following


def _answer(state: WorkflowState, start_id: str, effects: list[Effect], *, reason: str | None = None) -> None:
    effects.append(StartAnswered(_answered(state, start_id, reason, state.now_ms, state.at_offset), state.trace))


def _answered(
    state: WorkflowState, start_id: str, reason: str | None, at_ms: int, at_offset: int
) -> StartAnsweredRecord:
    answer: StartAnsweredRecord = {
        "workflow_id": state.workflow_id,
        "start_id": start_id,
        "accepted": reason is None,
        "at_ms": at_ms,
        "at_offset": at_offset,
    }
    if reason is not None:
        answer["reason"] = reason
        assert state.status is not None
        answer["status"] = state.status
    return answer
