"""sagalog as `bench engine` runs it: one engine, one typed agent host, the same load generator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiokafka import TopicPartition

from benchmarks import system
from benchmarks.children import running
from benchmarks.load import Load
from benchmarks.peers.place import Place
from benchmarks.peers.subjects import OnKafka, Subject
from benchmarks.pipeline import check_results
from benchmarks.settings import AGENT
from benchmarks.topics import delete_topics, make_topics
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics, all_specs

SERVED_BY = "Kafka (one broker, acks=all, idempotent producers, flushed by the operating system as is Kafka's default)"


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Subject]:
    """Until the block ends. Raises BenchError when a workflow did not complete."""
    bootstrap, settings = place.stack.bootstrap, place.settings
    topics = Topics(place.name)
    log = KafkaLog(bootstrap)
    try:
        await make_topics(log, topics, all_specs([AGENT]), settings.partitions)
        value, ce_type = await system.register(log, topics, settings.payload_bytes)
        arguments = {
            "bootstrap": bootstrap,
            "prefix": topics.prefix,
            "partitions": settings.partitions,
            "payload_bytes": settings.payload_bytes,
        }
        async with AsyncExitStack() as stack:
            for role in ("engine", "agent-host"):
                await (await stack.enter_async_context(running(role, arguments, place.logs))).ready()
            load = await stack.enter_async_context(Load(bootstrap, topics, settings.partitions, value, ce_type))
            results = [TopicPartition(topics.results, number) for number in range(settings.partitions)]
            yield await stack.enter_async_context(OnKafka(bootstrap, load, results))
            check_results(await load.last_results())
    finally:
        await log.close()
        await delete_topics(bootstrap, [topics.name(spec) for spec in all_specs([AGENT])])
