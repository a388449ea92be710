"""One partition of the events topic: who owns it, which definitions it knows, and the states of its workflows.

Rules:
- `apply` never raises on a record, whatever is in it.
- An event that is ignored changes nothing: not the state, not its clock, not its checkpoint.
- A record that cannot be read stops its workflow only by the `quarantined` event that follows it in the log, so that every
  version of the decoder folds a log alike. A record that breaks the fold stops its workflow at once: the state may be half done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import (
    ActionRequested,
    AttemptLost,
    AttemptRefused,
    CancelRequested,
    ChildEnded,
    DefinitionRegistered,
    Event,
    MigrationRequested,
    Owned,
    ParentEnded,
    Quarantined,
    RewindRequested,
    ScheduleActed,
    ScheduleDue,
    ScheduleRemoved,
    ScheduleSet,
    SignalReceived,
    StepCompleted,
    StepDecided,
    StepFailed,
    TimerFired,
    UndoRequested,
    WorkflowStarted,
    parse_event,
)
from sagalog.schemas.ids import FIRST_RUN, check_workflow_id
from sagalog.schemas.limits import SCHEDULES_MAX
from sagalog.schemas.records import SCHEDULE_KEY
from sagalog.schemas.statuses import WorkflowStatus

from . import attempts, children, control, late, people, runs, schedules, starts, timers
from .closing import review
from .effects import (
    ClaimLost,
    DefinitionKnown,
    Effect,
    Ignored,
    Moved,
    OwnerChanged,
    Quarantine,
    Reason,
)
from .plan import Plan, registered_plan
from .record import Record
from .schedules import ScheduleEvent, ScheduleState, restore_schedule
from .state import WorkflowState, restore

_OF_ONE_RUN: Final = frozenset({TimerFired, AttemptLost, AttemptRefused, Quarantined})
"""Events of the engine's own. Nothing in them but the run tells what was meant for the workflow's earlier one."""


class Partition:
    """The fold's state of one partition. Not safe for use by several tasks at once; its owner is single-threaded."""

    def __init__(self) -> None:
        self.offset = -1
        """Of the last applied record."""
        self.epoch = 0
        self.member = ""
        self.plans: dict[str, Plan] = {}
        self.newest: dict[str, str] = {}
        """Definition name to the hash that the partition saw last."""
        self.hot: dict[str, WorkflowState] = {}
        self.cold: dict[str, bytes] = {}
        """Checkpoints of workflows that nobody changes; decoded (into `hot`, too) when somebody looks."""
        self.waiting: set[str] = set()
        """Ids of the workflows that wait for a definition."""
        self.schedules: dict[str, ScheduleState] = {}
        """By their keys; never at rest, as there are few."""
        self.touched: dict[str, None] = {}
        """Ids whose checkpoint changed since the last cut, in the order of the change; a forgotten one has no state left."""

    # --- reading the state

    def get(self, workflow_id: str) -> WorkflowState | None:
        """A workflow's state, decoded if need be. Do not change it."""
        state = self.hot.get(workflow_id)
        if state is None:
            raw = self.cold.get(workflow_id)
            if raw is None:
                return None
            state = self.hot[workflow_id] = restore(workflow_id, orjson.loads(raw))
        return state

    def plan_of(self, state: WorkflowState) -> Plan | None:
        return self.plans.get(state.definition)

    def ids(self) -> Iterator[str]:
        """All workflow ids, also of stubs."""
        yield from self.hot
        yield from (workflow_id for workflow_id in self.cold if workflow_id not in self.hot)

    def rest(self, workflow_id: str, checkpoint: bytes) -> None:
        """Keeps a workflow as bytes until it is touched again. `checkpoint` must be its state's."""
        if self.hot.pop(workflow_id, None) is not None:
            # A copy: orjson's own bytes keep the 4 KiB that they were written into, however few they are.
            self.cold[workflow_id] = memoryview(checkpoint).tobytes()

    def rest_unchanged(self) -> None:
        """Drops the decoded form of workflows that were only looked at."""
        for workflow_id in [found for found in self.hot if found in self.cold]:
            del self.hot[workflow_id]

    def _touch(self, workflow_id: str) -> None:
        self.touched[workflow_id] = None
        self.cold.pop(workflow_id, None)

    # --- loading from checkpoints

    def load_definition(self, encoded: bytes) -> None:
        """A definition from the checkpoints; call in the marker's order, so that the newest of a name is right."""
        self._know(registered_plan(encoded))

    def load_checkpoint(self, workflow_id: str, raw: bytes, *, waiting: bool) -> None:
        self.cold[workflow_id] = raw
        self.hot.pop(workflow_id, None)  # somebody has looked at the one before
        if waiting:
            self.waiting.add(workflow_id)
        else:
            self.waiting.discard(workflow_id)

    def load_schedule(self, key: str, raw: bytes) -> None:
        self.schedules[key] = restore_schedule(orjson.loads(raw))

    # --- the fold

    def apply(self, record: Record, effects: list[Effect]) -> None:
        """Folds one record; what follows from it is appended to `effects`."""
        assert record.offset > self.offset, f"offset {record.offset} after {self.offset}"
        self.offset = record.offset
        start_of_effects = len(effects)
        workflow_id: str | None = None
        try:
            workflow_id = _workflow_id(record.key)
            event = parse_event(record.ce_type, record.value)
        except InvalidRecord as error:
            effects.append(Quarantine(workflow_id, str(error), "decode"))
            return
        try:
            self._apply(workflow_id, event, record, effects)
        except Exception as error:  # noqa: BLE001 - whatever breaks the fold must not stop the partition
            del effects[start_of_effects:]
            reason = f"{type(event).__name__} broke the fold: {type(error).__name__}: {error}"
            effects.append(Quarantine(workflow_id, reason, "fold"))
            self._stop_broken(workflow_id, reason, record, effects)

    def _apply(self, workflow_id: str | None, event: Event, record: Record, effects: list[Effect]) -> None:
        match event:
            case StepCompleted() | StepFailed() | WorkflowStarted():
                pass  # first: these are nearly all
            case ChildEnded() | UndoRequested() | ParentEnded():
                pass  # of another partition's owner: believed by their tokens, whatever its epoch
            case CancelRequested() | ActionRequested() | SignalReceived() | StepDecided():
                pass
            case MigrationRequested() | RewindRequested():
                pass
            case Owned():
                self._owned(event, effects)
                return
            case DefinitionRegistered():
                self._registered(event, record, effects)
                return
            case ScheduleSet() | ScheduleActed() | ScheduleRemoved():
                pass
            case ScheduleDue() | TimerFired() | AttemptLost() | AttemptRefused() | Quarantined():
                if event.epoch != self.epoch:
                    effects.append(Ignored(Reason.OLD_EPOCH, type(event).__name__))
                    return
        if workflow_id is None:
            effects.append(Quarantine(None, "key: is missing; the key of an event is its workflow's id", "decode"))
            return
        if workflow_id.startswith(SCHEDULE_KEY) and isinstance(event, ScheduleEvent):
            self._schedule(workflow_id, event, record, effects)
            return
        state = self.get(workflow_id)
        if isinstance(event, WorkflowStarted):
            self._started(workflow_id, state, event, record, effects)
        elif state is None:
            effects.append(Ignored(Reason.UNKNOWN_WORKFLOW, type(event).__name__))
        else:
            self._fold(state, event, record, effects)

    def _fold(self, state: WorkflowState, event: Event, record: Record, effects: list[Effect]) -> None:
        if type(event) in _OF_ONE_RUN and (event.run or FIRST_RUN) != state.run:  # type: ignore[union-attr]
            effects.append(Ignored(Reason.EARLIER_RUN, type(event).__name__))
            return
        if (
            state.unsettled
            and isinstance(event, StepCompleted)
            and late.landed_after_the_end(state, event, record, effects)
        ):
            self._touch(state.workflow_id)
            return
        if state.terminal and not isinstance(event, TimerFired | UndoRequested | ParentEnded):
            if isinstance(event, ChildEnded):
                children.told_again(event, effects)
            effects.append(Ignored(Reason.ALREADY_FINISHED, type(event).__name__))
            return
        if state.status is WorkflowStatus.QUARANTINED and not isinstance(event, ActionRequested | ParentEnded):
            effects.append(Ignored(Reason.STOPPED, type(event).__name__))
            return
        clock_before, offset_before, effects_before = state.now_ms, state.at_offset, len(effects)
        ended_before = state.terminal
        # The broker's clock may step back (a new leader); a workflow's must not.
        state.now_ms = max(state.now_ms, record.time_ms)
        state.at_offset = record.offset
        plan = self.plans.get(state.definition)
        forget = False
        match event:
            case StepCompleted():
                if _started(state, plan, event, effects):
                    attempts.completed(state, plan, event, record.size, effects)  # type: ignore[arg-type]
            case StepFailed():
                if _started(state, plan, event, effects):
                    attempts.failed(state, plan, event, effects)  # type: ignore[arg-type]
            case ChildEnded():
                if _started(state, plan, event, effects):
                    attempts.child_ended(state, plan, event, record.size, effects)  # type: ignore[arg-type]
            case UndoRequested():
                control.undo(state, plan, event, effects)
            case ParentEnded():
                control.parent_ended(state, plan, event, effects)
            case AttemptLost():
                if _started(state, plan, event, effects):
                    attempts.lost(state, plan, event, effects)  # type: ignore[arg-type]
            case AttemptRefused():
                if _started(state, plan, event, effects):
                    attempts.refused(state, plan, event, effects)  # type: ignore[arg-type]
            case TimerFired():
                forget = timers.fired(state, plan, event, offset_before, effects)
            case CancelRequested():
                people.cancelled(state, plan, event, record, effects)
            case ActionRequested() | SignalReceived() | StepDecided() | RewindRequested():
                people.heard(state, plan, event, record, effects)
            case MigrationRequested():
                people.heard(state, plan, event, record, effects, self._named(event.definition))
            case Quarantined():
                people.stopped(state, event, effects)
            case ScheduleSet() | ScheduleActed() | ScheduleRemoved() | ScheduleDue():
                effects.append(Ignored(Reason.UNKNOWN_SCHEDULE, type(event).__name__))  # under a workflow's key
            case WorkflowStarted() | DefinitionRegistered() | Owned():
                raise AssertionError("handled before")
        if len(effects) == effects_before + 1 and type(effects[-1]) is Ignored:
            state.now_ms, state.at_offset = clock_before, offset_before
            return
        if ended_before and state.terminal:
            # A stub is of its end, whatever is noted in it later: the result, which is of that offset, must still count.
            state.at_offset = offset_before
        self._touch(state.workflow_id)
        if state.status is not WorkflowStatus.WAITING:
            self.waiting.discard(state.workflow_id)
        if forget:
            del self.hot[state.workflow_id]
        elif state.next is not None and state.terminal:
            self._follow(state, record, effects)

    def _started(
        self,
        workflow_id: str,
        state: WorkflowState | None,
        event: WorkflowStarted,
        record: Record,
        effects: list[Effect],
    ) -> None:
        plan = self._named(event.definition)
        if state is not None:
            if event.parent is not None:
                children.started_again(state, event.parent, effects)
                effects.append(Ignored(Reason.DUPLICATE_START, "WorkflowStarted"))
            elif runs.again(state, self.plans.get(state.definition), event, record, plan, effects):
                self._touch(workflow_id)
                if state.status is not WorkflowStatus.WAITING:
                    self.waiting.discard(workflow_id)
                if state.terminal:
                    self._follow(state, record, effects)
            return
        state = starts.start(workflow_id, event, record, plan, effects)
        try:
            check_workflow_id(workflow_id)
        except InvalidRecord as error:
            # Its result says why it is rejected; a state under such a key would collide with the engine's own.
            runs.first(state, event, effects, refused=str(error))
            return
        runs.first(state, event, effects)
        self.hot[workflow_id] = state
        self._touch(workflow_id)
        if state.status is WorkflowStatus.WAITING:
            self.waiting.add(workflow_id)

    def _named(self, definition: str) -> Plan | None:
        """The plan that a start's definition means: by name the newest, by hash the very one."""
        name, _, hash_ = definition.partition("@")
        plan = self.plans.get(hash_ or self.newest.get(name, ""))
        return plan if plan is not None and plan.name == name else None

    def _follow(self, before: WorkflowState, record: Record, effects: list[Effect]) -> None:
        """The start that waited for the end of this run begins. One that breaks the fold must not take the end with it."""
        assert before.next is not None
        start_of_effects = len(effects)
        try:
            state = runs.follow(before, self._named(before.next["definition"]), effects)
        except Exception as error:  # noqa: BLE001 - as in `apply`
            del effects[start_of_effects:]
            before.next = None
            reason = f"the start that waited broke the fold: {type(error).__name__}: {error}"
            effects.append(Quarantine(before.workflow_id, reason, "fold"))
            return
        self.hot[before.workflow_id] = state
        if state.status is WorkflowStatus.WAITING:
            self.waiting.add(before.workflow_id)

    def _schedule(self, key: str, event: ScheduleEvent, record: Record, effects: list[Effect]) -> None:
        found = self.schedules.get(key)
        before = len(effects)
        after = schedules.apply(key, found, event, record, len(self.schedules) < SCHEDULES_MAX, effects)
        if len(effects) == before + 1 and type(effects[-1]) is Ignored:
            return
        if after is None:
            del self.schedules[key]
        else:
            self.schedules[key] = after
        self._touch(key)

    def _owned(self, event: Owned, effects: list[Effect]) -> None:
        if event.epoch > self.epoch:
            self.epoch, self.member = event.epoch, event.member
            effects.append(OwnerChanged(event.epoch, event.member))
        else:
            effects.append(ClaimLost(event.epoch, event.member))

    def _registered(self, event: DefinitionRegistered, record: Record, effects: list[Effect]) -> None:
        try:
            plan = registered_plan(event.definition)
        except InvalidRecord as error:
            effects.append(Quarantine(None, f"definition: {error}", "decode"))
            return
        if plan.hash in self.plans and self.newest.get(plan.name) == plan.hash:
            effects.append(Ignored(Reason.KNOWN_DEFINITION, "DefinitionRegistered"))
            return
        self._know(plan)
        effects.append(DefinitionKnown(plan.hash, plan.definition.encoded))
        for workflow_id in sorted(self.waiting):
            state = self.get(workflow_id)
            assert state is not None
            if state.name == plan.name and state.definition in ("", plan.hash):
                self.waiting.discard(workflow_id)
                state.now_ms = max(state.now_ms, record.time_ms)
                state.at_offset = record.offset
                self._arrived(state, plan, record, effects)

    def _arrived(self, state: WorkflowState, plan: Plan, record: Record, effects: list[Effect]) -> None:
        """One waiting workflow goes on. One that breaks the fold must not take the others' commands with it."""
        start_of_effects = len(effects)
        try:
            starts.definition_arrived(state, plan, effects)
            self._touch(state.workflow_id)
        except Exception as error:  # noqa: BLE001 - as in `apply`
            del effects[start_of_effects:]
            reason = f"the arrival of its definition broke the fold: {type(error).__name__}: {error}"
            effects.append(Quarantine(state.workflow_id, reason, "fold"))
            self._stop_broken(state.workflow_id, reason, record, effects)

    def _know(self, plan: Plan) -> None:
        # Re-registered, an old hash becomes the newest of its name again.
        self.plans.pop(plan.hash, None)
        self.plans[plan.hash] = plan
        self.newest[plan.name] = plan.hash

    def _stop_broken(self, workflow_id: str | None, reason: str, record: Record, effects: list[Effect]) -> None:
        if workflow_id in self.schedules:
            schedules.break_off(self.schedules[workflow_id], reason, record, effects)
            self._touch(workflow_id)
            return
        state = self.hot.get(workflow_id) if workflow_id is not None else None
        if state is None or state.terminal or state.status is WorkflowStatus.QUARANTINED:
            return
        before, state.status = state.status, WorkflowStatus.QUARANTINED
        state.interrupted()
        state.stopped = reason[:500]
        state.at_offset = record.offset
        self.waiting.discard(state.workflow_id)
        self._touch(state.workflow_id)
        effects.append(Moved(state.workflow_id, before, state.status, "record_quarantined"))
        review(state, "quarantined", state.stopped, None, effects)


def _workflow_id(key: bytes | None) -> str | None:
    if key is None:
        return None
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise InvalidRecord("key", f"is not UTF-8 ({error.reason} at byte {error.start})") from None


def _started(state: WorkflowState, plan: Plan | None, event: Any, effects: list[Effect]) -> bool:
    """Whether the workflow has steps yet; a waiting one has none that a result could belong to."""
    if plan is not None and state.steps:
        return True
    effects.append(Ignored(Reason.NOT_WAITED_FOR, type(event).__name__))
    return False
