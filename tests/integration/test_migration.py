"""Workflows that move to another definition on the real broker: through a take-over, in PostgreSQL, and by the command."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from sagalog.engine import migrating
from sagalog.engine.audit import verify
from sagalog.engine.projection import queries
from sagalog.engine.projection.compare import differences, expected_rows, fetch_rows
from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import Definition, Step, WaitFor
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Out
from sagalog.topics.partitioner import partition_of as by_murmur
from sagalog.topics.specs import Topics

from ..commands import Ended, Place, call
from ..conftest import PARTITIONS, Stack
from ..unit.kernel.driver import WORKFLOW, Driver, chain, saga, step
from ..unit.kernel.driver import result as result_of
from .system import NO_ANSWER, Failure, System, eventually, result_record
from .test_cli import settings_for
from .test_projection import World, out, partition_of, world

__all__ = ["world"]

pytestmark = pytest.mark.stack

OLD = Definition(
    name="order",
    steps=(
        Step(name="charge", agent="old-bank", compensate={}),
        Step(name="paid", needs=("charge",), wait_for=WaitFor(signal="paid", timeout_ms=60_000)),
        Step(name="ship", agent="carrier", needs=("paid",), retry={"attempts": 1}),
    ),
)
NEW = Definition(
    name="order",
    steps=(
        Step(name="greet", agent="carrier", retry={"attempts": 1}),
        Step(name="charge", agent="new-bank", compensate={}),
        Step(name="ship", agent="carrier", needs=("charge",), retry={"attempts": 1}),
    ),
)


async def test_a_workflow_moves_with_an_attempt_out_and_goes_on_after_a_take_over(
    log: KafkaLog, provisioned: Topics
) -> None:
    asked: list[Command] = []

    def hold(command: Command) -> object:
        asked.append(command)
        return NO_ANSWER if command.direction == "execute" else None

    async with System(log, provisioned) as system:
        for definition in (OLD, NEW):
            await system.client.register(definition)
        await system.agent("old-bank", hold)
        await system.agent("new-bank", hold)
        await system.agent("carrier", lambda c: Failure() if c.step == "ship" else "hello")
        async with System(log, provisioned) as first:
            await first.engine()
            await system.client.start(f"order@{OLD.hash}", {"sku": "tea"}, workflow_id="o1")
            await eventually(lambda: asked, 30, "nobody was asked to charge")
            checked = await migrating.check(log, provisioned, "o1", NEW)
            assert checked is not None and checked.fits

            request = await system.client.migrate("o1", "order", who="ana", reason="a new bank")
            shown = await migrating.outcome(log, provisioned, "o1", request)
            assert shown is not None and shown.taken
            await eventually(lambda: len(system.commands) > 1, 30, "the new step did not begin")

        await system.engine()
        # The bank before answers at last, and what follows is the new definition's.
        await _answer(system, asked[0])
        result = await system.client.wait("o1", timeout_s=30)
        reports = await verify(log, provisioned)

    assert (result["status"], result["definition"]) == ("compensated", NEW.hash)
    assert [(move["before"], move["after"], move["who"]) for move in result["migrated"]] == [
        (OLD.hash, NEW.hash, "ana")
    ]
    assert [(found["name"], found["status"]) for found in result["steps"]] == [
        ("greet", "done"),
        ("charge", "done"),
        ("ship", "failed"),
    ]
    # Who charged is who gives it back.
    assert [(c.agent, c.direction.value) for c in asked] == [("old-bank", "execute"), ("old-bank", "compensate")]
    assert [line for report in reports for line in report.differences] == []


async def _answer(system: System, command: Command) -> None:
    record = result_record(command, "charged")
    producer = await system.log.producer("late-bank")
    try:
        await producer.append(system.topics.events, by_murmur(command.workflow_id.encode(), PARTITIONS), [record])
    finally:
        await producer.close()


async def test_rows_of_steps_that_a_migration_removed_are_gone(world: World) -> None:
    undo = {"compensate": {}}
    old = saga(step("a", **undo), step("b", "a", retry={"attempts": 1}), step("gone", "b"))
    later = [step("first", agent="other"), step("b", "a", retry={"attempts": 1}), step("a", agent="new", **undo)]
    new, less = saga(*later, step("never", "b")), saga(*later)
    driver = Driver(old, new, less)
    partition = partition_of(WORKFLOW)

    async def project(record: object) -> queries.WorkflowDetails:
        await world.append(world.topics.checkpoints, partition, out(WORKFLOW, record))
        await world.caught_up()
        return await compared(record)

    async def compared(record: object) -> queries.WorkflowDetails:
        assert isinstance(record, dict)
        found = await fetch_rows(world.sql)
        assert differences(expected_rows(WORKFLOW, record, partition), found[WORKFLOW]) == []
        details = await queries.show_workflow(world.sql, WORKFLOW)
        assert details is not None
        return details

    def dumped() -> object:
        return orjson.loads(driver.dumps()[WORKFLOW])

    for definition in (old, new, less):
        await world.append(world.topics.definitions, 0, Out(definition.hash.encode(), definition.encoded, []))
    async with world.projecting():
        driver.start(f"saga@{old.hash}")
        assert [row.step for row in (await project(dumped())).steps] == ["a", "b", "gone"]

        driver.migrate(new)
        details = await project(dumped())
        assert [(row.step, row.status, row.agent) for row in details.steps] == [
            ("first", "running", "other"),
            ("b", "waiting", "b"),
            ("a", "running", "a"),
            ("never", "waiting", "never"),
        ]
        (move,) = details.migrations
        assert (move.number, move.before, move.after, move.who, move.reason) == (
            1,
            old.hash,
            new.hash,
            "tester",
            "wanted",
        )
        assert details.workflow.definition == new.hash

        driver.done("first")
        driver.done("a")
        driver.fail("b")
        details = await project(dumped())
        assert [row.step for row in details.compensations] == ["a", "first", "b", "never"]
        driver.migrate(less)
        details = await project(dumped())
        assert [row.step for row in details.compensations] == ["a", "first", "b"]
        last = driver.done("a", undo=True)
        record = orjson.loads(orjson.dumps(result_of(last)))
        # The stub comes first, then the result.
        await world.append(world.topics.checkpoints, partition, out(WORKFLOW, dumped()))
        await world.append(world.topics.results, partition, out(WORKFLOW, record))
        await world.caught_up()
        details = await compared(record)
    assert [(move.number, move.after) for move in details.migrations] == [(1, new.hash), (2, less.hash)]


async def test_a_stub_that_comes_before_the_result_of_a_migration_leaves_no_rows_behind(world: World) -> None:
    old, new = chain("a", "b", "gone"), chain("a")
    driver = Driver(old, new)
    partition = partition_of(WORKFLOW)
    driver.start(f"saga@{old.hash}")
    async with world.projecting():
        await world.append(world.topics.checkpoints, partition, out(WORKFLOW, orjson.loads(driver.dumps()[WORKFLOW])))
        await world.caught_up()
        driver.migrate(new)
        record = orjson.loads(orjson.dumps(result_of(driver.done("a"))))
        await world.append(world.topics.checkpoints, partition, out(WORKFLOW, orjson.loads(driver.dumps()[WORKFLOW])))
        await world.caught_up()
        await world.append(world.topics.results, partition, out(WORKFLOW, record))
        await world.caught_up()
    found = await fetch_rows(world.sql)
    assert list(found[WORKFLOW].steps) == ["a"]
    assert differences(expected_rows(WORKFLOW, record, partition), found[WORKFLOW]) == []


def test_the_command_says_what_does_not_fit_and_moves_what_does(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No engine runs: the log alone says what is taken, and one that comes takes it."""
    place = Place(tmp_path, settings_for(stack, addresses=True))

    def called(*arguments: str) -> Ended:
        return call(place, monkeypatch, capsys, *arguments)

    other = chain("a", "z")
    hashes = {}
    definitions = {"old": chain("a", "b"), "new": chain("a", "c"), "unfit": chain("z", "a"), "other": other}
    for name, definition in definitions.items():
        (tmp_path / f"{name}.json").write_bytes(definition.encoded)
        hashes[name] = definition.hash
    assert called("topics", "create").code == 0
    for name in ("old", "unfit", "new"):
        assert called("definitions", "register", f"{name}.json").code == 0
    for number in range(3):
        assert called("start", f"saga@{hashes['old']}", "--id", f"w{number}").code == 0

    fits = called("migrate", "w0", "--to", "saga", "--dry-run")
    assert (fits.code, fits.out) == (0, f"w0: fits {hashes['new']}\n")
    unfit = called("migrate", "w0", "--to", f"saga@{hashes['unfit']}", "--reason", "r")
    problem = "steps.a.needs: 'z' has not ended, and 'a' has begun; let it come behind"
    assert (unfit.code, unfit.out) == (1, f"w0: does not fit {hashes['unfit']}\n  {problem}\n")
    assert len(called("history", "w0", "--json").json()) == 1, "nothing was sent"

    moved = called("migrate", "w0", "--to", "saga", "--reason", "r", "--who", "ana", "--json")
    assert (moved.code, moved.json()) == (
        0,
        {
            "workflow_id": "w0", "from": hashes["old"], "to": hashes["new"], "fits": True, "problems": [],
            "moved": True, "reason": None, "dry_run": False,
        },
    )  # fmt: skip
    assert f"definition: {hashes['old']} -> {hashes['new']}" in called("replay", "w0").out
    assert called("migrate", "w0", "--to", "saga").out == f"w0: is on {hashes['new']} already\n"

    asked = called("migrate", "--definition", f"saga@{hashes['old']}", "--to", "saga", "--dry-run", "--json").json()
    assert (asked["fitting"], asked["not_fitting"], asked["left"]) == (2, 0, 0)
    assert [found["workflow_id"] for found in asked["workflows"]] == ["w1", "w2"]
    first = called("migrate", "--definition", f"saga@{hashes['old']}", "--to", "saga", "--limit", "1")
    assert (first.code, first.out.splitlines()) == (
        0,
        ["1 were moved, 0 do not fit", "1 more are on it: raise --limit, or call it again"],
    )
    unfit = called("migrate", "--definition", f"saga@{hashes['old']}", "--to", f"saga@{hashes['unfit']}")
    assert (unfit.code, unfit.out.splitlines()) == (
        1,
        [f"w2: does not fit {hashes['unfit']}", f"  {problem}", "0 were moved, 1 do not fit"],
    )
    assert called("migrate", "--definition", f"saga@{hashes['old']}", "--to", "saga").code == 0
    assert (
        called("migrate", "--definition", f"saga@{hashes['old']}", "--to", "saga").out == "0 were moved, 0 do not fit\n"
    )

    assert called("migrate", "nobody", "--to", "saga").code == 5
    assert called("migrate", "w0", "--to", f"saga@{hashes['other']}").code == 2
    assert called("migrate", "--to", "saga").code == 2
    assert called("migrate", "--definition", "saga", "--to", "saga").code == 2
