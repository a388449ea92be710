"""The broker itself fails, for long: it is away, its disk is full, it refuses. Nothing is lost, and the log says what is wrong.

The brokers are the tests' own, as the session's is not to be hurt: only the embedded stack can make them.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest

from sagalog.engine import client as client_module
from sagalog.engine.audit import verify
from sagalog.engine.client import Client
from sagalog.engine.runtime.engine import Engine
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.infra.embedded import EmbeddedStack
from sagalog.schemas.definitions import Definition, Step
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import LogError, LogUnavailable, Out, TopicPartition
from sagalog.topics.provision import provision
from sagalog.topics.specs import Topics, all_specs

from ..chaos import agents
from ..conftest import PARTITIONS, SESSION_TIMEOUT_MS, Stack
from ..processes import Processes, environment_of
from .system import System, eventually

pytestmark = pytest.mark.usefixtures("quiet_client")

AUTHORIZER: Final = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    # Who may do what is asked only of what has an ACL: tests give one to what they are about.
    "allow.everyone.if.no.acl.found": "true",
}
AWAY_S: Final = 20.0
"""Long past every back-off's cap: ten minutes are more of the same."""
LINES_MAX: Final = 60
"""Of one process in that time."""


ONE: Final = Definition(name="one", steps=(Step(name="only", agent="worker"),))


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedStack]:
    with EmbeddedStack(postgres=False, kafka_settings=AUTHORIZER) as stack:
        yield stack


# --- away


async def test_a_broker_that_is_away_for_long_costs_time_and_nothing_else(
    broker: EmbeddedStack, stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics("away")
    log = KafkaLog(broker.bootstrap, session_timeout_ms=SESSION_TIMEOUT_MS)
    agents.make_effects(str(tmp_path / "effects.sqlite"))
    more = {"SAGALOG_POSTGRES": stack.postgres, agents.EFFECTS_VARIABLE: str(tmp_path / "effects.sqlite")}
    environment = environment_of(broker.bootstrap, topics, **more)
    await provision(log, topics, all_specs(), partitions=PARTITIONS, replication=1)
    try:
        with Processes(tmp_path, environment) as processes:
            engine = processes.make("engine", "engine")
            host = processes.make("agents", "agent", "tests.chaos.agents:agents")
            projector = processes.make("projector", "project")
            async with Client(log, topics) as client:
                await client.register(agents.definition)
                ids = [f"away-{number}" for number in range(200)]
                await eventually(lambda: engine.output().count(": live") >= PARTITIONS + 2, 60, "not live")
                await eventually(lambda: "are at work" in host.output(), 60, "not at work")
                await client.start_many("chaos", {workflow_id: {"amount": 1} for workflow_id in ids})
                await client.wait(ids[0], timeout_s=30)
                await asyncio.to_thread(broker.kafka.kill)
                killed_s = time.monotonic()
                before = {process: len(process.output().splitlines()) for process in (engine, host, projector)}
                monkeypatch.setattr(client_module, "ACK_TIMEOUT_S", 1.0)
                with pytest.raises(
                    LogUnavailable, match=r"not acknowledged what was written within 1 s; it may still be"
                ):
                    await client.start("chaos", {"amount": 1}, workflow_id="away-meanwhile")
                monkeypatch.undo()
                await asyncio.sleep(max(0.0, killed_s + AWAY_S - time.monotonic()))
                said = {process: process.output().splitlines()[before[process] :] for process in before}
                await asyncio.to_thread(broker.kafka.start)
                await client.start("chaos", {"amount": 1}, workflow_id="away-meanwhile")
                results = await client.wait_all([*ids, "away-meanwhile"], timeout_s=60)
            statuses = {workflow_id: found["status"] for workflow_id, found in results.items()}
            assert {w: s for w, s in statuses.items() if s != agents.expected_status(w)} == {}
            await eventually(
                lambda: _fits(log, topics, len(results)), 30, "the checkpoints are not what the log folds to"
            )
            assert max(len(lines) for lines in said.values()) < LINES_MAX, said
            since = r"no Kafka broker answers at \S+ .*\(failure \d+ since 2\d{3}-\S+Z\)"
            assert re.search(since, "\n".join(said[engine])), said[engine]
    finally:
        await log.close()


# --- full


DISK_MIB: Final = 150


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file system of its own, which is soon full."""
    disk = tmp_path / "stack" / "kafka" / "data"
    disk.mkdir(parents=True)
    size = f"size={DISK_MIB}m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here, which takes root: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open(
        "wb", buffering=0
    ) as file:  # a buffer that does not fit any more would be written again at the end
        try:
            while True:
                file.write(bytes(65_536))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return filler


async def test_a_full_disk_stops_the_broker_and_nothing_that_was_acknowledged_is_lost(
    small_disk: Path, tmp_path: Path
) -> None:
    topics = Topics("full")
    with EmbeddedStack(tmp_path / "stack", postgres=False) as broker:
        log = KafkaLog(broker.bootstrap, session_timeout_ms=SESSION_TIMEOUT_MS)
        await provision(log, topics, all_specs(["worker"]), partitions=2, replication=1)
        environment = environment_of(broker.bootstrap, topics, partitions=2)
        try:
            async with System(log, topics) as system:
                await system.client.register(ONE)
                with Processes(tmp_path, environment) as processes:
                    engine = processes.make("engine", "engine")
                    await eventually(lambda: engine.output().count(": live") >= 4, 60, "the engine is not live")
                    acknowledged: set[str] = set()
                    starting = asyncio.create_task(_start_until_it_ends(system.client, acknowledged))
                    await eventually(lambda: len(acknowledged) >= 20, 30, "nothing is acknowledged")
                    filler = _fill(small_disk)
                    await eventually(lambda: broker.kafka.pid is None, 60, "the broker goes on")
                    assert "No space left on device" in broker.kafka.log.read_text()
                    await eventually(
                        lambda: "no Kafka broker answers" in engine.output(), 60, "the engine says nothing"
                    )
                    starting.cancel()
                    await asyncio.gather(starting, return_exceptions=True)
                    filler.unlink()
                    await asyncio.to_thread(broker.kafka.start)
                    await system.agent("worker", lambda command: {"ok": True})
                    results = await system.client.wait_all(sorted(acknowledged), timeout_s=60)
                    assert {result["status"] for result in results.values()} == {"completed"}
        finally:
            await log.close()


async def _start_until_it_ends(client: Client, acknowledged: set[str]) -> None:
    for number in itertools.count():
        acknowledged.add(await client.start("one", {"padding": "x" * 10_000}, workflow_id=f"full-{number}"))


# --- an access control list lacks something


class Access(IntEnum):
    """Operations, as Kafka numbers them."""

    READ = 3
    WRITE = 4
    DESCRIBE = 8
    DESCRIBE_CONFIGS = 10


TOPIC: Final = 2
GROUP: Final = 3
LITERAL: Final = 3
ALLOW: Final = 3
EVERYBODY: Final = "User:ANONYMOUS"
"""Who comes without a password."""


async def _allow(log: KafkaLog, kind: int, name: str, *operations: Access) -> None:
    """From now on these operations on it and no others, beside those that were allowed before."""
    admin = AIOKafkaAdminClient(bootstrap_servers=log.bootstrap)
    await admin.start()
    try:
        for operation in operations:
            request = CreateAclsRequest(kind, name, LITERAL, EVERYBODY, "*", operation, ALLOW)
            answer = await admin._send_request(request)
            assert [error for error, _ in answer.creation_responses] == [0], answer
    finally:
        await admin.close()


@pytest.fixture
async def refusing(broker: EmbeddedStack) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(broker.bootstrap, session_timeout_ms=SESSION_TIMEOUT_MS)
    yield log
    await log.close()


@pytest.mark.parametrize("which", ["checkpoints", "commands.worker", "events"])
async def test_a_topic_that_may_not_be_written_is_named_and_once_it_may_nothing_is_lost(
    refusing: KafkaLog, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    topics = Topics(f"no-{which}")
    topic = f"{topics.prefix}.{which}"
    await provision(refusing, topics, all_specs(["worker"]), partitions=PARTITIONS, replication=1)
    async with System(refusing, topics) as system:
        await system.client.register(ONE)
        ids = [f"a{number}" for number in range(20)]
        await system.client.start_many("one", {workflow_id: {} for workflow_id in ids})
        await _allow(refusing, TOPIC, topic, Access.READ, Access.DESCRIBE, Access.DESCRIBE_CONFIGS)
        engine = Engine(refusing, topics, clock=SystemClock(), rng=SystemRng())
        stop = asyncio.Event()
        running = asyncio.create_task(engine.run(stop))
        try:
            said = f"this user may not write to topic {topic}; grant it Write"
            times = 3 * PARTITIONS if which == "checkpoints" else 3
            await eventually(lambda: caplog.text.count(said) >= times, 30, "it is not said")
            assert caplog.text.count(said) <= times + PARTITIONS, "it spins"
            assert which == "checkpoints" or f"(failure {times} since " in caplog.text, "the back-off does not grow"
            assert await system.read(topics.checkpoints, PARTITIONS) == []
            await _allow(refusing, TOPIC, topic, Access.WRITE)
            await system.agent("worker", lambda command: {"ok": True})
            results = await system.client.wait_all(ids, timeout_s=40)
            assert {result["status"] for result in results.values()} == {"completed"}
            await eventually(
                lambda: _fits(refusing, topics, len(ids)), 30, "the checkpoints are not what the log folds to"
            )
        finally:
            stop.set()
            await running


async def _fits(log: KafkaLog, topics: Topics, workflows: int) -> bool:
    """What `sagalog verify` checks; the last snapshot may not be there yet."""
    reports = await verify(log, topics)
    return sum(report.workflows for report in reports) == workflows and not any(r.differences for r in reports)


async def test_a_group_that_may_not_be_used_is_named(refusing: KafkaLog, caplog: pytest.LogCaptureFixture) -> None:
    topics = Topics("no-group")
    await provision(refusing, topics, all_specs(), partitions=PARTITIONS, replication=1)
    await _allow(refusing, GROUP, topics.engine_group, Access.DESCRIBE)
    stop = asyncio.Event()
    engine = Engine(refusing, topics, clock=SystemClock(), rng=SystemRng())
    running = asyncio.create_task(engine.run(stop))
    try:
        said = f"this user may not use the group {topics.engine_group}; grant it Read"
        await eventually(lambda: caplog.text.count(said) >= 2, 30, "it is not said")
        await _allow(refusing, GROUP, topics.engine_group, Access.READ)
        await eventually(lambda: engine.health.ready().ok, 30, "it does not go on")
    finally:
        stop.set()
        await running


async def test_a_topic_that_may_not_be_seen_is_not_taken_for_missing(refusing: KafkaLog) -> None:
    topics = Topics("no-sight")
    await provision(refusing, topics, all_specs(), partitions=1, replication=1)
    await _allow(refusing, TOPIC, topics.events, Access.DESCRIBE_CONFIGS)
    said = f"may not see topic {topics.events}; grant it Describe"
    await eventually(lambda: _refuses(refusing.partitions(topics.events), said), 10, "it may be seen")


async def _refuses(asked: Awaitable[object], reason: str) -> bool:
    """An ACL holds a moment after it was made."""
    try:
        await asked
    except LogError as error:
        return reason in str(error)
    return False


async def test_what_a_refused_transaction_has_written_is_never_read(refusing: KafkaLog) -> None:
    """The client calls it aborted, but has told nobody; whoever takes the id next ends it for certain."""
    topic, group = "half.records", "half-group"
    await refusing.create({topic: (1, 1, {})})
    await _allow(refusing, GROUP, group, Access.DESCRIBE)
    partition = TopicPartition(topic, 0)
    probe = await refusing.transactional("probe")
    await eventually(lambda: _refuses(probe.transact({}, group, {partition: 0}), "may not use"), 10, "it may be used")
    await probe.close()
    first = await refusing.transactional("half")
    with pytest.raises(LogError, match=f"may not use the group {group}"):
        await first.transact({partition: [Out(b"k", b"half")]}, group, {partition: 0})
    await first.close()
    second = await refusing.transactional("half")
    await second.transact({partition: [Out(b"k", b"whole")]})
    await second.close()
    for committed, wanted in ((True, [b"whole"]), (False, [b"half", b"whole"])):
        reader = await refusing.read({partition: 0}, committed=committed)
        found: list[bytes | None] = []
        try:
            end = (await reader.end_offsets([partition]))[partition]
            while await reader.position(partition) < end:
                for messages in (await reader.poll(200, 100)).values():
                    found += [message.value for message in messages]
        finally:
            await reader.close()
        assert found == wanted
