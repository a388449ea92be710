"""The engine's session on the simulated log: what it does when what it stands on breaks.

Each of these was found by the simulation (tests/simulation) first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from sagalog.engine.runtime.engine import Engine
from sagalog.engine.runtime.processor import OwnershipLost, Phase, Processor
from sagalog.engine.testing import SagaTest
from sagalog.infra.simulation import SimulatedRng
from sagalog.schemas.definitions import Definition, Step
from sagalog.schemas.records import OWNER_KEY
from sagalog.topics.log import LogError, Out, ProducerBroken
from sagalog.topics.specs import Topics

ONE = Definition(name="one", steps=(Step(name="a", agent="worker"),))


def system() -> SagaTest:
    t = SagaTest([ONE])
    t.stub("worker", "done")
    return t


def processors(t: SagaTest) -> list[Processor]:
    assert t._engine is not None and t._engine.session is not None
    return list(t._engine.session.processors.values())


def test_an_engine_whose_producer_broke_goes_on_with_a_new_one() -> None:
    with system() as t:
        session: Any = t._engine and t._engine.session
        session._producer._break(ProducerBroken("a send failed"), [])
        # The next send finds out: all partitions share the producer, so taking one of them over anew would not help.
        started = t.start("one", workflow_id="w1")

        assert t.wait(started).status == "completed"
        assert t._engine is not None and t._engine.session is not session


def test_a_processor_that_is_dropped_before_it_was_live_is_kept_by_nothing() -> None:
    """Standbys come and go with every rebalance; each has its partition's checkpoints."""

    async def replace_all(t: SagaTest) -> None:
        session: Any = t._engine and t._engine.session
        for processor in processors(t):
            session._replace(processor)

    with system() as t:
        t.settle()
        session: Any = t._engine and t._engine.session
        before = len(session._tasks)
        for _ in range(5):
            t.do(replace_all(t))
        t.settle()
        assert t.run("one").status == "completed"
        assert len(session._tasks) == before


def test_each_take_over_claims_under_a_name_of_its_own() -> None:
    """Else a claim from before that the log still holds would pass for the new one, in the middle of the catching up."""

    async def start_over(t: SagaTest) -> None:
        session: Any = t._engine and t._engine.session
        for processor in processors(t):
            session._start_over(processor)

    with system() as t:
        for _ in range(3):
            t.do(start_over(t))
            t.settle()
            assert t.run("one").status == "completed"
        claims = [
            (claim["member"], claim["epoch"])
            for record in t._kafka.records("test.events", 0)
            if record.key == OWNER_KEY.encode()
            for claim in [orjson.loads(record.value or b"")]
        ]

    # One take-over may claim again, under its name and a later epoch, when it reads an older claim of its own.
    assert len(set(claims)) == len(claims)
    names = {member for member, _ in claims}
    assert len(names) == 4, "the first start and each of the three after it"
    assert len({claim.split("/")[0] for claim in names}) == 1, "all of one engine"


# --- health


def until(t: SagaTest, condition: Callable[[], bool], seconds: float) -> float:
    """Simulated seconds until it is so."""

    async def look() -> float:
        began_s = asyncio.get_running_loop().time()
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - simulated time
                await asyncio.sleep(0.1)
        return asyncio.get_running_loop().time() - began_s

    return t.do(look())


def metrics(t: SagaTest, name: str) -> dict[str, float]:
    assert t._engine is not None
    return {
        sample.labels["topic"]: sample.value
        for family in t._engine.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_an_engine_is_ready_once_it_is_live_and_stays_so_while_it_works_and_rests() -> None:
    with system() as t:
        health = t._engine and t._engine.health
        assert health is not None
        until(t, lambda: health.ready().ok, 5)
        for _ in range(3):
            t.run("one")
            t.do(asyncio.sleep(20))
            assert (health.ready().ok, health.live().ok) == (True, True)
        assert {found.name for found in health.partitions()} == {"test.events/0", "test.outcomes/0"}
        assert metrics(t, "sagalog_partition_lag_records") == {"test.events": 0, "test.outcomes": 0}
        assert metrics(t, "sagalog_partition_stuck_seconds") == {"test.events": 0, "test.outcomes": 0}


def test_a_partition_whose_records_do_not_arrive_is_told_within_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """As when the client's fetching hangs: the loop turns, the broker answers, and nothing comes."""
    caplog.set_level(logging.INFO, logger="sagalog.engine.runtime.engine")
    with system() as t:
        session: Any = t._engine and t._engine.session
        health = t._engine and t._engine.health
        assert health is not None
        until(t, lambda: health.ready().ok, 5)
        at = next(processor.input for processor in processors(t) if processor.input.topic == "test.events")
        session._reader.pause(at)
        t.start("one", workflow_id="w1")

        took_s = until(t, lambda: not health.ready().ok, 30)
        assert took_s < 10
        (problem,) = health.ready().body["problems"]
        assert problem["partition"] == "test.events/0"
        assert "not applied" in problem["why"]
        assert health.live().ok
        assert [record.levelname for record in caplog.records if "test.events/0 is stuck" in record.message] == [
            "WARNING"
        ]
        assert metrics(t, "sagalog_partition_lag_records")["test.events"] == 1
        assert metrics(t, "sagalog_partition_stuck_seconds")["test.events"] >= 5

        until(t, lambda: not health.live().ok, 400)
        session._reader.resume(at)
        until(t, lambda: health.ready().ok and health.live().ok, 5)
        assert [record.levelname for record in caplog.records if "test.events/0 moves again" in record.message] == [
            "INFO"
        ]
        assert t.wait("w1").status == "completed"


def test_an_outage_makes_an_engine_unready_and_not_dead_and_ends_by_itself() -> None:
    with system() as t:
        health = t._engine and t._engine.health
        assert health is not None
        until(t, lambda: health.ready().ok, 5)
        t.outage(seconds=600)
        assert until(t, lambda: not health.ready().ok, 60) < 20
        said = set()
        for _ in range(500):
            t.do(asyncio.sleep(1))
            said |= {problem["why"] for problem in health.ready().body["problems"]}
        assert not [why for why in said if why.startswith("it is not live") and "it failed" not in why], (
            "nobody knows why"
        )
        assert (health.ready().ok, health.live().ok) == (False, True)
        until(t, lambda: health.ready().ok, 300)


def test_an_engine_without_topics_says_why_it_is_not_ready() -> None:
    with system() as t:
        engine = Engine(t._kafka.log("lost"), Topics("nowhere"), clock=t._own, rng=SimulatedRng(7), member="lost")

        async def run() -> None:
            stop = asyncio.Event()
            task = asyncio.create_task(engine.run(stop))
            await asyncio.sleep(5)
            stop.set()
            await task

        t.do(run())
        (problem,) = engine.health.ready().body["problems"]
        assert "topic nowhere.events does not exist" in problem["why"]


def test_an_owner_that_slept_over_the_claims_of_others_commits_nothing_when_it_wakes() -> None:
    """Else its checkpoints of long ago would stand among those of today's owner, and the partition could never be loaded again."""

    async def falls_asleep(t: SagaTest) -> tuple[Processor, asyncio.Task[None]]:
        session: Any = t._engine and t._engine.session
        found: Processor = session._make(at)
        found.promote(succession=False)
        return found, session._spawn(found.follow(lambda: None))

    async def wakes(t: SagaTest, found: Processor, following: asyncio.Task[None]) -> bool:
        """It reads as far as its own claim, which is all that it gets before it is to commit."""
        session: Any = t._engine and t._engine.session
        reader = await session._log.read({at: found.position}, committed=True)
        while found.phase is not Phase.LIVE:
            for message in (await reader.poll(1_000, 1)).get(at, ()):
                found.feed([message])
        await reader.close()
        await following
        return await found.snapshot(always=True)

    with system() as t:
        assert t.run("one", workflow_id="w0").status == "completed"
        at = next(p.input for p in processors(t) if p.machine.stats().get("workflows"))
        old, following = t.do(falls_asleep(t))
        t.settle()
        assert old.phase is Phase.CATCHING_UP
        for number in range(20):
            assert t.run("one", workflow_id=f"w-{number}").status == "completed"
        t.settle()

        assert not t.do(wakes(t, old, following))

        t.settle()
        assert t.run("one", workflow_id="w0", on_duplicate="replace").status == "completed"
        assert all(p.phase is Phase.LIVE for p in processors(t))


def test_an_owner_behind_whose_last_record_there_is_only_the_marker_of_a_transaction_takes_snapshots() -> None:
    async def fenced_behind_a_marker(t: SagaTest) -> Processor:
        """It asked where the log ends after another writer's transaction had ended."""
        found = next(p for p in processors(t) if p.input.topic == "test.events")
        other = await t._kafka.log("other").transactional("other")
        await other.transact({found.input: [Out(b"w", b"not an event")]})
        await other.close()
        found._fenced_at = t._kafka.partition(found.input).end
        return found

    with system() as t:
        assert t.run("one").status == "completed"
        t.settle()
        found = t.do(fenced_behind_a_marker(t))
        until(t, lambda: found.position == (found._fenced_at or 0) - 1, 1)
        until(t, lambda: found._may_commit, 5)


# --- handing over


def test_a_snapshot_during_which_the_claim_of_another_is_read_is_finished() -> None:
    """Else the next owner would wait in vain for a last word, and send everything again."""

    async def claimed_meanwhile(found: Processor) -> bool:
        sending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        found._unacked.add(sending)
        snapshot = asyncio.create_task(found.snapshot(always=True))
        await asyncio.sleep(0)
        found._fail(OwnershipLost("another owns it now"))
        sending.set_result(None)
        return await snapshot

    with system() as t:
        assert t.run("one").status == "completed"
        t.settle()
        assert t.do(claimed_meanwhile(processors(t)[0]))


def test_who_could_not_send_all_before_the_claim_of_another_does_not_hand_over() -> None:
    """Its last word would say that all was sent."""

    async def loses_it_and_fails(found: Processor) -> bool:
        sending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sending.set_exception(LogError("the send failed"))
        found._fail(OwnershipLost("another owns it now"))
        found._acked(sending)
        found.saved = False
        await found.hand_over()
        return found.saved

    with system() as t:
        assert t.run("one").status == "completed"
        t.settle()
        events = next(p for p in processors(t) if p.input.topic == "test.events")
        assert not t.do(loses_it_and_fails(events))


def test_who_is_to_leave_before_it_may_write_a_snapshot_says_so_once_it_may() -> None:
    """Else nobody would know that it hands over, and what it has sent would be sent again."""

    async def leaves(t: SagaTest) -> tuple[bool, bool, bool]:
        session: Any = t._engine and t._engine.session
        found: Processor = session._make(at)
        found.promote(succession=False)
        following = asyncio.create_task(found.follow(lambda: None))
        while found.phase is not Phase.CATCHING_UP:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.01)
        leaving = asyncio.create_task(found.leave())
        await asyncio.sleep(0.05)
        early = leaving.done()
        reader = await session._log.read({at: found.position}, committed=True)
        while not (following.done() and found.position >= (found._fenced_at or 0)):
            for messages in (await reader.poll(10, 1)).values():
                found.feed(messages)
        await leaving
        await reader.close()
        return early, found.saved, found._leaving

    with system() as t:
        assert t.run("one").status == "completed"
        t.settle()
        at = next(p.input for p in processors(t) if p.machine.stats().get("workflows"))
        assert t.do(leaves(t)) == (False, True, True)
