"""Topics: what is missing is made, what does not fit is refused before anything is made, and running it again changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.limits import RECORD_BYTES_MAX
from sagalog.topics import specs
from sagalog.topics.log import Log, TopicDescription
from sagalog.topics.provision import CHECKED, TopicMismatch, check, provision, provision_beside
from sagalog.topics.specs import FIXED, Keyed, Topics, TopicSpec, all_specs

TOPICS = Topics("test")


@dataclass
class Cluster:
    """As much of a cluster as provisioning sees: topics are described as they were made, never made twice."""

    topics: dict[str, TopicDescription] = field(default_factory=dict)
    made: list[list[str]] = field(default_factory=list)

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicDescription]:
        return {name: self.topics[name] for name in topics if name in self.topics}

    async def create(self, topics: Mapping[str, tuple[int, int, Mapping[str, str]]]) -> None:
        self.made.append(list(topics))
        for name, (partitions, replication, config) in topics.items():
            assert name not in self.topics
            self.topics[name] = TopicDescription(name, partitions, replication, dict(config))


async def run(cluster: Cluster, partitions: int = 8, wanted: Sequence[TopicSpec] = FIXED) -> list[str]:
    return await provision(cast(Log, cluster), TOPICS, wanted, partitions=partitions, replication=3)


async def test_every_missing_topic_is_made_as_it_is_declared() -> None:
    cluster = Cluster()

    made = await run(cluster)

    assert made == [TOPICS.name(spec) for spec in FIXED]
    assert cluster.topics == {
        TOPICS.name(spec): TopicDescription(
            TOPICS.name(spec),
            {Keyed.WORKFLOW: 8, Keyed.SERVICE: 2, Keyed.ONE: 1}[spec.keyed],
            3,
            spec.config,
        )
        for spec in FIXED
    }


async def test_running_it_again_changes_nothing() -> None:
    cluster = Cluster()
    await run(cluster)
    before = dict(cluster.topics)

    assert await run(cluster) == []
    assert cluster.topics == before
    assert len(cluster.made) == 1


async def test_only_what_is_missing_is_made() -> None:
    cluster = Cluster()
    await run(cluster)
    wanted = all_specs(["bank"])

    assert await run(cluster, wanted=wanted) == ["test.commands.bank"]
    assert cluster.topics["test.commands.bank"].partitions == 8


async def test_replicas_that_must_be_in_sync_are_set_when_asked_for() -> None:
    cluster = Cluster()

    await provision(cast(Log, cluster), TOPICS, [specs.EVENTS], partitions=8, replication=3, min_insync_replicas=2)

    config = cluster.topics["test.events"].config
    assert config == {**specs.EVENTS.config, "min.insync.replicas": "2"}


@pytest.mark.parametrize(("given", "found"), [(2, "2"), (None, None)])
async def test_what_lies_beside_events_is_as_safe_as_events(given: int | None, found: str | None) -> None:
    cluster = Cluster()
    log = cast(Log, cluster)
    await provision(log, TOPICS, [specs.EVENTS], partitions=4, replication=3, min_insync_replicas=given)

    made = await provision_beside(log, TOPICS, [specs.commands("bank")], cluster.topics["test.events"])

    topic = cluster.topics["test.commands.bank"]
    assert made == [topic.name]
    assert (topic.partitions, topic.replication, topic.config.get("min.insync.replicas")) == (4, 3, found)


async def test_a_wrong_number_of_partitions_is_refused_before_anything_is_made() -> None:
    cluster = Cluster()
    await run(cluster, 8, [specs.EVENTS])

    with pytest.raises(TopicMismatch) as raised:
        await run(cluster, 4)

    assert str(raised.value) == (
        "topic test.events has 8 partitions where 4 are expected: partitions cannot be changed once workflows ran; "
        "set SAGALOG_PARTITIONS to the number it has, or choose another SAGALOG_PREFIX"
    )
    assert list(cluster.topics) == ["test.events"]


@pytest.mark.parametrize(
    ("key", "have", "want"),
    [("cleanup.policy", "compact", "delete"), ("message.timestamp.type", "CreateTime", "LogAppendTime")],
)
async def test_configuration_that_decides_over_correctness_is_checked(key: str, have: str, want: str) -> None:
    cluster = Cluster()
    await run(cluster)
    events = cluster.topics["test.events"]
    cluster.topics["test.events"] = replace(events, config={**events.config, key: have})

    with pytest.raises(TopicMismatch) as raised:
        await run(cluster)

    assert str(raised.value) == (
        f"topic test.events has {key}={have} where {want} is expected; change it with kafka-configs.sh --alter "
        f"--entity-type topics --entity-name test.events --add-config {key}={want}"
    )


async def test_configuration_of_the_operator_is_left_alone() -> None:
    cluster = Cluster()
    await run(cluster)
    for name, topic in cluster.topics.items():
        config = {key: value if key in CHECKED else "7" for key, value in topic.config.items()}
        cluster.topics[name] = replace(topic, config={**config, "compression.type": "zstd"}, replication=1)

    assert await run(cluster) == []


async def test_all_problems_are_named_at_once() -> None:
    cluster = Cluster()
    await run(cluster)
    for name in ("test.events", "test.circuits"):
        cluster.topics[name] = replace(cluster.topics[name], partitions=5)
    cluster.topics["test.health"] = replace(cluster.topics["test.health"], config={"cleanup.policy": "delete"})

    with pytest.raises(TopicMismatch) as raised:
        await run(cluster)

    assert [line.split(" ")[1] for line in str(raised.value).splitlines()] == [
        "test.events",
        "test.circuits",
        "test.health",
    ]


@pytest.mark.parametrize("partitions", [0, -1, 1_001])
async def test_a_number_of_partitions_out_of_bounds_is_refused(partitions: int) -> None:
    cluster = Cluster()

    with pytest.raises(TopicMismatch, match=f"^partitions: {partitions} is not within 1 to 1000$"):
        await run(cluster, partitions)
    assert cluster.topics == {}


@pytest.mark.parametrize("partitions", [1, 1_000])
async def test_the_bounds_of_partitions_are_accepted(partitions: int) -> None:
    cluster = Cluster()
    await run(cluster, partitions)

    assert cluster.topics["test.events"].partitions == partitions
    assert cluster.topics["test.outcomes"].partitions == min(partitions, 2)
    assert cluster.topics["test.quarantine"].partitions == 1


def test_a_missing_topic_is_no_problem() -> None:
    assert check({}, TOPICS, FIXED, 8) == []


# --- specs and names


def test_topics_that_are_keyed_by_workflow_have_the_same_partitions() -> None:
    by_workflow = [spec for spec in all_specs(["bank"]) if spec.keyed is Keyed.WORKFLOW]

    assert {spec.name for spec in by_workflow} == {
        "events",
        "checkpoints",
        "results",
        "heartbeats",
        "dead-letters",
        "reviews",
        "commands.bank",
    }
    assert {spec.partitions(12) for spec in by_workflow} == {12}


def test_the_fold_reads_the_brokers_clock() -> None:
    assert specs.EVENTS.config["message.timestamp.type"] == "LogAppendTime"
    assert specs.OUTCOMES.config["message.timestamp.type"] == "LogAppendTime"


def test_state_is_compacted_and_history_is_not() -> None:
    compacted = {spec.name for spec in FIXED if spec.config["cleanup.policy"] == "compact"}

    assert compacted == {"checkpoints", "circuits", "health", "definitions"}


def test_every_topic_takes_the_largest_record() -> None:
    assert all(int(spec.config["max.message.bytes"]) > RECORD_BYTES_MAX for spec in all_specs(["bank"]))


def test_names_carry_the_prefix() -> None:
    properties = {name: getattr(TOPICS, name) for name, kind in vars(Topics).items() if isinstance(kind, property)}

    assert {spec.name for spec in FIXED} == {
        value.removeprefix("test.") for value in properties.values() if "." in value
    }
    assert (TOPICS.engine_group, TOPICS.projector_group, TOPICS.agent_group("bank")) == (
        "test-engine",
        "test-projector",
        "test-agent-bank",
    )
    assert TOPICS.commands("bank") == TOPICS.name(specs.commands("bank")) == "test.commands.bank"
    assert (TOPICS.engine_transactional_id(3), TOPICS.circuits_transactional_id(3)) == (
        "test-engine-3",
        "test-circuits-3",
    )


def test_an_agent_named_twice_has_one_topic() -> None:
    assert [spec.name for spec in all_specs(["b", "a", "b"])][-2:] == ["commands.a", "commands.b"]
    assert len(all_specs(["b", "a", "b"])) == len(FIXED) + 2


def test_an_agent_that_is_no_name_has_no_topic() -> None:
    with pytest.raises(InvalidRecord, match="agent: 'My Agent' is no name"):
        all_specs(["My Agent"])
