"""The engine's metrics. Names end in their unit; labels are few and bounded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sagalog.engine.kernel.effects import Called, Finished, Ignored, Moved
from sagalog.schemas.commands import Withheld

from .health import Health

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PARTITION = ("topic", "partition")


class EngineMetrics(Collector):
    """One engine process's. The hot path counts in plain integers; they go into the metrics when somebody collects those."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self._counts: dict[tuple[Counter, tuple[str, ...]], int] = {}
        r.register(self)  # first, so that its `collect` comes before that of the metrics it fills
        self._events = Counter("sagalog_events_folded_total", "Events folded", ["partition"], registry=r)
        self._ignored = Counter(
            "sagalog_events_ignored_total", "Events that changed nothing, by reason", ["reason"], registry=r
        )
        self.quarantined = Counter(
            "sagalog_records_quarantined_total", "Records that could not be read or folded", ["stage"], registry=r
        )
        self.commands = Counter("sagalog_commands_sent_total", "Commands sent to agents", registry=r)
        self.unsendable = Counter("sagalog_commands_unsendable_total", "Commands that could not be encoded", registry=r)
        self._calls = Counter("sagalog_attempts_total", "Attempts that ended", ["agent", "result"], registry=r)
        self._workflows = Counter(
            "sagalog_workflows_finished_total", "Workflows that ended", ["name", "status"], registry=r
        )
        self._compensations = Counter("sagalog_compensations_total", "Undoings that ended", ["status"], registry=r)
        self.timers = Counter("sagalog_timers_fired_total", "Timer events appended", registry=r)
        self.lost = Counter("sagalog_attempts_lost_total", "Attempts that nobody answered", registry=r)
        self.snapshots = Counter("sagalog_snapshots_total", "Snapshot transactions", ["result"], registry=r)
        self.snapshot_seconds = Histogram(
            "sagalog_snapshot_duration_seconds", "From the cut to the commit", buckets=_SECONDS, registry=r
        )
        self.snapshot_records = Counter("sagalog_snapshot_records_total", "Checkpoints written", registry=r)
        self.takeover_seconds = Histogram(
            "sagalog_takeover_duration_seconds", "From the assignment to live", buckets=_SECONDS, registry=r
        )
        self.partitions = Gauge("sagalog_partitions", "Partitions, by phase", ["phase"], registry=r)
        self.applied = Gauge("sagalog_applied_offset", "Last applied offset", ["topic", "partition"], registry=r)
        self.health: Health | None = None
        """Of the engine whose metrics these are."""
        self.open = Gauge("sagalog_workflows_in_memory", "Workflows known, stubs included", ["partition"], registry=r)
        self.withheld = Gauge("sagalog_commands_withheld", "Commands that wait at the gate", ["partition"], registry=r)
        self.withheld_by_reason = Gauge(
            "sagalog_commands_withheld_by_reason",
            "The same, by what they wait for",
            ["partition", "reason"],
            registry=r,
        )
        self.attempts_out = Gauge("sagalog_attempts_out", "Attempts that wait for an answer", ["partition"], registry=r)
        self.pending = Gauge("sagalog_records_pending", "Records sent and not acknowledged", registry=r)
        self.circuit = Gauge("sagalog_circuit_state", "0 closed, 1 half open, 2 open", ["service"], registry=r)
        self.sessions = Counter("sagalog_engine_sessions_total", "Times the engine connected anew", registry=r)
        self._attempt_seconds = _Durations(
            "sagalog_attempt_duration_seconds", "An attempt, as its agent measured it", "agent", r
        )
        self._withheld_seconds = _Durations(
            "sagalog_command_withheld_duration_seconds", "How long a command that went out had waited", "reason", r
        )
        self._workflow_seconds = _Durations("sagalog_workflow_duration_seconds", "From start to end", "name", r)

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Called before the other metrics are collected: what was counted since goes into them.

        Gives what the health says at this moment, so that it is told, too, when the engine's loop hangs.
        """
        counts, self._counts = self._counts, {}
        for (counter, labels), count in counts.items():
            (counter.labels(*labels) if labels else counter).inc(count)
        lag = GaugeMetricFamily("sagalog_partition_lag_records", "Records not applied yet", labels=_PARTITION)
        stuck = GaugeMetricFamily(
            "sagalog_partition_stuck_seconds",
            "Since when it has something to do and does not advance",
            labels=_PARTITION,
        )
        for topic, partition, lag_records, still_ms in self.health.figures() if self.health is not None else ():
            lag.add_metric((topic, str(partition)), lag_records)
            stuck.add_metric((topic, str(partition)), still_ms / 1000)
        return iter((lag, stuck))

    def _count(self, counter: Counter, labels: tuple[str, ...], count: int = 1) -> None:
        key = (counter, labels)
        self._counts[key] = self._counts.get(key, 0) + count

    def folded(self, partition: int, count: int) -> None:
        self._count(self._events, (str(partition),), count)

    def commands_sent(self, count: int) -> None:
        self._count(self.commands, (), count)

    def ignored(self, effect: Ignored) -> None:
        self._count(self._ignored, (effect.reason.value,))

    def undone(self, effect: Moved) -> None:
        if effect.after in ("done", "failed"):
            self._count(self._compensations, (effect.after,))

    def called(self, effect: Called) -> None:
        self._count(self._calls, (effect.agent, "ok" if effect.ok else "failed"))
        self._attempt_seconds.observe(effect.agent, effect.duration_ms / 1000)

    def released(self, withheld: Withheld) -> None:
        self._withheld_seconds.observe(withheld.reason, withheld.ms / 1000)

    def finished(self, effect: Finished) -> None:
        result = effect.result
        # A rejected start may carry any name; labels must stay few.
        name = result["name"] if result["status"] != "rejected" else "-"
        self._count(self._workflows, (name, str(result["status"])))
        self._workflow_seconds.observe(name, (result["finished_ms"] - result["started_ms"]) / 1000)


class _Durations(Collector):
    """A histogram by one label. prometheus_client's own takes a lock and a label lookup at every observation (3 us of 90)."""

    def __init__(self, name: str, documentation: str, label: str, registry: CollectorRegistry) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._documentation, labels=[self._label])

    def observe(self, label: str, seconds: float) -> None:
        buckets = self._buckets.get(label)
        if buckets is None:
            buckets = self._buckets[label] = [0] * (len(_SECONDS) + 1)
            self._sums[label] = 0.0
        buckets[bisect_left(_SECONDS, seconds)] += 1
        self._sums[label] += seconds

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=[self._label])
        for label, buckets in self._buckets.items():
            bounds = [*map(str, _SECONDS), "+Inf"]
            family.add_metric([label], list(zip(bounds, accumulate(buckets), strict=True)), self._sums[label])
        yield family
