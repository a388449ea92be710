"""Every topic, declared once. Provisioning, checks and documentation come from here.

Rule: all topics that are keyed by workflow have the same number of partitions and the same partitioner (Kafka's murmur2), so
that a workflow's records lie in the same partition everywhere; engine and agents then never hash a key.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sagalog.schemas.ids import check_name
from sagalog.schemas.limits import RECORD_BYTES_MAX

DAY_MS: Final = 24 * 3600 * 1000
OUTCOME_PARTITIONS_MAX: Final = 2
"""Circuits are few and their records are aggregates; more partitions would only add processors."""
PARTITIONS_MAX: Final = 1_000


class Keyed(StrEnum):
    """What a topic's key is, which decides its number of partitions."""

    WORKFLOW = "workflow"
    SERVICE = "service"
    ONE = "one"
    """One partition: few records, read whole."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic. `name` is without the prefix; `config` is what the check compares."""

    name: str
    keyed: Keyed
    holds: str
    config: dict[str, str] = field(default_factory=dict)

    def partitions(self, workflow_partitions: int) -> int:
        match self.keyed:
            case Keyed.WORKFLOW:
                return workflow_partitions
            case Keyed.SERVICE:
                return min(workflow_partitions, OUTCOME_PARTITIONS_MAX)
            case Keyed.ONE:
                return 1


def _delete(days: int, **more: str) -> dict[str, str]:
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(days * DAY_MS),
        "max.message.bytes": str(RECORD_BYTES_MAX + 48_576),
        **{key.replace("_", "."): value for key, value in more.items()},
    }


def _compact(**more: str) -> dict[str, str]:
    return {
        "cleanup.policy": "compact",
        "max.message.bytes": str(RECORD_BYTES_MAX + 48_576),
        # Readers of a whole partition pay for every superseded record: compact early, in small segments.
        "min.cleanable.dirty.ratio": "0.1",
        "segment.bytes": str(64 * 1024 * 1024),
        **{key.replace("_", "."): value for key, value in more.items()},
    }


# The fold reads time from the log: the broker's clock at the append, not the writer's.
_APPEND_TIME: Final = "LogAppendTime"

EVENTS: Final = TopicSpec(
    "events", Keyed.WORKFLOW, "every input of every workflow", _delete(365, message_timestamp_type=_APPEND_TIME)
)
CHECKPOINTS: Final = TopicSpec("checkpoints", Keyed.WORKFLOW, "the fold's state at an offset", _compact())
OUTCOMES: Final = TopicSpec(
    "outcomes", Keyed.SERVICE, "aggregated call outcomes", _delete(7, message_timestamp_type=_APPEND_TIME)
)
CIRCUITS: Final = TopicSpec("circuits", Keyed.SERVICE, "circuit state per external service", _compact())
RESULTS: Final = TopicSpec("results", Keyed.WORKFLOW, "how workflows ended", _delete(365))
HEARTBEATS: Final = TopicSpec("heartbeats", Keyed.WORKFLOW, "progress of long attempts", _delete(1))
DEAD_LETTERS: Final = TopicSpec("dead-letters", Keyed.WORKFLOW, "commands that failed for good", _delete(365))
REVIEWS: Final = TopicSpec("reviews", Keyed.WORKFLOW, "work that waits for a person", _delete(365))
QUARANTINE: Final = TopicSpec("quarantine", Keyed.ONE, "records that could not be decoded or folded", _delete(365))
HEALTH: Final = TopicSpec("health", Keyed.ONE, "windowed health per agent", _compact())
DEFINITIONS: Final = TopicSpec("definitions", Keyed.ONE, "every registered definition, by hash", _compact())

FIXED: Final = (
    EVENTS,
    CHECKPOINTS,
    OUTCOMES,
    CIRCUITS,
    RESULTS,
    HEARTBEATS,
    DEAD_LETTERS,
    REVIEWS,
    QUARANTINE,
    HEALTH,
    DEFINITIONS,
)


def commands(agent: str) -> TopicSpec:
    """The command topic of one agent."""
    return TopicSpec(
        f"commands.{check_name(agent, 'agent')}", Keyed.WORKFLOW, f"commands for the agent {agent}", _delete(7)
    )


@dataclass(frozen=True, slots=True)
class Topics:
    """The full names of the topics under one prefix."""

    prefix: str

    def name(self, spec: TopicSpec) -> str:
        return f"{self.prefix}.{spec.name}"

    def commands(self, agent: str) -> str:
        return f"{self.prefix}.commands.{agent}"

    @property
    def events(self) -> str:
        return self.name(EVENTS)

    @property
    def checkpoints(self) -> str:
        return self.name(CHECKPOINTS)

    @property
    def outcomes(self) -> str:
        return self.name(OUTCOMES)

    @property
    def circuits(self) -> str:
        return self.name(CIRCUITS)

    @property
    def results(self) -> str:
        return self.name(RESULTS)

    @property
    def heartbeats(self) -> str:
        return self.name(HEARTBEATS)

    @property
    def dead_letters(self) -> str:
        return self.name(DEAD_LETTERS)

    @property
    def reviews(self) -> str:
        return self.name(REVIEWS)

    @property
    def quarantine(self) -> str:
        return self.name(QUARANTINE)

    @property
    def health(self) -> str:
        return self.name(HEALTH)

    @property
    def definitions(self) -> str:
        return self.name(DEFINITIONS)

    # Consumer groups
    @property
    def engine_group(self) -> str:
        return f"{self.prefix}-engine"

    @property
    def projector_group(self) -> str:
        return f"{self.prefix}-projector"

    def agent_group(self, agent: str) -> str:
        return f"{self.prefix}-agent-{agent}"

    def engine_transactional_id(self, partition: int) -> str:
        return f"{self.prefix}-engine-{partition}"

    def circuits_transactional_id(self, partition: int) -> str:
        return f"{self.prefix}-circuits-{partition}"


def all_specs(agents: Iterable[str] = ()) -> list[TopicSpec]:
    """The fixed topics and those of the agents named."""
    return [*FIXED, *(commands(agent) for agent in sorted(set(agents)))]
