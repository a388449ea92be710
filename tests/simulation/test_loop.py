"""The deterministic loop: time, order, processes that are killed and frozen, clocks."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from sagalog.infra.simulation import (
    EPOCH_MS,
    Deadlock,
    SimulatedClock,
    SimulatedRng,
    SimulationLoop,
    StepsExceeded,
    TimeExceeded,
    current_process,
)


@pytest.fixture
def loop() -> Iterator[SimulationLoop]:
    loop = SimulationLoop()
    yield loop
    loop.close()


def test_time_jumps_to_the_next_timer(loop: SimulationLoop) -> None:
    async def month() -> float:
        await asyncio.sleep(29 * 24 * 3600)
        return loop.time()

    assert loop.run_until_complete(month()) == 29 * 24 * 3600
    assert loop.steps < 10


def test_timeouts_and_task_groups_work_in_simulated_time(loop: SimulationLoop) -> None:
    async def work() -> list[str]:
        seen = []
        try:
            async with asyncio.timeout(5):
                await asyncio.sleep(6)
        except TimeoutError:
            seen.append(f"timeout at {loop.time():g}")
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1))
            group.create_task(asyncio.sleep(2))
        seen.append(f"group at {loop.time():g}")
        await asyncio.gather(asyncio.sleep(1), asyncio.sleep(3))
        seen.append(f"gather at {loop.time():g}")
        return seen

    assert loop.run_until_complete(work()) == ["timeout at 5", "group at 7", "gather at 10"]


def test_a_deadlock_names_the_tasks_that_wait(loop: SimulationLoop) -> None:
    async def forever() -> None:
        await loop.create_future()

    loop.process("engine-1").spawn(forever(), name="reading")
    with pytest.raises(Deadlock, match=r"engine-1 \(running\): reading at .*forever"):
        loop.run_until_complete(forever())


def test_spinning_and_endless_waiting_end() -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def wait() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(60)

    for work, error in ((spin, StepsExceeded), (wait, TimeExceeded)):
        loop = SimulationLoop(steps_max=1_000, time_max_s=3600)
        with pytest.raises(error):
            loop.run_until_complete(work())
        loop.close()


def test_an_executor_runs_inline(loop: SimulationLoop) -> None:
    def fail() -> None:
        raise ValueError("bad")

    async def work() -> int:
        with pytest.raises(ValueError, match="bad"):
            await loop.run_in_executor(None, fail)
        return await loop.run_in_executor(None, lambda: 7)

    assert loop.run_until_complete(work()) == 7


def test_many_cancelled_timers_are_dropped(loop: SimulationLoop) -> None:
    async def work() -> None:
        for _ in range(10_000):
            loop.call_later(3600, print).cancel()
            await asyncio.sleep(0)

    loop.run_until_complete(work())
    assert len(loop._timers) < 1_000


# --- processes


def _ticking(seen: list[str], name: str, every_s: float = 1.0) -> Coroutine[Any, Any, None]:
    async def tick() -> None:
        try:
            while True:
                await asyncio.sleep(every_s)
                seen.append(name)
        finally:
            seen.append(f"finally {name}")

    return tick()


def test_a_killed_process_runs_nothing_any_more_and_no_finally(
    loop: SimulationLoop, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    process = loop.process("victim")

    async def start() -> None:
        # A task that a task of the process starts belongs to the process, too.
        asyncio.get_running_loop().create_task(_ticking(seen, "inner"))
        await _ticking(seen, "outer")

    process.spawn(start())
    loop.run_until_complete(asyncio.sleep(2.5))
    assert sorted(seen) == ["inner", "inner", "outer", "outer"]
    process.kill()
    with caplog.at_level(logging.DEBUG):
        loop.run_until_complete(asyncio.sleep(10))
        gc.collect()
    assert len(seen) == 4, "it ran on"
    assert not loop.failures and not caplog.records
    loop.close()
    assert sum(found.startswith("finally") for found in seen) == 2, "its memory is released when all is over"


def test_the_end_of_a_loop_survives_coroutines_that_wait_in_their_finally() -> None:
    loop = SimulationLoop()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(1)
            await asyncio.sleep(1)

    loop.process("stubborn").spawn(stubborn())
    loop.run_until_complete(asyncio.sleep(1))
    loop.close()
    gc.collect()
    assert not loop.failures


def test_a_process_can_die_by_its_own_hand(loop: SimulationLoop) -> None:
    seen: list[str] = []
    process = loop.process("victim")

    async def work() -> None:
        seen.append("before")
        await process.die()
        seen.append("after")

    process.on_death.append(lambda: seen.append("died"))
    process.spawn(work())
    loop.run_until_complete(asyncio.sleep(1))
    assert seen == ["before", "died"]


def test_a_process_is_killed_between_two_awaits_of_one_moment(loop: SimulationLoop) -> None:
    seen: list[int] = []
    process = loop.process("victim")

    async def work() -> None:
        for step in range(10):
            seen.append(step)
            await asyncio.sleep(0)

    process.kill_after(4)
    process.spawn(work())
    loop.run_until_complete(asyncio.sleep(1))
    assert seen == [0, 1, 2, 3] and process.dead


def test_a_frozen_process_catches_up_when_it_is_thawed(loop: SimulationLoop) -> None:
    seen: list[str] = []
    frozen = loop.process("frozen")
    frozen.spawn(_ticking(seen, "frozen"))
    loop.process("other").spawn(_ticking(seen, "other"))
    loop.run_until_complete(asyncio.sleep(1.5))
    frozen.freeze()
    loop.run_until_complete(asyncio.sleep(10))
    assert seen.count("frozen") == 1 and seen.count("other") == 11
    frozen.thaw()
    loop.run_until_complete(asyncio.sleep(1.1))
    assert seen.count("frozen") == 3, "the timer that was due, and one second later the next"


def test_what_a_dead_process_is_told_is_dropped(loop: SimulationLoop) -> None:
    seen: list[str] = []
    process = loop.process("victim")

    def ask() -> asyncio.Future[Any]:
        asked = loop.create_future()
        asked.add_done_callback(lambda _: seen.append("told"))
        return asked

    asked = process.run(ask)
    process.kill()
    asked.set_exception(ValueError("too late"))
    loop.run_until_complete(asyncio.sleep(1))
    del asked
    gc.collect()
    assert not seen and not loop.failures


def test_an_exception_that_nobody_looks_at_is_noted(loop: SimulationLoop) -> None:
    async def work() -> None:
        loop.create_future().set_exception(ValueError("lost"))

    loop.process("living").spawn(work())
    loop.run_until_complete(asyncio.sleep(1))
    assert loop.failures == ["SimulatedFuture exception was never retrieved ValueError: lost"]


def test_code_knows_its_process(loop: SimulationLoop) -> None:
    process = loop.process("one")

    async def who() -> Any:
        await asyncio.sleep(1)
        return current_process()

    assert loop.run_until_complete(process.spawn(who())) is process
    assert loop.run_until_complete(who()) is None


# --- order


def _order(rng: random.Random | None) -> list[str]:
    loop = SimulationLoop(rng)
    seen: list[str] = []

    async def work(name: str) -> None:
        for step in range(5):
            await asyncio.sleep(0 if step % 2 else 1)
            seen.append(f"{name}{step}")

    for name in "abcd":
        loop.process(name).spawn(work(name))
    loop.run_until_complete(asyncio.sleep(10))
    loop.close()
    return seen


def test_the_order_between_processes_is_chance_and_within_one_it_is_kept() -> None:
    plain, shuffled = _order(None), _order(random.Random(1))
    assert plain[:4] == ["a0", "b0", "c0", "d0"]
    assert sorted(shuffled) == sorted(plain) and shuffled != plain
    for name in "abcd":
        assert [found for found in shuffled if found[0] == name] == [f"{name}{step}" for step in range(5)]
    assert shuffled == _order(random.Random(1))
    assert len({tuple(_order(random.Random(seed))) for seed in range(10)}) > 5


def test_sets_of_tasks_and_futures_have_the_same_order_every_time() -> None:
    def cancelled() -> list[str]:
        loop = SimulationLoop()
        seen: list[str] = []

        async def wait(name: str) -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                seen.append(name)
                raise

        async def work() -> None:
            tasks = {asyncio.create_task(wait(str(number))) for number in range(100)}
            junk.append(object())
            await asyncio.sleep(1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        loop.run_until_complete(work())
        loop.close()
        return seen

    junk: list[object] = []
    first = cancelled()
    junk.extend(bytearray(1_000 * size) for size in range(100))
    assert cancelled() == first and len(first) == 100


# --- clocks and chance


def test_a_clock_steps_and_drifts(loop: SimulationLoop) -> None:
    clock, true = SimulatedClock(loop, offset_ms=-500), SimulatedClock(loop)
    assert (clock.now_ms(), true.now_ms()) == (EPOCH_MS - 500, EPOCH_MS)
    loop.run_until_complete(asyncio.sleep(100))
    clock.step_ms(-2_000)
    assert clock.now_ms() == EPOCH_MS + 97_500
    assert clock.monotonic_ms() == true.monotonic_ms() == 100_000
    clock.set_drift(0.1)
    loop.run_until_complete(asyncio.sleep(10))
    assert clock.monotonic_ms() == 111_000 and true.monotonic_ms() == 110_000
    assert clock.now_ms() == EPOCH_MS + 97_500 + 11_000


def test_chance_is_seeded() -> None:
    one, same, other = SimulatedRng("7/engine"), SimulatedRng("7/engine"), SimulatedRng("8/engine")
    assert one.hex(12) == same.hex(12) != other.hex(12)
    assert len(one.hex(3)) == 3 and 1.0 <= one.uniform(1.0, 2.0) <= 2.0
