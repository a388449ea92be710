"""The engine's metrics. Names end in their unit; labels are few and bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sagalog.engine.kernel.effects import Called, Finished, Ignored, Moved

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class EngineMetrics:
    """One engine process's. Children of labelled metrics are kept, so that the hot path looks up no labels."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
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
        self._attempt_seconds = Histogram(
            "sagalog_attempt_duration_seconds",
            "An attempt, as its agent measured it",
            ["agent"],
            buckets=_SECONDS,
            registry=r,
        )
        self._workflows = Counter(
            "sagalog_workflows_finished_total", "Workflows that ended", ["name", "status"], registry=r
        )
        self._workflow_seconds = Histogram(
            "sagalog_workflow_duration_seconds", "From start to end", ["name"], buckets=_SECONDS, registry=r
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
        self.open = Gauge("sagalog_workflows_in_memory", "Workflows known, stubs included", ["partition"], registry=r)
        self.withheld = Gauge("sagalog_commands_withheld", "Commands that wait at the gate", ["partition"], registry=r)
        self.attempts_out = Gauge("sagalog_attempts_out", "Attempts that wait for an answer", ["partition"], registry=r)
        self.pending = Gauge("sagalog_records_pending", "Records sent and not acknowledged", registry=r)
        self.circuit = Gauge("sagalog_circuit_state", "0 closed, 1 half open, 2 open", ["service"], registry=r)
        self.sessions = Counter("sagalog_engine_sessions_total", "Times the engine connected anew", registry=r)
        self._folded: dict[int, Counter] = {}
        self._reasons: dict[str, Counter] = {}
        self._results: dict[tuple[str, bool], Counter] = {}
        self._durations: dict[str, Histogram] = {}

    def folded(self, partition: int, count: int) -> None:
        child = self._folded.get(partition)
        if child is None:
            child = self._folded[partition] = self._events.labels(str(partition))
        child.inc(count)

    def ignored(self, effect: Ignored) -> None:
        child = self._reasons.get(effect.reason)
        if child is None:
            child = self._reasons[effect.reason] = self._ignored.labels(effect.reason.value)
        child.inc()

    def moved(self, effect: Moved) -> None:
        if effect.undo and effect.after in ("done", "failed"):
            self._compensations.labels(effect.after).inc()

    def called(self, effect: Called) -> None:
        key = (effect.agent, effect.ok)
        child = self._results.get(key)
        if child is None:
            child = self._results[key] = self._calls.labels(effect.agent, "ok" if effect.ok else "failed")
            self._durations.setdefault(effect.agent, self._attempt_seconds.labels(effect.agent))
        child.inc()
        self._durations[effect.agent].observe(effect.duration_ms / 1000)

    def finished(self, effect: Finished) -> None:
        result = effect.result
        # A rejected start may carry any name; labels must stay few.
        name = result["name"] if result["status"] != "rejected" else "-"
        self._workflows.labels(name, str(result["status"])).inc()
        self._workflow_seconds.labels(name).observe((result["finished_ms"] - result["started_ms"]) / 1000)
