"""The sizing model: from what a step costs to how many partitions, processes and bytes a load needs.

Pure; `size` measures.

Rule: every figure is either a measured cost (`Costs`, which says where it is from) or one of the named constants here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sagalog.schemas.limits import REMEMBER_MS
from sagalog.topics import specs
from sagalog.topics.specs import DAY_MS, PARTITIONS_MAX, TopicSpec

DAY_SECONDS: Final = 86_400
BUSY_SHARE_MAX: Final = 0.6
"""How busy a process may be at the peak: the rest is for take-overs, compaction, and what the peak factor did not foresee."""
PARTITIONS_PER_ENGINE: Final = 4
"""The number of partitions stays, so this is how many times as many engines there can be later."""
PARTITIONS_MIN: Final = 8
LOAD_SECONDS_MAX: Final = 10
"""How long a partition may load its checkpoints at a take-over."""
ROUND_COUNTS: Final = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, PARTITIONS_MAX)
REMEMBERED_DAYS: Final = REMEMBER_MS / DAY_MS
GIB: Final = 2**30
LOGS: Final = ("events", "commands", "checkpoints", "results")


@dataclass(frozen=True, slots=True)
class Linear:
    """A cost that grows with the payload: `base` and `per_byte` of it."""

    base: float
    per_byte: float = 0.0

    def at(self, payload_bytes: int) -> float:
        return self.base + self.per_byte * payload_bytes

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> Linear:
        """The line through two measured points (payload in bytes, cost). One that falls is noise: then the mean, flat."""
        slope = (large[1] - small[1]) / (large[0] - small[0])
        if slope <= 0:
            return cls((small[1] + large[1]) / 2)
        return cls(small[1] - slope * small[0], slope)


@dataclass(frozen=True, slots=True)
class Costs:
    """What is needed for one step, event or workflow. Times are microseconds of a processor, sizes bytes in the log of one replica.

    An event is a start or a step's answer, so a workflow of n steps has n + 1. Checkpoints are per step, as written.
    """

    source: str
    engine_us_per_step: Linear
    agent_us_per_step: Linear
    """The host's own; the handler's work comes on top."""
    broker_us_per_step: Linear
    """With one replica."""
    bytes_per_event: Linear
    command_bytes_per_step: Linear
    checkpoint_bytes_per_step: Linear
    result_bytes_per_workflow: Linear
    stub_bytes: float
    """What compaction leaves of a finished workflow for as long as its id is remembered."""
    memory_bytes_per_idle_workflow: float
    memory_bytes_per_stub: float
    load_us_per_workflow: float
    """Of a take-over: time to read one checkpoint."""

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Costs:
        """Raises ValueError when a field is missing, unknown or of another kind."""
        try:
            fields: dict[str, Any] = {
                key: Linear(**value) if isinstance(value, dict) else value for key, value in document.items()
            }
            return cls(**fields)
        except TypeError as error:
            raise ValueError(
                f"not a file of costs ({error}); write a new one with: scripts/bench size --measure"
            ) from None


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for. `peak` is the busiest second over the average; `open_hours` how long a workflow is open on average."""

    workflows_per_day: int
    steps: int = 4
    payload_bytes: int = 500
    peak: float = 3.0
    open_hours: float = 1.0
    replication: int = 3
    engine_memory_gib: float = 4.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is needed. Cores are those that are busy at the peak; processes leave BUSY_SHARE_MAX of a core each."""

    peak_steps_per_second: float
    engine_cores: float
    engines: int
    engines_limited_by: str
    """`processor` or `memory`."""
    agent_cores: float
    hosts: int
    broker_cores: float
    partitions: int
    partitions_wanted: int
    """More than `partitions`: one prefix has not enough; see docs/sizing.md."""
    load_seconds_per_partition: float
    engine_memory_gib: float
    """Of all engines together: open workflows, and the ids of finished ones."""
    written_gib_per_day: Mapping[str, float]
    """Per topic, all replicas, before compaction."""
    written_gib_per_day_in_all: float
    kept_gib: Mapping[str, float]
    """Per topic, all replicas, once the retention is reached."""
    kept_gib_in_all: float


def plan(demand: Demand, costs: Costs) -> Plan:
    """Sizes a system for the peak of a demand."""
    payload = demand.payload_bytes
    per_second = demand.workflows_per_day * demand.steps / DAY_SECONDS * demand.peak
    engine, agent, broker = (
        per_second * cost.at(payload) / 1e6
        for cost in (costs.engine_us_per_step, costs.agent_us_per_step, costs.broker_us_per_step)
    )
    opened = demand.workflows_per_day * demand.open_hours / 24
    remembered = demand.workflows_per_day * REMEMBERED_DAYS
    memory = (opened * costs.memory_bytes_per_idle_workflow + remembered * costs.memory_bytes_per_stub) / GIB
    by_processor = _processes(engine)
    by_memory = max(1, math.ceil(memory / demand.engine_memory_gib))
    engines = max(by_processor, by_memory)
    load_seconds = (opened + remembered) * costs.load_us_per_workflow / 1e6
    wanted = max(PARTITIONS_MIN, PARTITIONS_PER_ENGINE * engines, math.ceil(load_seconds / LOAD_SECONDS_MAX))
    partitions = next((count for count in ROUND_COUNTS if count >= wanted), PARTITIONS_MAX)
    written = {
        topic: size * demand.workflows_per_day * demand.replication / GIB
        for topic, size in bytes_per_workflow(demand.steps, payload, costs).items()
    }
    kept = {topic: written[topic] * _kept_days(spec) for topic, spec in _SPECS.items()}
    kept["checkpoints"] = _checkpoints_kept(demand, costs, opened, remembered)
    return Plan(
        peak_steps_per_second=per_second,
        engine_cores=engine,
        engines=engines,
        engines_limited_by="memory" if by_memory > by_processor else "processor",
        agent_cores=agent,
        hosts=_processes(agent),
        # A follower appends and the leader serves it: at most as much again as the leader's own work.
        broker_cores=broker * demand.replication,
        partitions=partitions,
        partitions_wanted=wanted,
        load_seconds_per_partition=load_seconds / partitions,
        engine_memory_gib=memory,
        written_gib_per_day=written,
        written_gib_per_day_in_all=sum(written.values()),
        kept_gib=kept,
        kept_gib_in_all=sum(kept.values()),
    )


_SPECS: Final = {"events": specs.EVENTS, "commands": specs.commands("any"), "results": specs.RESULTS}


def bytes_per_workflow(steps: int, payload_bytes: int, costs: Costs) -> dict[str, float]:
    """What one workflow writes into each topic, one replica, before compaction."""
    return {
        "events": (steps + 1) * costs.bytes_per_event.at(payload_bytes),
        "commands": steps * costs.command_bytes_per_step.at(payload_bytes),
        "checkpoints": steps * costs.checkpoint_bytes_per_step.at(payload_bytes),
        "results": costs.result_bytes_per_workflow.at(payload_bytes),
    }


def _processes(cores: float) -> int:
    return max(1, math.ceil(cores / BUSY_SHARE_MAX))


def _kept_days(spec: TopicSpec) -> float:
    return int(spec.config["retention.ms"]) / DAY_MS


def _checkpoints_kept(demand: Demand, costs: Costs, opened: float, remembered: float) -> float:
    """What compaction leaves: one record for each open workflow and each remembered id."""
    open_bytes = opened * costs.checkpoint_bytes_per_step.at(demand.payload_bytes)
    return (open_bytes + remembered * costs.stub_bytes) * demand.replication / GIB
