"""What an agent's host counts. Children are looked up once per host and kept: a lookup by labels costs more than the count."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from sagalog.schemas.events import FailureKind
from sagalog.schemas.ids import Direction

COMPLETED: Final = "completed"


class Durations(Histogram):
    """A histogram that takes many equal observations at once: each call takes two locks and looks at every bucket."""

    def observe_times(self, amount: float, times: int) -> None:
        self._sum.inc(amount * times)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(times)


_COMMANDS = Counter(
    "sagalog_agent_commands",
    "Commands answered; result is completed, or the kind of the failure.",
    ["agent", "direction", "result"],
)
_RUNNING = Gauge("sagalog_agent_running", "Commands whose handler runs now.", ["agent"])
_DURATION = Durations(
    "sagalog_agent_duration_seconds",
    "From a handler's start to its answer.",
    ["agent", "direction"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600, 3600),
)
_REDELIVERED = Counter(
    "sagalog_agent_redelivered", "Commands that came again while they were running or after their answer.", ["agent"]
)
_QUARANTINED = Counter("sagalog_agent_quarantined", "Records that are no command of this agent.", ["agent"])
_HEARTBEATS = Counter("sagalog_agent_heartbeats", "Heartbeats sent.", ["agent"])


@dataclass(frozen=True, slots=True)
class AgentMetrics:
    """One agent's children."""

    commands: dict[tuple[Direction, str], Counter]
    duration: dict[Direction, Durations]
    running: Gauge
    redelivered: Counter
    quarantined: Counter
    heartbeats: Counter

    @classmethod
    def of(cls, agent: str) -> AgentMetrics:
        results = [COMPLETED, *(kind.value for kind in FailureKind)]
        return cls(
            {
                (direction, result): _COMMANDS.labels(agent, direction.value, result)
                for direction in Direction
                for result in results
            },
            {direction: _DURATION.labels(agent, direction.value) for direction in Direction},
            _RUNNING.labels(agent),
            _REDELIVERED.labels(agent),
            _QUARANTINED.labels(agent),
            _HEARTBEATS.labels(agent),
        )
