"""How often calls failed lately: counts in a window that slides with the time, and the rule that raises and clears an alert.

Pure: no clock, no Kafka, no Faust. Times are milliseconds since the epoch and are handed in.

Rules:
- The window is cut into buckets of `bucket_ms`; it holds the bucket of now and those before it, so it covers the last
  `window_ms`, less at most one bucket, and never more.
- A call that lies outside of the window of now is not kept, so memory is bounded whatever times the records carry. A clock
  that is set back costs at most one window.
- An alert is raised at once and cleared late: the rate must stay at or below half of the threshold for `hold_ms`.
  A rate that wavers around the threshold therefore gives one alert, not many.
- Few calls prove nothing: below `calls_min` no alert is raised. They do not refute a raised one either: an agent that
  got few calls since, and failed them, stays under alert; without any calls its rate is 0 and the alert is cleared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

BUCKETS_MAX: Final = 1_000
CLEAR_RATIO: Final = 0.5
"""An alert is cleared at or below this share of the threshold that raised it."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls in the window."""

    ok: int = 0
    failed: int = 0

    @property
    def calls(self) -> int:
        return self.ok + self.failed

    @property
    def error_rate(self) -> float:
        """Failed calls over all; 0 when there are none."""
        return self.failed / self.calls if self.calls else 0.0


class SlidingCounts:
    """One agent's calls in the last `window_ms`. `window_ms` is a multiple of `bucket_ms`."""

    __slots__ = ("_bucket_ms", "_buckets", "_width")

    def __init__(self, window_ms: int, bucket_ms: int) -> None:
        if bucket_ms < 1 or window_ms < bucket_ms or window_ms % bucket_ms:
            raise ValueError(f"window_ms: {window_ms} is not a multiple of bucket_ms, {bucket_ms}; choose one that is")
        if window_ms // bucket_ms > BUCKETS_MAX:
            raise ValueError(f"bucket_ms: {bucket_ms} gives more than {BUCKETS_MAX} buckets; make it larger")
        self._bucket_ms = bucket_ms
        self._width = window_ms // bucket_ms
        self._buckets: dict[int, Counts] = {}

    def add(self, at_ms: int, ok: int, failed: int, now_ms: int) -> bool:
        """Counts calls that ended at `at_ms`; False when that lies outside of the window of now."""
        self._forget(now_ms)
        bucket = at_ms // self._bucket_ms
        if not self._holds(bucket, now_ms):
            return False
        before = self._buckets.get(bucket, Counts())
        self._buckets[bucket] = Counts(before.ok + ok, before.failed + failed)
        return True

    def counts(self, now_ms: int) -> Counts:
        self._forget(now_ms)
        return Counts(
            sum(bucket.ok for bucket in self._buckets.values()), sum(bucket.failed for bucket in self._buckets.values())
        )

    def _holds(self, bucket: int, now_ms: int) -> bool:
        newest = now_ms // self._bucket_ms
        return newest - self._width < bucket <= newest

    def _forget(self, now_ms: int) -> None:
        for bucket in [bucket for bucket in self._buckets if not self._holds(bucket, now_ms)]:
            del self._buckets[bucket]


@dataclass(frozen=True, slots=True)
class AlertRule:
    """When an alert is raised: more than `threshold` of at least `calls_min` calls failed."""

    threshold: float = 0.05
    calls_min: int = 20
    hold_ms: int = 10_000

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold: {self.threshold} is not at least 0 and below 1; 0.05 means 5 %")
        if self.calls_min < 1:
            raise ValueError(f"calls_min: {self.calls_min} is below 1; without calls there is no rate")
        if self.hold_ms < 0:
            raise ValueError(f"hold_ms: {self.hold_ms} is negative; 0 clears an alert at once")

    @property
    def clear_at(self) -> float:
        return self.threshold * CLEAR_RATIO


@dataclass(frozen=True, slots=True)
class Alert:
    """An agent's alert. `since_ms` is when it was raised or cleared last."""

    raised: bool
    since_ms: int
    calm_since_ms: int | None = None
    """While raised: since when the rate is low enough to clear it."""


def judge(alert: Alert, counts: Counts, now_ms: int, rule: AlertRule) -> Alert:
    """The alert after a look at the counts."""
    if not alert.raised:
        if counts.calls >= rule.calls_min and counts.error_rate > rule.threshold:
            return Alert(raised=True, since_ms=now_ms)
        return alert
    if counts.error_rate > rule.clear_at:
        return replace(alert, calm_since_ms=None)
    # A clock that was set back must not stretch the hold.
    calm_since_ms = now_ms if alert.calm_since_ms is None else min(alert.calm_since_ms, now_ms)
    if now_ms - calm_since_ms >= rule.hold_ms:
        return Alert(raised=False, since_ms=now_ms)
    return replace(alert, calm_since_ms=calm_since_ms)
