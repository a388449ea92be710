"""Limits by key on the real broker: two engines, several partitions, and a hand-over in the middle."""

from __future__ import annotations

from collections import Counter
from functools import partial

from sagalog.schemas.codec import decode_object
from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import Definition, Limit, Step
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Producer
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

from ..conftest import PARTITIONS
from .system import NO_ANSWER, System, eventually, result_record

CONCURRENCY = 3
WORKFLOWS = 30
SCAN = Definition(
    name="scan",
    steps=(Step(name="scan", agent="scanner", timeout_ms=120_000, limits=("tenant",)),),
    limits={"tenant": Limit(key="tenant", concurrency=CONCURRENCY)},
)


async def test_no_more_of_a_key_are_out_than_its_limit_allows_in_all_partitions_and_over_a_hand_over(
    log: KafkaLog, provisioned: Topics
) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(SCAN)
        await system.agent("scanner", lambda command: NO_ANSWER)
        await system.engine("staying")
        async with System(log, provisioned) as other:
            await other.engine("leaving")
            for number in range(WORKFLOWS):
                await system.client.start("scan", {}, workflow_id=f"w{number}", tenant="ab"[number % 2])
            await eventually(lambda: len(system.commands) == 2 * CONCURRENCY, 30, "not all of the limit is used")
        producer = await log.producer("scanner")
        try:
            await _answer_one_by_one(system, producer)
        finally:
            await producer.close()
        results = await system.client.wait_all([f"w{number}" for number in range(WORKFLOWS)], timeout_s=60)
        assert {result["status"] for result in results.values()} == {"completed"}
        reasons = {
            (entry["reason"], entry["limit"], entry["key"])
            for message in await system.read(provisioned.checkpoints, PARTITIONS)
            if message.key.startswith(b"w") and message.value is not None
            for entry in decode_object(message.value).get("withheld", [])
        }
        assert reasons == {("concurrency_limit", "tenant", "a"), ("concurrency_limit", "tenant", "b")}


async def _answer_one_by_one(system: System, producer: Producer) -> None:
    """The one that is out longest; never more of a tenant may be out than its limit."""
    for answered in range(WORKFLOWS):
        await eventually(partial(_more_than, system, answered), 30, "no further command came")
        out = system.commands[answered:]
        assert len({command.command_id for command in system.commands}) == len(system.commands), "sent twice"
        assert max(Counter(map(_tenant, out)).values()) <= CONCURRENCY
        command = out[0]
        partition = partition_of(command.workflow_id.encode(), PARTITIONS)
        await producer.append(system.topics.events, partition, [result_record(command, {"ok": True})])


def _more_than(system: System, count: int) -> bool:
    return len(system.commands) > count


def _tenant(command: Command) -> str:
    return "ab"[int(command.workflow_id[1:]) % 2]
