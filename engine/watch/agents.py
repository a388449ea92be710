"""What the watch knows: a window and an alert per agent, and how far each source has been counted.

Pure but for metrics: records and the time come in, health records and changed alerts come out. One thread.

Rules:
- An outcome that was sent again (same service and source partition, `at_offset` not above the newest counted) counts once. What
  is known of that is bounded: SOURCES_MAX, the one least recently heard of goes first; a start learns it from the records that
  it reads again (see `positions`).
- The time of a call is the broker's time of its record, but never later than now: a broker whose clock is ahead must not
  put calls where they count for ever.
- A health record is written when the counts or the alert changed, and again every REFRESH_MS for as long as there is
  something to say. An agent without calls and alert gets one record of zeros and is forgotten.
- A record counts as written only when the broker has it: `written` says so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sagalog.engine.watch.outcomes import Outcome
from sagalog.engine.watch.window import Alert, AlertRule, Counts, SlidingCounts, judge
from sagalog.schemas.records import HealthRecord

SOURCES_MAX: Final = 100_000
"""(service, partition of `events`) pairs whose newest offset is remembered."""
AGENTS_MAX: Final = 1_000
"""Agents under watch at once; each has labels of its own in the metrics."""
REFRESH_MS: Final = 10_000


class TooManyAgents(ValueError):
    """An agent beyond AGENTS_MAX; its calls are not counted."""


@dataclass(slots=True)
class _Agent:
    window: SlidingCounts
    alert: Alert
    written: HealthRecord | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at all agents found."""

    health: list[HealthRecord] = field(default_factory=list)
    """To be written."""
    changed: list[HealthRecord] = field(default_factory=list)
    """Those whose alert was raised or cleared."""
    forgotten: list[str] = field(default_factory=list)
    now: dict[str, HealthRecord] = field(default_factory=dict)
    """All, for the metrics."""


class Agents:
    """All agents that had calls lately."""

    def __init__(self, window_ms: int, bucket_ms: int, rule: AlertRule) -> None:
        self._window_ms = window_ms
        self._bucket_ms = bucket_ms
        self._rule = rule
        self._agents: dict[str, _Agent] = {}
        self._counted: OrderedDict[tuple[str, int], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._agents)

    def count(self, outcome: Outcome, at_ms: int, now_ms: int) -> bool:
        """False when it was counted before. Raises TooManyAgents when some of it could not be counted."""
        source = (outcome.service, outcome.partition)
        counted = self._counted.get(source)
        if counted is not None and outcome.at_offset <= counted:
            self._counted.move_to_end(source)
            return False
        self._counted[source] = outcome.at_offset
        self._counted.move_to_end(source)
        if len(self._counted) > SOURCES_MAX:
            self._counted.popitem(last=False)
        uncounted = []
        for name, counts in outcome.agents.items():
            agent = self._agents.get(name) or self._new(Alert(raised=False, since_ms=now_ms))
            if not agent.window.add(min(at_ms, now_ms), counts.ok, counts.failed, now_ms):
                continue
            if name not in self._agents and len(self._agents) >= AGENTS_MAX:
                uncounted.append(name)
            else:
                self._agents[name] = agent
        if uncounted:
            raise TooManyAgents(
                f"more than {AGENTS_MAX} agents had calls in one window; not counted: {', '.join(uncounted[:5])}"
            )
        return True

    def restore(self, records: Iterable[HealthRecord]) -> None:
        """What an earlier watch wrote last: its raised alerts stay raised, and what it last said is corrected if it is over."""
        for record in records:
            if (record["alert"] or record["ok"] or record["failed"]) and len(self._agents) < AGENTS_MAX:
                agent = self._agents[record["agent"]] = self._new(Alert(record["alert"], record["since_ms"]))
                agent.written = record

    def look(self, now_ms: int) -> Look:
        """Judges every agent."""
        look = Look()
        for name, agent in self._agents.items():
            counts = agent.window.counts(now_ms)
            before, agent.alert = agent.alert, judge(agent.alert, counts, now_ms, self._rule)
            record = self._record(name, agent, counts, now_ms)
            look.now[name] = record
            if agent.alert.raised != before.raised:
                look.changed.append(record)
            if _is_idle(record) and agent.written is not None and _same(agent.written, record):
                look.forgotten.append(name)
            elif agent.written is None or not _same(agent.written, record) or _is_old(agent.written, now_ms):
                look.health.append(record)
        for name in look.forgotten:
            del self._agents[name], look.now[name]
        return look

    def written(self, record: HealthRecord) -> None:
        """The broker has the record."""
        agent = self._agents.get(record["agent"])
        if agent is not None:
            agent.written = record

    def _new(self, alert: Alert) -> _Agent:
        return _Agent(SlidingCounts(self._window_ms, self._bucket_ms), alert)

    def _record(self, name: str, agent: _Agent, counts: Counts, now_ms: int) -> HealthRecord:
        return {
            "agent": name,
            "at_ms": now_ms,
            "window_ms": self._window_ms,
            "ok": counts.ok,
            "failed": counts.failed,
            "error_rate": counts.error_rate,
            "alert": agent.alert.raised,
            "since_ms": agent.alert.since_ms,
        }


def _is_idle(record: HealthRecord) -> bool:
    return not (record["ok"] or record["failed"] or record["alert"])


def _is_old(written: HealthRecord, now_ms: int) -> bool:
    return abs(now_ms - written["at_ms"]) >= REFRESH_MS


def _same(one: HealthRecord, other: HealthRecord) -> bool:
    return (one["ok"], one["failed"], one["alert"], one["window_ms"]) == (
        other["ok"],
        other["failed"],
        other["alert"],
        other["window_ms"],
    )
