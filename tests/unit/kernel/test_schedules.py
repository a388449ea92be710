"""Schedules in the fold: when a run starts, waits or is left out, and that what is said of one counts once."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from sagalog.engine.kernel import schedules
from sagalog.engine.kernel.effects import Effect, Emit, Finished, Ignored, Quarantine
from sagalog.schemas import ids
from sagalog.schemas.codec import decode
from sagalog.schemas.events import (
    ActionRequested,
    CancelRequested,
    ChildEnded,
    Overlap,
    ScheduleDue,
    ScheduleSet,
    Timer,
    TimerFired,
    WorkflowStarted,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import CATCH_UP_RUNS_MAX, DUE_TIMES_MAX, REMEMBER_MS, RUNS_GOING_MAX, RUNS_KEPT_MAX
from sagalog.schemas.records import ScheduleRecord
from sagalog.schemas.statuses import WorkflowStatus

from .driver import WORKFLOW, Driver, ignored, shown
from .timetable import FIRST_MS, KEY, MINUTE_MS, Timetable, run_id, starts

RECORD = TypeAdapter(ScheduleRecord)


def skips(table: Timetable) -> list[tuple[int, str]]:
    """(minute, why) of the due times without a run."""
    return [((skip["due_ms"] - FIRST_MS) // MINUTE_MS, skip["why"]) for skip in table.schedule.skips]


# --- starting


def test_a_due_time_starts_a_workflow_whose_id_says_when_it_was_due() -> None:
    table = Timetable()
    table.set(input={"n": 1})

    effects = table.minutes(1)

    assert shown(effects) == ["emit WorkflowStarted to nightly/1970-01-01T00:17:00Z"]
    (emit,) = effects
    assert isinstance(emit, Emit) and isinstance(emit.event, WorkflowStarted)
    assert (emit.event.definition, emit.event.input, emit.event.correlation_id) == ("saga", {"n": 1}, "nightly")
    assert table.schedule.next_ms == FIRST_MS + MINUTE_MS
    assert table.runs == [("1970-01-01T00:17:00Z", "running")]


def test_the_ids_that_a_run_is_believed_by_follow_from_the_event_that_set_the_schedule() -> None:
    (first, other, again) = (Timetable(), Timetable(), Timetable())
    for table, ce_id in ((first, "secret"), (other, "other secret"), (again, "secret")):
        table.set(ce_id=ce_id)
        table.minutes(1)

    ids_of = [table.emitted[0].ce_id for table in (first, other, again)]
    assert ids_of[0] == ids_of[2] != ids_of[1]
    assert "secret" not in ids_of[0]


def test_the_end_of_a_run_is_heard_and_nothing_of_the_run_is_kept() -> None:
    table = Timetable()
    table.set()
    table.minutes(1)
    table.deliver()

    effects = table.answer(run_id(0), "a", {"big": "output"})

    assert [type(e).__name__ for e in effects if isinstance(e, Emit | Finished)] == ["Finished", "Emit"]
    (told,) = [e.event for e in effects if isinstance(e, Emit)]
    assert isinstance(told, ChildEnded) and told.output is None
    run = table.partition.get(run_id(0))
    assert run is not None and not run.steps and run.report is None
    assert run.deadline_ms == table.now_ms + REMEMBER_MS, "its id is forgotten in time"
    table.deliver()
    assert table.runs == [("1970-01-01T00:17:00Z", "completed")]
    assert "token" not in table.schedule.runs[0]


def test_the_runs_of_a_child_count_the_run_as_their_root() -> None:
    table = Timetable()
    table.set()
    (emit,) = table.minutes(1)

    assert isinstance(emit, Emit) and isinstance(emit.event, WorkflowStarted) and emit.event.parent is not None
    parent = emit.event.parent
    assert (parent.workflow_id, parent.root, parent.depth) == (KEY.decode(), run_id(0), 0)


def test_a_run_whose_definition_nobody_knows_is_rejected_and_the_next_one_starts() -> None:
    table = Timetable()
    table.append(ScheduleSet("nope", "* * * * *", "UTC", "ann", FIRST_MS), key=KEY, ce_id="set-1")
    table.minutes(1)
    table.deliver()
    table.now_ms += 20_000
    table.append(TimerFired(1, Timer.DEFINITION), key=run_id(0).encode())
    table.deliver()

    assert table.runs == [("1970-01-01T00:17:00Z", "rejected")]
    assert starts(table.minutes(1)) == [run_id(1)]


def test_an_id_that_is_taken_by_another_workflow_is_seen() -> None:
    table = Timetable()
    table.set()
    table.start("saga", workflow_id=run_id(0))
    table.minutes(1)
    table.deliver()

    assert table.runs == [("1970-01-01T00:17:00Z", "rejected")]


def test_jitter_follows_from_the_due_time_and_the_id_still_names_it() -> None:
    table = Timetable()
    table.set(jitter_ms=50_000)

    fires_ms = table.schedule.due_ms()
    assert FIRST_MS < fires_ms < FIRST_MS + 50_000
    table.now_ms = fires_ms - 1
    assert ignored(table.due(FIRST_MS, next_ms=FIRST_MS + MINUTE_MS)) == "not_due"
    table.now_ms = fires_ms
    assert starts(table.due(FIRST_MS, next_ms=FIRST_MS + MINUTE_MS)) == [run_id(0)]


# --- overlap


def overlapping(overlap: str) -> tuple[Timetable, list[Effect]]:
    """The first run goes on at the second and the third due time; what these led to."""
    table = Timetable()
    table.set(overlap=overlap)
    table.minutes(1)
    table.deliver()
    return table, table.minutes(2)


def test_skip_leaves_due_times_out_while_a_run_goes_on() -> None:
    table, effects = overlapping("skip")

    assert effects == []
    assert skips(table) == [(1, "overlap"), (2, "overlap")]
    assert table.schedule.skipped == {"overlap": 2}
    table.end_run(0)
    assert starts(table.minutes(1)) == [run_id(3)]
    assert table.schedule.started == 2


def test_buffer_one_keeps_one_run_for_the_end_of_the_one_before() -> None:
    table, effects = overlapping("buffer_one")

    assert effects == []
    assert skips(table) == [(2, "overlap")]
    ended = table.answer(run_id(0), "a")
    told = table.append(table.emitted.pop().event, key=KEY)
    assert starts(ended) == [] and shown(told) == [f"emit WorkflowStarted to {run_id(1)}"]
    assert table.schedule.waiting is None


def test_allow_runs_side_by_side_up_to_the_limit() -> None:
    table, effects = overlapping("allow")

    assert starts(effects) == [run_id(1), run_id(2)]
    assert table.going == [run_id(0), run_id(1), run_id(2)]
    table.minutes(RUNS_GOING_MAX - 3)
    assert len(table.going) == RUNS_GOING_MAX and table.schedule.skipped == {}
    assert table.minutes(1) == []
    assert table.schedule.skipped == {"full": 1}


def test_cancel_running_cancels_and_starts_the_newest_when_it_has_ended() -> None:
    table, effects = overlapping("cancel_running")

    assert shown(effects) == [f"emit CancelRequested to {run_id(0)}"] * 2
    assert all(isinstance(e, Emit) and isinstance(e.event, CancelRequested) for e in effects)
    assert skips(table) == [(1, "overlap")], "the newest takes the place of the one that waited"
    table.deliver()
    assert table.going == [run_id(0)], "what it did may have to be undone first"
    table.end_run(0)
    table.answer(run_id(0), "a", undo=True)
    table.deliver()
    assert [status for _, status in table.runs] == ["cancelled", "running"]
    assert table.going == [run_id(2)]


def test_terminate_running_ends_it_at_once_and_starts_the_next() -> None:
    table, effects = overlapping("terminate_running")

    (first, second) = effects
    assert isinstance(first, Emit) and isinstance(first.event, ActionRequested)
    assert isinstance(second, Emit) and first.ce_id != second.ce_id
    table.deliver()
    assert [status for _, status in table.runs] == ["terminated", "running"]
    assert table.going == [run_id(2)]


def test_a_policy_that_is_changed_holds_from_the_next_due_time_on() -> None:
    table, _ = overlapping("skip")
    table.set(ce_id="set-2", overlap="allow")

    assert starts(table.minutes(1)) == [run_id(3)]
    assert table.going == [run_id(0), run_id(3)]


# --- catching up


def test_what_was_missed_longer_ago_than_catch_up_is_left_out_and_the_rest_runs() -> None:
    table = Timetable()
    table.set(overlap="allow", catch_up_ms=2 * MINUTE_MS)

    effects = table.pass_time(FIRST_MS - table.now_ms + 5 * MINUTE_MS)

    assert starts(effects) == [run_id(3), run_id(4), run_id(5)]
    assert skips(table) == [(0, "missed"), (1, "missed"), (2, "missed")]
    assert table.schedule.next_ms == FIRST_MS + 6 * MINUTE_MS


def test_the_overlap_policy_holds_for_what_is_caught_up() -> None:
    table = Timetable()
    table.set(catch_up_ms=10 * MINUTE_MS)

    assert starts(table.pass_time(FIRST_MS - table.now_ms + 2 * MINUTE_MS)) == [run_id(0)]
    assert skips(table) == [(1, "overlap"), (2, "overlap")]


def test_catching_up_is_bounded_and_the_newest_run() -> None:
    table = Timetable()
    table.set(overlap="allow", catch_up_ms=366 * 24 * 3_600_000)
    effects = table.pass_time(FIRST_MS - table.now_ms + (DUE_TIMES_MAX + 9) * MINUTE_MS)

    assert starts(effects) == [run_id(n) for n in range(DUE_TIMES_MAX - CATCH_UP_RUNS_MAX, DUE_TIMES_MAX)]
    assert table.schedule.skipped == {"missed": DUE_TIMES_MAX - CATCH_UP_RUNS_MAX}
    assert table.schedule.due_ms() <= table.now_ms, "the rest follows at once"
    table.fire_due()
    assert table.schedule.next_ms == FIRST_MS + (DUE_TIMES_MAX + 10) * MINUTE_MS


def test_an_owner_whose_clock_is_ahead_moves_on_by_what_is_due_for_the_broker() -> None:
    table = Timetable()
    table.set(overlap="allow")
    table.now_ms = FIRST_MS + MINUTE_MS
    later = [FIRST_MS + n * MINUTE_MS for n in range(4)]

    assert starts(table.due(*later[:3], next_ms=later[3])) == [run_id(0), run_id(1)]
    assert table.schedule.next_ms == later[2]


# --- people


def test_while_it_is_paused_nothing_is_due_and_what_was_is_counted_when_it_is_resumed() -> None:
    table = Timetable()
    table.set()
    table.minutes(1)
    table.deliver()
    table.end_run(0)
    table.ask("pause")
    assert table.schedule.paused == {"who": "bob", "reason": "wanted", "at_ms": table.now_ms}
    assert table.pass_time(3 * MINUTE_MS) == []
    table.now_ms += 1
    table.ask("resume")
    assert table.fire_due() == []
    assert skips(table) == [(1, "paused"), (2, "paused"), (3, "paused")]
    assert starts(table.minutes(1)) == [run_id(4)]


def test_a_run_that_waits_starts_once_the_schedule_is_resumed() -> None:
    table, _ = overlapping("buffer_one")
    table.ask("pause")
    table.end_run(0)
    assert table.going == []

    assert starts(table.ask("resume")) == [run_id(1)]


def test_a_schedule_may_begin_paused_and_setting_it_again_does_not_resume_it() -> None:
    table = Timetable()
    table.set(paused=True)
    assert table.pass_time(2 * MINUTE_MS) == []
    table.set(ce_id="set-2", paused=True)
    table.set(ce_id="set-3")
    assert (table.schedule.status, table.schedule.due_ms() > 1 << 61) == ("paused", True)


def test_one_that_goes_on_is_paused_by_setting_it_so() -> None:
    table = Timetable()
    table.set()
    table.set(ce_id="set-2", paused=True)

    assert table.schedule.paused is not None and table.schedule.paused["who"] == "ann"


def test_a_trigger_starts_a_run_now_also_of_a_paused_schedule() -> None:
    table = Timetable()
    table.set(paused=True)

    effects = table.ask("trigger")

    (run,) = starts(effects)
    assert run == f"nightly/triggered-{len(table.log) - 1}"
    assert table.schedule.runs[0].get("triggered_by") == "bob"
    assert table.schedule.next_ms == FIRST_MS, "its due times are as they were"


def test_a_triggered_run_that_waits_starts_although_the_schedule_is_paused() -> None:
    table, _ = overlapping("buffer_one")
    table.end_run(0)
    table.ask("trigger")
    table.ask("pause")
    waiting = table.schedule.waiting
    assert waiting is not None and waiting.get("triggered_by") == "bob"

    table.end_run(1)

    assert table.going == [waiting["id"]]


def test_removal_leaves_the_run_that_goes_on_alone_and_hears_of_its_end() -> None:
    table, _ = overlapping("buffer_one")

    assert [type(e).__name__ for e in table.remove()] == ["Moved"]
    assert skips(table)[-1] == (1, "removed")
    assert table.pass_time(5 * MINUTE_MS) == []
    table.end_run(0)
    assert table.runs == [("1970-01-01T00:17:00Z", "completed")]
    assert table.schedule.going() == []


def test_a_removed_schedule_is_remembered_for_a_while_and_then_forgotten() -> None:
    table = Timetable()
    table.set()
    table.remove()
    assert ignored(table.set()) == "duplicate", "a copy of the event that set it does not bring it back"
    forget = TimerFired(1, Timer.FORGET, attempt=table.schedule.at_offset)
    assert ignored(table.append(forget, key=KEY)) == "not_due"
    assert table.pass_time(REMEMBER_MS) == []
    assert table.partition.schedules == {}
    assert KEY.decode() in table.partition.touched, "so that its checkpoint is deleted"


@pytest.mark.parametrize("paused", [False, True])
def test_a_removed_schedule_can_be_set_anew(paused: bool) -> None:
    table = Timetable()
    table.set()
    table.minutes(1)
    table.remove()
    table.set(ce_id="set-2", paused=paused)

    assert table.schedule.status == ("paused" if paused else "active")
    assert table.schedule.removed is None
    assert [run for run, _ in table.runs] == ["1970-01-01T00:17:00Z"], "what it did before is still told"


def test_a_paused_schedule_can_be_removed() -> None:
    table = Timetable()
    table.set(paused=True)
    table.remove()

    assert (table.schedule.status, table.schedule.paused) == ("removed", None)


# --- once, and only from whom it may come


def test_a_due_time_that_was_dealt_with_starts_nothing_when_the_schedule_is_set_anew() -> None:
    """The client computed the first due time just before it passed."""
    table = Timetable()
    table.set()
    table.minutes(1)
    table.deliver()
    table.end_run(0)
    table.set(ce_id="set-2", next_ms=FIRST_MS)

    assert table.fire_due() == []
    assert (table.schedule.next_ms, table.schedule.skips) == (FIRST_MS + MINUTE_MS, [])


def has_ignored(effects: list[Effect]) -> bool:
    return any(isinstance(effect, Ignored) for effect in effects)


def ask_twice(action: str) -> Any:
    return lambda table: table.ask(action, ce_id="ask-1")


@pytest.mark.parametrize(
    "happens",
    [
        lambda table: table.set(ce_id="set-2"),
        ask_twice("pause"),
        ask_twice("trigger"),
        lambda table: table.remove(),
        lambda table: table.due(FIRST_MS, next_ms=FIRST_MS + MINUTE_MS),
    ],
)
def test_every_event_counts_once(happens: Any) -> None:
    table = Timetable()
    table.set()
    table.now_ms = FIRST_MS
    assert not has_ignored(happens(table))
    before = table.everything()

    assert ignored(happens(table)) in ("duplicate", "not_waited_for")
    assert table.everything() == before


@pytest.mark.parametrize(
    ("reason", "happens"),
    [
        ("old_epoch", lambda t: t.due(FIRST_MS, next_ms=FIRST_MS + MINUTE_MS, epoch=0)),
        ("not_waited_for", lambda t: t.due(FIRST_MS + 1, next_ms=FIRST_MS + MINUTE_MS)),
        ("not_waited_for", lambda t: t.due()),
        ("invalid_schedule", lambda t: t.due(FIRST_MS, FIRST_MS, next_ms=FIRST_MS + MINUTE_MS)),
        ("invalid_schedule", lambda t: t.due(FIRST_MS, next_ms=FIRST_MS)),
        ("invalid_schedule", lambda t: t.due(FIRST_MS, 1 << 60)),
        ("not_waited_for", lambda t: t.append(TimerFired(1, Timer.FORGET), key=KEY)),
        ("not_waited_for", lambda t: t.append(TimerFired(1, Timer.RETRY, "a", 1), key=KEY)),
        ("not_possible", lambda t: t.ask("resume")),
        ("invalid_schedule", lambda t: t.set(ce_id="x", catch_up_ms=0)),
        ("invalid_schedule", lambda t: t.set(ce_id="x", jitter_ms=-1)),
        ("invalid_schedule", lambda t: t.set(ce_id="x", next_ms=-(1 << 40))),
        ("invalid_schedule", lambda t: t.set(ce_id="x", next_ms=1 << 60)),
        ("unknown_schedule", lambda t: t.append(ScheduleDue(1, (1,)), key=b"@schedule/other")),
        ("invalid_schedule", lambda t: t.append(ScheduleSet("saga", "*", "UTC", "a"), key=b"@schedule/No", ce_id="x")),
        ("invalid_schedule", lambda t: t.append(ScheduleSet("Saga", "*", "UTC", "a"), key=KEY, ce_id="x")),
        ("unknown_workflow", lambda t: t.append(ScheduleDue(1, (1,)), key=b"order-1")),
        ("unknown_workflow", lambda t: t.append(CancelRequested("no", "x"), key=KEY)),
    ],
)
def test_what_does_not_fit_is_ignored_and_changes_nothing(reason: str, happens: Any) -> None:
    table = Timetable()
    table.set()
    table.now_ms = FIRST_MS
    before = table.everything()

    assert ignored(happens(table)) == reason
    assert table.everything() == before


@pytest.mark.parametrize("action", ["pause", "resume", "trigger"])
def test_of_a_removed_schedule_nothing_can_be_asked(action: str) -> None:
    table = Timetable()
    table.set()
    table.remove()
    before = table.everything()

    assert ignored(table.ask(action)) == "not_possible"
    assert ignored(table.remove(ce_id="remove-2")) == "not_possible"
    assert ignored(table.due(FIRST_MS, next_ms=FIRST_MS + MINUTE_MS)) == "not_waited_for"
    assert table.everything() == before


def test_an_event_about_a_schedule_under_the_key_of_a_workflow_is_ignored() -> None:
    table = Timetable()
    table.start("saga")

    assert ignored(table.append(ScheduleDue(1, (1,)))) == "unknown_schedule"


def test_a_forged_end_of_a_run_is_ignored() -> None:
    table = Timetable()
    table.set()
    table.minutes(1)
    for token in ("", "forged", ids.token("guessed", run_id(0))):
        told = ChildEnded("run", 1, Direction.EXECUTE, token, run_id(0), WorkflowStatus.COMPLETED)
        assert ignored(table.append(told, key=KEY)) == "wrong_token"
    unknown = ChildEnded("run", 1, Direction.EXECUTE, "x", "nobody", WorkflowStatus.COMPLETED)
    assert ignored(table.append(unknown, key=KEY)) == "not_waited_for"


def test_a_partition_takes_so_many_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    from sagalog.engine.kernel import partition

    monkeypatch.setattr(partition, "SCHEDULES_MAX", 1)
    table = Timetable()
    table.set()
    other = ScheduleSet("saga", "* * * * *", "UTC", "ann", FIRST_MS)

    assert ignored(table.append(other, key=b"@schedule/other", ce_id="set-9")) == "schedules_full"
    assert not has_ignored(table.set(ce_id="set-2")), "one that is there can be set anew"


def test_an_owner_that_cannot_tell_the_due_times_pauses_the_schedule_and_says_why() -> None:
    table = Timetable()
    table.set()
    event = ScheduleDue(1, (FIRST_MS,), problem="its due times cannot be told: zone: ...")

    table.append(event, key=KEY)

    assert table.schedule.paused is not None
    assert (table.schedule.paused["who"], "zone" in table.schedule.paused["reason"]) == ("sagalog", True)


def test_an_event_that_breaks_the_fold_pauses_the_schedule_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Timetable()
    table.set()

    def breaks(*_: Any) -> None:
        raise RuntimeError("boom")

    with monkeypatch.context() as patched:
        patched.setattr(schedules, "_start", breaks)
        effects = table.minutes(1)

    assert [effect.stage for effect in effects if isinstance(effect, Quarantine)] == ["fold"]
    assert (table.schedule.next_ms, table.schedule.last_due_ms, table.schedule.status) == (FIRST_MS, -1, "paused")
    assert table.schedule.paused is not None and "boom" in table.schedule.paused["reason"]
    table.ask("resume")
    assert starts(table.fire_due()) == [run_id(0)]


def test_a_record_under_its_key_that_cannot_be_read_does_not_stop_it() -> None:
    table = Timetable()
    table.set()
    table.append_raw(KEY, b"{", b"sagalog.schedule-due.v1")
    table.append_raw(KEY, b'{"epoch": 1, "due_ms": ["x"]}', b"sagalog.schedule-due.v1")

    assert starts(table.minutes(1)) == [run_id(0)]


# --- what is kept


def test_what_is_kept_is_bounded_and_the_newest() -> None:
    table = Timetable()
    table.set()
    for minute in range(0, 60, 2):
        table.minutes(1)
        table.deliver()
        table.minutes(1)
        table.end_run(minute)

    assert len(table.runs) == len(table.schedule.skips) == RUNS_KEPT_MAX
    assert table.schedule.runs[-1]["id"] == run_id(58)
    assert (table.schedule.started, table.schedule.skipped) == (30, {"overlap": 30})


def test_its_checkpoint_is_as_declared() -> None:
    table, _ = overlapping("buffer_one")
    table.set(ce_id="set-2", overlap="buffer_one", jitter_ms=5, input={"n": 1})
    table.ask("pause")
    table.ask("resume")
    table.ask("trigger")
    table.ask("pause")
    found = RECORD.validate_python(decode(table.dumps()[KEY.decode()]), extra="forbid")
    assert {"waiting", "runs", "skips", "skipped", "paused", "resumed_ms", "next_ms", "last_due_ms"} <= set(found)
    table.remove()
    found = RECORD.validate_python(decode(table.dumps()[KEY.decode()]), extra="forbid")
    assert {"removed", "forget_ms"} <= set(found)


def test_a_workflow_and_a_driver_without_schedules_are_as_before() -> None:
    driver = Driver()
    driver.start("saga")
    assert list(driver.dumps()) == [WORKFLOW] and driver.partition.schedules == {}
    assert not has_ignored(driver.start("saga", workflow_id="wf-2"))


def test_the_diagram_in_the_docs_is_the_table() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "schedules.md").read_text()
    (diagram,) = re.findall(r"^```mermaid\nstateDiagram-v2\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    drawn = set(re.findall(r"^    (\S+) --> (\S+): (\w+)$", diagram, re.MULTILINE))

    moves = schedules.SCHEDULE_MOVES.items()
    assert drawn == {(str(before or "[*]"), str(after), str(trigger)) for (before, trigger), after in moves}
    words = [*Overlap, *schedules.Skip, *(f.name for f in fields(ScheduleSet) if f.name not in ("next_ms", "who"))]
    assert [word for word in words if f"`{word}`" not in text] == []


def test_the_timer_of_an_earlier_removal_does_not_forget_a_later_one() -> None:
    table = Timetable()
    table.set()
    table.remove()
    earlier = TimerFired(1, Timer.FORGET, attempt=table.schedule.at_offset)
    table.set(ce_id="set-2")
    table.now_ms += REMEMBER_MS
    assert ignored(table.append(earlier, key=KEY)) == "not_waited_for"
    table.remove(ce_id="remove-2")
    table.now_ms += REMEMBER_MS

    assert ignored(table.append(earlier, key=KEY)) == "not_waited_for"
    assert table.pass_time(0) == [] and table.partition.schedules == {}


def test_setting_it_again_makes_the_ids_of_its_next_runs_new_ones() -> None:
    tokens = []
    for again in (False, True):
        table = Timetable()
        table.set()
        if again:
            table.set(ce_id="set-2")
        table.minutes(1)
        tokens.append(table.schedule.runs[0]["token"])

    assert tokens[0] != tokens[1]


def test_a_due_time_that_was_not_told_yet_is_not_lost_when_the_schedule_is_set_again_as_it_was() -> None:
    """A deployment sets it while no engine is there, a moment after it was due."""
    table = Timetable()
    table.set()
    table.now_ms = FIRST_MS + 5_000
    table.set(ce_id="set-2", input={"n": 2})

    assert table.schedule.next_ms == FIRST_MS
    assert starts(table.fire_due()) == [run_id(0)]


def test_with_another_expression_a_due_time_that_was_not_told_yet_is_counted_as_missed() -> None:
    table = Timetable()
    table.set()
    table.now_ms = FIRST_MS + 5_000
    later = FIRST_MS + 30 * MINUTE_MS
    table.append(ScheduleSet("saga", "*/30 * * * *", "UTC", "ann", later), key=KEY, ce_id="set-2")

    assert (skips(table), table.schedule.next_ms) == ([(0, "missed")], later)
    assert ignored(table.due(FIRST_MS, next_ms=later)) == "not_waited_for"


def test_a_first_due_time_far_away_is_put_right_by_setting_it_again() -> None:
    table = Timetable()
    table.set(next_ms=FIRST_MS * 1_000)
    table.set(ce_id="set-2")

    assert table.schedule.next_ms == FIRST_MS
