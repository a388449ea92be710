"""A record of the log, as the fold sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)  # not frozen: one is made per record, and freezing doubles what that costs
class Record:
    """One record of `events` or `outcomes`. `time_ms` is the broker's LogAppendTime."""

    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    ce_type: bytes | None
    ce_id: bytes | None
    size: int
    """Bytes of the value."""
    trace: bytes | None = None
    """The W3C `traceparent` of a start; all that follows from it carries it on."""
