"""Identity and duplicate starts on a real Kafka and a real PostgreSQL: rows, lists by tenant and attribute, runs of one id."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from sagalog.engine.audit import verify
from sagalog.engine.client import DuplicateStart
from sagalog.engine.projection import queries
from sagalog.engine.projection.postgres import PostgresSql
from sagalog.engine.projection.verification import ProjectedRows
from sagalog.schemas.definitions import Compensation, Definition, Step
from sagalog.schemas.events import Action
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics

from .system import NO_ANSWER, System, eventually
from .test_projection import T0, World, checkpoint, out, partition_of, result, stub

pytestmark = pytest.mark.stack

ORDER = Definition(
    name="order",
    steps=(
        Step(name="reserve", agent="stock", compensate=Compensation()),
        Step(name="pay", agent="bank", needs=("reserve",), retry={"attempts": 1}),
    ),
)
ACME: dict[str, Any] = {"tenant": "acme", "priority": 8, "attributes": {"customer": 7, "vip": True}}


@pytest.fixture
async def world(stack: Any, log: KafkaLog, provisioned: Topics) -> AsyncIterator[World]:
    sql = PostgresSql(stack.postgres, prefix=provisioned.prefix)
    await sql.open()
    yield World(log, provisioned, stack.postgres, sql)
    await sql.close()


async def listed(world: World, **filters: Any) -> list[str]:
    page = await queries.list_workflows(world.sql, **filters)
    return sorted(workflow.workflow_id for workflow in page.workflows)


async def test_workflows_are_found_by_tenant_and_by_search_attributes(world: World) -> None:
    await world.commit(
        world.topics.checkpoints,
        [
            ("w1", checkpoint(1, **ACME)),
            ("w2", checkpoint(2, tenant="acme", attributes={"customer": "7"})),
            ("w3", checkpoint(3, tenant="other", attributes={"customer": 7})),
            ("w4", checkpoint(4)),
        ],
    )
    await world.append(world.topics.results, partition_of("w1"), out("w1", result("w1", 9, **ACME)))
    await world.commit(world.topics.checkpoints, [("w1", stub(9))])
    async with world.projecting():
        await world.caught_up()

    assert await listed(world, tenant="acme") == ["w1", "w2"]
    assert await listed(world, where={"customer": 7}) == ["w1", "w3"]
    assert await listed(world, where={"customer": 7, "vip": True}) == ["w1"]
    assert await listed(world, tenant="acme", where={"customer": "7"}) == ["w2"]
    assert await listed(world, where={"nobody": 1}) == []
    (summary,) = (await queries.list_workflows(world.sql, where={"vip": True})).workflows
    assert (summary.tenant, summary.priority, summary.attributes) == ("acme", 8, {"customer": 7, "vip": True})
    found = await queries.show_workflow(world.sql, "w4")
    assert found is not None
    row = found.workflow
    assert (row.tenant, row.priority, row.attributes, row.run, row.next) == (None, 5, None, 1, None)


async def test_lists_by_tenant_and_attribute_are_read_from_their_indexes(world: World) -> None:
    async with world.projecting():
        await world.caught_up()
    await world.query(
        "INSERT INTO workflow (workflow_id, name, definition, status, terminal, partition, at_offset, rank, started_at, "
        "updated_at, tenant, attributes) SELECT 'w' || n, 'order', 'd', 'running', false, 0, n, 2, now(), now(), "
        "'t' || n % 1000, jsonb_build_object('customer', n) FROM generate_series(1, 20000) n"
    )
    await world.query("ANALYZE workflow")

    plans = [
        await world.query(f"EXPLAIN SELECT * FROM workflows WHERE {where} ORDER BY started_at DESC LIMIT 20")
        for where in ("tenant = 't7'", "attributes @> '{\"customer\": 4711}'")
    ]

    for index, plan in zip(("workflow_tenant", "workflow_attributes"), plans, strict=True):
        assert index in str(plan)


@pytest.mark.parametrize("late_result", [False, True])
async def test_the_row_of_an_id_is_its_last_runs_in_whatever_order_topics_are_read(
    world: World, late_result: bool
) -> None:
    """One event may end a run and begin the next: the result of the one and the checkpoint of the other have one offset."""
    first = result("w", 9, "cancelled", tenant="old", steps=checkpoint(9, 2)["steps"])
    following = checkpoint(9, 0, started_ms=T0 + 1, now_ms=T0 + 1, run=11, tenant="new")
    following["steps"] = [{"name": "only", "status": "running", "attempt": 1, "started_ms": T0 + 1}]
    await world.commit(world.topics.checkpoints, [("w", checkpoint(5, 2, tenant="old"))])

    async def end() -> None:
        await world.append(world.topics.results, partition_of("w"), out("w", first))

    async def begin() -> None:
        await world.commit(world.topics.checkpoints, [("w", following)])

    async with world.projecting():
        await world.caught_up()
        for write in (begin, end) if late_result else (end, begin):
            await write()
            await world.caught_up()

    found = await queries.show_workflow(world.sql, "w")
    assert found is not None
    assert (found.workflow.status, found.workflow.tenant, found.workflow.run) == ("running", "new", 11)
    assert [row.step for row in found.steps] == ["only"]


async def test_starts_under_one_id_are_answered_replaced_and_projected(world: World) -> None:
    log, topics = world.log, world.topics
    async with System(log, topics) as system, world.projecting():
        client = system.client
        await client.register(ORDER)
        await system.agent("stock", lambda command: "reserved")
        await system.agent("bank", lambda command: NO_ANSWER if command.input == "wait" else "paid")
        await system.engine()
        await client.start("order", "wait", workflow_id="w", on_duplicate="reject", tenant="acme")
        with pytest.raises(DuplicateStart):
            await client.start("order", "other", workflow_id="w", on_duplicate="reject")
        await eventually(lambda: len(system.commands) >= 2, 30, "the bank was not asked")
        await client.start("order", "now", workflow_id="w", on_duplicate="replace", tenant="acme", priority=9)
        await client.act("w", Action.TERMINATE, reason="it hangs", who="test")
        ended = await client.wait("w", timeout_s=30)
        assert (ended["status"], ended["input"], ended["priority"]) == ("completed", "now", 9)
        asked = {command.command_id for command in system.commands}
        run = ended["run"]
        assert asked == {
            "w/reserve/1/execute",
            "w/pay/1/execute",
            f"w/reserve/1@{run}/execute",
            f"w/pay/1@{run}/execute",
        }

        async def verified() -> bool:
            reports = await verify(log, topics, rows=ProjectedRows(world.sql))
            return all(report.ok for report in reports)

        await eventually(verified, 30, "the rows are not what the log says")
        found = await queries.show_workflow(world.sql, "w")
        assert found is not None
        assert (found.workflow.status, found.workflow.run) == ("completed", run)
