"""Schedules as a client sets them: what is checked before an event is written, and the times that are to come.

Rule: what the fold would ignore is refused here first, with the field named. Time-zone data is this machine's: the first due time
that it gives stands in the event.
"""

from __future__ import annotations

from typing import Any, Final

from sagalog.schemas import ids
from sagalog.schemas.cron import check_cron, check_zone, next_after
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import Overlap, ScheduleActed, ScheduleAction, ScheduleRemoved, ScheduleSet
from sagalog.schemas.limits import CATCH_UP_MS_DEFAULT, CATCH_UP_MS_MAX, CATCH_UP_MS_MIN, JITTER_MS_MAX, TEXT_CHARS_MAX
from sagalog.schemas.records import SCHEDULE_KEY

TIMES_SHOWN_MAX: Final = 1_000


def setting(
    name: str,
    *,
    definition: str,
    cron: str,
    zone: str,
    who: str,
    now_ms: int,
    input: Any = None,
    overlap: Overlap = Overlap.SKIP,
    catch_up_ms: int = CATCH_UP_MS_DEFAULT,
    jitter_ms: int = 0,
    paused: bool = False,
) -> tuple[str, ScheduleSet, int]:
    """The key and the event that make or change a schedule, and its first due time. Raises InvalidRecord, with the field.

    Whether the definition is known, and the input fits it, is left to the caller.
    """
    check_cron(cron)
    check_zone(zone)
    if overlap not in list(Overlap):
        raise InvalidRecord("overlap", f"{overlap!r} is unknown; known are {', '.join(Overlap)}")
    for field, value, least, most in (
        ("catch_up_ms", catch_up_ms, CATCH_UP_MS_MIN, CATCH_UP_MS_MAX),
        ("jitter_ms", jitter_ms, 0, JITTER_MS_MAX),
    ):
        if not least <= value <= most:
            raise InvalidRecord(field, f"{value:,} is not within {least:,} to {most:,}")
    next_ms = next_after(cron, zone, now_ms)
    if next_ms is None:
        raise InvalidRecord("cron", f"{cron!r} is never due again; check its day and month")
    event = ScheduleSet(
        definition, cron, zone, _text(who, "who"), next_ms, input, overlap, catch_up_ms, jitter_ms, paused
    )
    return _key(name), event, next_ms


def acting(name: str, action: ScheduleAction, *, reason: str, who: str) -> tuple[str, ScheduleActed]:
    """The key and the event by which somebody acts on a schedule. Raises InvalidRecord."""
    return _key(name), ScheduleActed(action, _text(reason, "reason"), _text(who, "who"))


def removing(name: str, *, reason: str, who: str) -> tuple[str, ScheduleRemoved]:
    """The key and the event that end a schedule. Raises InvalidRecord."""
    return _key(name), ScheduleRemoved(_text(reason, "reason"), _text(who, "who"))


def _key(name: str) -> str:
    return SCHEDULE_KEY + ids.check_name(name, "schedule")


def _text(text: str, field: str) -> str:
    if len(text) > TEXT_CHARS_MAX:
        raise InvalidRecord(field, f"is {len(text)} characters, more than {TEXT_CHARS_MAX}; shorten it")
    return text


def coming(cron: str, zone: str, count: int, after_ms: int) -> list[int]:
    """The next due times, at most `count`, by this machine's time-zone data. Raises InvalidRecord."""
    if not 1 <= count <= TIMES_SHOWN_MAX:
        raise InvalidRecord("count", f"{count} is not within 1 to {TIMES_SHOWN_MAX:,}")
    found: list[int] = []
    last: int | None = after_ms
    while len(found) < count and last is not None and (last := next_after(cron, zone, last)) is not None:
        found.append(last)
    return found
