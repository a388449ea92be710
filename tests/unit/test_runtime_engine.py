"""The engine's session on the simulated log: what it does when what it stands on breaks.

Each of these was found by the simulation (tests/simulation) first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from sagalog.engine.runtime.engine import Engine
from sagalog.engine.runtime.processor import OwnershipLost, Phase, Processor
from sagalog.engine.testing import SagaTest
from sagalog.infra.simulation import SimulatedRng
from sagalog.schemas.definitions import Definition, Step
from sagalog.schemas.records import OWNER_KEY
from sagalog.topics.log import LogError, Out, ProducerBroken, TopicPartition
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


class HeldLog:
    """A log that lets nobody fence before it is told to."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.told = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def transactional(self, transactional_id: str) -> Any:
        await self.told.wait()
        return await self._log.transactional(transactional_id)


@dataclass
class Sleeper:
    """An owner beside the engine, which has claimed the partition of events, and is fed only when a test says so."""

    t: SagaTest
    processor: Processor
    log: HeldLog
    following: asyncio.Task[None]

    @classmethod
    async def claim(cls, t: SagaTest) -> Sleeper:
        session: Any = t._engine and t._engine.session
        found: Any = session._make(TopicPartition("test.events", 0))
        found._log = log = HeldLog(found._log)
        found.promote(succession=False)
        following = session._spawn(found.follow(lambda: None))
        while found.phase is not Phase.CATCHING_UP:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.01)
        return cls(t, found, log, following)

    async def read_until(self, condition: Callable[[], bool]) -> None:
        at = self.processor.input
        reader = await self.t._kafka.log("sleeper").read({at: self.processor.position}, committed=False)
        async with asyncio.timeout(30):
            while not condition():
                for message in (await reader.poll(10, 1)).get(at, ()):
                    self.processor.feed([message])
        await reader.close()


def works_as_ever(t: SagaTest) -> None:
    t.settle()
    assert t.run("one", workflow_id="w0", on_duplicate="replace").status == "completed"
    assert all(p.phase is Phase.LIVE for p in processors(t))


def test_an_owner_that_slept_over_the_claims_of_others_disturbs_nobody_when_it_wakes() -> None:
    with system() as t:
        assert t.run("one", workflow_id="w0").status == "completed"
        sleeper = t.do(Sleeper.claim(t))
        sleeper.log.told.set()
        for number in range(20):
            assert t.run("one", workflow_id=f"w-{number}").status == "completed"
        t.settle()
        before = processors(t)

        t.do(sleeper.read_until(sleeper.following.done))

        assert isinstance(sleeper.processor.failure, OwnershipLost)
        works_as_ever(t)
        assert [p is known for p, known in zip(processors(t), before, strict=True)] == [True] * len(before)


def test_an_owner_that_slept_as_it_was_about_to_fence_commits_nothing_when_it_wakes() -> None:
    """Else its checkpoints of long ago would stand among those of today's owner, and the partition could never be loaded again."""

    async def wakes(sleeper: Sleeper) -> bool:
        sleeper.log.told.set()
        await sleeper.following
        return await sleeper.processor.snapshot(always=True)

    with system() as t:
        assert t.run("one", workflow_id="w0").status == "completed"
        sleeper = t.do(Sleeper.claim(t))
        t.do(sleeper.read_until(sleeper.processor._at_the_end_or_failed.is_set))
        assert sleeper.processor.phase is Phase.LIVE
        for number in range(20):
            assert t.run("one", workflow_id=f"w-{number}").status == "completed"
        t.settle()

        assert not t.do(wakes(sleeper))

        works_as_ever(t)


def test_an_owner_behind_whose_last_record_there_is_only_the_marker_of_a_transaction_takes_snapshots() -> None:
    async def fenced_behind_a_marker(t: SagaTest) -> Processor:
        """It asked where the log ends after another writer's transaction had ended."""
        found = next(p for p in processors(t) if p.input.topic == "test.events")
        other = await t._kafka.log("other").transactional("other")
        await other.transact({found.input: [Out(b"w", b"not an event")]})
        await other.close()
        await asyncio.sleep(1)  # the marker comes a moment later
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
        sleeper = await Sleeper.claim(t)
        found = sleeper.processor
        sleeper.log.told.set()
        leaving = asyncio.create_task(found.leave())
        await asyncio.sleep(0.05)
        early = leaving.done()
        await sleeper.read_until(leaving.done)
        return early, found.saved, found._leaving

    with system() as t:
        assert t.run("one").status == "completed"
        t.settle()
        assert t.do(leaves(t)) == (False, True, True)
