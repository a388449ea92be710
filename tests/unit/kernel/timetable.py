"""A driver for schedules that are due every minute: what `Driver` is for workflows. Nothing here evaluates a cron expression."""

from __future__ import annotations

from typing import Any

from sagalog.engine.kernel.effects import Effect, Emit
from sagalog.engine.kernel.schedules import RUNNING, ScheduleState
from sagalog.schemas import ids
from sagalog.schemas.events import (
    ScheduleActed,
    ScheduleAction,
    ScheduleDue,
    ScheduleRemoved,
    ScheduleSet,
    Timer,
    TimerFired,
)
from sagalog.schemas.limits import DUE_TIMES_MAX
from sagalog.schemas.records import SCHEDULE_KEY
from sagalog.schemas.statuses import ScheduleStatus

from .driver import START_MS, Driver, saga, step

NAME = "nightly"
KEY = (SCHEDULE_KEY + NAME).encode()
MINUTE_MS = 60_000
FIRST_MS = 1_020_000
"""The first full minute after START_MS: 00:17:00 of the first day of 1970."""
assert START_MS < FIRST_MS <= START_MS + MINUTE_MS


def run_id(minute: int) -> str:
    """Of the run that is due so many minutes after the first."""
    return ids.run_id(NAME, FIRST_MS + minute * MINUTE_MS)


class Timetable(Driver):
    """One partition with a definition of one step, and a schedule for it once `set` is called."""

    def __init__(self, *, round_trip: bool = False) -> None:
        super().__init__(saga(step("a", compensate={})), round_trip=round_trip)

    # --- events in short

    def set(self, *, ce_id: str = "set-1", **more: Any) -> list[Effect]:
        next_ms = more.pop("next_ms", max(FIRST_MS, -(-(self.now_ms + 1) // MINUTE_MS) * MINUTE_MS))
        event = ScheduleSet("saga", "* * * * *", "UTC", "ann", next_ms, **more)
        return self.append(event, key=KEY, ce_id=ce_id)

    def ask(self, action: str, *, ce_id: str | None = None) -> list[Effect]:
        event = ScheduleActed(ScheduleAction(action), "wanted", "bob")
        return self.append(event, key=KEY, ce_id=ce_id or f"ask-{len(self.log)}")

    def remove(self, *, ce_id: str = "remove-1") -> list[Effect]:
        return self.append(ScheduleRemoved("over", "bob"), key=KEY, ce_id=ce_id)

    def due(self, *due_ms: int, next_ms: int | None = None, epoch: int = 1) -> list[Effect]:
        return self.append(ScheduleDue(epoch, due_ms, next_ms), key=KEY, ce_id="due")

    def pass_time(self, ms: int) -> list[Effect]:
        """Time passes, with nobody there; then the owner fires what is due, once."""
        self.now_ms += ms
        return self.fire_due()

    def fire_due(self) -> list[Effect]:
        schedule = self.partition.schedules.get(KEY.decode())
        if schedule is None or schedule.due_ms() > self.now_ms:
            return []
        if schedule.status is ScheduleStatus.REMOVED:
            forget = TimerFired(self.partition.epoch, Timer.FORGET, attempt=schedule.at_offset)
            return self.append(forget, key=KEY)
        due = [schedule.next_ms]
        while schedule.fires_ms(due[-1] + MINUTE_MS) <= self.now_ms and len(due) < DUE_TIMES_MAX:
            due.append(due[-1] + MINUTE_MS)
        return self.due(*due, next_ms=due[-1] + MINUTE_MS, epoch=self.partition.epoch)

    def minutes(self, count: int) -> list[Effect]:
        """So many due times, each at its time."""
        effects: list[Effect] = []
        for _ in range(count):
            effects += self.pass_time(max(0, self.schedule.due_ms() - self.now_ms))
        return effects

    def end_run(self, minute: int) -> list[Effect]:
        """The agent answers the run of a minute, and the schedule hears of it."""
        return self.answer(run_id(minute), "a") + self.deliver()

    # --- reading

    @property
    def schedule(self) -> ScheduleState:
        return self.partition.schedules[KEY.decode()]

    @property
    def runs(self) -> list[tuple[str, str]]:
        """(minute or name, status), the oldest first."""
        return [(run["id"].removeprefix(NAME + "/"), run["status"]) for run in self.schedule.runs]

    @property
    def going(self) -> list[str]:
        return [run["id"] for run in self.schedule.runs if run["status"] == RUNNING]


def starts(effects: list[Effect]) -> list[str]:
    """The workflows that are started."""
    return [e.workflow_id for e in effects if isinstance(e, Emit) and type(e.event).__name__ == "WorkflowStarted"]
