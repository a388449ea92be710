"""What the owner of a partition does for its schedules: it tells the fold which due times have come, and which is next.

Rule: nothing is decided here. Which due times run, wait or are left out is the fold's business, by the event's time.
"""

from __future__ import annotations

import logging

from sagalog.engine.kernel.schedules import ScheduleState
from sagalog.schemas.cron import next_after
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import ScheduleDue, Timer, TimerFired
from sagalog.schemas.limits import DUE_TIMES_MAX, TEXT_CHARS_MAX
from sagalog.schemas.statuses import ScheduleStatus

logger = logging.getLogger(__name__)


def fired(state: ScheduleState, epoch: int, now_ms: int) -> tuple[ScheduleDue | TimerFired, str] | None:
    """The event that a schedule's timer causes at `now_ms`, with its id; None when none is set.

    After an outage it holds the due times since; those beyond DUE_TIMES_MAX are left to the next event, which is due at once.
    """
    if state.status is ScheduleStatus.REMOVED:
        return TimerFired(epoch, Timer.FORGET, attempt=state.at_offset), f"{state.key}/forget/{state.at_offset}"
    if state.status is not ScheduleStatus.ACTIVE:
        return None
    first = state.next_ms
    return _due(state, epoch, first, now_ms), f"{state.key}/due/{first}"


def _due(state: ScheduleState, epoch: int, first: int, now_ms: int) -> ScheduleDue:
    due = [first]
    try:
        next_ms = next_after(state.cron, state.zone, first)
        while next_ms is not None and len(due) < DUE_TIMES_MAX and state.fires_ms(next_ms) <= now_ms:
            due.append(next_ms)
            next_ms = next_after(state.cron, state.zone, next_ms)
    except InvalidRecord as error:
        # Set by somebody whose time-zone data is newer than this machine's, or who did not check.
        logger.warning("%s: its due times cannot be told, it is paused: %s", state.key, error)
        return ScheduleDue(epoch, (first,), problem=f"its due times cannot be told: {error}"[:TEXT_CHARS_MAX])
    return ScheduleDue(epoch, tuple(due), next_ms)
