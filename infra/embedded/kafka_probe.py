"""Asks a broker, in its own protocol, whether it can serve.

A port that accepts connections is not a broker that answers, and a broker that answers is not yet one that has
registered itself, or whose coordinators have loaded. Ready means: the metadata names a broker, and the coordinators of a
group and of a transaction are found, which also makes the internal topics, so that no first user waits for them.

Written by hand (three requests, old and therefore simple versions of them that Kafka 4 still serves), because the
asynchronous client cannot be used where an event loop is already running, and the start of the stack is synchronous.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 2.0  # of one connect or answer; the whole start has its own limit
ANSWER_BYTES_MAX = 1 << 20
CORRELATION_ID = 1
CLIENT_ID = b"sagalog-probe"
METADATA = (3, 1)  # API key, version
FIND_COORDINATOR = (10, 1)
COORDINATORS = {"group": 0, "transaction": 1}


@dataclass(frozen=True)
class _NotReadyError(Exception):
    missing: str


def kafka_missing(host: str, port: int) -> str | None:
    """None when the broker is ready, otherwise what is missing."""
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as connection:
            _require_broker(connection)
            for kind, code in COORDINATORS.items():
                _require_coordinator(connection, kind, code)
    except _NotReadyError as error:
        return error.missing
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None


@dataclass(frozen=True)
class PartitionState:
    """One partition as a broker knows it; all but `topic` and `partition` are node ids, a `leader` of -1 is none."""

    topic: str
    partition: int
    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


def partition_states(host: str, port: int) -> list[PartitionState]:
    """All partitions of all topics, internal ones too. Raises OSError when the broker does not answer."""
    all_topics = struct.pack(">i", -1)
    with socket.create_connection((host, port), TIMEOUT_S) as connection:
        try:
            answer = _Answer(_ask(connection, METADATA, all_topics))
        except _NotReadyError as error:
            raise ConnectionError(error.missing) from error
    for _ in range(answer.take(">i")):  # brokers: id, host, port, rack
        answer.take(">i"), answer.text(), answer.take(">i"), answer.text()
    answer.take(">i")  # the controller
    found = []
    for _ in range(answer.take(">i")):
        answer.take(">h")
        topic = answer.text()
        answer.take(">b")
        for _ in range(answer.take(">i")):
            answer.take(">h")
            partition, leader = answer.take(">i"), answer.take(">i")
            found.append(PartitionState(topic, partition, leader, answer.numbers(), answer.numbers()))
    return found


class _Answer:
    """An answer's fields, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def text(self) -> str:
        size = max(0, self.take(">h"))  # -1 is null
        self._at += size
        return self._data[self._at - size : self._at].decode()

    def numbers(self) -> tuple[int, ...]:
        return tuple(self.take(">i") for _ in range(self.take(">i")))


def _require_broker(connection: socket.socket) -> None:
    no_topics = struct.pack(">i", 0)
    (brokers,) = struct.unpack_from(">i", _ask(connection, METADATA, no_topics))
    if brokers < 1:
        raise _NotReadyError("no broker is registered")


def _require_coordinator(connection: socket.socket, kind: str, code: int) -> None:
    body = struct.pack(">h", len(CLIENT_ID)) + CLIENT_ID + struct.pack(">b", code)
    _throttle_ms, error = struct.unpack_from(">ih", _ask(connection, FIND_COORDINATOR, body))
    if error:
        raise _NotReadyError(f"no {kind} coordinator, error code {error}")


def _ask(connection: socket.socket, api: tuple[int, int], body: bytes) -> bytes:
    key, version = api
    message = struct.pack(">hhih", key, version, CORRELATION_ID, len(CLIENT_ID)) + CLIENT_ID + body
    connection.sendall(struct.pack(">i", len(message)) + message)
    (size,) = struct.unpack(">i", _read(connection, 4))
    if not 4 <= size <= ANSWER_BYTES_MAX:
        raise _NotReadyError(f"an answer of {size} bytes, which is not Kafka's protocol")
    answer = _read(connection, size)
    (correlation_id,) = struct.unpack_from(">i", answer)
    if correlation_id != CORRELATION_ID:
        raise _NotReadyError("an answer to another request, which is not Kafka's protocol")
    return answer[4:]


def _read(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise _NotReadyError("the connection was closed")
        parts += part
    return bytes(parts)
