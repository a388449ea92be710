"""A whole system in one process, on the real broker: an engine, and agents written against the bare log port.

The agents are what a client in any language would write: they prove that the records alone are the contract.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from sagalog.engine.client import Client
from sagalog.engine.runtime.engine import Engine
from sagalog.engine.runtime.processor import Phase
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.schemas.commands import Command, parse_command
from sagalog.schemas.events import TYPE_OF, FailureKind, StepCompleted, StepFailed, encode_event
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Out, TopicPartition
from sagalog.topics.specs import Topics

Answer = Any
"""What an agent returns: an output, a `Failure`, or NO_ANSWER."""
NO_ANSWER = object()


class Failure:
    def __init__(self, kind: FailureKind = FailureKind.TERMINAL, message: str = "cannot", **more: Any) -> None:
        self.kind, self.message, self.more = kind, message, more


class System:
    """Use `async with System(log, topics) as system`. Everything started through it is stopped at the end."""

    def __init__(self, log: KafkaLog, topics: Topics) -> None:
        self.log = log
        self.topics = topics
        self.stack = contextlib.AsyncExitStack()
        self.commands: list[Command] = []
        """Every command that an agent of this system got, in order."""
        self.client: Client

    async def __aenter__(self) -> System:
        await self.stack.__aenter__()
        self.client = await self.stack.enter_async_context(Client(self.log, self.topics))
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.stack.__aexit__(*error)

    async def engine(self, member: str | None = None, **options: Any) -> Engine:
        """A running engine; live for all partitions when this returns, if it is the only one."""
        engine = Engine(self.log, self.topics, clock=SystemClock(), rng=SystemRng(), member=member, **options)
        await self.stack.enter_async_context(_running(engine))
        await eventually(lambda: _all_live(engine), 30, "the engine is not live")
        return engine

    async def agent(self, name: str, answer: Callable[[Command], Answer]) -> None:
        """An agent whose answers a function gives."""
        stop = asyncio.Event()
        joined = asyncio.Event()
        task = asyncio.create_task(self._serve(name, answer, stop, joined))
        self.stack.push_async_callback(_stop, stop, task)
        await asyncio.wait_for(joined.wait(), 30)

    async def _serve(
        self, name: str, answer: Callable[[Command], Answer], stop: asyncio.Event, joined: asyncio.Event
    ) -> None:
        async def assigned(partitions: set[TopicPartition]) -> None:
            joined.set()

        async def revoked(partitions: set[TopicPartition]) -> None:
            return None

        consumer = await self.log.join(self.topics.agent_group(name), [self.topics.commands(name)], assigned, revoked)
        producer = await self.log.producer(f"agent-{name}")
        try:
            while not stop.is_set():
                for partition, messages in (await consumer.poll(100, 500)).items():
                    results = []
                    for message in messages:
                        command = parse_command(message.value)
                        self.commands.append(command)
                        found = answer(command)
                        if found is not NO_ANSWER:
                            results.append(result_record(command, found))
                    await producer.append(self.topics.events, partition.partition, results)
                    await consumer.commit({TopicPartition(*partition): (messages[-1].offset + 1, "")})
        finally:
            await consumer.close()
            await producer.close()

    async def write(self, key: bytes | None, value: bytes | None, ce_type: bytes | None, partition: int = 0) -> None:
        """A record in `events`, as another client might write it."""
        headers = [("ce_type", ce_type)] if ce_type is not None else []
        producer = await self.log.producer("other-client")
        try:
            await producer.append(self.topics.events, partition, [Out(key, value, headers)])
        finally:
            await producer.close()

    async def read(self, topic: str, partitions: int = 1) -> list[Any]:
        """All records that a topic has now, committed."""
        numbers = [TopicPartition(topic, number) for number in range(partitions)]
        reader = await self.log.read(dict.fromkeys(numbers), committed=True)
        found = []
        try:
            for number, end in (await reader.end_offsets(numbers)).items():
                while await reader.position(number) < end:
                    for messages in (await reader.poll(200, 1_000)).values():
                        found += messages
        finally:
            await reader.close()
        return found


def result_record(command: Command, found: Answer) -> Out:
    common = (command.step, command.attempt, command.direction, command.token)
    if isinstance(found, Failure):
        event: Any = StepFailed(*common, found.kind, found.message, agent=command.agent, **found.more)
    else:
        event = StepCompleted(*common, found, command.agent, 1)
    headers = [("ce_type", TYPE_OF[type(event)].encode()), ("ce_id", f"{command.command_id}/result".encode())]
    return Out(command.workflow_id.encode(), encode_event(event), headers)


def _all_live(engine: Engine) -> bool:
    """All that it is to own; beside them it may stand by for others'."""
    owned = (
        [processor for processor in engine.session.processors.values() if processor.promoted] if engine.session else []
    )
    return bool(owned) and all(processor.phase is Phase.LIVE for processor in owned)


@contextlib.asynccontextmanager
async def _running(engine: Engine) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(engine.run(stop))
    try:
        yield
    finally:
        await _stop(stop, task)


async def _stop(stop: asyncio.Event, task: asyncio.Task[Any]) -> None:
    stop.set()
    async with asyncio.timeout(30):
        await task


async def eventually(condition: Callable[[], Any], timeout_s: float, problem: str) -> None:
    """Polls a condition of a system that goes on by itself; fails with `problem` when it does not come true in time."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{problem} within {timeout_s} s") from None
