"""How far something long is, and how long it still takes: for the log."""

from __future__ import annotations

from .limits import PROGRESS_MS


class Progress:
    """From one offset to another. The time left follows from the pace so far."""

    def __init__(self, begin: int, end: int, now_ms: int) -> None:
        self._begin = begin
        self._end = end
        self._began_ms = self._said_ms = now_ms

    def at(self, offset: int, now_ms: int) -> str | None:
        """What there is to say, once every PROGRESS_MS; None in between."""
        if now_ms - self._said_ms < PROGRESS_MS:
            return None
        self._said_ms = now_ms
        whole, done = self._end - self._begin, offset - self._begin
        said = f"{done:,} of {whole:,} records ({done / whole:.0%})"
        if done <= 0:
            return said
        left_s = (whole - done) * (now_ms - self._began_ms) / done / 1_000
        return f"{said}, about {left_s:,.0f} s left"
