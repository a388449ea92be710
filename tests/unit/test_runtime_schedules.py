"""Schedules as a partition's owner runs them: what its timer appends, what a take-over keeps, and clocks that disagree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from sagalog.engine.kernel.schedules import ScheduleState
from sagalog.engine.runtime.schedules import fired
from sagalog.schemas.events import (
    Owned,
    ScheduleActed,
    ScheduleAction,
    ScheduleDue,
    ScheduleRemoved,
    ScheduleSet,
    TimerFired,
)
from sagalog.schemas.limits import DUE_TIMES_MAX, REMEMBER_MS
from sagalog.schemas.statuses import ScheduleStatus
from sagalog.topics.partitioner import partition_of

from .test_runtime_workflows import World

KEY = "@schedule/daily"
MINUTE_MS = 60_000
FIRST_MS = 1_020_000


def world(partitions: int = 1) -> World:
    found = World(partitions=partitions)
    wanted = ScheduleSet("saga", "* * * * *", "UTC", "ann", FIRST_MS, overlap="allow")  # type: ignore[arg-type]
    found.fold(found.record(Owned(1, "me"), "@owner"), found.record(wanted, KEY, "set-1"))
    return found


def next_owner(before: World, ms: int = 0) -> World:
    """Takes over from the checkpoints of the owner before, so many milliseconds later."""
    after = World("other", offset=before.offset, now_ms=before.now_ms + ms)
    cut = before.machine.cut()
    assert cut is not None
    cut.finish()
    for offset, out in enumerate(cut.records):
        after.machine.load(_Stored(offset, after.now_ms, out.key or b"", out.value, out.headers))  # type: ignore[arg-type]
    after.machine.loaded(after.now_ms)
    after.fold(after.record(Owned(2, "other"), "@owner"))
    return after


class _Stored:
    topic, partition = "t.checkpoints", 0

    def __init__(self, offset: int, timestamp: int, key: bytes, value: bytes | None, headers: Any) -> None:
        self.offset, self.timestamp, self.key, self.value, self.headers = offset, timestamp, key, value, headers


def due_of(state: World) -> list[Any]:
    return [document for topic, document in state.appended() if topic == "t.events"]


def test_when_it_is_due_the_owner_says_so_once_and_the_fold_starts_the_run_in_its_partition() -> None:
    owner = world(partitions=8)
    assert owner.tick(FIRST_MS - owner.now_ms - 1) == []
    assert owner.tick(1) == [("t.events", {"epoch": 1, "due_ms": [FIRST_MS], "next_ms": FIRST_MS + MINUTE_MS})]
    assert owner.tick(5) == [], "until it is folded nothing fires again"

    owner.fold(owner.record(ScheduleDue(1, (FIRST_MS,), FIRST_MS + MINUTE_MS), KEY))

    ((topic, partition, out),) = owner.placed
    assert (topic, out.key) == ("t.events", b"daily/1970-01-01T00:17:00Z")
    assert partition == partition_of(out.key or b"", 8)
    assert owner.machine.next_due_ms() == FIRST_MS + MINUTE_MS


def test_a_take_over_keeps_the_schedule_and_its_timer_and_catches_up() -> None:
    owner = world()
    after = next_owner(owner, 4 * MINUTE_MS)

    assert after.machine.fold_state.schedules == owner.machine.fold_state.schedules
    (told,) = [document for _, document in after.tick(0)]
    assert told["epoch"] == 2
    assert told["due_ms"] == [FIRST_MS + n * MINUTE_MS for n in range(4)]
    assert told["next_ms"] == FIRST_MS + 4 * MINUTE_MS


def test_a_forgotten_schedule_leaves_a_tombstone_and_the_digest_agrees() -> None:
    owner = world()
    owner.fold(owner.record(ScheduleRemoved("over", "bob"), KEY, "remove-1"))
    first = owner.machine.cut()
    assert first is not None
    first.finish()
    ((_, told),) = owner.tick(REMEMBER_MS)
    assert told["timer"] == "forget"
    owner.fold(owner.record(TimerFired(1, told["timer"], attempt=told["attempt"]), KEY))

    cut = owner.machine.cut()
    assert cut is not None
    cut.finish()
    by_key = {out.key: out.value for out in cut.records}
    assert by_key[KEY.encode()] is None
    marker = orjson.loads(by_key[b"@marker"] or b"")
    assert (marker["workflows"], marker["digest"]) == (0, "0" * 16)


def test_an_owner_whose_clock_is_ahead_tries_again_when_the_broker_is_there() -> None:
    owner = world()
    owner.tick(FIRST_MS - owner.now_ms)
    early = owner.record(ScheduleDue(1, (FIRST_MS,), FIRST_MS + MINUTE_MS), KEY, at_ms=FIRST_MS - 700)
    owner.fold(early)

    assert owner.tick(699) == []
    assert [document["due_ms"] for _, document in owner.tick(1)] == [[FIRST_MS]]


def test_what_an_owner_before_wrote_is_ignored_by_the_epoch() -> None:
    after = next_owner(world())
    after.now_ms = FIRST_MS

    assert after.fold(after.record(ScheduleDue(1, (FIRST_MS,), FIRST_MS + MINUTE_MS), KEY)) == []
    assert after.machine.fold_state.schedules[KEY].started == 0


def test_a_paused_schedule_has_no_timer() -> None:
    owner = world()
    owner.fold(owner.record(ScheduleActed(ScheduleAction.PAUSE, "why", "bob"), KEY, "pause-1"))

    assert owner.tick(10 * MINUTE_MS) == []


def state(**more: Any) -> ScheduleState:
    found = ScheduleState("daily", "seed", "saga", "* * * * *", "UTC", status=ScheduleStatus.ACTIVE, next_ms=FIRST_MS)
    return replace(found, **more)


def test_a_long_outage_is_told_in_pieces() -> None:
    found = fired(state(), 1, FIRST_MS + 2 * DUE_TIMES_MAX * MINUTE_MS)
    assert found is not None
    event, _ = found
    assert isinstance(event, ScheduleDue)
    assert len(event.due_ms) == DUE_TIMES_MAX
    assert event.next_ms == FIRST_MS + DUE_TIMES_MAX * MINUTE_MS, "which is due at once"


@pytest.mark.parametrize(("broken", "word"), [({"zone": "Mars/Base"}, "zone"), ({"cron": "no"}, "cron")])
def test_what_cannot_be_told_pauses_the_schedule(broken: dict[str, str], word: str) -> None:
    found = fired(state(**broken), 1, FIRST_MS)
    assert found is not None
    event, _ = found
    assert isinstance(event, ScheduleDue) and event.problem is not None
    assert (event.due_ms, word in event.problem) == ((FIRST_MS,), True)


def test_a_schedule_that_does_not_wait_fires_nothing() -> None:
    assert fired(state(status=ScheduleStatus.PAUSED), 1, FIRST_MS) is None
