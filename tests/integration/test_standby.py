"""Standbys on the real broker: an engine that dies and one that is stopped, with another one at hand."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path

from sagalog.engine.audit import verify
from sagalog.engine.runtime.engine import Engine
from sagalog.engine.runtime.processor import Phase
from sagalog.schemas.definitions import Definition, Step
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import TopicPartition
from sagalog.topics.specs import Topics

from ..conftest import PARTITIONS, Stack
from ..processes import Processes, environment_of
from .system import NO_ANSWER, System, eventually

CHAIN = Definition(
    name="chain",
    steps=tuple(
        Step(name=f"s{n}", agent="worker", needs=(f"s{n - 1}",) if n else (), timeout_ms=60_000) for n in range(6)
    ),
)
LIVE = re.compile(r"events/\d+: live, epoch (\d+), after (\d+) ms")


def _in(engine: Engine, phase: Phase) -> set[int]:
    """Partitions of `events` in a phase."""
    found = engine.session.processors if engine.session is not None else {}
    return {
        at.partition for at, processor in found.items() if at.topic == engine.topics.events and processor.phase is phase
    }


async def _until_each_stands_by_for_the_other(*engines: Engine) -> None:
    def settled() -> bool:
        one, two = engines
        owned = _in(one, Phase.LIVE), _in(two, Phase.LIVE)
        return all(owned) and owned == (_in(two, Phase.STANDBY), _in(one, Phase.STANDBY))

    await eventually(settled, 30, "the engines do not stand by for each other")


async def _command_ids(log: KafkaLog, topics: Topics) -> list[str]:
    """Of all commands to the worker, as often as they were sent."""
    partitions = [TopicPartition(topics.commands("worker"), number) for number in range(PARTITIONS)]
    reader = await log.read(dict.fromkeys(partitions), committed=False)
    try:
        ends = await reader.end_offsets(partitions)
        found: list[str] = []
        while any([await reader.position(partition) < end for partition, end in ends.items()]):
            for messages in (await reader.poll(500, 1_000)).values():
                found += [value.decode() for m in messages for name, value in m.headers if name == "ce_id"]
        return found
    finally:
        await reader.close()


async def test_an_engine_that_stops_hands_over_and_nothing_is_sent_twice(log: KafkaLog, provisioned: Topics) -> None:
    """Commands go out all the while, half of which nobody answers: those a new owner would send again, if it were not told."""
    async with System(log, provisioned) as system:
        await system.client.register(CHAIN)
        await system.agent(
            "worker", lambda command: NO_ANSWER if command.workflow_id[0] == "q" else {"ok": command.step}
        )
        staying = await system.engine("staying")
        stop, ids = asyncio.Event(), list[str]()
        async with System(log, provisioned) as other:
            leaving = await other.engine("leaving")
            await _until_each_stands_by_for_the_other(staying, leaving)
            starting = asyncio.create_task(_start_until(stop, system, ids))
            await eventually(lambda: len(system.commands) > 200, 30, "nothing moves")
        stop.set()
        await starting
        results = await system.client.wait_all([found for found in ids if found[0] == "w"], timeout_s=60)
        assert {result["status"] for result in results.values()} == {"completed"}
        assert _in(staying, Phase.LIVE) == set(range(PARTITIONS))
        await eventually(
            lambda: len({c.command_id for c in system.commands}) == 7 * len(ids) / 2, 30, "some were not sent"
        )
        sent = Counter(await _command_ids(log, provisioned))
        assert [command_id for command_id, count in sent.items() if count > 1] == []


async def _start_until(stop: asyncio.Event, system: System, ids: list[str]) -> None:
    """A few at a time, half of them `q`."""
    while not stop.is_set() and len(ids) < 20_000:
        new = [f"{kind}{len(ids) + number}" for number in range(4) for kind in "qw"]
        await system.client.start_many("chain", {workflow_id: {} for workflow_id in new})
        ids += new


async def _start_all(system: System, ids: list[str]) -> None:
    """Some at a time, so that there is work all the while."""
    for at in range(0, len(ids), 20):
        await system.client.start_many("chain", {workflow_id: {} for workflow_id in ids[at : at + 20]})
        await system.client.wait(ids[at], timeout_s=30)


async def test_the_standby_of_an_engine_that_is_killed_goes_on(
    stack: Stack, log: KafkaLog, provisioned: Topics, tmp_path: Path
) -> None:
    environment = environment_of(stack.bootstrap, provisioned)
    async with System(log, provisioned) as system:
        await system.client.register(CHAIN)
        await system.agent("worker", lambda command: {"ok": command.step})
        with Processes(tmp_path, environment) as processes:
            victim = processes.make("victim", "engine")
            await eventually(lambda: len(LIVE.findall(victim.output())) == PARTITIONS, 30, "the first is not live")
            heir = await system.engine("heir")
            await eventually(
                lambda: len(_in(heir, Phase.STANDBY)) == PARTITIONS - len(_in(heir, Phase.LIVE)) > 0, 30, ""
            )
            ids = [f"w{n}" for n in range(200)]
            starting = asyncio.create_task(_start_all(system, ids))
            await eventually(lambda: len(system.commands) > 200, 30, "nothing moves")
            victim.kill()
            await starting
            results = await system.client.wait_all(ids, timeout_s=60)
            assert {result["status"] for result in results.values()} == {"completed"}
            assert _in(heir, Phase.LIVE) == set(range(PARTITIONS))
        for report in await verify(log, provisioned):
            assert not report.differences
