"""Faust: the Kafka framework that this project already has, in its environment. Two processes share the partitions.

It is no saga engine: nothing is compensated, retried or remembered. It shows what a bare pipeline of its agents does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

import orjson
from aiokafka import TopicPartition

from benchmarks import system
from benchmarks.install import Progress
from benchmarks.load import Load
from benchmarks.peers.place import Place
from benchmarks.peers.subjects import OnKafka, Subject
from benchmarks.settings import STEPS
from benchmarks.topics import delete_topics, make_topics
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import EVENTS, RESULTS, Topics, commands

VERSION = version("faust-streaming")
SERVED_BY = "Kafka (one broker, acks=all, at least once)"
PROCESSES = 2
BETWEEN = tuple(commands(f"step-{number}") for number in range(1, STEPS))


def prepare(progress: Progress) -> None:
    """Nothing to do: it is installed with the project."""


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Subject]:
    """Until the block ends."""
    bootstrap, settings = place.stack.bootstrap, place.settings
    topics = Topics(place.name)
    specs = [EVENTS, *BETWEEN, RESULTS]
    names = [topics.name(spec) for spec in specs]
    log = KafkaLog(bootstrap)
    try:
        await make_topics(log, topics, specs, settings.partitions)
        arguments = {
            "bootstrap": bootstrap,
            "group": place.name,
            "topics": names,
            "partitions": settings.partitions,
        }
        value = orjson.dumps(system.payload(settings.payload_bytes))
        async with AsyncExitStack() as stack:
            workers = [await stack.enter_async_context(place.child("faust_app", arguments)) for _ in range(PROCESSES)]
            for worker in workers:
                await worker.ready()
            load = await stack.enter_async_context(Load(bootstrap, topics, settings.partitions, value, None))
            results = [TopicPartition(topics.results, number) for number in range(settings.partitions)]
            yield await stack.enter_async_context(OnKafka(bootstrap, load, results, workers))
    finally:
        await log.close()
        await delete_topics(bootstrap, names)
