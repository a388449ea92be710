"""What a bench is run with, and every limit of the benches. Times are seconds, unless the name says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sagalog.engine.backlog import START_LAG_RECORDS_MAX

VARIANTS: Final = ("raw", "host", "projected")
"""Beside the engine: a bare agent loop; the typed host; the host, a projector and PostgreSQL."""
STEPS: Final = 4
"""Steps of a workflow, one after the other."""
AGENT: Final = "worker"

LATENCY_SECONDS: Final = 3.0
LATENCY_WARM_UP_SECONDS: Final = 0.5
LATENCY_SHARE: Final = 0.2
LATENCY_RATE_MIN: Final = 40
WARM_BROKER_SECONDS: Final = 2.0
SAMPLE_SECONDS: Final = 0.02
"""How often the load generator asks for the ends of the topics and tops up what is in flight."""

READY_SECONDS_MAX: Final = 60.0
STOP_SECONDS_MAX: Final = 20.0
DRAIN_SECONDS_MAX: Final = 120.0
ANSWER_SECONDS_MAX: Final = 30.0
PREPARE_SECONDS_MAX: Final = 300.0
RECOVER_SECONDS_MAX: Final = 300.0

RESULTS_CHECKED: Final = 50
"""Results read after a run, per partition: a fast engine that fails its workflows is no fast engine."""


INSTALL_SECONDS_MAX: Final = 300.0
BUILD_SECONDS_MAX: Final = 1_800.0
"""Of a Go program, from source, on two busy cores."""
REASON_CHARS_MAX: Final = 300


class Unavailable(Exception):
    """What a bench needs and does not bring cannot be had or run on this machine; the message says why, in words for the report."""


class BenchError(Exception):
    """A bench could not be run to its end; the message says why."""


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """Of `floor` and `engine`."""

    runs: int = 3
    seconds: float = 4.0
    warm_up_seconds: float = 2.0
    in_flight: int = 4_000
    partitions: int = 8
    payload_bytes: int = 500
    latency_steps_per_second: int | None = None
    """None: LATENCY_SHARE of what the slower of the two did while the broker was warmed up."""
    agents: tuple[str, ...] = ("host",)
    """Of VARIANTS: what is beside the engine, each in its turn."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Of `cluster`."""

    runs: int = 3
    partitions: int = 8
    payload_bytes: int = 500
    workflows_per_second: int = 100
    session_timeout_ms: int = 6_000


@dataclass(frozen=True, slots=True)
class OverloadSettings:
    """Of `overload`. Many steps, so that one process can attempt to start ten times what the engine can do; little in them."""

    runs: int = 1
    seconds: float = 300.0
    times: float = 10.0
    """What is offered, over the sustainable load."""
    partitions: int = 8
    steps: int = 40
    payload_bytes: int = 50
    start_lag_records_max: int = START_LAG_RECORDS_MAX
    start_wait_ms_max: int = 100


@dataclass(frozen=True, slots=True)
class TimerSettings:
    """Of `timers`."""

    runs: int = 3
    pending: int = 100_000
    due_per_second: int = 1_000
    seconds: int = 10
    partitions: int = 8


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """Of `recovery` and `takeover`."""

    runs: int = 3
    workflows: tuple[int, ...] = (20_000,)
    """How many are open: of `recovery` one number after the other, of `takeover` the first alone."""
    partitions: int = 8
    payload_bytes: int = 500
    session_timeout_ms: int = 6_000
