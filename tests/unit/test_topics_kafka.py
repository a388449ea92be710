"""The Kafka adapter's own part: questions to a cluster of which a broker is down."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import errors

from sagalog.topics import kafka
from sagalog.topics.kafka import ASK_TRIES_MAX, KafkaLog
from sagalog.topics.log import LogError, LogUnavailable


class Admin:
    """Asks brokers of which the first `down` do not answer, as the real one does that picks them at random."""

    def __init__(self, down: int, error: Exception, leader: int = 1) -> None:
        self.down = down
        self.error = error
        self.leader = leader
        self.asked = 0

    async def describe_topics(self, topics: list[str]) -> list[dict[str, Any]]:
        self.asked += 1
        if self.asked <= self.down:
            raise self.error
        partitions = [{"leader": self.leader, "error_code": 5 if self.leader < 0 else 0, "replicas": [1, 2, 3]}]
        return [{"topic": topic, "error_code": 0, "partitions": partitions} for topic in topics]


def log_of(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> KafkaLog:
    monkeypatch.setattr(kafka, "ASK_AGAIN_S", 0.0)
    log = KafkaLog("nowhere:1")
    monkeypatch.setattr(log, "_admin", admin)
    return log


@pytest.mark.parametrize("error", [errors.NodeNotReadyError("node 1"), errors.KafkaConnectionError("node 1")])
async def test_a_broker_that_is_down_is_not_the_cluster(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Admin(2, error)

    assert await log_of(admin, monkeypatch).partitions("events") == 1
    assert admin.asked == 3


async def test_a_cluster_that_does_not_answer_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Admin(1_000, errors.NodeNotReadyError("node 1"))

    with pytest.raises(LogUnavailable, match=r"no Kafka broker answers at nowhere:1 \(.*node 1"):
        await log_of(admin, monkeypatch).partitions("events")
    assert admin.asked == ASK_TRIES_MAX


async def test_a_refusal_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Admin(1, errors.ClusterAuthorizationFailedError("no"))

    with pytest.raises(LogError, match="ClusterAuthorizationFailedError"):
        await log_of(admin, monkeypatch).partitions("events")
    assert admin.asked == 1


async def test_a_topic_whose_leader_has_just_died_exists_and_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(Admin(0, errors.NodeNotReadyError("node 1"), leader=-1), monkeypatch)

    assert await log.partitions("events") == 1, "or an engine would take it for deleted, and start over"
    assert await log.describe_names(["events"]) == {}
