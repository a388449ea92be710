"""Child workflows on the real broker: in other partitions than their parents', over a take-over, undone with them."""

from __future__ import annotations

import orjson
import pytest

from sagalog.schemas.definitions import Child, Compensation, Definition, Map, Step, from_input, from_item, from_step
from sagalog.schemas.events import FailureKind
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

from ..conftest import PARTITIONS
from .system import Failure, System, eventually

pytestmark = pytest.mark.stack

SHIP = Definition(
    name="ship",
    steps=(Step(name="pick", agent="stock", compensate=Compensation()),),
    output=from_step("pick"),
)
ORDER = Definition(
    name="order",
    steps=(
        Step(
            name="each",
            workflow=Child(definition="ship", timeout_ms=60_000),
            map=Map(over=from_input("parcels"), concurrency=2),
            input=from_item(),
        ),
        Step(name="thank", agent="mail", needs=("each",), retry={"attempts": 1}),
    ),
)


async def test_children_are_done_and_undone_over_a_take_over(log: KafkaLog, provisioned: Topics) -> None:
    parcels = ["a", "b", "c"]
    children = [f"o1/each[{number}].1" for number in range(3)]
    assert len({partition_of(key.encode(), PARTITIONS) for key in ["o1", *children]}) > 1

    async with System(log, provisioned) as system:
        await system.client.register(SHIP)
        await system.client.register(ORDER)
        await system.agent("stock", lambda command: f"picked {command.input}")
        async with System(log, provisioned) as first:
            await first.engine()
            await system.client.start("order", {"parcels": parcels}, workflow_id="o1")
            await eventually(lambda: len(picked(system)) == 3, 30, "the parcels were not picked")

        # Another owner: what the children said before is in the log.
        await system.engine()
        await system.agent("mail", lambda command: Failure(FailureKind.TERMINAL, "no such address"))
        result = await system.client.wait("o1", timeout_s=30)
        ended = [orjson.loads(found.value) for found in await system.read(provisioned.results, PARTITIONS)]

    assert result["status"] == "compensated"
    assert [item["output"] for item in result["steps"][0]["items"]] == [f"picked {parcel}" for parcel in parcels]
    statuses = {key: [found["status"] for found in ended if found["workflow_id"] == key] for key in children}
    assert {key: (found[0], found[-1]) for key, found in statuses.items()} == dict.fromkeys(
        children, ("completed", "cancelled")
    )
    undone = [command.workflow_id for command in system.commands if command.direction == "compensate"]
    assert undone == children[::-1]


def picked(system: System) -> list[str]:
    return [command.workflow_id for command in system.commands if command.step == "pick"]
