"""What the benches do to topics beyond provisioning: waiting until they can be used, and deleting them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient

from benchmarks.settings import BenchError
from sagalog.topics.log import Log, TopicPartition
from sagalog.topics.provision import provision
from sagalog.topics.specs import Topics, TopicSpec

VISIBLE_SECONDS_MAX: Final = 30.0
VISIBLE_CHECK_SECONDS: Final = 0.05


async def make_topics(
    log: Log, topics: Topics, specs: Sequence[TopicSpec], partitions: int, *, replication: int = 1
) -> None:
    """Provisions and waits: a broker acknowledges a topic a moment before it tells others that there is one."""
    await provision(log, topics, specs, partitions=partitions, replication=replication)
    names = {topics.name(spec) for spec in specs}
    until = time.monotonic() + VISIBLE_SECONDS_MAX
    while missing := names - (await log.describe(sorted(names))).keys():
        if time.monotonic() > until:
            raise BenchError(f"topics made {VISIBLE_SECONDS_MAX:g} s ago do not show: {', '.join(sorted(missing))}")
        await asyncio.sleep(VISIBLE_CHECK_SECONDS)
    # ... and that before the partitions have their leaders; asking for offsets waits for those.
    made = [
        TopicPartition(topics.name(spec), number) for spec in specs for number in range(spec.partitions(partitions))
    ]
    reader = await log.read(dict.fromkeys(made, 0), committed=False)
    try:
        await reader.end_offsets(made)
    finally:
        await reader.close()


async def delete_topics(bootstrap: str, names: Sequence[str]) -> None:
    """So that the broker does not compact one run's checkpoints during the next."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics(list(names))
    finally:
        await admin.close()
