"""Child workflows on the real broker: in other partitions than their parents', over a take-over, undone with them."""

from __future__ import annotations

import orjson
import pytest

from sagalog.engine.projection import queries
from sagalog.engine.projection.compare import differences, expected_rows, fetch_rows
from sagalog.schemas.definitions import Child, Compensation, Definition, Map, Step, from_input, from_item, from_step
from sagalog.schemas.events import FailureKind
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

from ..conftest import PARTITIONS
from ..unit.kernel.driver import WORKFLOW, Driver
from .system import Failure, System, eventually
from .test_projection import World, out, world
from .test_projection import partition_of as place_of

__all__ = ["world"]

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


async def test_whose_step_a_workflow_does_is_in_the_rows(world: World) -> None:
    driver = Driver(SHIP, ORDER)
    driver.start("order", {"parcels": ["a"]})
    driver.deliver()
    child = f"{WORKFLOW}/each[0].1"
    number = place_of(WORKFLOW)
    records = {key: orjson.loads(raw) for key, raw in driver.dumps().items()}
    async with world.projecting():
        for key in (WORKFLOW, child):
            await world.append(world.topics.checkpoints, number, out(key, records[key]))
        await world.caught_up()
        found = await fetch_rows(world.sql)
        parent, done_by = [await queries.show_workflow(world.sql, key) for key in (WORKFLOW, child)]

    assert [differences(expected_rows(key, records[key], number), found[key]) for key in records] == [[], []]
    assert parent is not None and parent.parent is None
    assert [(one.step, one.workflow_id, one.status) for one in parent.children] == [("each[0]", child, "running")]
    assert done_by is not None and done_by.parent is not None
    assert (done_by.parent.parent, done_by.parent.root, done_by.children) == (WORKFLOW, WORKFLOW, [])
    assert records[child]["parent"]["token"] not in repr(found[child])


def picked(system: System) -> list[str]:
    return [command.workflow_id for command in system.commands if command.step == "pick"]
