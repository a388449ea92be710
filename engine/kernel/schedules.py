"""Schedules: workflows that start at the times of a cron expression. One is an entity of its partition, beside the workflows.

Rules:
- The fold evaluates no cron expression: every event that moves a schedule on carries its next due time, as its writer saw it.
- A due time is dealt with once: the run's id follows from it, and what is not later than `last_due_ms` is passed over.
- A run is to its schedule what a child is to its parent, but for one thing: nothing of it is kept once it has ended.
- An event is folded into a copy (`apply`), so that one that is ignored, or breaks the fold, has changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, Final, assert_never

from sagalog.schemas import ids
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import (
    Action,
    ActionRequested,
    CancelRequested,
    ChildEnded,
    Overlap,
    Parent,
    ScheduleActed,
    ScheduleAction,
    ScheduleDue,
    ScheduleRemoved,
    ScheduleSet,
    Timer,
    TimerFired,
    WorkflowStarted,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import (
    CATCH_UP_MS_MAX,
    CATCH_UP_MS_MIN,
    CATCH_UP_RUNS_MAX,
    CRON_CHARS_MAX,
    ENVELOPE_BYTES_MAX,
    FIRST_DUE_AGO_MS_MAX,
    HEARD_KEPT_MAX,
    JITTER_MS_MAX,
    PAYLOAD_BYTES_MAX,
    REMEMBER_MS,
    RUNS_GOING_MAX,
    RUNS_KEPT_MAX,
    SEED_BYTES_MAX,
    TEXT_CHARS_MAX,
    TIME_MS_MAX,
    ZONE_CHARS_MAX,
)
from sagalog.schemas.records import (
    SCHEDULE_KEY,
    PausedRecord,
    ScheduleRecord,
    ScheduleRunRecord,
    ScheduleSkipRecord,
    ScheduleWaitingRecord,
)
from sagalog.schemas.statuses import ScheduleStatus

from .effects import Effect, Emit, Ignored, Moved, Reason
from .record import Record
from .state import NEVER

RUNNING: Final = "running"
"""Of a run: its workflow has not ended."""

ScheduleEvent = ScheduleSet | ScheduleActed | ScheduleRemoved | ScheduleDue | ChildEnded | TimerFired


class ScheduleTrigger(StrEnum):
    """What moves a schedule's status."""

    SET = "set"
    SET_PAUSED = "set_paused"
    PAUSED = "paused"
    RESUMED = "resumed"
    REMOVED = "removed"


_S = ScheduleStatus
_T = ScheduleTrigger

SCHEDULE_MOVES: Final[dict[tuple[ScheduleStatus | None, ScheduleTrigger], ScheduleStatus]] = {
    (None, _T.SET): _S.ACTIVE,
    (None, _T.SET_PAUSED): _S.PAUSED,
    (_S.ACTIVE, _T.SET): _S.ACTIVE,
    (_S.ACTIVE, _T.SET_PAUSED): _S.PAUSED,
    # one that is paused is resumed by name only: setting it again must not start what somebody stopped
    (_S.PAUSED, _T.SET): _S.PAUSED,
    (_S.PAUSED, _T.SET_PAUSED): _S.PAUSED,
    (_S.REMOVED, _T.SET): _S.ACTIVE,
    (_S.REMOVED, _T.SET_PAUSED): _S.PAUSED,
    (_S.ACTIVE, _T.PAUSED): _S.PAUSED,
    (_S.PAUSED, _T.RESUMED): _S.ACTIVE,
    (_S.ACTIVE, _T.REMOVED): _S.REMOVED,
    (_S.PAUSED, _T.REMOVED): _S.REMOVED,
}


class Skip(StrEnum):
    """Why a due time has no run."""

    OVERLAP = "overlap"
    """A run was going on, or another one waiting for its end."""
    MISSED = "missed"
    """Nobody was there at the time, and `catch_up_ms` has passed since."""
    PAUSED = "paused"
    FULL = "full"
    """Too many runs were going on side by side."""
    REMOVED = "removed"
    """It waited for the end of another run when the schedule was removed."""


@dataclass(slots=True)
class ScheduleState:
    """One schedule. Runs, skips and the like are kept as the checkpoint has them."""

    name: str
    seed: str
    definition: str = ""
    cron: str = ""
    zone: str = ""
    overlap: Overlap = Overlap.SKIP
    catch_up_ms: int = 0
    jitter_ms: int = 0
    input: Any = None
    set_by: str = ""
    set_ms: int = 0
    now_ms: int = 0
    """The clamped clock, as a workflow's."""
    at_offset: int = -1
    status: ScheduleStatus | None = None
    next_ms: int = NEVER
    last_due_ms: int = -1
    resumed_ms: int = 0
    paused: PausedRecord | None = None
    removed: PausedRecord | None = None
    forget_ms: int = NEVER
    waiting: ScheduleWaitingRecord | None = None
    runs: list[ScheduleRunRecord] = field(default_factory=list)
    skips: list[ScheduleSkipRecord] = field(default_factory=list)
    started: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    heard: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return SCHEDULE_KEY + self.name

    def going(self) -> list[ScheduleRunRecord]:
        return [run for run in self.runs if run["status"] == RUNNING]

    def fires_ms(self, due_ms: int) -> int:
        """When a due time's run starts: up to the jitter later."""
        if not self.jitter_ms:
            return due_ms
        return due_ms + int(ids.fraction(self.seed, ids.run_id(self.name, due_ms)) * self.jitter_ms)

    def due_ms(self) -> int:
        """When its timer is due; NEVER without one."""
        match self.status:
            case ScheduleStatus.ACTIVE:
                return self.fires_ms(self.next_ms) if self.next_ms != NEVER else NEVER
            case ScheduleStatus.REMOVED:
                return self.forget_ms
            case _:
                return NEVER


# --- the fold


def apply(
    key: str, found: ScheduleState | None, event: ScheduleEvent, record: Record, room: bool, effects: list[Effect]
) -> ScheduleState | None:
    """The schedule after the event, None when it is forgotten. The one before is not changed.

    `room` is whether the partition takes one more schedule.
    """
    state = restore_schedule(dump_schedule(found)) if found is not None else None
    match event:
        case ScheduleSet():
            reason, state = _set(key, state, event, record, room, effects)
        case _ if state is None:
            reason = Reason.UNKNOWN_SCHEDULE
        case ScheduleActed() | ScheduleRemoved():
            reason = _heard(state, event, record, effects)
        case ScheduleDue():
            _touch(state, record)
            reason = _due(state, event, effects)
        case ChildEnded():
            _touch(state, record)
            reason = _ended(state, event, effects)
        case TimerFired():
            return _forget(state, event, record, effects)
        case _:
            assert_never(event)
    if reason is not None:
        effects.append(Ignored(reason, type(event).__name__))
        return found
    return state


def break_off(state: ScheduleState, reason: str, record: Record, effects: list[Effect]) -> None:
    """An event broke the fold: the schedule is paused, so that what was not done is seen, and done once it is resumed."""
    if state.status is ScheduleStatus.ACTIVE:
        _touch(state, record)
        _pause(state, "sagalog", reason, effects)


def _touch(state: ScheduleState, record: Record) -> None:
    state.now_ms = max(state.now_ms, record.time_ms)
    state.at_offset = record.offset


def _move(state: ScheduleState, trigger: ScheduleTrigger, effects: list[Effect]) -> None:
    before = state.status
    after = SCHEDULE_MOVES.get((before, trigger))
    assert after is not None, f"no move from {before} by {trigger}"
    state.status = after
    effects.append(Moved(state.key, before, after, trigger))


# --- what people say


def _event_id(record: Record) -> str:
    return record.ce_id[:SEED_BYTES_MAX].decode(errors="replace") if record.ce_id else f"@{record.offset}"


def _remember(state: ScheduleState, record: Record) -> None:
    state.heard.append(_event_id(record))
    del state.heard[:-HEARD_KEPT_MAX]


def _set(
    key: str, state: ScheduleState | None, event: ScheduleSet, record: Record, room: bool, effects: list[Effect]
) -> tuple[Reason | None, ScheduleState | None]:
    name = key.removeprefix(SCHEDULE_KEY)
    if state is not None and _event_id(record) in state.heard:
        return Reason.DUPLICATE, state
    if problem(name, event, record.size, record.time_ms) is not None:
        return Reason.INVALID_SCHEDULE, state
    if state is None:
        if not room:
            return Reason.SCHEDULES_FULL, None
        state = ScheduleState(name, _event_id(record))
    _touch(state, record)
    # Known to who set it and to the engine only: the tokens of the runs are derived from it.
    state.seed = _event_id(record)
    _move_next(state, event)
    state.definition, state.cron, state.zone = event.definition, event.cron, event.zone
    state.overlap, state.input = event.overlap, event.input
    state.catch_up_ms, state.jitter_ms = event.catch_up_ms, event.jitter_ms
    state.set_by, state.set_ms = event.who[:TEXT_CHARS_MAX], state.now_ms
    state.removed, state.forget_ms = None, NEVER
    if event.paused:
        state.paused = state.paused or _said(state, event.who, "set as paused")
    _move(state, ScheduleTrigger.SET_PAUSED if event.paused else ScheduleTrigger.SET, effects)
    _remember(state, record)
    return None, state


def _move_next(state: ScheduleState, event: ScheduleSet) -> None:
    """The next due time of a schedule that is set anew. One that has come, and was not told yet, must not get lost in silence."""
    next_ms = event.next_ms if event.next_ms is not None else NEVER
    if (state.cron, state.zone) == (event.cron, event.zone):
        # Set again as it was, by every deployment perhaps: it is still due, and caught up with as its policy has it.
        state.next_ms = min(state.next_ms, next_ms)
        return
    if state.status is ScheduleStatus.ACTIVE and state.next_ms <= state.now_ms:
        state.last_due_ms = max(state.last_due_ms, state.next_ms)
        _skip(state, state.next_ms, Skip.MISSED)
    state.next_ms = next_ms


def problem(name: str, event: ScheduleSet, size: int, at_ms: int) -> InvalidRecord | None:
    """What does not fit, as far as it can be told without evaluating the cron expression; None when all does."""
    try:
        ids.check_name(name, "schedule")
        ids.check_name(event.definition.partition("@")[0], "definition")
    except InvalidRecord as error:
        return error
    bounds = (
        ("definition", len(event.definition), 1, 2 * SEED_BYTES_MAX),
        ("cron", len(event.cron), 1, CRON_CHARS_MAX),
        ("zone", len(event.zone), 1, ZONE_CHARS_MAX),
        ("catch_up_ms", event.catch_up_ms, CATCH_UP_MS_MIN, CATCH_UP_MS_MAX),
        ("jitter_ms", event.jitter_ms, 0, JITTER_MS_MAX),
        ("next_ms", TIME_MS_MAX if event.next_ms is None else event.next_ms, at_ms - FIRST_DUE_AGO_MS_MAX, TIME_MS_MAX),
        ("input", size, 0, PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX),
    )
    for name_, value, least, most in bounds:
        if not least <= value <= most:
            return InvalidRecord(name_, f"{value:,} is not within {least:,} to {most:,}")
    return None


def _heard(
    state: ScheduleState, event: ScheduleActed | ScheduleRemoved, record: Record, effects: list[Effect]
) -> Reason | None:
    if _event_id(record) in state.heard:
        return Reason.DUPLICATE
    _touch(state, record)
    reason = _removed(state, event, effects) if isinstance(event, ScheduleRemoved) else _act(state, event, effects)
    if reason is None:
        _remember(state, record)
    return reason


def _act(state: ScheduleState, event: ScheduleActed, effects: list[Effect]) -> Reason | None:
    match event.action, state.status:
        case _, ScheduleStatus.REMOVED:
            return Reason.NOT_POSSIBLE
        case ScheduleAction.PAUSE, ScheduleStatus.ACTIVE:
            _pause(state, event.who, event.reason, effects)
        case ScheduleAction.RESUME, ScheduleStatus.PAUSED:
            state.paused, state.resumed_ms = None, state.now_ms
            _move(state, ScheduleTrigger.RESUMED, effects)
            _start_waiting(state, effects)
        case ScheduleAction.TRIGGER, _:
            by = event.who[:TEXT_CHARS_MAX]
            _ask(state, f"{state.name}/triggered-{state.at_offset}", state.now_ms, by, effects)
        case _:
            return Reason.NOT_POSSIBLE
    return None


def _pause(state: ScheduleState, who: str, reason: str, effects: list[Effect]) -> None:
    state.paused = _said(state, who, reason)
    _move(state, ScheduleTrigger.PAUSED, effects)


def _removed(state: ScheduleState, event: ScheduleRemoved, effects: list[Effect]) -> Reason | None:
    if state.status is ScheduleStatus.REMOVED:
        return Reason.NOT_POSSIBLE
    if state.waiting is not None:
        _skip(state, state.waiting["due_ms"], Skip.REMOVED)
    state.waiting = state.paused = None
    state.next_ms = NEVER
    state.removed = _said(state, event.who, event.reason)
    state.forget_ms = state.now_ms + REMEMBER_MS
    _move(state, ScheduleTrigger.REMOVED, effects)
    return None


def _said(state: ScheduleState, who: str, reason: str) -> PausedRecord:
    return {"who": who[:TEXT_CHARS_MAX], "reason": reason[:TEXT_CHARS_MAX], "at_ms": state.now_ms}


# --- due times


def _due(state: ScheduleState, event: ScheduleDue, effects: list[Effect]) -> Reason | None:
    if state.status is not ScheduleStatus.ACTIVE or not event.due_ms or event.due_ms[0] != state.next_ms:
        return Reason.NOT_WAITED_FOR
    if event.problem is not None:
        _pause(state, "sagalog", event.problem, effects)
        return None
    if not _ascending(event):
        return Reason.INVALID_SCHEDULE
    # The owner's clock may be ahead of the broker's: what is not due yet stays the next.
    taken = 0
    while taken < len(event.due_ms) and state.fires_ms(event.due_ms[taken]) <= state.now_ms:
        taken += 1
    if not taken:
        return Reason.NOT_DUE
    _take(state, event.due_ms[:taken], effects)
    later = [*event.due_ms[taken:], event.next_ms if event.next_ms is not None else NEVER]
    state.next_ms = later[0]
    return None


def _ascending(event: ScheduleDue) -> bool:
    times = [*event.due_ms, *([event.next_ms] if event.next_ms is not None else [])]
    return times[-1] <= TIME_MS_MAX and all(one < other for one, other in pairwise(times))


def _take(state: ScheduleState, due: tuple[int, ...], effects: list[Effect]) -> None:
    """Starts what is to run of the due times that have come, and counts the rest."""
    to_run = []
    for due_ms in due:
        if due_ms <= state.last_due_ms:
            continue  # it was set anew, with a first due time that had been dealt with
        state.last_due_ms = due_ms
        fires_ms = state.fires_ms(due_ms)
        if fires_ms < state.resumed_ms:
            _skip(state, due_ms, Skip.PAUSED)
        elif state.now_ms - fires_ms > state.catch_up_ms:
            _skip(state, due_ms, Skip.MISSED)
        else:
            to_run.append(due_ms)
    for due_ms in to_run[:-CATCH_UP_RUNS_MAX]:
        _skip(state, due_ms, Skip.MISSED)
    for due_ms in to_run[-CATCH_UP_RUNS_MAX:]:
        _ask(state, ids.run_id(state.name, due_ms), due_ms, None, effects)


def _skip(state: ScheduleState, due_ms: int, why: Skip) -> None:
    state.skips.append({"due_ms": due_ms, "why": why.value})
    del state.skips[:-RUNS_KEPT_MAX]
    state.skipped[why.value] = state.skipped.get(why.value, 0) + 1


# --- runs


def _ask(state: ScheduleState, run: str, due_ms: int, by: str | None, effects: list[Effect]) -> None:
    """A run is wanted: it starts, waits or is left out, as what goes on and the schedule's policy have it."""
    going = state.going()
    if not going:
        _start(state, run, due_ms, by, effects)
        return
    match state.overlap:
        case Overlap.SKIP:
            _skip(state, due_ms, Skip.OVERLAP)
        case Overlap.ALLOW if len(going) < RUNS_GOING_MAX:
            _start(state, run, due_ms, by, effects)
        case Overlap.ALLOW:
            _skip(state, due_ms, Skip.FULL)
        case Overlap.BUFFER_ONE:
            if state.waiting is None:
                state.waiting = _waiting(run, due_ms, by)
            else:
                _skip(state, due_ms, Skip.OVERLAP)
        case Overlap.CANCEL_RUNNING | Overlap.TERMINATE_RUNNING:
            if state.waiting is not None:
                _skip(state, state.waiting["due_ms"], Skip.OVERLAP)
            state.waiting = _waiting(run, due_ms, by)
            for one in going:
                # Asked each time: before, it may have been stopped, or past what can be cancelled.
                effects.append(_stop(state, one["id"]))
        case _:
            assert_never(state.overlap)


def _waiting(run: str, due_ms: int, by: str | None) -> ScheduleWaitingRecord:
    found: ScheduleWaitingRecord = {"id": run, "due_ms": due_ms}
    if by is not None:
        found["triggered_by"] = by
    return found


def _stop(state: ScheduleState, run: str) -> Emit:
    reason, who = "its schedule's next run is due", f"schedule {state.name}"
    if state.overlap is Overlap.TERMINATE_RUNNING:
        return Emit(run, ActionRequested(Action.TERMINATE, reason, who), f"{run}/terminate/{state.at_offset}")
    return Emit(run, CancelRequested(reason, who), f"{run}/cancel/{state.at_offset}")


def _start(state: ScheduleState, run: str, due_ms: int, by: str | None, effects: list[Effect]) -> None:
    token = ids.token(state.seed, run)
    record: ScheduleRunRecord = {"id": run, "due_ms": due_ms, "started_ms": state.now_ms, "status": RUNNING}
    if by is not None:
        record["triggered_by"] = by
    record["token"] = token
    state.runs.append(record)
    state.started += 1
    parent = Parent(state.key, run, 0, "run", 1, token)
    event = WorkflowStarted(state.definition, state.input, None, state.name, parent=parent)
    # The event's id becomes the run's seed: as hard to guess as the schedule's.
    effects.append(Emit(run, event, ids.token(state.seed, f"{run}/child")))


def _ended(state: ScheduleState, event: ChildEnded, effects: list[Effect]) -> Reason | None:
    run = next((run for run in state.runs if run["id"] == event.child), None)
    if run is None or run["status"] != RUNNING or event.direction is not Direction.EXECUTE:
        return Reason.NOT_WAITED_FOR
    if run.get("token") != event.token:
        return Reason.WRONG_TOKEN
    del run["token"]
    run["status"], run["finished_ms"] = event.status.value, state.now_ms
    ended = [one for one in state.runs if one["status"] != RUNNING]
    for gone in ended[:-RUNS_KEPT_MAX]:
        state.runs.remove(gone)
    if state.status is ScheduleStatus.ACTIVE or (state.waiting is not None and "triggered_by" in state.waiting):
        _start_waiting(state, effects)
    return None


def _start_waiting(state: ScheduleState, effects: list[Effect]) -> None:
    waiting = state.waiting
    if waiting is not None and not state.going():
        state.waiting = None
        _start(state, waiting["id"], waiting["due_ms"], waiting.get("triggered_by"), effects)


# --- the end


def _forget(state: ScheduleState, event: TimerFired, record: Record, effects: list[Effect]) -> ScheduleState | None:
    # The offset of what changed it last tells its removal from a later one.
    if event.timer is not Timer.FORGET or state.forget_ms == NEVER or event.attempt != state.at_offset:
        effects.append(Ignored(Reason.NOT_WAITED_FOR, "TimerFired"))
    elif max(state.now_ms, record.time_ms) < state.forget_ms:
        effects.append(Ignored(Reason.NOT_DUE, "TimerFired"))
    else:
        return None
    return state


# --- checkpoints


def dump_schedule(state: ScheduleState) -> ScheduleRecord:
    """The checkpoint's JSON document; nothing in it changes with the state."""
    assert state.status is not None
    record: dict[str, Any] = {
        "v": 1,
        "name": state.name,
        "status": state.status,
        "definition": state.definition,
        "cron": state.cron,
        "zone": state.zone,
        "overlap": state.overlap,
        "catch_up_ms": state.catch_up_ms,
        "seed": state.seed,
        "set_by": state.set_by,
        "set_ms": state.set_ms,
        "now_ms": state.now_ms,
        "at_offset": state.at_offset,
    }
    if state.input is not None:
        record["input"] = state.input
    if state.jitter_ms:
        record["jitter_ms"] = state.jitter_ms
    if state.next_ms != NEVER:
        record["next_ms"] = state.next_ms
    if state.last_due_ms >= 0:
        record["last_due_ms"] = state.last_due_ms
    if state.resumed_ms:
        record["resumed_ms"] = state.resumed_ms
    if state.forget_ms != NEVER:
        record["forget_ms"] = state.forget_ms
    for name in ("paused", "removed", "waiting"):
        if (found := getattr(state, name)) is not None:
            record[name] = found.copy()
    if state.runs:
        record["runs"] = [run.copy() for run in state.runs]
    if state.skips:
        record["skips"] = [skip.copy() for skip in state.skips]
    record["started"] = state.started
    if state.skipped:
        record["skipped"] = state.skipped.copy()
    record["heard"] = state.heard.copy()
    return record  # type: ignore[return-value]


def restore_schedule(record: ScheduleRecord) -> ScheduleState:
    """The state of a checkpoint."""
    return ScheduleState(
        name=record["name"],
        seed=record["seed"],
        definition=record["definition"],
        cron=record["cron"],
        zone=record["zone"],
        overlap=Overlap(record["overlap"]),
        catch_up_ms=record["catch_up_ms"],
        jitter_ms=record.get("jitter_ms", 0),
        input=record.get("input"),
        set_by=record["set_by"],
        set_ms=record["set_ms"],
        now_ms=record["now_ms"],
        at_offset=record["at_offset"],
        status=ScheduleStatus(record["status"]),
        next_ms=record.get("next_ms", NEVER),
        last_due_ms=record.get("last_due_ms", -1),
        resumed_ms=record.get("resumed_ms", 0),
        paused=record.get("paused"),
        removed=record.get("removed"),
        forget_ms=record.get("forget_ms", NEVER),
        waiting=record.get("waiting"),
        runs=record.get("runs", []),
        skips=record.get("skips", []),
        started=record["started"],
        skipped=record.get("skipped", {}),
        heard=record["heard"],
    )
