"""A running workflow moves to another hash of its definition.

Rules:
- First all of it is checked (`problems`), then all of it is moved: a definition that does not fit changes nothing at all.
- What has happened stays, and must be what the new definition could have led to: steps that have begun keep their name and their
  kind, their needs have ended well, what they gave fits their schemas. What has not begun is the new definition's.
- An attempt that is out is waited for, whoever made it; the next one is the new definition's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from sagalog.schemas.codec import encode
from sagalog.schemas.definitions import Step, Task, WaitFor
from sagalog.schemas.events import MigrationRequested
from sagalog.schemas.limits import MIGRATIONS_KEPT_MAX, TEXT_CHARS_MAX
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from . import items, waits
from .effects import Effect, Ignored, Migrated, Reason
from .plan import Plan, PlanStep
from .progress import ENDED_WELL, cancel_step, past_pivot, proceed
from .state import NEVER, StepState, WorkflowState, undo_agents

_KINDS: Final = ("agent", "sleep", "wait_for", "task", "workflow")
"""Fields of a step of which exactly one is set."""
_AT_WORK: Final = (StepStatus.RUNNING, StepStatus.BACKING_OFF, StepStatus.RECONCILING)
_MAY_BE_DONE: Final = (StepStatus.RUNNING, StepStatus.RECONCILING, StepStatus.DONE)


def migrate(
    state: WorkflowState, plan: Plan | None, target: Plan | None, event: MigrationRequested, effects: list[Effect]
) -> None:
    """Moves the workflow, or ignores the request with the reason. `target` None: the partition does not know it."""
    reason = _reason(state, plan, target)
    if reason is not None:
        effects.append(Ignored(reason, "MigrationRequested"))
        return
    assert plan is not None and target is not None
    _move(state, plan, target, event, effects)
    _go_on(state, plan, target, effects)


def _reason(state: WorkflowState, plan: Plan | None, target: Plan | None) -> Reason | None:
    if target is None:
        return Reason.UNKNOWN_DEFINITION
    if target.hash == state.definition or _stands(state, plan) is not None:
        return Reason.NOT_POSSIBLE
    return Reason.DOES_NOT_FIT if problems(state, plan, target) else None


def as_it_was(state: WorkflowState, now: Plan, then: Plan) -> WorkflowState:
    """A copy of the state as an earlier definition had it, to make a command of it again, the same as it was made then."""
    before = replace(state, definition=then.hash)
    _move_deadline(before, now, then)
    before.steps = [
        replace(
            step,
            index=spec.index,
            asked=None,
            items=[replace(item, index=spec.index, asked=None) for item in step.items],
        )
        for step, spec in zip(_arranged(state, now, then), then.steps, strict=True)
    ]
    return before


# --- what does not fit


def problems(state: WorkflowState, old: Plan | None, new: Plan) -> list[str]:
    """What of the workflow does not go with the new definition, each as "place: what; remedy". None at all: it fits."""
    stands = _stands(state, old)
    if stands is not None:
        return [f"workflow: {stands}"]
    assert old is not None
    if new.name != state.name:
        return [f"definition: is one of {new.name!r}, the workflow is of {state.name!r}; name one of its own"]
    found = list(_of_workflow(state, old, new))
    # Bindings of the new definition go by its steps' places.
    moved = replace(state, steps=_arranged(state, old, new))
    for step in state.steps:
        found += _of_step(state, moved, old, new, step)
    found += _of_signals(state, new)
    return found


def _stands(state: WorkflowState, old: Plan | None) -> str | None:
    """Why a workflow in this status is not moved at all."""
    match state.status:
        case WorkflowStatus.RUNNING | WorkflowStatus.COMPENSATING if old is not None and state.steps:
            return None
        case WorkflowStatus.WAITING:
            return "waits for its definition; register that one (sagalog definitions register)"
        case WorkflowStatus.REWINDING:
            return "is being rewound; wait until it runs again"
        case WorkflowStatus.QUARANTINED:
            # A record that broke the fold may have left it half done: what is in it cannot be relied upon.
            return "is quarantined; look at the record, resume it (sagalog resume), then move it"
        case _:
            return f"is {state.status}; only what runs can be moved"


def _of_workflow(state: WorkflowState, old: Plan, new: Plan) -> Iterator[str]:
    if new.input_validator is not None and (problem := new.input_validator.problem(state.input)) is not None:
        yield f"input_schema: the workflow's input does not fit ({problem}); let the schema allow it"
    if state.status is WorkflowStatus.RUNNING:
        for name in new.definition.required:
            place = old.index.get(name)
            if place is not None and state.steps[place].status is StepStatus.DEGRADED and not past_pivot(state, old):
                yield f"required: names {name!r}, which is degraded already; leave it out"


def _of_step(state: WorkflowState, moved: WorkflowState, old: Plan, new: Plan, step: StepState) -> Iterator[str]:
    was = old.steps[step.index]
    if not _begun(step):
        return
    where = f"steps.{was.name}"
    place = new.index.get(was.name)
    if place is None:
        yield f"{where}: has begun, and is not in the new definition; keep it"
        return
    spec = new.steps[place]
    kind, other = (_kind(plan.definition.steps[of.index]) for plan, of in ((old, was), (new, spec)))
    if kind != other:
        yield f"{where}: has begun as a step with {kind}, and has {other} now; keep the one, or give the other a new name"
        return
    rewound = step.status in (StepStatus.WAITING, StepStatus.CANCELLED) and not step.started_ms
    for need in () if rewound else spec.needs:  # one that is to begin anew waits for them as any does
        before = old.index.get(new.steps[need].name)
        if before is None or state.steps[before].status not in ENDED_WELL:
            yield f"{where}.needs: {new.steps[need].name!r} has not ended, and {was.name!r} has begun; let it come behind"
    yield from _of_outputs(step, spec, where)
    yield from _of_work(was, spec, step, where)
    if step.items and spec.map is not None:
        yield from _of_items(state, moved, was, spec, step, where)
    yield from _of_going_back(state, was, spec, step, where)


def _of_outputs(step: StepState, spec: PlanStep, where: str) -> Iterator[str]:
    if spec.output_validator is None:
        return
    for one in (step, *step.items):
        # A default or a constant that stood in is held to no schema, and a step with items has theirs.
        theirs = one is step and bool(step.items) and step.stand_in != "operator"
        by_agent = one.status is StepStatus.DONE or (one.stand_in or "").startswith("fallback:")
        if by_agent and not theirs and (problem := spec.output_validator.problem(one.output)) is not None:
            yield f"{where}.output_schema: what {spec.name_of(one)!r} gave does not fit ({problem}); let the schema allow it"
            return


def _of_work(was: PlanStep, spec: PlanStep, step: StepState, where: str) -> Iterator[str]:
    """What the step is at, or will go on with."""
    if was.child is not None and spec.child is not None and was.child.definition != spec.child.definition:
        yield f"{where}.workflow.definition: one of {was.child.definition!r} does it already; keep that one"
    match was.awaits, spec.awaits:
        case WaitFor(signal=before), WaitFor(signal=after) if step.status is StepStatus.AWAITING and before != after:
            yield f"{where}.wait_for.signal: it waits for {before!r} already; keep that name"
    for one in step.items or (step,):
        if one.question is not None and spec.reconcile is None:
            yield f"{where}.reconcile: its agent is being asked whether an attempt happened; keep it"
            return
        if one.status in _AT_WORK and one.agent is not None and _turn_of(spec, one) is None:
            yield f"{where}.fallbacks: {one.agent!r} stands in for its agent already; keep it among them"
            return


def _of_items(
    state: WorkflowState, moved: WorkflowState, was: PlanStep, spec: PlanStep, step: StepState, where: str
) -> Iterator[str]:
    assert was.resolve_items is not None and spec.resolve_items is not None
    if encode(was.resolve_items(state, -1)) != encode(spec.resolve_items(moved, -1)):
        yield f"{where}.map.over: gives another list than the one whose items have begun; keep it"
    if step.status is StepStatus.RUNNING and items.fails(step, was) and not items.fails(step, spec):
        yield (
            f"{where}.map.tolerate: more of its items have failed than it tolerated, and the rest is not begun any more; "
            "keep it, or wait for the step's end"
        )


def _of_going_back(state: WorkflowState, was: PlanStep, spec: PlanStep, step: StepState, where: str) -> Iterator[str]:
    if step.status in ENDED_WELL:
        if was.pivot and not spec.pivot:
            yield f"{where}.pivot: it has ended well, so the workflow goes only forward; keep it one"
        if spec.pivot and state.status is WorkflowStatus.COMPENSATING:
            yield f"{where}.pivot: it has ended well, and the workflow is being undone; drop it"
    if state.status is not WorkflowStatus.COMPENSATING or was.compensate is None:
        return
    for one in step.items or (step,):
        undo = one.undo
        if undo is not None and (undo.status is UndoStatus.NOT_NEEDED or undo.finished_ms):
            continue
        by_fallback = (one.stand_in or "").startswith("fallback:")
        if undo is None and not (one.status in _MAY_BE_DONE or one.unknown or by_fallback):
            continue
        name = was.name_of(one)
        if spec.compensate is None:
            yield f"{where}.compensate: is missing, and {name!r} is to be undone; keep it"
            return
        if undo is None or undo.status is UndoStatus.PENDING:
            continue
        before, after = undo_agents(one, was), undo_agents(one, replace(was, compensate=spec.compensate))
        if undo.status is UndoStatus.RUNNING and before[undo.turn :][:1] != after[undo.turn :][:1]:
            yield f"{where}.compensate.agent: {before[undo.turn]!r} is undoing {name!r} now; keep it, or wait for its answer"
            return
        if undo.turn and before != after:
            yield f"{where}.compensate.agent: several agents undo {name!r} in turn, and it is not the first's; keep it, or wait"
            return


def _of_signals(state: WorkflowState, new: Plan) -> Iterator[str]:
    """Signals that are kept fit whoever may take them. One that nobody waits for any more is kept until it expires."""
    for spec in new.steps:
        if not isinstance(spec.awaits, WaitFor) or spec.payload_validator is None:
            continue
        for signal in state.signals:
            if signal["name"] == spec.awaits.signal:
                problem = spec.payload_validator.problem(signal.get("payload"))
                if problem is not None:
                    yield (
                        f"steps.{spec.name}.wait_for.payload_schema: a signal {signal['name']!r} that is kept does not fit "
                        f"({problem}); let the schema allow it"
                    )
                    break


def _begun(step: StepState) -> bool:
    """Whether anything is known of it. What the workflow's stop cancelled before it began has not."""
    untouched = step.status is StepStatus.WAITING or step.status is StepStatus.CANCELLED
    return not untouched or bool(step.attempt or step.failures or step.items)


def _kind(step: Step) -> str:
    kind = next(kind for kind in _KINDS if getattr(step, kind) is not None)
    if step.map is not None:
        return f"{kind} and map"
    return f"{kind} and repeat" if step.repeat is not None else kind


def _turn_of(spec: PlanStep, step: StepState) -> int | None:
    """Which of the new fallbacks the agent that is at work is: at its old place if it can be, else the first of that name."""
    places = [place for place, fallback in enumerate(spec.fallbacks) if fallback.agent == step.agent]
    if step.fell_back - 1 in places:
        return step.fell_back
    return places[0] + 1 if places else None


# --- the move


def _move(state: WorkflowState, old: Plan, new: Plan, event: MigrationRequested, effects: list[Effect]) -> None:
    effects.append(Migrated(state.workflow_id, state.definition, new.hash))
    state.migrated.append(
        {
            "before": state.definition,
            "after": new.hash,
            "at_ms": state.now_ms,
            "who": event.who[:TEXT_CHARS_MAX],
            "reason": event.reason[:TEXT_CHARS_MAX],
        }
    )
    del state.migrated[:-MIGRATIONS_KEPT_MAX]
    _move_deadline(state, old, new)
    state.definition = new.hash
    state.steps = _arranged(state, old, new)
    for step, spec in zip(state.steps, new.steps, strict=True):
        if (place := old.index.get(spec.name)) is not None:
            _move_step(step, old.steps[place], spec)
    # As a checkpoint has it.
    state.open_steps = sum(not s.finished_ms and s.status is not StepStatus.CANCELLED for s in state.steps)


def _arranged(state: WorkflowState, old: Plan, new: Plan) -> list[StepState]:
    """The steps in the new definition's order, with those that it adds."""
    kept = {old.steps[step.index].name: step for step in state.steps}
    return [kept.get(spec.name) or StepState(spec.index) for spec in new.steps]


def _move_step(step: StepState, was: PlanStep, spec: PlanStep) -> None:
    for one in step.items or (step,):
        if one.status in _AT_WORK and one.agent is not None:
            one.fell_back = _turn_of(spec, one) or 0
        agent = was.agent_of(one)
        one.asked = agent if one.attempt and one.agent is None and agent != spec.agent else None
    for one in (step, *step.items):
        one.index = spec.index


def _move_deadline(state: WorkflowState, old: Plan, new: Plan) -> None:
    """A start's own deadline stays. The definition's is the new one's, from the start on."""
    before, after = (
        NEVER if within is None else state.started_ms + within
        for within in (old.definition.deadline_ms, new.definition.deadline_ms)
    )
    if state.own_deadline or (state.deadline_ms != NEVER and state.deadline_ms != before):
        state.own_deadline = state.deadline_ms == after
    else:
        state.deadline_ms = after


def _go_on(state: WorkflowState, old: Plan, new: Plan, effects: list[Effect]) -> None:
    """Whatever the new definition lets begin, or end, at once."""
    if state.status is WorkflowStatus.COMPENSATING:
        for step in state.steps:
            if step.status is StepStatus.WAITING:
                cancel_step(state, new, step, effects)  # a new one: it never begins
        return
    for step in list(state.steps):
        if state.status is not WorkflowStatus.RUNNING:
            return
        spec = new.steps[step.index]
        if step.items and step.status is StepStatus.RUNNING:
            items.fill_anew(state, new, step, effects)
        elif step.status is StepStatus.AWAITING and isinstance(spec.awaits, Task):
            _ask_again(state, old, new, step, spec.awaits, effects)
    proceed(state, new, range(len(new.steps)), effects)


def _ask_again(state: WorkflowState, old: Plan, new: Plan, step: StepState, task: Task, effects: list[Effect]) -> None:
    """A person who has the task before them must see what they are asked now, and what their answer is held to."""
    spec = new.steps[step.index]
    was = old.steps[old.index[spec.name]]
    asked_before, asks = (plan.definition.steps[of.index].input for plan, of in ((old, was), (new, spec)))
    if task != was.awaits or asks != asked_before:
        assignee = task.escalate_to or task.assignee if step.escalated else task.assignee
        waits.ask(state, step, spec, task, assignee, effects)
