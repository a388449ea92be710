"""When a cron expression is due next, in a time zone.

`next_after` is evaluated by whoever writes an event (a client, a partition's owner) and never by the fold: what it answers depends
on the machine's time-zone data, so the answer is what stands in the log.

Rules for days on which the clocks change:
- An expression that names its hours means the wall clock: a time that does not exist is due once, at the next minute that exists; a
  time that exists twice is due once, the first time.
- One for every hour (`*`) means time that passes: it is due in both hours that bear one name, and not in one that does not exist.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from .errors import InvalidRecord
from .limits import CRON_CHARS_MAX, TIME_MS_MAX, ZONE_CHARS_MAX

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_MINUTE: Final = timedelta(minutes=1)
_GAP_MINUTES_MAX: Final = 25 * 60
"""The longest leap of a clock: Samoa left out a whole day in 2011."""
_SAME_MAX: Final = 10_000
"""Wall-clock times that may come to one instant, or lie in an hour that has been already: a gap has at most 86,400 seconds."""


def check_cron(cron: str) -> str:
    """Raises InvalidRecord when it is no cron expression, or one that is never due."""
    _parsed(cron)
    if next_after(cron, "UTC", 0) is None:
        raise InvalidRecord("cron", f"{cron!r} is never due; check its day and month")
    return cron


def check_zone(zone: str) -> str:
    """Raises InvalidRecord when no time zone has that name."""
    _zone(zone)
    return zone


def next_after(cron: str, zone: str, after_ms: int) -> int | None:
    """The first time later than `after_ms` at which `cron` is due in `zone`; None when there is none. Milliseconds since the epoch.

    Five fields as Debian's cron has them (minute, hour, day of month, month, day of week), or six with seconds first.
    Raises InvalidRecord (`cron`, `zone`).
    """
    fields, clock = _parsed(cron), _zone(zone)
    if not 0 <= after_ms < TIME_MS_MAX:
        return None
    every_hour = fields[-4] == "*"
    try:
        after = (_EPOCH + after_ms * _MS).astimezone(clock)
        times = CronSim(" ".join(fields), after if every_hour else after.replace(tzinfo=None))
        for _ in range(_SAME_MAX):
            found = next(times, None)
            if found is None:
                return None
            due_ms = _ms(found if every_hour else _exists(found, clock))
            if due_ms > after_ms:
                return due_ms if due_ms <= TIME_MS_MAX else None
    except (OverflowError, ValueError):
        return None  # beyond the year 9999
    return None


def _parsed(cron: str) -> list[str]:
    fields = cron.upper().split()
    if len(cron) > CRON_CHARS_MAX:
        raise InvalidRecord(
            "cron", f"is {len(cron)} characters, more than {CRON_CHARS_MAX}; split it into several schedules"
        )
    if len(fields) not in (5, 6):
        raise InvalidRecord(
            "cron",
            f"{cron!r} has {len(fields)} fields; five are expected: minute hour day month weekday, as '0 9 * * MON-FRI'",
        )
    # With all six fields the library leaves the clock's changes alone, which is this module's business.
    fields = fields if len(fields) == 6 else ["0", *fields]
    try:
        CronSim(" ".join(fields), datetime(2024, 1, 1))  # noqa: DTZ001 - only parsed
    except CronSimError as error:
        raise InvalidRecord("cron", f"{cron!r}: {str(error).lower()}; see: sagalog schedules set --help") from None
    return fields


@lru_cache(maxsize=256)
def _zone(zone: str) -> ZoneInfo:
    if not 1 <= len(zone) <= ZONE_CHARS_MAX:
        raise InvalidRecord("zone", f"is {len(zone)} characters; 1 to {ZONE_CHARS_MAX} are allowed, as Europe/Berlin")
    try:
        return ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidRecord("zone", f"{zone!r} is no time zone; give its IANA name, as Europe/Berlin or UTC") from None


def _exists(wall: datetime, clock: ZoneInfo) -> datetime:
    """The instant of a wall-clock time: the first of two, and the end of the gap for one that does not exist."""
    for _ in range(_GAP_MINUTES_MAX):
        found = wall.replace(tzinfo=clock)
        if found.astimezone(UTC).astimezone(clock).replace(tzinfo=None) == wall:
            return found
        wall = wall.replace(second=0) + _MINUTE
    raise ValueError(f"{clock.key} has no time near {wall}")


def _ms(at: datetime) -> int:
    return (at.astimezone(UTC) - _EPOCH) // _MS
