"""A simulated Kafka behind the log port, for tests and deterministic simulation.

    kafka = SimulatedKafka(clock, random.Random(7))
    log = kafka.log("engine-1")          # what KafkaLog is on a real cluster

The conformance suite (`tests/conformance`) holds it to a real broker: where the two differ, this one is wrong.

Theory of operation: `storage` keeps partitions, `groups` and `transactions` are the coordinators, `broker` is the cluster,
and `network` lies between it and its clients. `client`, `producers`, `consumer` (with its `fetcher`) and `member` do what the
real client library and the project's adapter do on the other side. All waiting is the event loop's, all time stamps are the
clock's, all chance is one generator's: the same seed gives the same run. Errors are the real client's own, to read alike.
"""

from __future__ import annotations

from .broker import SimulatedKafka
from .faults import Faults, Request

__all__ = ["Faults", "Request", "SimulatedKafka"]
