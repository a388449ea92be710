"""Whether the partitions that an engine is to own move on: the applied offset advances while the end offset does.

Pure: the engine's loop says every second what it sees (`look`), and what becomes known between two looks; answers are made from
that and the clock, by whichever thread asks.

Rules:
- A partition has something to do while it is not live, or something follows on what it has applied. It is stuck when it has had
  something to do for STUCK_MS and has not advanced.
- Only what was never reached before is an advance: a partition that is taken over again and again, and fails each time at the
  same record, does not advance. Nor does one that has failed, until the next take-over has come to a snapshot.
- Reaching no broker is not the process's fault, and what failed is begun anew without being asked: a restart helps neither. So
  `live` looks away from both, and finds a partition that stands still and nobody knows why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sagalog.infra.clock import Clock
from sagalog.infra.probes import Answer, Pulse
from sagalog.topics.log import TopicPartition

from .limits import END_UNKNOWN_MS, EVENT_REASON_CHARS_MAX, STUCK_MS, STUCK_RESTART_MS

LIVE = "live"


@dataclass(frozen=True, slots=True)
class Seen:
    """A partition at one look."""

    phase: str
    position: int
    """The offset after the last applied one."""
    loaded: int
    """Records of checkpoints read so far, by the take-over that is under way or was the last."""
    saved: bool
    """It has committed a snapshot since it was taken over."""


@dataclass(frozen=True, slots=True)
class PartitionHealth:
    """How a partition stood at the last look. Offsets are None where they are not known."""

    partition: TopicPartition
    phase: str
    applied_offset: int
    end_offset: int | None
    lag_records: int
    moved_ms: int | None
    """When it was seen to advance last (monotonic); None while it has nothing to do."""
    failure: str | None
    """Of the last take-over or owner here, until another one has come to a snapshot."""

    @property
    def name(self) -> str:
        return f"{self.partition.topic}/{self.partition.partition}"

    def still_ms(self, now_ms: int) -> int:
        """For how long it has had something to do, and has not advanced."""
        return max(0, now_ms - self.moved_ms) if self.moved_ms is not None else 0

    def why(self) -> str:
        """What it has to do still."""
        doing = (
            f"what follows on offset {self.applied_offset} is not applied, {self.lag_records:,} records"
            if self.phase == LIVE
            else f"it is not live: {self.phase.replace('_', ' ')}"
        )
        return doing if self.failure is None else f"{doing}; it failed: {self.failure}"


@dataclass(frozen=True, slots=True)
class Change:
    """A partition that has become stuck, or moves again."""

    health: PartitionHealth
    stuck: bool
    still_ms: int


@dataclass(slots=True)
class _Track:
    position: int
    loaded: int
    moved_ms: int
    failure: str | None = None
    stuck: bool = False


class Health:
    """Of one engine. `look` and what it is told belong to the engine's loop; `live`, `ready` and `partitions` to any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pulse = Pulse(clock)
        self._tracks: dict[TopicPartition, _Track] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._passed: dict[TopicPartition, int] = {}
        self._answered_ms = clock.monotonic_ms()
        """When the broker said last where the partitions end."""
        self._silence = ""
        """What it said instead."""
        self._unconnected: tuple[int, str] | None = (clock.monotonic_ms(), "it has not connected yet")
        self._shown: tuple[PartitionHealth, ...] = ()
        """Replaced as a whole, never changed: other threads read it."""

    # --- what it is told

    def disconnected(self, why: str) -> None:
        """The engine starts over. Of several causes in a row, the newest is told, and the time of the first."""
        since_ms = self._unconnected[0] if self._unconnected is not None else self._clock.monotonic_ms()
        self._unconnected = (since_ms, why[:EVENT_REASON_CHARS_MAX])
        for partition in self._tracks:
            self.failed(partition, why)

    def ended_at(self, ends: Mapping[TopicPartition, int], passed: Mapping[TopicPartition, int]) -> None:
        """Where the log ends now. `passed`: what is read next, where that is known: it passes over what is a record to nobody."""
        self._ends, self._passed = dict(ends), dict(passed)
        self._answered_ms = self._clock.monotonic_ms()
        self._silence = ""

    def unanswered(self, why: str) -> None:
        """The broker does not say where the log ends."""
        self._silence = why[:EVENT_REASON_CHARS_MAX]

    def failed(self, partition: TopicPartition, why: str) -> None:
        """What was done for the partition is thrown away and begun anew."""
        track = self._tracks.get(partition)
        if track is not None:
            track.failure = why[:EVENT_REASON_CHARS_MAX]

    def look(self, seen: Mapping[TopicPartition, Seen] | None) -> list[Change]:
        """Takes note of the partitions that the engine is to own, and returns those that became stuck or move again.

        None: the group has not told it yet, so it counts as not connected. Those that it had are kept: they do not move.
        """
        now_ms = self._clock.monotonic_ms()
        self._pulse.beat()
        if seen is not None:
            self._connected(now_ms)
            for partition in self._tracks.keys() - seen.keys():
                del self._tracks[partition]
        elif self._unconnected is None:
            self._unconnected = (now_ms, "it starts over")
        seen = seen or {}
        for partition, found in seen.items():
            if partition not in self._tracks:
                self._tracks[partition] = _Track(found.position, found.loaded, now_ms)
        shown, changes = [], []
        for partition, track in sorted(self._tracks.items()):
            health = self._follow(partition, track, seen.get(partition), now_ms)
            shown.append(health)
            still_ms = health.still_ms(now_ms)
            if (still_ms >= STUCK_MS) is not track.stuck:
                track.stuck = not track.stuck
                changes.append(Change(health, track.stuck, still_ms))
        self._shown = tuple(shown)
        return changes

    def _connected(self, now_ms: int) -> None:
        if self._unconnected is not None:
            self._unconnected = None
            self._answered_ms = now_ms

    def _follow(self, partition: TopicPartition, track: _Track, seen: Seen | None, now_ms: int) -> PartitionHealth:
        end = self._ends.get(partition)
        phase = seen.phase if seen is not None else "not connected"
        position = seen.position if seen is not None else track.position
        lag = max(0, end - max(position, self._passed.get(partition, 0))) if end is not None else 0
        if seen is not None and seen.phase == LIVE and seen.saved:
            track.failure = None
        busy = phase != LIVE or lag > 0 or track.failure is not None
        if not busy or (track.failure is None and seen is not None and _advanced(track, seen)):
            track.moved_ms = now_ms
        if seen is not None:
            track.position, track.loaded = max(track.position, seen.position), max(track.loaded, seen.loaded)
        return PartitionHealth(
            partition, phase, position - 1, end, lag, track.moved_ms if busy else None, track.failure
        )

    # --- what it says, to any thread

    def partitions(self) -> tuple[PartitionHealth, ...]:
        """As they stood at the last look."""
        return self._shown

    def figures(self) -> Iterator[tuple[str, int, int, int]]:
        """Topic, partition, records not applied yet, and for how many milliseconds it has not advanced (0: it does, or is idle)."""
        now_ms = self._clock.monotonic_ms()
        for found in self._shown:
            yield *found.partition, found.lag_records, found.still_ms(now_ms)

    def live(self) -> Answer:
        """Not ok when the loop does not turn, or a partition has stood still for STUCK_RESTART_MS without a known cause."""
        now_ms = self._clock.monotonic_ms()
        reached = self._unconnected is None and now_ms - self._answered_ms < END_UNKNOWN_MS
        hung = [
            self._problem(found, now_ms)
            for found in self._shown
            if reached and found.failure is None and found.still_ms(now_ms) >= STUCK_RESTART_MS
        ]
        problems = [*self._loop_problems(), *hung]
        return Answer(not problems, {"problems": problems})

    def ready(self) -> Answer:
        """Ok when the engine is connected, and all partitions that it is to own are live and none of them is stuck."""
        now_ms = self._clock.monotonic_ms()
        problems = self._loop_problems()
        unconnected = self._unconnected
        if unconnected is not None:
            since_ms, why = unconnected
            problems.append({"since_s": (now_ms - since_ms) / 1000, "why": f"the engine is not connected: {why}"})
        elif now_ms - self._answered_ms >= END_UNKNOWN_MS:
            why = f"the broker does not say where the log ends: {self._silence or 'no answer'}"
            problems.append({"since_s": (now_ms - self._answered_ms) / 1000, "why": why})
        shown = self._shown
        problems += [
            self._problem(found, now_ms) for found in shown if found.phase != LIVE or found.still_ms(now_ms) >= STUCK_MS
        ]
        return Answer(not problems, {"problems": problems, "partitions": [_told(found, now_ms) for found in shown]})

    def _loop_problems(self) -> list[dict[str, Any]]:
        problem = self._pulse.problem()
        return [problem] if problem is not None else []

    @staticmethod
    def _problem(found: PartitionHealth, now_ms: int) -> dict[str, Any]:
        return {"partition": found.name, "since_s": found.still_ms(now_ms) / 1000, "why": found.why()}


def _advanced(track: _Track, seen: Seen) -> bool:
    return seen.position > track.position or seen.loaded > track.loaded


def _told(found: PartitionHealth, now_ms: int) -> dict[str, Any]:
    return {
        "partition": found.name,
        "phase": found.phase,
        "applied_offset": found.applied_offset,
        "end_offset": found.end_offset,
        "lag_records": found.lag_records,
        "still_s": found.still_ms(now_ms) / 1000,
    }
