"""The watch's metrics. Names end in their unit; labels are few and bounded."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from sagalog.engine.watch.outcomes import Finished
from sagalog.schemas.records import HealthRecord


class WatchMetrics:
    """One watch process's. Of several watches only the one that watches shows agents."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = r = registry or CollectorRegistry()
        self._alert = Gauge("sagalog_watch_alert", "1 while an agent's alert is raised", ["agent"], registry=r)
        self._error_rate = Gauge(
            "sagalog_watch_error_rate", "Failed calls over all calls in the window", ["agent"], registry=r
        )
        self._calls = Gauge("sagalog_watch_calls", "Calls in the window", ["agent", "result"], registry=r)
        self._finished = Counter(
            "sagalog_watch_workflows_finished_total", "Workflows that ended", ["name", "status"], registry=r
        )
        self.records = Counter(
            "sagalog_watch_records_total",
            "Records read, by what became of them: counted, repeated, other, unreadable, uncounted",
            ["topic", "result"],
            registry=r,
        )
        self.written = Counter("sagalog_watch_health_records_total", "Health records", ["result"], registry=r)
        self.sessions = Counter("sagalog_watch_sessions_total", "Times the watch connected anew", registry=r)
        self.watching = Gauge("sagalog_watch_watching", "1 while this process is the one that watches", registry=r)

    def show(self, records: Iterable[HealthRecord]) -> None:
        for record in records:
            self._alert.labels(record["agent"]).set(record["alert"])
            self._error_rate.labels(record["agent"]).set(record["error_rate"])
            for result in ("ok", "failed"):
                self._calls.labels(record["agent"], result).set(record["ok"] if result == "ok" else record["failed"])

    def forget(self, agents: Iterable[str]) -> None:
        for agent in agents:
            self._alert.remove(agent)
            self._error_rate.remove(agent)
            for result in ("ok", "failed"):
                self._calls.remove(agent, result)

    def forget_all(self) -> None:
        """Another process may watch now: two must not show the same agents."""
        for gauge in (self._alert, self._error_rate, self._calls):
            gauge.clear()

    def finished(self, finished: Finished) -> None:
        # A rejected start may carry any name; labels must stay few.
        name = finished.name if finished.status != "rejected" else "-"
        self._finished.labels(name, finished.status).inc()
