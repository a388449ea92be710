"""What `bench peers` is run with, and its limits. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PEERS: Final = ("dbos", "faust", "restate", "temporal")
OURS: Final = "sagalog"

TIMES_FASTER_MIN: Final = 20.0
"""The target: our steps a second, as a multiple of the fastest peer's."""
P50_SHARE_MAX: Final = 0.5
"""The target: our median latency of a workflow, as a share of the best peer's."""

PACE_WARM_UP_SECONDS: Final = 2.0
SERVER_READY_MS_MAX: Final = 60_000
SETUP_SECONDS_MAX: Final = 120.0
"""Of a database's schema, or of a deployment's registration."""
RUN_SECONDS_MAX: Final = 400.0
"""Of one run of one system, start and end included."""


@dataclass(frozen=True, slots=True)
class PeersSettings:
    """Of `peers`. `in_flight` and `workflows_per_second` are the same for all."""

    runs: int = 3
    seconds: float = 6.0
    warm_up_seconds: float = 4.0
    in_flight: int = 200
    """More than any peer needs to be busy; with 1,000 Temporal's calls ran into their time-outs on two cores."""
    partitions: int = 8
    payload_bytes: int = 500
    workflows_per_second: float = 5.0
    """The low load, under which the latency is measured: of the slowest peer's most it is less than half."""
    latency_seconds: float = 20.0
    peers: tuple[str, ...] = PEERS
