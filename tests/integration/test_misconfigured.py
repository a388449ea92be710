"""What an operator gets wrong: a wrong address, a deleted topic, two engines that do not fit together.

The message says what it is and what to do; once that is done all goes on.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from sagalog.engine.runtime import engine as engine_module
from sagalog.engine.runtime import sharing
from sagalog.engine.runtime.engine import Engine
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.infra.embedded import ports
from sagalog.schemas.definitions import Definition, Step
from sagalog.topics import kafka
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.provision import provision
from sagalog.topics.specs import Topics, all_specs

from ..commands import Place
from ..conftest import PARTITIONS, SESSION_TIMEOUT_MS, Stack
from .system import System, eventually

pytestmark = pytest.mark.usefixtures("quiet_client")

ONE = Definition(name="one", steps=(Step(name="only", agent="worker"),))
PROCESSES = (["engine"], ["agent", "tests.chaos.agents:agents"], ["project"], ["watch"])


# --- no broker at the start


@pytest.mark.parametrize("command", PROCESSES, ids=lambda command: command[0])
def test_a_process_that_finds_no_broker_ends_soon_and_says_so(command: list[str], stack: Stack, tmp_path: Path) -> None:
    place = Place(tmp_path, {"SAGALOG_BOOTSTRAP": "127.0.0.1:1", "SAGALOG_POSTGRES": stack.postgres})
    ended = place.sagalog(*command, **_tests_importable())
    assert ended.code == 3
    assert "no Kafka broker answers at 127.0.0.1:1 " in ended.one_sentence()


def test_told_to_wait_it_tries_for_so_long_and_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path, {"SAGALOG_BOOTSTRAP": "127.0.0.1:1"})
    ended = place.sagalog("engine", "--wait", "3")
    assert ended.code == 3
    lines = ended.err.splitlines()
    assert ended.seconds >= 3.0 and 3 <= len(lines) <= 8
    assert re.search(
        r"no Kafka broker answers at 127\.0\.0\.1:1 .*; trying again in \d\.\d s, for \d s more$", lines[0]
    )
    assert lines[-1].startswith("Error: no Kafka broker answers at 127.0.0.1:1 ")


async def test_a_broker_that_comes_while_it_waits_is_used(stack: Stack, topics: Topics, tmp_path: Path) -> None:
    (port,) = ports.free_ports(1)
    host, _, number = stack.bootstrap.split(",")[0].rpartition(":")
    place = Place(tmp_path, {"SAGALOG_BOOTSTRAP": f"127.0.0.1:{port}", "SAGALOG_PREFIX": topics.prefix})
    process = place.run("engine", "--wait", "60")
    try:
        await eventually(lambda: "trying again" in place.said("engine"), 30, "does not wait")
        server = await asyncio.start_server(_relay_to(host, int(number)), "127.0.0.1", port)
        async with server:
            await eventually(lambda: ": live" in place.said("engine"), 40, "does not go on")
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 40)
    assert process.returncode == 0, place.said("engine")


def _relay_to(host: str, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
    """A broker appears at an address: what connects there gets the real one, whose metadata then names its own address."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    return serve


def _tests_importable() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}


# --- a topic is deleted


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "TOPIC_CHECK_MS", 500)
    # A transaction that the deletion meets cannot be aborted: the client is left to itself after so long.
    monkeypatch.setattr(kafka, "CLOSE_TIMEOUT_S", 2.0)


async def _delete(log: KafkaLog, topic: str) -> None:
    """Returns when it is gone: from then on it may be made anew."""
    admin = AIOKafkaAdminClient(bootstrap_servers=log.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()

    async def gone() -> bool:
        return await log.partitions(topic) is None

    await eventually(gone, 20, f"{topic} is not gone")


async def _checkpoints(system: System, workflow_id: str) -> int:
    found = await system.read(system.topics.checkpoints, PARTITIONS)
    return sum(record.key == workflow_id.encode() for record in found)


async def _make_again(log: KafkaLog, topics: Topics) -> None:
    await provision(log, topics, all_specs(["worker"]), partitions=PARTITIONS, replication=1)


@pytest.mark.usefixtures("quick_checks")
@pytest.mark.parametrize("which", ["checkpoints", "results", "events"])
async def test_a_deleted_topic_is_named_with_the_remedy_and_made_again_work_goes_on(
    log: KafkaLog, provisioned: Topics, caplog: pytest.LogCaptureFixture, which: str
) -> None:
    topic = f"{provisioned.prefix}.{which}"
    async with System(log, provisioned) as system:
        await system.client.register(ONE)
        await system.engine()
        await system.agent("worker", lambda command: {"ok": True})
        await system.client.wait(await system.client.start("one", workflow_id="before"), timeout_s=30)
        await eventually(lambda: _checkpoints(system, "before"), 20, "there is no checkpoint")
        await _delete(log, topic)
        said = f"topic {topic} does not exist; make it with: sagalog topics create"
        await eventually(lambda: caplog.text.count(said) >= 3, 40, "it is not said")
        await _make_again(log, provisioned)
        if which == "events":
            await eventually(lambda: "the topic was made anew" in caplog.text, 40, "it is not said that it is another")
            await _delete(log, provisioned.checkpoints)
            await eventually(lambda: f"topic {provisioned.checkpoints} does not" in caplog.text, 40, "it is not said")
            await _make_again(log, provisioned)
            await system.client.register(ONE)
        result = await system.client.wait(await system.client.start("one", workflow_id="after"), timeout_s=40)
        assert result["status"] == "completed"


async def test_a_deleted_command_topic_is_named_and_others_work_meanwhile(
    stack: Stack, provisioned: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    other = Definition(name="other", steps=(Step(name="only", agent="idler"),))
    log = KafkaLog(stack.bootstrap, session_timeout_ms=SESSION_TIMEOUT_MS, request_timeout_ms=3_000)
    try:
        async with System(log, provisioned) as system:
            await system.client.register(ONE)
            await system.client.register(other)
            await system.engine()
            await system.agent("idler", lambda command: {"ok": True})
            await _delete(log, provisioned.commands("worker"))
            waits = await system.client.start("one")
            await eventually(
                lambda: f"topic {provisioned.commands('worker')} does not exist" in caplog.text, 40, "unsaid"
            )
            result = await system.client.wait(await system.client.start("other"), timeout_s=40)
            assert result["status"] == "completed"
            await _make_again(log, provisioned)
            await system.agent("worker", lambda command: {"ok": True})
            result = await system.client.wait(waits, timeout_s=40)
            assert result["status"] == "completed"
    finally:
        await log.close()


# --- two engines that do not fit together


def _engine(log: KafkaLog, topics: Topics, member: str) -> Engine:
    return Engine(log, topics, clock=SystemClock(), rng=SystemRng(), member=member)


async def test_engines_of_two_prefixes_do_not_meet(log: KafkaLog, provisioned: Topics, stack: Stack) -> None:
    mine, theirs = provisioned, Topics(f"{provisioned.prefix}.b")
    await provision(log, theirs, all_specs(), partitions=2, replication=1)
    async with System(log, mine) as first, System(log, theirs) as second:
        for system in (first, second):
            await system.client.register(ONE)
            await system.engine()
            await system.agent("worker", lambda command, of=system: {"by": of.topics.prefix})
        ids = ["same-id", "another"]
        for system in (first, second):
            for workflow_id in ids:
                await system.client.start("one", workflow_id=workflow_id)
        for system in (first, second):
            for result in (await system.client.wait_all(ids, timeout_s=30)).values():
                assert result["output"] == {"only": {"by": system.topics.prefix}}
            assert sorted(command.workflow_id for command in system.commands) == sorted(ids)


def test_an_engine_with_another_number_of_partitions_refuses_to_start(
    stack: Stack, provisioned: Topics, tmp_path: Path
) -> None:
    place = Place(tmp_path, {"SAGALOG_BOOTSTRAP": stack.bootstrap, "SAGALOG_PREFIX": provisioned.prefix})
    ended = place.sagalog("engine", SAGALOG_PARTITIONS=str(PARTITIONS * 2))
    assert ended.code == 2
    wanted = f"topic {provisioned.events} has {PARTITIONS} partitions where {PARTITIONS * 2} are expected"
    assert wanted in ended.err and "set SAGALOG_PARTITIONS to the number it has" in ended.err
    assert "Traceback" not in ended.err


def test_an_engine_whose_events_are_not_timed_by_the_broker_refuses_to_start(
    stack: Stack, topics: Topics, tmp_path: Path
) -> None:
    async def make() -> None:
        log = KafkaLog(stack.bootstrap)
        try:
            await log.create({topics.events: (2, 1, {"message.timestamp.type": "CreateTime"})})
        finally:
            await log.close()

    asyncio.run(make())
    place = Place(tmp_path, {"SAGALOG_BOOTSTRAP": stack.bootstrap, "SAGALOG_PREFIX": topics.prefix})
    ended = place.sagalog("engine", SAGALOG_PARTITIONS="2")
    assert ended.code == 2
    assert (
        f"topic {topics.events} has message.timestamp.type=CreateTime where LogAppendTime is expected"
        in ended.one_sentence()
    )


async def test_engines_with_different_session_timeouts_share_the_work(
    stack: Stack, log: KafkaLog, provisioned: Topics
) -> None:
    slow = KafkaLog(stack.bootstrap, session_timeout_ms=30_000)
    try:
        async with System(log, provisioned) as one, System(slow, provisioned) as two:
            await one.client.register(ONE)
            engines = [await one.engine("quick"), await two.engine("slow")]
            await one.agent("worker", lambda command: {"ok": True})

            def owned() -> list[int]:
                sessions = [engine.session for engine in engines]
                return [sum(p.promoted for p in session.processors.values()) if session else 0 for session in sessions]

            await eventually(lambda: all(owned()), 30, "one of them has nothing")
            ids = [f"s{n}" for n in range(20)]
            await one.client.start_many("one", {workflow_id: {} for workflow_id in ids})
            results = await one.client.wait_all(ids, timeout_s=30)
            assert {result["status"] for result in results.values()} == {"completed"}
    finally:
        await slow.close()


async def test_a_session_timeout_that_the_broker_refuses_is_named(
    stack: Stack, provisioned: Topics, caplog: pytest.LogCaptureFixture
) -> None:
    log = KafkaLog(stack.bootstrap, session_timeout_ms=500)
    stop = asyncio.Event()
    running = asyncio.create_task(_engine(log, provisioned, "hasty").run(stop))
    try:
        await eventually(lambda: caplog.text.count("set SAGALOG_SESSION_TIMEOUT_MS within its") >= 2, 30, "unsaid")
    finally:
        stop.set()
        await running
        await log.close()


async def test_an_engine_of_another_version_in_the_group_is_told_so(
    log: KafkaLog, provisioned: Topics, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(ONE)
        await system.engine("of-this-version")
        await system.agent("worker", lambda command: {"ok": True})
        monkeypatch.setattr(sharing.EngineSharing, "name", "sagalog-0")
        stop = asyncio.Event()
        running = asyncio.create_task(_engine(log, provisioned, "of-another").run(stop))
        try:
            said = "a process of another version is in it"
            await eventually(lambda: sum(said in r.getMessage() for r in caplog.records) >= 3, 30, "unsaid")
            result = await system.client.wait(await system.client.start("one"), timeout_s=30)
            assert result["status"] == "completed"
        finally:
            stop.set()
            await running
