"""Several brokers that make one Kafka cluster: what they share, and how far their replicas are.

Every node is broker and controller. The data is replicated thrice (or as often as there are nodes), and a record counts as
written once all but one of the replicas have it: one node may be away.

Rule: the controllers' addresses are chosen once for all nodes, before the first starts, and stay: the others know them.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sagalog.infra.embedded import ports
from sagalog.infra.embedded.kafka_probe import PartitionState, partition_states
from sagalog.infra.errors import ProcessStateError

NAME = "The Kafka cluster"
REPLICAS_MAX = 3
HEAP = ("-Xms128m", "-Xmx384m")  # of each of several nodes; a lone broker has more
SYNC_INTERVAL_MS = 100


class Broker(Protocol):
    """As much of a KafkaServer as is needed here."""

    @property
    def node_id(self) -> int: ...

    @property
    def port(self) -> int: ...

    @property
    def pid(self) -> int | None: ...


@dataclass(frozen=True)
class Quorum:
    """One cluster: its id, and the controllers' ports in the order of the nodes, which are numbered from 1."""

    cluster_id: str
    controller_ports: tuple[int, ...]

    @classmethod
    def of(cls, nodes: int, data: Sequence[Path] = ()) -> Quorum:
        """A new one, or the one that the data directories of its nodes name already."""
        return cls(_cluster_id(data), tuple(ports.free_ports(nodes)))

    @property
    def voters(self) -> str:
        return ",".join(f"{node}@{ports.HOST}:{port}" for node, port in enumerate(self.controller_ports, 1))

    @property
    def replicas(self) -> int:
        return min(REPLICAS_MAX, len(self.controller_ports))

    @property
    def in_sync_min(self) -> int:
        return max(1, self.replicas - 1)


def _cluster_id(data: Sequence[Path]) -> str:
    for directory in data:
        file = directory / "meta.properties"
        for line in file.read_text().splitlines() if file.exists() else ():
            if line.startswith("cluster.id="):
                return line.partition("=")[2]
    # A leading "-" would be taken for an option.
    return "S" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:]


def led(brokers: Sequence[Broker], topic: str) -> Counter[int]:
    """How many of a topic's partitions each node leads, as the first running broker knows it. Raises OSError."""
    asked = next(broker for broker in brokers if broker.pid is not None)
    states = partition_states(ports.HOST, asked.port)
    return Counter(state.leader for state in states if state.topic == topic and state.leader >= 0)


def wait_in_sync(brokers: Sequence[Broker], timeout_ms: int) -> None:
    """Waits until every broker says that every partition has a leader and all of its replicas in sync.

    Raises ProcessStateError when that takes longer, with the first partition that is missing one.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    while (missing := _first_missing(brokers)) is not None:
        if time.monotonic() > deadline:
            raise ProcessStateError.of(NAME, f"not in sync within {timeout_ms} ms: {missing}", "look into kafka.log")
        time.sleep(SYNC_INTERVAL_MS / 1000)


def _first_missing(brokers: Sequence[Broker]) -> str | None:
    for broker in brokers:
        try:
            states = partition_states(ports.HOST, broker.port)
        except OSError as error:
            return f"node {broker.node_id} does not answer: {error}"
        for state in states:
            if not _whole(state):
                return f"{state.topic}/{state.partition} at node {broker.node_id}: in sync {sorted(state.in_sync)}"
    return None


def _whole(state: PartitionState) -> bool:
    return state.leader >= 0 and set(state.in_sync) == set(state.replicas)
