"""Starts are refused at the client while the engine is too far behind, and nothing of what is refused is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sagalog.engine.backlog import RETRY_AFTER_MS, RETRY_AFTER_UNKNOWN_MS, Figures, Overloaded, retry_after_ms
from sagalog.engine.cli.workflows import patient
from sagalog.engine.client import Client
from sagalog.engine.testing import SagaTest
from sagalog.schemas.definitions import Definition, Step
from sagalog.topics.log import LogError

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
