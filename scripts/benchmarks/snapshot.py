"""`bench snapshot`: for how long at a time a snapshot of many touched workflows keeps an engine's loop from anything else.

The real cut of the real machine, written by the real transactional producer, beside a task that does nothing but ask for its
turn again: the longest time that it waits is the pause that folding would see.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks import system
from benchmarks.fold import World, message
from benchmarks.report import Figure, Report
from benchmarks.topics import delete_topics, make_topics
from sagalog.engine.runtime.limits import CUT_PAUSE_S, CUT_WORKFLOWS
from sagalog.infra.tuning import tune_garbage_collector
from sagalog.schemas.events import DefinitionRegistered, WorkflowStarted
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import TransactionalProducer
from sagalog.topics.specs import Topics, all_specs

TOUCHED: Final = 10_000
PAYLOAD_BYTES: Final = 500


async def snapshot(
    bootstrap: str, runs: int, environment: Mapping[str, Any], progress: Callable[[str], None]
) -> Report:
    """Each run touches all workflows and takes one snapshot."""
    tune_garbage_collector()
    topics = Topics("bench")  # as the world of `fold` has it
    log = KafkaLog(bootstrap)
    specs = all_specs([])
    pauses: list[float] = []
    took: list[float] = []
    try:
        await make_topics(log, topics, specs, 1)
        producer = await log.transactional("bench-snapshot")
        try:
            for number in range(runs + 1):
                pause_ms, all_ms = await _run(producer, topics, number)
                if number:  # the first warms the broker up
                    pauses.append(pause_ms)
                    took.append(all_ms)
                    progress(f"snapshot {number}/{runs}: longest pause {pause_ms:.1f} ms of {all_ms:.0f} ms")
        finally:
            await producer.close()
    finally:
        await log.close()
        await delete_topics(bootstrap, [topics.name(spec) for spec in specs])
    return Report(
        "snapshot",
        {**environment, "touched": TOUCHED, "payload_bytes": PAYLOAD_BYTES},
        runs,
        {"snapshot_pause_ms": Figure("ms", pauses), "snapshot_ms": Figure("ms", took)},
        notes=(
            "snapshot_pause_ms: the longest time in which nothing but the snapshot was worked on. snapshot_ms: all of it.",
        ),
    )


async def _run(producer: TransactionalProducer, topics: Topics, number: int) -> tuple[float, float]:
    """The longest pause and the whole, ms."""
    world = _touched(number)
    waiting = asyncio.create_task(_longest_wait())
    await asyncio.sleep(0)
    began = time.perf_counter()
    cut = world.machine.cut()
    assert cut is not None
    while not cut.advance(CUT_WORKFLOWS):  # noqa: ASYNC110 - as the processor does
        await asyncio.sleep(CUT_PAUSE_S)
    await producer.transact({world.machine.checkpoints: cut.records})
    took = time.perf_counter() - began
    waiting.cancel()
    return await waiting * 1_000, took * 1_000


async def _longest_wait() -> float:
    """Between two turns of the loop, in seconds, until it is cancelled."""
    longest, last = 0.0, time.perf_counter()
    try:
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now
    except asyncio.CancelledError:
        return longest


def _touched(number: int) -> World:
    """A machine in which as many workflows have just begun."""
    world = World()
    definition = system.definition()
    payload = system.payload(PAYLOAD_BYTES)
    events: Sequence[tuple[str, Any]] = [
        ("@definition", DefinitionRegistered(definition.model_dump(mode="json"))),
        *(
            (f"w-{number}-{at}", WorkflowStarted(f"{definition.name}@{definition.hash}", payload))
            for at in range(TOUCHED)
        ),
    ]
    world.machine.fold([world.claim(), *(message(at + 1, key, event) for at, (key, event) in enumerate(events))], world)
    world.sent.clear()
    assert world.machine.stats()["workflows"] == TOUCHED
    return world
