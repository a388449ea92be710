"""The real engine and its agents, as processes of a bench."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from pydantic import BaseModel

from benchmarks.latency import Latency
from benchmarks.settings import AGENT, STEPS, BenchError
from sagalog.agents.agent import agent
from sagalog.agents.context import Context
from sagalog.agents.host import AgentHost
from sagalog.engine.client import Client
from sagalog.engine.projection.postgres import PostgresSql
from sagalog.engine.projection.projector import Projector
from sagalog.engine.runtime.engine import Engine
from sagalog.engine.runtime.processor import Phase, Processor
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.schemas.commands import parse_command
from sagalog.schemas.definitions import Definition, Step, from_input, from_step
from sagalog.schemas.events import TYPE_OF, Event, StepCompleted, WorkflowStarted, encode_event
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Log, Out, TopicPartition
from sagalog.topics.specs import Topics

PHASE_SECONDS: Final = 0.005
"""How closely a starting engine is watched."""
NAMES: Final = tuple(f"step-{number}" for number in range(STEPS))
NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}
PAYLOAD_FRAME: Final = len('{"data":""}')


def payload(size: int) -> dict[str, str]:
    """A payload of that many bytes as JSON."""
    return {"data": "x" * (size - PAYLOAD_FRAME)}


def definition(steps: int = STEPS) -> Definition:
    """So many steps of one agent, each working on the output of the one before."""
    names = [f"step-{number}" for number in range(steps)]
    return Definition(
        name="bench",
        steps=tuple(
            Step(
                name=name,
                agent=AGENT,
                needs=(names[number - 1],) if number else (),
                input=from_step(names[number - 1]) if number else from_input(),
            )
            for number, name in enumerate(names)
        ),
    )


async def register(log: Log, topics: Topics, payload_bytes: int, steps: int = STEPS) -> tuple[bytes, str]:
    """Makes the definition known; returns the value of a start of it, and its type."""
    found = definition(steps)
    async with Client(log, topics) as client:
        await client.register(found)
    start = WorkflowStarted(f"{found.name}@{found.hash}", payload(payload_bytes))
    return encode_event(start), TYPE_OF[WorkflowStarted]


def record(event: Event, key: str, ce_id: str) -> Out:
    """An event as it is written into `events`."""
    return Out(
        key.encode(), encode_event(event), [("ce_type", TYPE_OF[type(event)].encode()), ("ce_id", ce_id.encode())]
    )


async def engine(arguments: dict[str, Any], stop: asyncio.Event, latency: Latency, say: Callable[..., None]) -> None:
    """The engine as it is deployed: uvloop, metrics, snapshots at their default interval."""
    log = KafkaLog(arguments["bootstrap"], session_timeout_ms=arguments.get("session_timeout_ms", 6_000))
    found = Engine(log, Topics(arguments["prefix"]), clock=SystemClock(), rng=SystemRng())
    watching = _watch_phases(found, say) if arguments.get("phases") else _watch(found, arguments["partitions"], say)
    watch = asyncio.create_task(watching)
    try:
        await found.run(stop)
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await log.close()


async def _watch(found: Engine, partitions: int, say: Callable[..., None]) -> None:
    """Says when the partitions of events are assigned, loaded, and live (`ready`): all of them, each time."""
    events = found.topics.events
    reached = {
        "assigned": frozenset(Phase),
        "loaded": frozenset({Phase.CATCHING_UP, Phase.LIVE}),
        "ready": {Phase.LIVE},
    }
    for event, phases in reached.items():
        while True:
            processors = found.session.processors if found.session is not None else {}
            if sum(p.phase in phases for at, p in processors.items() if at.topic == events) == partitions:
                break
            await asyncio.sleep(PHASE_SECONDS)
        say(event)


async def _watch_phases(found: Engine, say: Callable[..., None]) -> None:
    """Says whenever a partition of events has become live, and how many are in which phase when that has changed."""
    live: set[Processor] = set()
    counts: Counter[str] = Counter()
    while True:
        processors = found.session.processors if found.session is not None else {}
        mine = [processor for at, processor in processors.items() if at.topic == found.topics.events]
        for processor in mine:
            if processor.phase is Phase.LIVE and processor not in live:
                live.add(processor)
                say("live", partition=processor.input.partition, took_ms=processor.took_ms)
        now = Counter(processor.phase.value for processor in mine)
        if now != counts:
            counts = now
            say("phases", **counts)
        await asyncio.sleep(PHASE_SECONDS)


async def raw_agent(arguments: dict[str, Any], stop: asyncio.Event, latency: Latency, say: Callable[..., None]) -> None:
    """The least an agent must do by the contract, without the host: decodes commands and answers them, in batches."""
    topics = Topics(arguments["prefix"])
    log = KafkaLog(arguments["bootstrap"])
    output = payload(arguments["payload_bytes"])
    assigned = asyncio.Event()

    async def on_assigned(partitions: set[TopicPartition]) -> None:
        assigned.set()

    async def on_revoked(partitions: set[TopicPartition]) -> None:
        return

    consumer = await log.join(topics.agent_group(AGENT), [topics.commands(AGENT)], on_assigned, on_revoked)
    producer = await log.producer("bench-agent")
    ce_type = ("ce_type", TYPE_OF[StepCompleted].encode())
    try:
        ready = False
        while not stop.is_set():
            for partition, messages in (await consumer.poll(200, 2_000)).items():
                answers = []
                for message in messages:
                    command = parse_command(message.value)
                    if latency.recording:
                        latency.note(command.workflow_id, NUMBERS[command.step])
                    event = StepCompleted(
                        command.step, command.attempt, command.direction, command.token, output, AGENT, 0
                    )
                    headers = [ce_type, ("ce_id", command.command_id.encode())]
                    answers.append(Out(message.key, encode_event(event), headers))
                producer.append(topics.events, partition.partition, answers).add_done_callback(must_succeed)
            await producer.below(20_000)
            if not ready and assigned.is_set():
                ready = True
                say("ready")
    finally:
        await consumer.close()
        await producer.close()
        await log.close()


def must_succeed(future: asyncio.Future[None]) -> None:
    """For the futures of a producer."""
    if not future.cancelled() and (error := future.exception()) is not None:
        raise BenchError(f"an answer could not be sent: {error}")


class Payload(BaseModel):
    """What a step takes and gives."""

    data: str


async def host_agent(
    arguments: dict[str, Any], stop: asyncio.Event, latency: Latency, say: Callable[..., None]
) -> None:
    """A typed agent in the real host, with the host's defaults."""
    log = KafkaLog(arguments["bootstrap"])
    output = Payload(**payload(arguments["payload_bytes"]))

    @agent(AGENT)
    async def work(given: Payload, context: Context) -> Payload:
        if latency.recording:
            latency.note(context.workflow_id, NUMBERS[context.step])
        return output

    host = AgentHost([work], log, Topics(arguments["prefix"]), clock=SystemClock(), rng=SystemRng())
    ready = asyncio.create_task(_say_ready(host, say))
    try:
        await host.run(stop)
    finally:
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)
        await log.close()


async def projector(arguments: dict[str, Any], stop: asyncio.Event, latency: Latency, say: Callable[..., None]) -> None:
    """The projector as it is deployed."""
    log = KafkaLog(arguments["bootstrap"])
    topics = Topics(arguments["prefix"])
    sql = PostgresSql(arguments["postgres"], prefix=topics.prefix)
    found = Projector(log, sql, topics, clock=SystemClock(), rng=SystemRng())
    ready = asyncio.create_task(_say_projecting(found, say))
    try:
        await found.run(stop)
    finally:
        ready.cancel()
        await asyncio.gather(ready, return_exceptions=True)
        await log.close()


async def _say_projecting(found: Projector, say: Callable[..., None]) -> None:
    while found.unready() is not None:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(PHASE_SECONDS)
    say("ready")


async def _say_ready(host: AgentHost, say: Callable[..., None]) -> None:
    await host.ready.wait()
    say("ready")
