"""Limits by key, end to end: real engine, real host, a simulated Kafka with several partitions."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from sagalog.engine.testing import SagaTest
from sagalog.schemas.definitions import Definition, Limit, Map, Rate, Step, from_input, from_item


class Meter:
    """How many are at work at a time, by key."""

    def __init__(self, busy_s: float = 0.2) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.began_s: list[float] = []
        self._busy_s = busy_s

    async def __call__(self, value: Any) -> str:
        key = value["tenant"]
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        self.began_s.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self._busy_s)
        self.now[key] -= 1
        return key


def saga(limit: Limit) -> Definition:
    return Definition(
        name="scan", steps=(Step(name="scan", agent="scanner", limits=("scans",)),), limits={"scans": limit}
    )


async def many(t: SagaTest, inputs: list[dict[str, Any]]) -> None:
    ids = [await t.client.start("scan", given) for given in inputs]
    await asyncio.gather(*(t.client.wait(workflow_id, timeout_s=600) for workflow_id in ids))


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_no_more_of_one_key_are_out_than_its_limit_allows_and_all_are_in_the_end(
    partitions: int, concurrency: int
) -> None:
    meter = Meter()
    t = SagaTest([saga(Limit(key="input.tenant", concurrency=concurrency))], partitions=partitions)
    t.stub("scanner", meter)
    with t:
        t.do(many(t, [{"tenant": f"t{number % 3}"} for number in range(45)]))

    assert set(meter.most) == {"t0", "t1", "t2"}
    assert max(meter.most.values()) <= concurrency
    assert concurrency == 8 or set(meter.most.values()) == {concurrency}, "all of it is used"


def test_items_of_a_map_keep_to_a_limit_without_a_key_and_one_rate_holds_in_all_partitions() -> None:
    meter = Meter(0.0)
    mapped = Definition(
        name="scan",
        steps=(
            Step(
                name="scan",
                agent="scanner",
                map=Map(over=from_input("pages"), concurrency=10),
                input=from_item(),
                limits=("pages",),
            ),
        ),
        limits={"pages": Limit(rate=Rate(per_second=20, burst=4), shared=True)},
    )
    t = SagaTest([mapped], partitions=4)
    t.stub("scanner", meter)
    with t:
        t.do(many(t, [{"pages": [{"tenant": "x"}] * 10} for _ in range(6)]))

    began = sorted(meter.began_s)
    assert len(began) == 60
    for first, at_s in enumerate(began):
        within = sum(at_s <= other <= at_s + 1.0 for other in began[first:])
        assert within <= 20 + 4 + 1, "as many as the rate and the burst allow, and what was on its way to the agent"
    assert began[-1] - began[0] < 12, "of the 2.8 s that it takes at least"


def test_a_small_tenant_is_not_behind_the_backlog_of_a_large_one() -> None:
    order: list[str] = []

    async def scan(value: Any) -> None:
        order.append(value["tenant"])
        await asyncio.sleep(0.02)

    t = SagaTest([saga(Limit(concurrency=1))])
    t.stub("scanner", scan)

    async def all_of_them() -> None:
        large = [await t.client.start("scan", {"tenant": "large"}, tenant="large") for _ in range(30)]
        small = [await t.client.start("scan", {"tenant": "small"}, tenant="small") for _ in range(3)]
        for workflow_id in (*large, *small):
            await t.client.wait(workflow_id, timeout_s=60)

    with t:
        t.do(all_of_them())
    last = max(place for place, tenant in enumerate(order) if tenant == "small")
    begun = 30 - order[last:].count("large")
    assert order[last:].count("large") >= 10, f"{begun} of the large one's went before: {order}"


@pytest.mark.parametrize("seed", range(3))
def test_when_engines_are_killed_no_more_are_out_than_the_limit_allows_and_all_end(seed: int) -> None:
    meter = Meter(20.0)  # longer than a take-over takes
    t = SagaTest([saga(Limit(key="input.tenant", concurrency=3))], partitions=3, seed=seed)
    t.stub("scanner", meter)

    async def started() -> list[str]:
        return [await t.client.start("scan", {"tenant": f"t{number % 2}"}) for number in range(24)]

    with t:
        ids = t.do(started())
        for wait_s in (5.0, 17.3, 11.1, 25.9):
            t.do(asyncio.sleep(wait_s))
            t.crash_engine()
        t.do(t.client.wait_all(ids, timeout_s=600))
    assert max(meter.most.values()) == 3
