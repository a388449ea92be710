"""Starts are refused at the client while the engine is too far behind, and nothing of what is refused is sent."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from sagalog.engine.backlog import (
    RETRY_AFTER_MS,
    RETRY_AFTER_UNKNOWN_MS,
    WAIT_RECORDS_MIN,
    Backlog,
    Figures,
    Overloaded,
    records_in,
    retry_after_ms,
)
from sagalog.engine.cli.workflows import patient
from sagalog.engine.client import Client
from sagalog.engine.testing import SagaTest
from sagalog.schemas.definitions import Definition, Step
from sagalog.topics.log import LogError, TopicPartition
from sagalog.topics.specs import Topics

ONE = Definition(name="one", steps=(Step(name="a", agent="worker"),))
LIMIT = 10


class Counting:
    """A log that counts how often it is asked what a group has committed, and may refuse to tell."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.asked = 0
        self.error: LogError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def committed(self, *arguments: Any) -> Any:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return await self._log.committed(*arguments)


def system(partitions: int = 1) -> SagaTest:
    t = SagaTest([ONE], partitions=partitions)
    t.stub("worker", "done")
    return t


def client(t: SagaTest, limit: int = LIMIT) -> tuple[Client, Counting]:
    log = Counting(t._kafka.log("other"))
    found = Client(log, t.client._topics, clock=t._own, start_lag_records_max=limit)
    t.do(found.__aenter__())
    return found, log


def without_engine(t: SagaTest) -> None:
    t.settle()
    t._processes["engine"].kill()


def starts(t: SagaTest) -> int:
    return sum(
        ("ce_type", b"sagalog.workflow-started.v1") in record.headers
        for partition in range(t._partitions)
        for record in t._kafka.records("test.events", partition)
    )


def many(count: int, name: str = "w") -> dict[str, Any]:
    return {f"{name}{number}": None for number in range(count)}


def test_a_start_is_refused_once_the_engine_is_too_far_behind_and_taken_when_it_has_caught_up() -> None:
    with system() as t:
        own, _ = client(t)
        without_engine(t)
        t.do(own.start_many("one", many(LIMIT + 1)))
        with pytest.raises(Overloaded) as refused:
            t.do(own.start("one", workflow_id="late"))

        assert (refused.value.partition, refused.value.limit_records) == (0, LIMIT)
        assert refused.value.lag_records > LIMIT
        assert RETRY_AFTER_MS[0] <= refused.value.retry_after_ms <= RETRY_AFTER_MS[1]
        assert "is 1" in str(refused.value) and "nothing was sent" in str(refused.value)
        assert (own.starts_refused, starts(t)) == (1, LIMIT + 1)

        t.crash_engine()
        t.settle()
        t.do(asyncio.sleep(2))
        t.do(own.start("one", workflow_id="late"))
        assert t.do(own.wait("late", timeout_s=30))["status"] == "completed"
        assert own.starts_refused == 1
        t.do(own.__aexit__(None, None, None))


def test_of_many_starts_all_are_refused_before_one_is_sent_when_one_partition_is_behind() -> None:
    with system(partitions=4) as t:
        own, _ = client(t)
        without_engine(t)
        full = {name: None for name in (f"x{n}" for n in range(200)) if _partition(name) == 2}
        t.do(own.start_many("one", full))
        before = starts(t)
        with pytest.raises(Overloaded) as refused:
            t.do(own.start_many("one", many(40)))

        assert refused.value.partition == 2
        assert (own.starts_refused, starts(t)) == (40, before)
        elsewhere = next(f"y{n}" for n in range(100) if _partition(f"y{n}") != 2)
        t.do(own.start("one", workflow_id=elsewhere))
        assert starts(t) == before + 1
        t.do(own.__aexit__(None, None, None))


def _partition(workflow_id: str) -> int:
    from sagalog.topics.partitioner import partition_of

    return partition_of(workflow_id.encode(), 4)


def test_the_first_start_of_a_client_is_refused_too() -> None:
    """A command starts one workflow, and is gone."""
    with system() as t:
        first, _ = client(t)
        without_engine(t)
        t.do(first.start_many("one", many(LIMIT + 1)))
        second, _ = client(t)
        with pytest.raises(Overloaded):
            t.do(second.start("one"))
        for found in (first, second):
            t.do(found.__aexit__(None, None, None))


def test_the_broker_is_asked_once_a_second_at_most() -> None:
    async def for_three_seconds(found: Client) -> None:
        for _ in range(60):
            await found.start("one")
            await asyncio.sleep(0.05)

    with system() as t:
        own, log = client(t, limit=1_000)
        t.do(for_three_seconds(own))

        assert 3 <= log.asked <= 4
        t.do(own.__aexit__(None, None, None))


def test_without_a_limit_nothing_is_asked_and_nothing_refused() -> None:
    with system() as t:
        own, log = client(t, limit=0)
        without_engine(t)
        t.do(own.start_many("one", many(100)))
        t.do(own.start("one"))

        assert (log.asked, own.starts_refused) == (0, 0)
        t.do(own.__aexit__(None, None, None))


def test_what_is_not_known_refuses_nothing() -> None:
    with system() as t:
        own, log = client(t)
        log.error = LogError("GroupAuthorizationFailed")
        without_engine(t)
        t.do(own.start_many("one", many(100)))
        t.do(own.start("one"))

        assert (own.starts_refused, starts(t)) == (0, 101)
        t.do(own.__aexit__(None, None, None))


@pytest.mark.parametrize(
    ("applied", "excess", "wait_ms"),
    [
        (None, 100, RETRY_AFTER_UNKNOWN_MS),
        (0, 100, 30_000),
        (1_000, 100, 1_000),
        (1_000, 5_000, 5_000),
        (1, 100, 30_000),
    ],
)
def test_when_to_try_again_goes_by_how_fast_the_engine_is(applied: int | None, excess: int, wait_ms: int) -> None:
    before = Figures(1_000, {0: 50}, {0: 9_999})
    now = Figures(2_000, {0: 50 + (applied or 0)}, {0: 9_999})

    assert retry_after_ms(now, before if applied is not None else None, 0, excess) == wait_ms


def test_an_engine_that_had_nothing_to_do_is_not_slow() -> None:
    idle = Figures(1_000, {0: 50}, {0: 50})

    assert retry_after_ms(Figures(2_000, {0: 50}, {0: 150}), idle, 0, 100) == RETRY_AFTER_UNKNOWN_MS


@pytest.mark.parametrize(
    ("now", "wait_ms", "records"),
    [
        (Figures(3_000, {0: 4_050}, {}), 200, 400),
        (Figures(3_000, {0: 60}, {}), 200, WAIT_RECORDS_MIN),
        (Figures(3_000, {}, {}), 200, WAIT_RECORDS_MIN),
        (Figures(1_000, {0: 4_050}, {}), 200, WAIT_RECORDS_MIN),
    ],
)
def test_a_wait_is_as_many_records_as_the_engine_does_in_it(now: Figures, wait_ms: int, records: int) -> None:
    assert records_in(wait_ms, now, Figures(1_000, {0: 50}, {}), 0) == records
    assert records_in(wait_ms, now, None, 0) == WAIT_RECORDS_MIN


def test_a_partition_that_no_engine_has_ever_worked_on_is_behind_by_all_it_has() -> None:
    assert (Figures(0, {}, {0: 7}).lag(0), Figures(0, {0: 9}, {0: 7}).lag(0), Figures(0, {}, {}).lag(3)) == (7, 0, 0)


async def test_a_command_is_patient_for_as_long_as_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    tries = 0

    async def third_time_lucky() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Overloaded(1, 60_000, 50_000, 10)
        return "w1"

    with pytest.raises(Overloaded):
        await patient(third_time_lucky, 0.0)
    tries = 0
    assert await patient(third_time_lucky, 5.0) == "w1"


WAIT_MS = 150


class Engine:
    """A log and an engine of one partition, as a backlog asks them; how much comes and is worked off is told by the test."""

    def __init__(self) -> None:
        self.monotonic = 0
        self.end = self.applied = 0
        self.asked = 0
        self.seen: dict[int, int] = {}

    def monotonic_ms(self) -> int:
        return self.monotonic

    async def committed(self, group: str, partitions: Any) -> dict[TopicPartition, tuple[int, str]]:
        self.asked += 1
        return dict.fromkeys(partitions, (self.applied, ""))

    async def ends(self, partitions: Any) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.end)

    def backlog(self, records: int = 0, wait_ms: int = WAIT_MS) -> Backlog:
        found: Any = self
        return Backlog(found, Topics("test"), 1, self.ends, found, records, wait_ms, lambda: self.seen)

    async def go_on(self, backlog: Backlog, ms: int, *, arrive: int, work_off: int, starts: int = 0) -> int:
        """In steps of 100 ms, so many records each, and so many attempts to start one; how many were let through."""
        let_through = 0
        for _ in range(ms // 100):
            self.monotonic += 100
            self.end += arrive
            self.applied = min(self.end, self.applied + work_off)
            for _ in range(max(1, starts)):
                with contextlib.suppress(Overloaded):
                    await backlog.admit({0: 1})
                    self.end += 1
                    let_through += 1
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return let_through


async def test_starts_are_refused_when_what_is_sent_would_wait_for_longer_than_allowed() -> None:
    engine = Engine()
    backlog = engine.backlog()
    await engine.go_on(backlog, 3_000, arrive=300, work_off=301)  # 3,000 a second: 150 ms are 450 records
    assert backlog.refused == 0

    engine.end += 2_000
    await engine.go_on(backlog, 1_000, arrive=300, work_off=300)
    with pytest.raises(Overloaded) as refused:
        await backlog.admit({0: 1})

    assert 440 <= refused.value.limit_records <= 460
    assert refused.value.lag_records > 1_900


async def test_what_a_client_lets_through_between_two_answers_counts_at_once() -> None:
    engine = Engine()
    backlog = engine.backlog()
    await engine.go_on(backlog, 3_000, arrive=300, work_off=301)

    let_through = await engine.go_on(backlog, 100, arrive=300, work_off=301, starts=5_000)

    assert 300 <= let_through <= 460


async def test_a_slow_or_idle_partition_may_always_be_behind_by_a_little() -> None:
    engine = Engine()
    backlog = engine.backlog()
    await engine.go_on(backlog, 6_000, arrive=0, work_off=10)

    let_through = await engine.go_on(backlog, 100, arrive=0, work_off=0, starts=5_000)

    assert 0.7 * WAIT_RECORDS_MIN <= let_through <= WAIT_RECORDS_MIN


async def test_where_the_broker_answers_slowly_two_answers_are_enough() -> None:
    engine = Engine()
    backlog = engine.backlog()
    await backlog.admit({0: 1})
    engine.end = 40_000
    for _ in range(2):
        engine.monotonic += 3_000
        with contextlib.suppress(Overloaded):
            await backlog.admit({0: 1})
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with pytest.raises(Overloaded):
        await backlog.admit({0: 1})


async def test_with_one_answer_no_wait_is_known_and_only_a_burst_of_the_client_itself_is_refused() -> None:
    engine = Engine()
    engine.end = 40_000
    backlog = engine.backlog()

    await backlog.admit({0: WAIT_RECORDS_MIN + 1})
    with pytest.raises(Overloaded):
        await backlog.admit({0: 1})
    assert backlog.refused == 1


async def test_a_result_says_sooner_than_a_snapshot_how_far_the_engine_is() -> None:
    engine = Engine()
    backlog = engine.backlog()
    await engine.go_on(backlog, 3_000, arrive=300, work_off=301)
    snapshot, engine.end = engine.applied, engine.end + 2_000
    for _ in range(10):
        engine.seen[0] = engine.end
        await engine.go_on(backlog, 100, arrive=0, work_off=0)

    assert (engine.applied, backlog.refused) == (snapshot, 0)


async def test_the_broker_is_asked_more_often_only_while_a_wait_is_not_far_off() -> None:
    engine = Engine()
    backlog = engine.backlog()
    await engine.go_on(backlog, 3_000, arrive=300, work_off=301)
    idle, engine.asked = engine.asked, 0
    engine.end += 300
    await engine.go_on(backlog, 3_000, arrive=300, work_off=300)

    assert (idle, engine.asked >= 25) == (3, True)


async def test_both_limits_hold_side_by_side() -> None:
    engine = Engine()
    backlog = engine.backlog(records=50)
    engine.end = 51
    with pytest.raises(Overloaded) as refused:
        await backlog.admit({0: 1})
    assert (refused.value.lag_records, refused.value.limit_records) == (51, 50)


def test_many_first_calls_at_once_open_one_reader_each() -> None:
    """Two followers of the results, of which one is closed, would follow for as long as the process lives."""
    with system() as t:
        own, log = client(t)
        opened: list[str] = []
        read = log._log.read

        async def counted(*arguments: Any, **named: Any) -> Any:
            opened.append(named["client_id"])
            await asyncio.sleep(0.01)
            return await read(*arguments, **named)

        log.read = counted  # type: ignore[attr-defined]

        async def at_once() -> None:
            await asyncio.gather(*(own.start("one") for _ in range(5)))

        t.do(at_once())
        assert sorted(opened) == ["client-results", "definitions"]
        t.do(own.__aexit__(None, None, None))


async def test_of_work_that_goes_to_and_fro_the_mean_counts() -> None:
    """Now the engine has it all, now the agents do."""
    engine = Engine()
    backlog = engine.backlog()
    await engine.go_on(backlog, 3_000, arrive=300, work_off=300)
    for _ in range(4):
        await engine.go_on(backlog, 200, arrive=600, work_off=0)
        await engine.go_on(backlog, 200, arrive=0, work_off=1_200)

    assert backlog.refused
