"""`bench start`: seconds until the embedded servers answer, on an empty directory, with the jars in the cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.report import Figure, Report
from sagalog.infra.embedded.stack import EmbeddedStack


def start(runs: int, environment: Mapping[str, Any], progress: Callable[[str], None]) -> Report:
    """Each run starts Kafka alone, PostgreSQL alone, and both; formatting and initdb are in it."""
    seconds: dict[str, list[float]] = {"kafka_ready": [], "postgres_ready": [], "both_ready": []}
    for run in range(1, runs + 1):
        for name, (kafka, postgres) in zip(seconds, ((True, False), (False, True), (True, True)), strict=True):
            began = time.monotonic()
            with EmbeddedStack(kafka=kafka, postgres=postgres):
                seconds[name].append(time.monotonic() - began)
        progress(f"start {run}/{runs}: " + ", ".join(f"{name} {values[-1]:.1f} s" for name, values in seconds.items()))
    figures = {name: Figure("s", values) for name, values in seconds.items()}
    return Report("start", environment, runs, figures, {}, ("Target: kafka_ready at most 5 s.",))
