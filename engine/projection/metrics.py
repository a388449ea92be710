"""The projector's metrics. Names end in their unit; labels are few and bounded."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from sagalog.topics.log import TopicPartition

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ProjectionMetrics:
    """One projector process's."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = r = registry or CollectorRegistry()
        self.records = Counter("sagalog_projection_records_total", "Records applied", registry=r)
        self.rows = Counter("sagalog_projection_rows_total", "Rows written", ["table"], registry=r)
        self.batch_seconds = Histogram(
            "sagalog_projection_batch_duration_seconds", "One transaction", buckets=_SECONDS, registry=r
        )
        self._lag = Gauge("sagalog_projection_lag_records", "Records not applied yet", ["topic"], registry=r)
        self.reconnects = Counter(
            "sagalog_projection_reconnects_total",
            "Times the projector started over, by what failed",
            ["what"],
            registry=r,
        )
        self.quarantined = Counter(
            "sagalog_projection_quarantined_total", "Records that could not be projected", ["topic"], registry=r
        )
        self.altered = Counter(
            "sagalog_projection_altered_total", "Records with NULs, projected with U+FFFD", ["topic"], registry=r
        )
        self.stale = Counter(
            "sagalog_projection_stale_total", "Batches rolled back because another projector had moved on", registry=r
        )
        self.connected = Gauge(
            "sagalog_projection_connected", "1 while projecting, 0 while trying to connect", registry=r
        )

    def lag(self, lags: Mapping[TopicPartition, int]) -> None:
        """Sets the lag of the partitions that this projector has, summed per topic."""
        totals: dict[str, int] = {}
        for partition, records in lags.items():
            totals[partition.topic] = totals.get(partition.topic, 0) + records
        # A topic whose partitions went to another projector must not go on showing its last lag.
        self._lag.clear()
        for topic, records in totals.items():
            self._lag.labels(topic).set(records)
