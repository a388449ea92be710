"""The log's retention, run for real: what has been folded is deleted, and an engine that starts then goes on all the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from sagalog.engine.audit import LogTruncated, verify
from sagalog.engine.client import Client
from sagalog.schemas.definitions import Definition, Step, WaitFor
from sagalog.topics import specs
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Log, TopicPartition
from sagalog.topics.provision import provision
from sagalog.topics.specs import Topics, all_specs

from ..conftest import PARTITIONS
from .system import System, eventually

SHORT = {"retention.ms": "2000", "segment.ms": "1000"}
QUICK_CLEANER = {"segment.ms": "1000", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "1000"}
DELETED_S = 60
"""The broker looks every second; a segment is deleted when its newest record is past its time."""

QUICK = Definition(name="quick", steps=(Step(name="one", agent="worker"),))
SIGNALLED = Definition(
    name="signalled",
    steps=(
        Step(name="first", agent="worker"),
        Step(name="go", needs=("first",), wait_for=WaitFor(signal="go", timeout_ms=600_000)),
        Step(name="last", agent="worker", needs=("go",)),
    ),
)


async def _provision_with_short_retention(log: Log, topics: Topics) -> None:
    """As an operator may change it; the rest of the topics is made as always."""
    short = replace(specs.EVENTS, config=specs.EVENTS.config | SHORT)
    cleaned = replace(specs.CHECKPOINTS, config=specs.CHECKPOINTS.config | QUICK_CLEANER)
    await log.create({topics.name(spec): (PARTITIONS, 1, spec.config) for spec in (short, cleaned)})
    await provision(log, topics, all_specs(["worker"]), partitions=PARTITIONS, replication=1)


async def _begins(log: KafkaLog, topics: Topics) -> list[int]:
    partitions = [TopicPartition(topics.events, number) for number in range(PARTITIONS)]
    reader = await log.read(dict.fromkeys(partitions, 0), committed=False)
    try:
        return list((await reader.beginning_offsets(partitions)).values())
    finally:
        await reader.close()


async def _events_until(stop: asyncio.Event, client: Client) -> None:
    """A little work all the while, so that segments are closed."""
    number = 0
    while not stop.is_set() and number < 20_000:
        await client.start_many("quick", {f"filler-{number + n}": {} for n in range(PARTITIONS * 2)})
        number += PARTITIONS * 2
        await asyncio.sleep(0.2)


async def test_an_engine_goes_on_from_checkpoints_whose_events_are_deleted(log: KafkaLog, topics: Topics) -> None:
    await _provision_with_short_retention(log, topics)
    open_ids, done_ids = [f"open-{n}" for n in range(12)], [f"done-{n}" for n in range(12)]
    async with System(log, topics) as system:
        await system.client.register(QUICK)
        await system.client.register(SIGNALLED)
        await system.agent("worker", lambda command: {"did": command.step})
        async with System(log, topics) as first:
            await first.engine("first")
            await system.client.start_many("quick", {key: {} for key in done_ids})
            await system.client.start_many("signalled", {key: {} for key in open_ids})
            await system.client.wait_all(done_ids, timeout_s=30)
            await eventually(lambda: sum(c.step == "first" for c in system.commands) == len(open_ids), 30, "not begun")
            stop = asyncio.Event()
            filling = asyncio.create_task(_events_until(stop, system.client))

            async def deleted() -> bool:
                return all(begin > len(open_ids) for begin in await _begins(log, topics))

            await eventually(deleted, DELETED_S, "retention has deleted nothing")
            stop.set()
            await filling

        await system.engine("second")
        for workflow_id in open_ids:
            await system.client.signal(workflow_id, "go", {}, who="somebody")
        results = await system.client.wait_all(open_ids, timeout_s=30)
        assert {result["status"] for result in results.values()} == {"completed"}
        assert {tuple(step["output"]["did"] for step in (r["steps"][0], r["steps"][2])) for r in results.values()} == {
            ("first", "last")
        }

        sent_before = sum(command.workflow_id in done_ids for command in system.commands)
        await system.client.start_many("quick", {key: {} for key in done_ids})
        await system.client.wait(await system.client.start("quick", {}, workflow_id="after"), timeout_s=30)
        assert sum(command.workflow_id in done_ids for command in system.commands) == sent_before, "ids are remembered"
        with pytest.raises(LogTruncated):
            await verify(log, topics)
