"""What every other integration test takes for granted of the stack it runs on; the same on all three stacks.

An external stack is not ours to break or to configure, so there these tests are skipped in part.
"""

from __future__ import annotations

import asyncio
import socket

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from sagalog.infra.embedded import kafka, postgres
from sagalog.infra.embedded.cluster import Quorum
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Out, TopicPartition
from sagalog.topics.specs import Topics
from tests.conftest import PARTITIONS, Stack

TIMEOUT_MS = 30_000
# Where a server listens and keeps its data is not the same everywhere.
KAFKA_PLACES = {"listeners", "controller.quorum.voters", "log.dirs"}
POSTGRES_PLACES = {"listen_addresses", "unix_socket_directories"}


def first_events(topics: Topics) -> TopicPartition:
    return TopicPartition(topics.events, 0)


async def write(stack: Stack, partition: TopicPartition, *values: bytes) -> None:
    log = KafkaLog(stack.bootstrap)
    producer = await log.transactional(f"{partition.topic}-writer")
    await producer.transact({partition: [Out(b"key", value) for value in values]})
    await producer.close()
    await log.close()


async def read(stack: Stack, partition: TopicPartition, count: int) -> list[bytes | None]:
    log = KafkaLog(stack.bootstrap)
    reader = await log.read({partition: None}, committed=True)
    found: list[bytes | None] = []
    async with asyncio.timeout(TIMEOUT_MS / 1000):
        while len(found) < count:
            for messages in (await reader.poll(200, count)).values():
                found += [message.value for message in messages]
    await reader.close()
    await log.close()
    return found


def execute(stack: Stack, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(stack.postgres, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def refuses(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 5).close()
    except ConnectionRefusedError:
        return True
    return False


async def test_it_serves_transactions_and_sql(stack: Stack, log: KafkaLog, provisioned: Topics) -> None:
    partition = first_events(provisioned)
    await write(stack, partition, b"one", b"two")
    assert await read(stack, partition, 2) == [b"one", b"two"]
    assert execute(stack, "SELECT 1") == [(1,)]


async def test_a_group_is_formed_without_delay(log: KafkaLog, provisioned: Topics) -> None:
    assigned = asyncio.Event()

    async def on_assigned(partitions: set[TopicPartition]) -> None:
        if len(partitions) == PARTITIONS:
            assigned.set()

    async def on_revoked(partitions: set[TopicPartition]) -> None:
        """Nothing to give up."""

    consumer = await log.join(f"{provisioned.prefix}-group", [provisioned.events], on_assigned, on_revoked)
    async with asyncio.timeout(TIMEOUT_MS / 1000):
        while not assigned.is_set():
            await consumer.poll(100, 1)
    await consumer.close()


async def test_kafka_has_the_declared_settings(stack: Stack) -> None:
    _ = stack.kafka  # skips when it is not ours
    text = kafka.configuration(0, "", Quorum("", (0,)))
    lines = (line.partition("=") for line in text.splitlines() if line and not line.startswith("#"))
    declared = {name: value for name, _, value in lines if name not in KAFKA_PLACES}
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.bootstrap)
    await admin.start()
    try:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, "1")])
    finally:
        await admin.close()
    ((_, error, _, _, entries),) = answer.resources
    assert not error
    found = {name: value for name, value, *_ in entries}
    assert {name: found.get(name) for name in declared} == declared
    assert "group.initial.rebalance.delay.ms" in declared


def test_postgres_has_the_declared_settings(stack: Stack) -> None:
    _ = stack.postgres_server  # skips when it is not ours
    declared = {name: value for name, value in postgres.CONFIG.items() if name not in POSTGRES_PLACES}
    found = {name: execute(stack, f"SHOW {name}")[0][0] for name in declared}
    assert found == declared
    database = "SELECT datlocprovider::text, datlocale, pg_encoding_to_char(encoding) FROM pg_database"
    assert execute(stack, f"{database} WHERE datname = current_database()") == [("b", "C.UTF-8", "UTF8")]


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_kafka_comes_back_with_its_records_and_address(stack: Stack, provisioned: Topics, how: str) -> None:
    server, address, partition = stack.kafka, stack.bootstrap, first_events(provisioned)
    await write(stack, partition, b"kept")
    try:
        await asyncio.to_thread(getattr(server, how))
        assert refuses(address)
    finally:
        await asyncio.to_thread(server.start)
    assert stack.bootstrap == address
    if how == "stop":
        assert await read(stack, partition, 1) == [b"kept"]
    # A kill right after a commit may cost the transaction its marker; the next of its id ends it (see docs/operations.md).
    await write(stack, partition, b"new")
    assert await read(stack, partition, 2) == [b"kept", b"new"]


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_postgres_comes_back_with_its_rows_and_address(stack: Stack, topics: Topics, how: str) -> None:
    server, url = stack.postgres_server, stack.postgres
    execute(stack, f"CREATE TABLE {topics.prefix} AS SELECT 7 AS number")
    try:
        getattr(server, how)()
        with pytest.raises(psycopg.OperationalError, match="Connection refused"):
            execute(stack, "SELECT 1")
    finally:
        server.start()
    assert stack.postgres == url
    assert execute(stack, f"SELECT number FROM {topics.prefix}") == [(7,)]
    execute(stack, f"DROP TABLE {topics.prefix}")
