"""The agents' host on a real broker, with hosts that are killed.

Run as a script (`test_agent_host.py BOOTSTRAP PREFIX`), this file is the host that the tests kill.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from sagalog.agents import AgentHost, Context, Terminal, agent
from sagalog.agents.testing import command
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.schemas.commands import Command, encode_command, parse_heartbeat
from sagalog.schemas.events import FailureKind, StepCompleted, StepFailed, parse_event
from sagalog.schemas.ids import Direction
from sagalog.topics import specs
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Consumer, Message, Out, Producer, TopicPartition, header
from sagalog.topics.provision import provision
from sagalog.topics.specs import Topics

NAME = "worker"
WAIT_S = 45.0
DELIVERIES_MAX = 3
SESSION_TIMEOUT_MS = 3_000
gates: dict[str, asyncio.Event] = {}


@agent(NAME, concurrency=4)
async def work(do: str, ctx: Context, value: Any = None) -> Any:
    match do:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill once":
            # The second host finds the file and does the work.
            marker = Path(value)
            if not marker.exists():  # noqa: ASYNC240 - it is about to die
                marker.touch()  # noqa: ASYNC240
                os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            await gates[value].wait()
        case "endless":
            await asyncio.Event().wait()
        case "refuse":
            raise Terminal("refused", {"value": value})
        case "beat":
            for done in range(6):
                ctx.heartbeat({"done": done})
                await asyncio.sleep(0.05)
    return value


def make_host(log: KafkaLog, topics: Topics, **options: Any) -> AgentHost:
    return AgentHost(
        [work], log, topics, clock=SystemClock(), rng=SystemRng(), deliveries_max=DELIVERIES_MAX, **options
    )


async def serve(bootstrap: str, prefix: str) -> None:
    log = KafkaLog(bootstrap, session_timeout_ms=SESSION_TIMEOUT_MS)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    try:
        await make_host(log, Topics(prefix)).run(stop)
    finally:
        await log.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))


class Bench:
    """Sends commands, and reads what comes back, on one prefix."""

    def __init__(self, log: KafkaLog, topics: Topics, producer: Producer, reader: Consumer) -> None:
        self.log = log
        self.topics = topics
        self.producer = producer
        self._reader = reader
        self.events: list[Message] = []

    async def send(self, sent: Command, partition: int = 0) -> None:
        await self.put(encode_command(sent), sent.workflow_id.encode(), partition)

    async def put(self, value: bytes | None, key: bytes | None, partition: int = 0) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.producer.append(self.topics.commands(NAME), partition, [Out(key, value)])

    async def answered(self, count: int) -> list[StepCompleted | StepFailed]:
        async with asyncio.timeout(WAIT_S):
            while len(self.events) < count:
                for messages in (await self._reader.poll(500, 1_000)).values():
                    self.events.extend(messages)
        found = [parse_event(header(message.headers, "ce_type"), message.value) for message in self.events]
        return [event for event in found if isinstance(event, StepCompleted | StepFailed)]

    async def read(self, topic: str, partition: int, count: int) -> list[Message]:
        reader = await self.log.read({TopicPartition(topic, partition): None}, committed=True)
        found: list[Message] = []
        try:
            async with asyncio.timeout(WAIT_S):
                while len(found) < count:
                    for messages in (await reader.poll(500, 1_000)).values():
                        found.extend(messages)
        finally:
            await reader.close()
        return found

    async def committed(self, partition: int = 0) -> tuple[int, str]:
        place = TopicPartition(self.topics.commands(NAME), partition)
        found = await self.log.committed(self.topics.agent_group(NAME), [place])
        return found.get(place, (0, ""))

    async def until_committed(self, offset: int, partition: int = 0) -> str:
        async with asyncio.timeout(WAIT_S):
            while (found := await self.committed(partition))[0] < offset:  # noqa: ASYNC110 - commits are silent
                await asyncio.sleep(0.1)
        assert found[0] == offset
        return found[1]


@pytest.fixture
async def bench(log: KafkaLog, provisioned: Topics) -> AsyncIterator[Bench]:
    partitions = await log.partitions(provisioned.events)
    assert partitions is not None
    await provision(log, provisioned, [specs.commands(NAME)], partitions=partitions, replication=1)
    producer = await log.producer("bench")
    places = {TopicPartition(provisioned.events, partition): None for partition in range(partitions)}
    reader = await log.read(places, committed=True)
    yield Bench(log, provisioned, producer, reader)
    await reader.close()
    await producer.close()


@asynccontextmanager
async def process(bench: Bench) -> AsyncIterator[asyncio.subprocess.Process]:
    """This file as a host of its own."""
    started = await asyncio.create_subprocess_exec(sys.executable, __file__, bench.log.bootstrap, bench.topics.prefix)
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def killed(started: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(WAIT_S):
        assert await started.wait() == -signal.SIGKILL


def do(what: str, value: Any = None, **options: Any) -> Command:
    return command(NAME, {"do": what, "value": value}, **options)


async def test_commands_are_answered_in_their_partition(bench: Bench) -> None:
    async with make_host(bench.log, bench.topics):
        for number in range(40):
            await bench.send(do("echo", number, workflow_id=f"w-{number}"), number % 4)
        await bench.send(do("refuse", 40, workflow_id="w-40"), 1)
        answers = await bench.answered(41)
        for partition, count in enumerate((10, 11, 10, 10)):
            await bench.until_committed(count, partition)
    assert {event.output for event in answers if isinstance(event, StepCompleted)} == set(range(40))
    assert [(event.kind, event.details) for event in answers if isinstance(event, StepFailed)] == [
        (FailureKind.TERMINAL, {"value": 40})
    ]
    for message in bench.events:
        assert message.key is not None
        number = int(message.key[2:])
        assert message.partition == (1 if number == 40 else number % 4)
        assert header(message.headers, "ce_id") == f"w-{number}/worker/1/execute/result".encode()


async def test_work_out_of_order_is_not_repeated_by_the_next_host(bench: Bench) -> None:
    gates["order"] = asyncio.Event()
    async with make_host(bench.log, bench.topics, grace_ms=0):
        for number in range(6):
            if number in (0, 3):
                what = do("wait", "order", workflow_id=f"w-{number}")
            else:
                what = do("echo", number, workflow_id=f"w-{number}")
            await bench.send(what)
        await bench.answered(4)
    assert await bench.committed() == (0, "1;0;0;1,2,1,2")
    gates["order"].set()
    async with make_host(bench.log, bench.topics):
        await bench.answered(6)
        await bench.until_committed(6)
    assert len(bench.events) == 6, "only the two that had not ended are answered by the second host"


async def test_what_a_killed_host_had_begun_is_answered_by_the_next(bench: Bench, tmp_path: Path) -> None:
    async with process(bench) as first:
        await bench.send(do("endless", workflow_id="w-1", timeout_ms=1_000))
        await bench.send(do("kill once", str(tmp_path / "killed"), workflow_id="w-2"))
        await killed(first)
    async with process(bench):
        answers = await bench.answered(2)
    assert {(event.token, getattr(event, "kind", "done")) for event in answers} == {
        ("token", FailureKind.TIMEOUT),
        ("token", "done"),
    }


async def test_a_command_that_kills_its_host_is_given_up_and_the_innocent_are_not(bench: Bench) -> None:
    for number in range(3):
        await bench.send(do("echo", number, workflow_id=f"w-{number}"))
    await bench.send(do("kill", workflow_id="w-3"))
    await bench.send(do("echo", 4, workflow_id="w-4"))
    deaths = 0
    async with asyncio.timeout(4 * WAIT_S):
        while True:
            async with process(bench) as started:
                ended = asyncio.create_task(started.wait())
                answer = asyncio.create_task(bench.until_committed(5))
                await asyncio.wait([ended, answer], return_when=asyncio.FIRST_COMPLETED)
                answered = answer.done()
                answer.cancel()
                ended.cancel()
                await asyncio.gather(ended, answer, return_exceptions=True)
            if answered:
                break
            deaths += 1
    answers = await bench.answered(5)
    failures = [event for event in answers if isinstance(event, StepFailed)]
    assert [(event.kind, event.error_type) for event in failures] == [(FailureKind.UNKNOWN, "DeliveredTooOften")]
    assert failures[0].message == (
        f"delivered {DELIVERIES_MAX} times without an answer; the handler probably kills its process"
    )
    assert deaths in (DELIVERIES_MAX, DELIVERIES_MAX + 1), "the first death may leave others as suspects"
    assert {event.output for event in answers if isinstance(event, StepCompleted)} == {0, 1, 2, 4}


async def test_poison_goes_to_quarantine(bench: Bench) -> None:
    async with make_host(bench.log, bench.topics):
        await bench.put(b"{", b"w-1")
        await bench.put(encode_command(do("echo", workflow_id="w-2")), None)
        await bench.send(do("echo", 3, workflow_id="w-3"))
        await bench.answered(1)
        await bench.until_committed(3)
    found = [orjson.loads(message.value or b"") for message in await bench.read(bench.topics.quarantine, 0, 2)]
    topic = bench.topics.commands(NAME)
    assert [record["origin"] for record in found] == [f"{topic}/0/0", f"{topic}/0/1"]


async def test_an_attempt_that_takes_too_long_is_a_timeout(bench: Bench) -> None:
    async with make_host(bench.log, bench.topics):
        await bench.send(do("endless", timeout_ms=100))
        (answer,) = await bench.answered(1)
    assert isinstance(answer, StepFailed)
    assert (answer.kind, answer.message) == (FailureKind.TIMEOUT, "no answer within 100 ms")


async def test_an_execute_after_its_compensate_is_refused(bench: Bench) -> None:
    async with make_host(bench.log, bench.topics):
        await bench.send(do("echo", "undo", direction=Direction.COMPENSATE))
        await bench.send(do("echo", "do"))
        answers = await bench.answered(2)
    kinds = {event.direction: getattr(event, "kind", None) for event in answers}
    assert kinds == {Direction.EXECUTE: FailureKind.CANCELLED, Direction.COMPENSATE: None}


async def test_a_broken_producer_is_replaced(bench: Bench) -> None:
    """The producer is closed under the host, which every later append then meets."""
    made: list[Producer] = []
    original: Callable[[str], Awaitable[Producer]] = bench.log.producer

    async def note(client_id: str) -> Producer:
        made.append(await original(client_id))
        return made[-1]

    bench.log.producer = note  # type: ignore[method-assign]
    async with make_host(bench.log, bench.topics):
        await bench.send(do("echo", 1, workflow_id="w-1"))
        await bench.answered(1)
        await made[0].close()
        await bench.send(do("echo", 2, workflow_id="w-2"))
        answers = await bench.answered(2)
        await bench.until_committed(2)
    assert len(made) == 2
    assert [event.output for event in answers if isinstance(event, StepCompleted)] == [1, 2]


async def test_a_stopped_host_ends_what_runs_and_hands_over_cleanly(bench: Bench) -> None:
    gates["stop"] = asyncio.Event()
    async with make_host(bench.log, bench.topics):
        await bench.send(do("wait", "stop"))
        async with asyncio.timeout(WAIT_S):
            while not (await bench.committed())[1]:  # noqa: ASYNC110 - a commit announces itself to nobody
                await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.3, gates["stop"].set)
    await bench.answered(1)
    assert await bench.committed() == (1, "1;0;0;")


async def test_long_attempts_send_heartbeats(bench: Bench) -> None:
    async with make_host(bench.log, bench.topics):
        await bench.send(do("beat", heartbeat_timeout_ms=150), 2)
        await bench.answered(1)
        beats = await bench.read(bench.topics.heartbeats, 2, 3)
    assert {beat.key for beat in beats} == {b"w-1/worker/1/execute"}
    assert parse_heartbeat(beats[0].value).progress == {"done": 0}


async def test_two_hosts_share_the_partitions_and_one_takes_over(bench: Bench) -> None:
    other = KafkaLog(bench.log.bootstrap, session_timeout_ms=SESSION_TIMEOUT_MS)
    try:
        async with make_host(bench.log, bench.topics):
            async with make_host(other, bench.topics):
                for number in range(40):
                    await bench.send(do("echo", number, workflow_id=f"w-{number}"), number % 4)
                await bench.answered(40)
            for number in range(40, 80):
                await bench.send(do("echo", number, workflow_id=f"w-{number}"), number % 4)
            answers = await bench.answered(80)
            for partition in range(4):
                await bench.until_committed(20, partition)
    finally:
        await other.close()
    assert {event.output for event in answers if isinstance(event, StepCompleted)} == set(range(80))
