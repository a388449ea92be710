"""A schedule under any sequence of events: each due time has one run or one reason, and nothing depends on how it was folded.

Rule: what schedule and runs have for each other is delivered in the order in which it was written, late, and sometimes twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sagalog.engine.kernel import Partition
from sagalog.engine.kernel.effects import Effect, Emit, Ignored, Moved, Quarantine
from sagalog.engine.kernel.schedules import RUNNING, SCHEDULE_MOVES
from sagalog.schemas.events import Overlap, Owned, WorkflowStarted
from sagalog.schemas.limits import RUNS_GOING_MAX, RUNS_KEPT_MAX
from sagalog.schemas.statuses import ScheduleStatus, WorkflowStatus

from .timetable import KEY, MINUTE_MS, Timetable

MOVES = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=5, max_size=50)
OVERLAPS = list(Overlap)


class Watched(Timetable):
    """Keeps the effects of every record."""

    def __init__(self, *, round_trip: bool = False) -> None:
        self.per_record: list[list[Effect]] = []
        super().__init__(round_trip=round_trip)

    def apply(self, record: Any) -> list[Effect]:
        effects = super().apply(record)
        self.per_record.append(effects)
        return effects


def happen(table: Watched, what: int, number: int, written: list[Emit]) -> None:
    table.now_ms += number
    if what < 30:
        table.pass_time(number * 4_000)
    elif what < 50:
        if table.emitted:
            sent = table.emitted.popleft()
            written.append(sent)
            table.append(sent.event, key=sent.workflow_id.encode(), ce_id=sent.ce_id)
    elif what < 55:
        if written:
            sent = written[number % len(written)]
            table.append(sent.event, key=sent.workflow_id.encode(), ce_id=sent.ce_id)
    elif what < 72:
        answer(table, number, fails=number % 4 == 0)
    elif what < 84:
        table.ask(["pause", "resume", "trigger"][number % 3])
    elif what < 90:
        more = {"jitter_ms": 30_000} if number % 3 == 0 else {}
        table.set(ce_id=f"set-{len(table.log)}", overlap=OVERLAPS[number % len(OVERLAPS)], paused=number == 99, **more)
    elif what < 92:
        table.remove(ce_id=f"remove-{len(table.log)}")
    elif what < 96:
        record = table.log[number % len(table.log)]
        table.append_raw(record.key, record.value, record.ce_type, record.ce_id)
    elif what < 97:
        table.append(Owned(table.partition.epoch + 1, f"member-{number}"), key=b"@owner")
    elif what < 98:
        table.due(table.schedule.next_ms, next_ms=None, epoch=table.partition.epoch - 1)
    else:
        table.append_raw(KEY, b"{", b"sagalog.schedule-due.v1")


def answer(table: Watched, number: int, *, fails: bool) -> None:
    going = []
    for workflow_id in sorted(table.partition.ids()):
        state = table.partition.get(workflow_id)
        if state is not None and state.status in (WorkflowStatus.RUNNING, WorkflowStatus.COMPENSATING):
            going.append(state)
    if going:
        state = going[number % len(going)]
        undo = state.status is WorkflowStatus.COMPENSATING and state.steps[0].undo is not None
        table.answer(state.workflow_id, "a", undo=undo, fails=fails and not undo)


def tell(moves: list[tuple[int, int]], overlap: Overlap, *, round_trip: bool = False) -> Watched:
    table = Watched(round_trip=round_trip)
    table.set(overlap=overlap, catch_up_ms=3 * MINUTE_MS)
    written: list[Emit] = []
    for what, number in moves:
        happen(table, what, number, written)
    return table


def settle(table: Watched) -> None:
    """All that is under way is delivered and answered; nothing new is due."""
    table.ask("pause")
    for _ in range(4 * RUNS_GOING_MAX):
        table.deliver()
        if not table.schedule.going():
            return
        answer(table, 0, fails=False)
    raise AssertionError("a run never ends")


@given(MOVES, st.sampled_from(OVERLAPS), st.booleans())
def test_each_due_time_has_one_run_or_one_reason(
    moves: list[tuple[int, int]], overlap: Overlap, round_trip: bool
) -> None:
    table = tell(moves, overlap, round_trip=round_trip)
    settle(table)
    effects = [effect for found in table.per_record for effect in found]
    assert not [effect for effect in effects if isinstance(effect, Quarantine) and effect.stage == "fold"]

    started = [e for e in effects if isinstance(e, Emit) and isinstance(e.event, WorkflowStarted)]
    ids = [emit.workflow_id for emit in started]
    assert len(set(ids)) == len(ids) == table.schedule.started, "a run is started once"
    assert len({emit.ce_id for emit in started}) == len(started)
    schedule = table.schedule
    assert len(schedule.runs) <= RUNS_KEPT_MAX and len(schedule.skips) <= RUNS_KEPT_MAX
    for run in schedule.runs:
        assert run["status"] != RUNNING and "token" not in run
        state = table.partition.get(run["id"])
        assert state is not None and state.terminal and not state.steps and state.report is None


@given(MOVES, st.sampled_from(OVERLAPS))
def test_never_more_runs_than_the_policy_allows(moves: list[tuple[int, int]], overlap: Overlap) -> None:
    table = Watched()
    table.set(overlap=overlap)
    written: list[Emit] = []
    allowed = overlap is Overlap.ALLOW
    for what, number in moves:
        happen(table, what, number, written)
        # Once side by side, runs stay so when the policy is changed.
        allowed = allowed or table.schedule.overlap is Overlap.ALLOW
        assert len(table.schedule.going()) <= (RUNS_GOING_MAX if allowed else 1)
        if table.schedule.status is ScheduleStatus.REMOVED:
            assert table.schedule.waiting is None and table.schedule.paused is None
        assert (table.schedule.status is ScheduleStatus.PAUSED) == (table.schedule.paused is not None)


@given(MOVES, st.sampled_from(OVERLAPS))
def test_folding_again_with_or_without_checkpoints_gives_the_same(
    moves: list[tuple[int, int]], overlap: Overlap
) -> None:
    table = tell(moves, overlap)
    for round_trip in (False, True):
        again = Watched(round_trip=round_trip)
        again.partition = Partition()
        again.log, again.per_record = [], []
        for record in table.log:
            again.apply(record)
        assert again.dumps() == table.dumps()
        assert again.per_record == table.per_record


@given(MOVES, st.sampled_from(OVERLAPS), st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_a_copy_of_an_event_that_counted_changes_nothing(
    moves: list[tuple[int, int]], overlap: Overlap, gaps: list[int]
) -> None:
    table = tell(moves, overlap)
    spread = [replace(record, offset=record.offset * 1_000) for record in table.log]
    plain = Watched()
    plain.partition, plain.log, plain.per_record = Partition(), [], []
    for record in spread:
        plain.apply(record)
    counted = [at for at, effects in enumerate(plain.per_record) if not any(isinstance(e, Ignored) for e in effects)]
    log = list(spread)
    for turn, place in enumerate(counted):
        at = min(place + gaps[turn % len(gaps)], len(spread) - 1)
        offset = spread[at].offset + 1 + turn
        log.append(replace(spread[place], offset=offset, time_ms=spread[at].time_ms + 10_000))
    log.sort(key=lambda record: record.offset)
    copied = Watched()
    copied.partition, copied.log, copied.per_record = Partition(), [], []
    for record in log:
        copied.apply(record)
    kept = [
        effects for record, effects in zip(copied.log, copied.per_record, strict=True) if record.offset % 1_000 == 0
    ]
    assert kept == plain.per_record
    assert copied.dumps() == plain.dumps()


@given(MOVES, st.sampled_from(OVERLAPS))
def test_every_status_follows_by_a_row_of_its_table(moves: list[tuple[int, int]], overlap: Overlap) -> None:
    status: str | None = None
    for effects in tell(moves, overlap).per_record:
        for effect in effects:
            if isinstance(effect, Moved) and effect.workflow_id == KEY.decode():
                assert effect.before == status
                assert SCHEDULE_MOVES[effect.before, effect.trigger] == effect.after  # type: ignore[index]
                status = effect.after
