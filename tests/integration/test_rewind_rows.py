"""Rewinding, forking and redriving as PostgreSQL shows them: rows that a rewinding drops, lineage, dead letters tried again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from sagalog.engine.projection import queries
from sagalog.engine.projection.compare import differences, expected_rows, fetch_rows
from sagalog.engine.projection.postgres import PostgresSql
from sagalog.schemas.definitions import from_input, from_item
from sagalog.schemas.events import FailureKind, Forked
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics

from ..unit.kernel.driver import WORKFLOW, Driver, dead_letters, saga, step
from ..unit.kernel.driver import result as result_of
from .test_projection import World, out, partition_of

pytestmark = pytest.mark.stack

ONCE = {"attempts": 1}


@pytest.fixture
async def world(stack: Any, log: KafkaLog, provisioned: Topics) -> AsyncIterator[World]:
    sql = PostgresSql(stack.postgres, prefix=provisioned.prefix)
    await sql.open()
    yield World(log, provisioned, stack.postgres, sql)
    await sql.close()


async def test_what_a_rewinding_drops_is_not_shown_any_more(world: World) -> None:
    each = step(
        "each", "a", map={"over": from_input("l")}, input=from_item(), compensate={"agent": "undoer"}, retry=ONCE
    )
    driver = Driver(saga(step("a"), each, step("last", "each", retry=ONCE)))
    partition = partition_of(WORKFLOW)

    async def project(record: Any = None) -> queries.WorkflowDetails:
        topic = world.topics.checkpoints if record is None else world.topics.results
        record = orjson.loads(driver.dumps()[WORKFLOW]) if record is None else record
        await world.append(topic, partition, out(WORKFLOW, record))
        await world.caught_up()
        found = await fetch_rows(world.sql)
        assert differences(expected_rows(WORKFLOW, record, partition), found[WORKFLOW]) == []
        details = await queries.show_workflow(world.sql, WORKFLOW)
        assert details is not None
        return details

    async with world.projecting():
        driver.start("saga", {"l": ["a", "b"]})
        driver.done("a")
        driver.done("each[0]", 1)
        driver.done("each[1]", 2)
        driver.rewind("a", undo=True)
        driver.fail("last")
        details = await project()
        assert (details.workflow.status, [row.step for row in details.steps]) == (
            "rewinding",
            ["a", "each", "each[0]", "each[1]", "last"],
        )
        assert [(row.step, row.status) for row in details.compensations] == [
            ("each[1]", "running"),
            ("a", "not_needed"),
            ("each[0]", "pending"),
            ("last", "not_needed"),
        ]
        driver.done("each[1]", undo=True)
        driver.done("each[0]", undo=True)
        details = await project()
        assert (details.workflow.status, details.compensations) == ("running", [])
        assert [(row.step, row.status) for row in details.steps] == [
            ("a", "running"),
            ("each", "waiting"),
            ("last", "waiting"),
        ]
        driver.done("a", attempt=2)
        driver.done("each[0]", 1, attempt=2)
        driver.done("each[1]", 2, attempt=2)
        details = await project(result_of(driver.done("last", attempt=2)))
        assert (details.workflow.status, details.compensations) == ("completed", [])
    lineage = await queries.lineage(world.sql, WORKFLOW)
    assert lineage is not None and lineage.rewinds is not None
    assert [(rewind["step"], rewind["who"]) for rewind in lineage.rewinds] == [("a", "tester")]


async def test_a_dead_letter_shows_where_it_was_tried_again(world: World) -> None:
    # `a` is tried again in place, `b` in a fork.
    driver = Driver(saga(step("a", critical=False, retry=ONCE), step("b", "a", retry=ONCE)))
    driver.start("saga")
    letters = dead_letters(driver.fail("a"))
    driver.rewind("a", dead_letter="wf-1/a/1/execute")
    driver.done("b")
    driver.done("a", attempt=2)
    effects = driver.fail("b", FailureKind.TERMINAL, attempt=2)
    letters += dead_letters(effects)
    forked = Forked(WORKFLOW, 9, {"a": None}, dead_letter="wf-1/b/2/execute", who="ana", reason="it works again")
    driver.start("saga", workflow_id="wf-2", forked=forked)
    running = orjson.loads(driver.dumps()["wf-2"])
    ended = result_of(driver.done("b", workflow_id="wf-2"))

    async with world.projecting():
        for letter in letters:
            await world.append(world.topics.dead_letters, partition_of(WORKFLOW), out(WORKFLOW, letter))
        await world.caught_up()
        found = await queries.open_dead_letters(world.sql, name="saga", since=datetime(1970, 1, 1, tzinfo=UTC))
        assert [letter.id for letter in found] == ["wf-1/b/2/execute", "wf-1/a/1/execute"]
        assert await queries.open_dead_letters(world.sql, name="other") == []
        assert await queries.open_dead_letters(world.sql, since=datetime.now(UTC) + timedelta(days=1)) == []

        await world.append(world.topics.results, partition_of(WORKFLOW), out(WORKFLOW, result_of(effects)))
        await world.append(world.topics.checkpoints, partition_of("wf-2"), out("wf-2", running))
        await world.append(world.topics.results, partition_of("wf-2"), out("wf-2", ended))
        await world.caught_up()

    assert await queries.open_dead_letters(world.sql) == []
    again = {letter.id: letter.redriven_by for letter in await queries.dead_letters(world.sql)}
    assert again == {"wf-1/a/1/execute": "wf-1", "wf-1/b/2/execute": "wf-2"}
    assert sorted(await world.query("SELECT dead_letter, workflow_id, how, who FROM redrives")) == [
        ("wf-1/a/1/execute", "wf-1", "rewind", "tester"),
        ("wf-1/b/2/execute", "wf-2", "fork", "ana"),
    ]
    original, fork = await queries.lineage(world.sql, WORKFLOW), await queries.lineage(world.sql, "wf-2")
    assert original is not None and fork is not None and fork.forked_from is not None
    assert (original.forks, fork.forked_from["workflow_id"]) == (["wf-2"], WORKFLOW)
    assert await queries.lineage(world.sql, "nope") is None
