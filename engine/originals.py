"""What a fork keeps of its original, and how a dead letter is tried again: computed by folding the original's log.

Rules:
- Kept is what ended well and still stands: what was undone, or done anew by a rewinding since, is no longer there to build on.
- What is kept is closed under needs. The fold checks it all again; here it is said before anything is written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from sagalog.engine.kernel import Partition, Plan, Record, compile_plan, restore
from sagalog.engine.kernel.effects import DeadLettered, Effect, Finished
from sagalog.engine.kernel.forks import problem
from sagalog.engine.kernel.rewind import affected_places, needed_places, possible
from sagalog.engine.kernel.state import StepState, WorkflowState, dump
from sagalog.engine.runtime.outputs import to_record
from sagalog.schemas.definitions import Definition
from sagalog.schemas.errors import InvalidRecord, SagalogError
from sagalog.schemas.events import Forked, Gap
from sagalog.schemas.ids import Direction, split_item
from sagalog.schemas.limits import WORKFLOW_ID_BYTES_MAX
from sagalog.schemas.records import DeadLetterRecord, ResultRecord
from sagalog.schemas.statuses import TERMINAL, StepStatus, UndoStatus, WorkflowStatus
from sagalog.topics.log import Message

ENDED_WELL: Final = (StepStatus.DONE, StepStatus.DEGRADED, StepStatus.SKIPPED)
STANDS: Final = (UndoStatus.NOT_NEEDED, UndoStatus.SKIPPED)
"""Of a ledger's entries: what the step did was not taken back."""


class CannotFork(SagalogError):
    """The workflow cannot be forked there; the message says why and where it can."""


class CannotRedrive(SagalogError):
    """The dead letter cannot be tried again; the message says why, and what to do instead."""


class UnknownOriginal(SagalogError):
    """The log holds no such workflow, or dead letter."""


@dataclass(slots=True)
class Original:
    """A workflow, folded from its log: as it is, and as it was at the offset that was asked for."""

    workflow_id: str
    plan: Plan
    now: WorkflowState
    then: WorkflowState
    letters: list[DeadLetterRecord] = field(default_factory=list)
    """In the order in which they were written."""


async def read_original(messages: AsyncIterator[Message], workflow_id: str, at_offset: int | None = None) -> Original:
    """Folds the workflow's own records, and the engine's. Raises UnknownOriginal, CannotFork."""
    key = workflow_id.encode()
    fold = Partition()
    letters: list[DeadLetterRecord] = []
    result: ResultRecord | None = None
    then: WorkflowState | None = None
    passed = False
    effects: list[Effect] = []
    async for message in messages:
        if message.key != key and not (message.key or b"").startswith(b"@"):
            continue
        if at_offset is not None and message.offset > at_offset and not passed:
            then, passed = _as_it_is(fold, workflow_id, result), True
        record: Record = to_record(message)
        fold.apply(record, effects)
        for effect in effects:
            match effect:
                case Finished() if effect.result["workflow_id"] == workflow_id:
                    result = effect.result
                case DeadLettered() if effect.record["workflow_id"] == workflow_id:
                    letters.append(effect.record)
                case _:
                    pass
        effects.clear()
        state = fold.get(workflow_id)
        if state is not None and not state.terminal:
            result = None
    now = _as_it_is(fold, workflow_id, result)
    if now is None:
        raise UnknownOriginal(
            f"workflow {workflow_id!r}: the log holds no start of it whose definition is known; is the id right, and is the "
            "log's beginning still there?"
        )
    if at_offset is not None and not passed:
        then = now
    if at_offset is not None and then is None:
        raise CannotFork(f"workflow {workflow_id!r} had not started at offset {at_offset}; give a later one")
    return Original(workflow_id, fold.plans[now.definition], now, then or now, letters)


def _as_it_is(fold: Partition, workflow_id: str, result: ResultRecord | None) -> WorkflowState | None:
    """A copy that the fold does not change any more. Of a finished workflow, also of one that is forgotten, its result tells."""
    state = fold.get(workflow_id)
    document: dict[str, Any]
    if result is not None:
        document = {**result, "seed": "", "now_ms": result["finished_ms"]}
        del document["finished_ms"]  # what has one is a stub, without steps
    elif state is not None:
        document = dict(dump(state, fold.plan_of(state)))
    else:
        return None
    plan = fold.plans.get(document["definition"])
    if plan is None:
        return None
    found = restore(workflow_id, document)
    found.steps = found.steps or [StepState(place) for place in range(len(plan.steps))]
    return found


# --- forks


def fork(original: Original, definition: Definition | None, *, before: str | None) -> Forked:
    """What had ended well; with `before`, and does not need that step. `definition`: another version. Raises CannotFork."""
    plan = compile_plan(definition) if definition is not None else original.plan
    if before is None:
        return _fork(original, plan, set(), must_stand=set(original.plan.index))
    return _fork_before(original, plan, before)


def _fork_before(original: Original, plan: Plan, step: str) -> Forked:
    place = plan.index.get(step)
    if place is None:
        raise CannotFork(f"before: {step!r} is no step of {plan.name!r} (it has {', '.join(sorted(plan.index))})")
    anew = {plan.steps[found].name for found in affected_places(plan, place)}
    if step in original.plan.index:
        theirs = original.plan
        anew |= {theirs.steps[found].name for found in affected_places(theirs, theirs.index[step])}
    needed = {plan.steps[found].name for found in needed_places(plan, place)}
    return _fork(original, plan, anew, must_stand=needed)


def _fork(original: Original, plan: Plan, anew: set[str], must_stand: set[str]) -> Forked:
    _check_still(original)
    steps: dict[str, StepState] = {}
    for then in original.then.steps:
        name = original.plan.steps[then.index].name
        if name in anew or then.status not in ENDED_WELL:
            continue
        gone = _gone(original, then)
        if gone is not None and name in must_stand:
            raise CannotFork(
                f"step {name!r} of workflow {original.workflow_id!r} {gone}: what it did is gone, so nothing can be built on it; "
                f"fork before it instead: before={name}"
            )
        if gone is None:
            steps[name] = then
    forked = _kept(original, _closed(original.plan, steps))
    found = problem(forked, plan)
    if found is not None:
        raise CannotFork(found)
    return forked


def _check_still(original: Original) -> None:
    if original.now.status is WorkflowStatus.REWINDING:
        raise CannotFork(f"workflow {original.workflow_id!r} is being rewound; fork it once it goes forward again")


def _gone(original: Original, then: StepState) -> str | None:
    """Why what a step did does not stand any more."""
    now = original.now.steps[then.index]
    if now.round != then.round:
        return "was taken back by a rewinding since"
    for leaf in now.items or [now]:
        if leaf.undo is not None and leaf.undo.status not in STANDS:
            return "was undone" if leaf.undo.status is UndoStatus.DONE else "is being undone, or may be undone in part"
    return None


def _closed(plan: Plan, steps: dict[str, StepState]) -> dict[str, StepState]:
    """Without those whose needs are not all among them."""
    while True:
        left = {
            name: step
            for name, step in steps.items()
            if all(plan.steps[need].name in steps for need in plan.steps[step.index].needs)
        }
        if len(left) == len(steps):
            return left
        steps = left


def _kept(original: Original, steps: dict[str, StepState]) -> Forked:
    forked = Forked(original.workflow_id, original.then.at_offset)
    for name, step in steps.items():
        forked.steps[name] = step.output
        if step.status is StepStatus.SKIPPED:
            forked.skipped.append(name)
        elif step.status is StepStatus.DEGRADED:
            last = step.failures[-1]
            forked.missing[name] = Gap(last["message"], last["kind"])
    return forked


# --- dead letters


@dataclass(frozen=True, slots=True)
class Redrive:
    """How a dead letter is tried again: by a rewinding of its workflow to `step`, or by a fork of it."""

    dead_letter: str
    step: str
    forked: Forked | None
    workflow_id: str
    """The workflow in which it is tried: the fork's, or its own."""


def workflow_of(dead_letter: str) -> str | None:
    """Whose dead letter that is, by the form of its id; None when it is no id of a dead letter."""
    parts = dead_letter.rsplit("/", 3)
    if len(parts) != 4 or not parts[2].isdecimal() or parts[3] not in tuple(Direction):
        return None
    return parts[0]


def redrive(original: Original, dead_letter: str | None) -> Redrive:
    """How the dead letter, or the workflow's newest one, is tried again. Raises UnknownOriginal, CannotRedrive, CannotFork."""
    letter = _letter(original, dead_letter)
    name = split_item(letter["step"])[0]
    if letter["direction"] == Direction.COMPENSATE:
        raise CannotRedrive(
            f"dead letter {letter['id']}: it is an undoing, and its workflow ({original.now.status}) has gone on without it: "
            "there is nothing any more that it could be part of. Undo it by hand; a compensation with when_failed: review is "
            "held for an operator instead, who has it tried again (sagalog decide WORKFLOW STEP retry --undo)"
        )
    place = original.plan.index[name]
    now = original.now.steps[place]
    if now.status is StepStatus.DONE or (now.status not in ENDED_WELL and original.now.status not in TERMINAL):
        raise CannotRedrive(
            f"dead letter {letter['id']}: step {name!r} is {now.status} by now, so there is nothing to try again; "
            f"see: sagalog show {original.workflow_id}"
        )
    if original.now.status not in TERMINAL:
        if not possible(original.now, original.plan, place, undo=False):
            raise CannotRedrive(
                f"dead letter {letter['id']}: workflow {original.workflow_id!r} is {original.now.status} and cannot go "
                f"back to {name!r} without undoing; try it with undoing: sagalog rewind {original.workflow_id} {name}"
            )
        return Redrive(letter["id"], name, None, original.workflow_id)
    anew = {original.plan.steps[found].name for found in affected_places(original.plan, place)}
    forked = _fork(original, original.plan, anew, must_stand=set())
    forked.dead_letter = letter["id"]
    return Redrive(letter["id"], name, forked, fork_id(letter["id"], original.workflow_id))


def fork_id(dead_letter: str, workflow_id: str) -> str:
    """The id of the fork that tries a dead letter again: the same each time, so that a second redrive starts nothing new."""
    suffix = f"~{blake2b(dead_letter.encode(), digest_size=6).hexdigest()}"
    room = WORKFLOW_ID_BYTES_MAX - len(suffix)
    return workflow_id.encode()[:room].decode(errors="ignore") + suffix


def _letter(original: Original, dead_letter: str | None) -> DeadLetterRecord:
    asked = [letter for letter in original.letters if dead_letter is None or letter["id"] == dead_letter]
    if dead_letter is None:
        # Of a workflow as a whole, what it did not get done comes before what it could not undo.
        asked.sort(key=lambda letter: letter["direction"] == Direction.EXECUTE)
    if not asked:
        which = f"dead letter {dead_letter!r}" if dead_letter is not None else "a dead letter"
        raise UnknownOriginal(
            f"the log holds no {which} of workflow {original.workflow_id!r}; see: sagalog show {original.workflow_id}"
        )
    return asked[-1]


def check_fits(size: int, limit: int) -> None:
    """Raises InvalidRecord when a fork's start would be rejected for its size."""
    if size > limit:
        raise InvalidRecord(
            "forked.steps",
            f"what is kept is {size:,} bytes with the input, more than {limit:,}; fork before an earlier step",
        )
