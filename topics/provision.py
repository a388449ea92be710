"""Makes the topics that are missing and refuses those that do not fit. Running it again changes nothing."""

from __future__ import annotations

from collections.abc import Iterable

from sagalog.schemas.errors import SagalogError

from .log import Log, TopicDescription
from .specs import PARTITIONS_MAX, Topics, TopicSpec

CHECKED = ("cleanup.policy", "message.timestamp.type")
"""Configuration that decides over correctness; the rest (retention, segment sizes) is the operator's to change."""


class TopicMismatch(SagalogError):
    """A topic exists but cannot be used as it is."""


MIN_INSYNC = "min.insync.replicas"


async def provision(
    log: Log,
    topics: Topics,
    specs: Iterable[TopicSpec],
    *,
    partitions: int,
    replication: int,
    min_insync_replicas: int | None = None,
) -> list[str]:
    """Makes what is missing and returns the names made. Raises TopicMismatch, with the difference, before making anything.

    `min_insync_replicas` of None: the cluster's default.
    """
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise TopicMismatch(f"partitions: {partitions} is not within 1 to {PARTITIONS_MAX}")
    specs = list(specs)
    found = await log.describe([topics.name(spec) for spec in specs])
    problems = check(found, topics, specs, partitions)
    if problems:
        raise TopicMismatch("\n".join(problems))
    missing = [spec for spec in specs if topics.name(spec) not in found]
    if missing:
        more = {} if min_insync_replicas is None else {MIN_INSYNC: str(min_insync_replicas)}
        await log.create(
            {topics.name(spec): (spec.partitions(partitions), replication, {**spec.config, **more}) for spec in missing}
        )
    return [topics.name(spec) for spec in missing]


async def provision_beside(log: Log, topics: Topics, specs: Iterable[TopicSpec], events: TopicDescription) -> list[str]:
    """As `provision`, with the partitions and replicas that `events` has: what lies beside it must be as safe as it is."""
    in_sync = events.config.get(MIN_INSYNC)
    return await provision(
        log,
        topics,
        specs,
        partitions=events.partitions,
        replication=events.replication,
        min_insync_replicas=None if in_sync is None else int(in_sync),
    )


def check(found: dict[str, TopicDescription], topics: Topics, specs: Iterable[TopicSpec], partitions: int) -> list[str]:
    """One sentence per difference between the topics found and the specs; topics that are missing are no difference."""
    problems = []
    for spec in specs:
        topic = found.get(topics.name(spec))
        if topic is None:
            continue
        wanted = spec.partitions(partitions)
        if topic.partitions != wanted:
            problems.append(
                f"topic {topic.name} has {topic.partitions} partitions where {wanted} are expected: partitions cannot be changed "
                "once workflows ran; set SAGALOG_PARTITIONS to the number it has, or choose another SAGALOG_PREFIX"
            )
        for key in CHECKED:
            want = spec.config.get(key)
            have = topic.config.get(key)
            if want is not None and have is not None and have != want:
                problems.append(
                    f"topic {topic.name} has {key}={have} where {want} is expected; change it with "
                    f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.name} --add-config {key}={want}"
                )
    return problems
