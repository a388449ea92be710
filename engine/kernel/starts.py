"""Events that start a workflow, and the definitions that starts wait for."""

from __future__ import annotations

from dataclasses import asdict
from hashlib import blake2b
from typing import Any, Final

from pydantic import TypeAdapter

from sagalog.schemas.codec import encode
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import FailureKind, Forked, OnDuplicate, WorkflowStarted
from sagalog.schemas.identity import check_identity
from sagalog.schemas.ids import FIRST_RUN, check_name, check_workflow_id
from sagalog.schemas.limits import (
    CHILD_DEPTH_MAX,
    CORRELATION_ID_CHARS_MAX,
    DEADLINE_MS_MAX,
    DEFINITION_WAIT_MS,
    FAILURE_MESSAGE_CHARS_MAX,
    NAME_CHARS_MAX,
    PRIORITY_DEFAULT,
    SEED_BYTES_MAX,
    TRACE_BYTES_MAX,
)

from . import children, forks
from .closing import finish, move_workflow
from .effects import Effect
from .plan import Plan
from .progress import begin
from .record import Record
from .state import NEVER, Trigger, WorkflowState

_FORKED: Final = TypeAdapter(Forked)
DEFINITION_CHARS_MAX: Final = NAME_CHARS_MAX + 33
"""A name, an @ and a hash."""


def start(
    workflow_id: str, event: WorkflowStarted, record: Record, plan: Plan | None, effects: list[Effect]
) -> WorkflowState:  # fmt: skip
    """A new workflow: running, waiting for its definition, or rejected with the reason in its result."""
    name, _, hash_ = event.definition[:DEFINITION_CHARS_MAX].partition("@")
    state = WorkflowState(
        workflow_id=workflow_id,
        definition=hash_ or (plan.hash if plan else ""),
        name=name,
        seed=seed_of(record),
        started_ms=record.time_ms,
        now_ms=record.time_ms,
        input=event.input,
        correlation_id=event.correlation_id[:CORRELATION_ID_CHARS_MAX] if event.correlation_id is not None else None,
        trace=trace_of(record),
        at_offset=record.offset,
        bytes=record.size,
        parent=children.remember_parent(event.parent) if event.parent is not None else None,
        run=run_of(event, record),
        forked=forks.lineage(event.forked) if event.forked is not None else None,
    )
    problem = start_problem(workflow_id, event, record.size, plan)
    if problem is not None:
        reject(state, *problem, effects)
        return state
    state.tenant, state.attributes = event.tenant, event.attributes
    state.priority = event.priority if event.priority is not None else PRIORITY_DEFAULT
    enter(state, plan, event.deadline_ms, effects, event.forked)
    return state


def enter(
    state: WorkflowState,
    plan: Plan | None,
    deadline_ms: int | None,
    effects: list[Effect],
    forked: Forked | None = None,
) -> None:
    """A start that was accepted runs, or waits for its definition."""
    if plan is None:
        state.start = {"deadline_ms": deadline_ms}
        if forked is not None:
            state.start["forked"] = asdict(forked)
        _wait(state, effects)
    else:
        move_workflow(state, Trigger.STARTED, effects)
        _run(state, plan, deadline_ms, forked, effects)


def definition_arrived(state: WorkflowState, plan: Plan, effects: list[Effect]) -> None:
    """A waiting start has its definition now."""
    assert state.start is not None
    deadline_ms = state.start["deadline_ms"]
    kept = state.start.get("forked")
    forked = _FORKED.validate_python(kept) if kept is not None else None
    state.definition = plan.hash
    state.start = None
    problem = input_problem(state.input, plan) or (forks.problem(forked, plan) if forked is not None else None)
    if problem is not None:
        reject(state, FailureKind.INVALID_INPUT, problem, effects)
        return
    move_workflow(state, Trigger.DEFINITION_ARRIVED, effects)
    _run(state, plan, deadline_ms, forked, effects)


def definition_missing(state: WorkflowState, effects: list[Effect]) -> None:
    """A waiting start waited long enough."""
    named = f"{state.name}@{state.definition}" if state.definition else state.name
    reject(
        state,
        FailureKind.TERMINAL,
        f"definition: {named!r} is not registered; register it (sagalog definitions register) and start again",
        effects,
    )


def reject(state: WorkflowState, kind: FailureKind, message: str, effects: list[Effect]) -> None:
    """The start cannot be accepted; its result says why."""
    state.failure = {"kind": kind, "message": message, "at_ms": state.now_ms}
    finish(state, None, Trigger.REFUSED, effects)


def input_problem(value: Any, plan: Plan) -> str | None:
    """What does not fit the definition's input schema, with its path; None when all does."""
    return plan.input_validator.problem(value) if plan.input_validator is not None else None


def start_problem(
    workflow_id: str, event: WorkflowStarted, size: int, plan: Plan | None
) -> tuple[FailureKind, str] | None:  # fmt: skip
    """Why a start cannot run, as far as that can be said without its definition; None when it can."""
    name, _, hash_ = event.definition.partition("@")
    try:
        check_workflow_id(workflow_id)
        check_name(name, "definition")
        check_identity(event.tenant, event.priority, event.attributes)
    except InvalidRecord as error:
        return FailureKind.INVALID_INPUT, str(error)[:FAILURE_MESSAGE_CHARS_MAX]
    if len(hash_) > DEFINITION_CHARS_MAX:
        return (
            FailureKind.INVALID_INPUT,
            f"definition: the hash is {len(hash_)} characters long; take it from the registration",
        )
    if event.correlation_id is not None and len(event.correlation_id) > CORRELATION_ID_CHARS_MAX:
        return (
            FailureKind.INVALID_INPUT,
            f"correlation_id: is {len(event.correlation_id)} characters, more than {CORRELATION_ID_CHARS_MAX}",
        )
    beside = len(encode(event.attributes)) if event.attributes else 0
    too_large = forks.size_problem(event, size - beside)
    if too_large is not None:
        return FailureKind.INVALID_INPUT, too_large
    if event.parent is not None and event.parent.depth > CHILD_DEPTH_MAX:
        return (
            FailureKind.INVALID_INPUT,
            f"parent: workflows within workflows are {event.parent.depth} deep, more than {CHILD_DEPTH_MAX}",
        )
    if event.deadline_ms is not None and not 10 <= event.deadline_ms <= DEADLINE_MS_MAX:
        return FailureKind.INVALID_INPUT, f"deadline_ms: {event.deadline_ms} is not within 10 to {DEADLINE_MS_MAX}"
    problem = input_problem(event.input, plan) if plan is not None else None
    if problem is None and plan is not None and event.forked is not None:
        problem = forks.problem(event.forked, plan)
    return (FailureKind.INVALID_INPUT, problem) if problem is not None else None


def trace_of(record: Record) -> str | None:
    """The trace context that all that follows carries on."""
    return record.trace.decode(errors="replace") if record.trace and len(record.trace) <= TRACE_BYTES_MAX else None


def run_of(event: WorkflowStarted, record: Record) -> int:
    """A start that replaces gives its run a name of its own: agents must not take its commands for those of an earlier run,
    even if the fold has forgotten that there was one."""
    return record.offset + 2 if event.on_duplicate is OnDuplicate.REPLACE else FIRST_RUN


def seed_of(record: Record) -> str:
    # Known to the starter and the engine only, as far as the broker's ACLs go: tokens are derived from it.
    if not record.ce_id:
        return f"@{record.offset}"
    if len(record.ce_id) > SEED_BYTES_MAX:
        return blake2b(record.ce_id, digest_size=16).hexdigest()
    return record.ce_id.decode(errors="replace")


def _run(
    state: WorkflowState, plan: Plan, deadline_ms: int | None, forked: Forked | None, effects: list[Effect]
) -> None:
    within = deadline_ms if deadline_ms is not None else plan.definition.deadline_ms
    state.deadline_ms = state.started_ms + within if within is not None else NEVER
    state.own_deadline = deadline_ms is not None and deadline_ms == plan.definition.deadline_ms
    begin(state, plan, forked, effects)


def _wait(state: WorkflowState, effects: list[Effect]) -> None:
    move_workflow(state, Trigger.AWAITED, effects)
    state.deadline_ms = state.now_ms + DEFINITION_WAIT_MS
