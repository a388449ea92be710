"""What the bench of overload computes from what it saw, and that it attempts as often as it says."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.overload import (
    FIGURES,
    RATIOS,
    Part,
    Starts,
    beyond_stubs,
    latencies_ms,
    percentiles,
    seconds_to_normal,
)
from benchmarks.settings import BenchError
from benchmarks.size import PERFORMANCE

from sagalog.engine.backlog import Overloaded
from sagalog.topics.log import LogError

SLOW, QUICK = 900.0, 100.0
LIMIT = 150.0


@pytest.mark.parametrize(
    ("came", "refused_at", "now", "seconds"),
    [
        ([(10.5, QUICK)], [], 11.0, 1.0),
        ([(10.5, SLOW), (11.5, QUICK)], [], 12.0, 2.0),
        ([(10.5, SLOW), (11.5, QUICK), (11.6, SLOW), (11.7, QUICK)], [], 12.0, 2.0),
        ([(10.5, QUICK), (11.5, QUICK)], [10.9], 12.0, 2.0),  # quick, because starts are still refused
        ([(11.5, QUICK)], [], 12.0, 2.0),  # a second without any result is not normal
        ([(10.5, SLOW), (11.5, QUICK)], [], 11.9, None),  # the second is not over
        ([(10.5, SLOW)], [], 12.0, None),
        ([(9.5, QUICK)], [], 12.0, None),  # before it began
        ([], [], 12.0, None),
    ],
)
def test_normal_is_the_first_whole_second_as_quick_as_before_without_a_refusal(
    came: list[tuple[float, float]], refused_at: list[float], now: float, seconds: float | None
) -> None:
    assert seconds_to_normal(came, refused_at, 10.0, now, LIMIT) == seconds


def test_a_workflow_counts_for_the_part_in_which_it_was_started() -> None:
    results: Any = SimpleNamespace(workflows=[b"b", b"a", b"late", b"other"], times=[12.0, 13.0, 30.0, 31.0])
    begun = {b"a": 10.0, b"b": 11.5, b"late": 20.0, b"open": 11.0}

    assert latencies_ms(begun, results, Part(10.0, 20.0)) == [500.0, 3_000.0]
    assert latencies_ms(begun, results, Part(20.0, 21.0)) == [10_000.0]


def test_percentiles() -> None:
    assert percentiles([float(number) for number in range(1, 101)]) == (50.5, 100.0)
    assert percentiles([7.0]) == (7.0, 7.0)
    with pytest.raises(BenchError):
        percentiles([])


def test_memory_beyond_stubs_is_the_growth_less_what_finished_workflows_leave() -> None:
    assert beyond_stubs(1_000_000, 1_000_000 + 10 * 605, 10) == 0 == PERFORMANCE.memory_bytes_per_stub - 605
    assert beyond_stubs(0, 1_000, 0) == 1_000


class Refusing:
    """A client that takes every third start."""

    def __init__(self, error: LogError | None = None) -> None:
        self.taken: list[str] = []
        self.attempts = 0
        self.starts_refused = 0
        self.error = error

    async def start(self, definition: str, value: Any, *, workflow_id: str) -> None:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        await asyncio.sleep(0)
        if self.attempts % 3:
            self.starts_refused += 1
            raise Overloaded(0, 2, 1, 1_000)
        self.taken.append(workflow_id)


async def test_attempts_are_made_at_the_rate_and_refusals_are_counted() -> None:
    client: Any = Refusing()
    starts = Starts(client, payload_bytes=20)

    part = await starts.pace(500, 0.2)

    assert client.attempts == part.attempts
    assert 80 <= part.attempts <= 500 * part.seconds + 1
    assert part.refused + len(client.taken) == part.attempts
    assert {key.decode() for key in starts.begun} == set(client.taken)
    assert all(part.since <= at <= part.until for at in part.refused_at)
    starts.check_counted()
    client.starts_refused -= 1
    with pytest.raises(BenchError, match="counted"):
        starts.check_counted()


async def test_a_start_that_fails_otherwise_fails_the_bench() -> None:
    client: Any = Refusing(LogError("gone"))

    with pytest.raises(BenchError, match="gone"):
        await Starts(client, payload_bytes=20).pace(100, 0.2)


def test_ratios_are_of_figures_that_are_reported() -> None:
    assert {name for pair in RATIOS.values() for name in pair} <= FIGURES.keys()
