"""The runtime on the real broker: take-over, zombies, timers, losses, circuits, rebalances."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from sagalog.engine.audit import verify
from sagalog.engine.runtime.engine import Engine
from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import CircuitPolicy, Compensation, Definition, Fallback, Retry, Step, WhenOpen
from sagalog.schemas.events import FailureKind
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics

from ..conftest import PARTITIONS, Stack
from ..processes import Processes, environment_of
from .system import NO_ANSWER, Failure, System, eventually

QUICK_RETRY = Retry(attempts=5, base_ms=20, cap_ms=200)

CHAIN = Definition(
    name="chain",
    steps=(
        Step(name="one", agent="worker", retry=QUICK_RETRY, compensate=Compensation(retry=QUICK_RETRY)),
        Step(name="two", agent="worker", needs=("one",), retry=QUICK_RETRY, compensate=Compensation(retry=QUICK_RETRY)),
        Step(name="three", agent="worker", needs=("two",), retry=QUICK_RETRY),
    ),
)


async def test_a_new_engine_goes_on_where_the_old_one_stopped(log: KafkaLog, provisioned: Topics) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(CHAIN)
        ids = {f"w{n}": {} for n in range(40)}
        async with System(log, provisioned) as first:
            await first.engine()
            await first.agent("worker", lambda command: {"ok": 1} if command.step == "one" else NO_ANSWER)
            await system.client.start_many("chain", ids)
            await eventually(lambda: sum(c.step == "two" for c in first.commands) == 40, 20, "step two is not out")
        # The commands of step two were taken and not answered: their agent is gone, so the attempts are lost later on. A
        # second agent group member gets none of them again; the engine's own watch must.
        await system.engine()
        await system.agent("worker", lambda command: {"ok": 1})
        await system.client.start_many("chain", {f"x{n}": {} for n in range(10)})
        results = await system.client.wait_all([f"x{n}" for n in range(10)], timeout_s=30)
        assert {result["status"] for result in results.values()} == {"completed"}
        reports = await _settled(log, provisioned, workflows=50)
        assert [report.differences for report in reports] == [[]] * PARTITIONS
        assert sum(report.workflows for report in reports) == 50


async def test_a_compensation_runs_in_exact_reverse_order(log: KafkaLog, provisioned: Topics) -> None:
    def answer(command: Command) -> Any:
        if command.step == "three":
            return Failure()
        return {"did": command.step}

    async with System(log, provisioned) as system:
        await system.client.register(CHAIN)
        await system.engine()
        await system.agent("worker", answer)
        result = await system.client.wait(await system.client.start("chain", {"x": 1}), timeout_s=20)
        assert result["status"] == "compensated"
        done = [(command.step, command.direction.value) for command in system.commands]
        assert done == [
            ("one", "execute"),
            ("two", "execute"),
            ("three", "execute"),
            ("two", "compensate"),
            ("one", "compensate"),
        ]
        assert system.commands[-1].input == {"input": {"x": 1}, "output": {"did": "one"}}


async def test_a_step_is_retried_with_back_off(log: KafkaLog, provisioned: Topics) -> None:
    def answer(command: Command) -> Any:
        return Failure(FailureKind.RETRYABLE, "busy") if command.attempt < 4 else {"ok": True}

    async with System(log, provisioned) as system:
        await system.client.register(CHAIN)
        engine = await system.engine()
        await system.agent("worker", answer)
        result = await system.client.wait(await system.client.start("chain", {}), timeout_s=30)
        assert result["status"] == "completed"
        assert [step["attempt"] for step in result["steps"]] == [4, 4, 4]
        assert engine.metrics.timers._value.get() == 9


async def test_an_attempt_that_nobody_answers_is_lost_and_tried_again(log: KafkaLog, provisioned: Topics) -> None:
    step = Step(name="only", agent="worker", timeout_ms=100, start_timeout_ms=100, retry=QUICK_RETRY)

    async with System(log, provisioned) as system:
        await system.client.register(Definition(name="silent", steps=(step,)))
        await system.engine()
        await system.agent("worker", lambda command: NO_ANSWER if command.attempt == 1 else {"ok": True})
        result = await system.client.wait(await system.client.start("silent", {}), timeout_s=30)
        assert result["status"] == "completed"
        assert [failure["kind"] for failure in result["steps"][0]["failures"]] == ["lost"]


async def test_a_deadline_undoes_what_was_done(log: KafkaLog, provisioned: Topics) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(CHAIN)
        await system.engine()
        await system.agent(
            "worker",
            lambda command: (
                Failure(FailureKind.RETRYABLE, retry_after_ms=150) if command.step == "two" else {"ok": True}
            ),
        )
        result = await system.client.wait(await system.client.start("chain", {}, deadline_ms=200), timeout_s=30)
        assert (result["status"], result["failure"]["kind"]) == ("compensated", "deadline")


async def test_two_engines_share_the_partitions_and_one_that_leaves_gives_its_own_back(
    log: KafkaLog, provisioned: Topics
) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(CHAIN)
        first = await system.engine("first")
        await system.agent("worker", lambda command: {"ok": True})
        async with System(log, provisioned) as other:
            second = await other.engine("second")
            await eventually(lambda: _owned(first) and _owned(second), 20, "both do not own")
            await system.client.start_many("chain", {f"a{n}": {} for n in range(50)})
            results = await system.client.wait_all([f"a{n}" for n in range(50)], timeout_s=30)
            assert {result["status"] for result in results.values()} == {"completed"}
        await eventually(lambda: _owned(first) == PARTITIONS, 20, "the first does not own all")
        await system.client.start_many("chain", {f"b{n}": {} for n in range(50)})
        results = await system.client.wait_all([f"b{n}" for n in range(50)], timeout_s=30)
        assert {result["status"] for result in results.values()} == {"completed"}
        assert all(not report.differences for report in await _settled(log, provisioned))


async def test_a_zombie_engine_does_no_damage(stack: Stack, log: KafkaLog, provisioned: Topics, tmp_path: Path) -> None:
    """SIGSTOP an engine in mid-flow, let another take over and finish the work, then SIGCONT."""
    environment = environment_of(stack.bootstrap, provisioned)
    async with System(log, provisioned) as system:
        await system.client.register(CHAIN)
        with Processes(tmp_path, environment) as processes:
            zombie = processes.make("zombie", "engine")
            await eventually(
                lambda: zombie.output().count(": live") >= PARTITIONS + 2, 30, "the first engine is not live"
            )
            answered = await _agent_that_fails_every_fifth(system)
            ids = [f"z{n}" for n in range(300)]
            await system.client.start_many("chain", {workflow_id: {} for workflow_id in ids})
            await eventually(lambda: len(answered) > 100, 30, "nothing moves")
            zombie.pause()
            heir = processes.make("heir", "engine")
            results = await system.client.wait_all(ids, timeout_s=60)
            assert heir.output().count(": live") >= PARTITIONS
            zombie.resume()
            await eventually(lambda: "given up" in zombie.output() or "epoch 3" in zombie.output(), 30, "unaware")
            await system.client.start_many("chain", {f"y{n}": {} for n in range(50)})
            results |= await system.client.wait_all([f"y{n}" for n in range(50)], timeout_s=60)
            for workflow_id, result in results.items():
                wanted = "compensated" if int(workflow_id[1:]) % 5 == 0 else "completed"
                assert result["status"] == wanted, workflow_id
            assert all(not report.differences for report in await _settled(log, provisioned))


async def _agent_that_fails_every_fifth(system: System) -> list[Command]:
    def answer(command: Command) -> Any:
        if command.step == "three" and int(command.workflow_id[1:]) % 5 == 0:
            return Failure()
        return {"did": command.step}

    await system.agent("worker", answer)
    return system.commands


def _owned(engine: Engine) -> int:
    session = engine.session
    assert session is not None
    events = [p for p in session.processors.values() if p.input.topic == engine.topics.events]
    return sum(p.phase.value == "live" for p in events)


async def _settled(log: KafkaLog, topics: Topics, workflows: int = 0) -> list[Any]:
    """`verify`, once the last snapshot holds every event."""
    deadline = time.monotonic() + 10
    while True:
        reports = await verify(log, topics)
        seen = sum(report.workflows for report in reports) >= workflows
        if (seen and all(not report.differences for report in reports)) or time.monotonic() > deadline:
            return reports
        await asyncio.sleep(0.3)


# --- circuits


def _guarded(when_open: WhenOpen, **more: Any) -> Definition:
    return Definition(
        name="guarded",
        steps=(
            Step(
                name="call",
                agent="caller",
                service="bank",
                when_open=when_open,
                retry=Retry(attempts=20, base_ms=20, cap_ms=200),
                **more,
            ),
        ),
        services={"bank": CircuitPolicy(failure_ratio=0.5, calls_min=5, window_ms=10_000, recovery_ms=1_000)},
    )


class Bank:
    """A service that can be down."""

    def __init__(self) -> None:
        self.up = False
        self.calls = 0

    def answer(self, command: Command) -> Any:
        self.calls += 1
        return {"ok": True} if self.up else Failure(FailureKind.RETRYABLE, "bank is down")


async def test_an_open_circuit_parks_work_and_releases_it_when_the_service_is_back(
    log: KafkaLog, provisioned: Topics
) -> None:
    bank = Bank()
    async with System(log, provisioned) as system:
        await system.client.register(_guarded(WhenOpen.PARK))
        engine = await system.engine()
        await system.agent("caller", bank.answer)
        ids = [f"p{n}" for n in range(40)]
        await system.client.start_many("guarded", {workflow_id: {} for workflow_id in ids})
        await eventually(lambda: _circuit(engine) == "open", 20, "the circuit is not open")
        await eventually(lambda: _withheld(engine) == 40, 20, "not all work is parked")
        # How many calls it takes until the circuit opens is a matter of speed; from then on only its probes call, one a second.
        calls_when_parked = bank.calls
        await asyncio.sleep(1.5)
        assert bank.calls - calls_when_parked <= 3, "a parked workflow must not call"
        calls_while_down = bank.calls
        bank.up = True
        results = await system.client.wait_all(ids, timeout_s=30)
        assert {result["status"] for result in results.values()} == {"completed"}
        assert bank.calls - calls_while_down <= 45
        waited = [command.withheld for command in system.commands if command.withheld is not None]
        assert waited
        assert {withheld.reason for withheld in waited} <= {"circuit_open", "ramp"}
        await eventually(lambda: _circuit(engine) == "closed", 10, "the circuit is not closed")


async def test_a_workflow_whose_work_is_parked_can_be_cancelled(log: KafkaLog, provisioned: Topics) -> None:
    bank = Bank()
    async with System(log, provisioned) as system:
        await system.client.register(_guarded(WhenOpen.PARK))
        engine = await system.engine()
        await system.agent("caller", bank.answer)
        await system.client.start_many("guarded", {f"c{n}": {} for n in range(10)})
        await eventually(lambda: _withheld(engine) == 10, 20, "not all work is parked")
        await system.client.cancel("c3", reason="not wanted any more", who="tester")
        result = await system.client.wait("c3", timeout_s=20)
        assert (result["status"], result["failure"]["kind"]) == ("cancelled", "cancelled")
        assert _withheld(engine) == 9
        calls = [command for command in system.commands if command.workflow_id == "c3"]
        bank.up = True
        await system.client.wait_all([f"c{n}" for n in range(10)], timeout_s=30)
        assert [command for command in system.commands if command.workflow_id == "c3"] == calls


async def test_parked_work_survives_its_engine(log: KafkaLog, provisioned: Topics) -> None:
    bank = Bank()
    async with System(log, provisioned) as system:
        await system.client.register(_guarded(WhenOpen.PARK))
        await system.agent("caller", bank.answer)
        ids = [f"s{n}" for n in range(20)]
        async with System(log, provisioned) as first:
            engine = await first.engine()
            await system.client.start_many("guarded", {workflow_id: {} for workflow_id in ids})
            await eventually(lambda: _withheld(engine) == 20, 20, "not all work is parked")
        second = await system.engine()
        bank.up = True
        results = await system.client.wait_all(ids, timeout_s=30)
        assert {result["status"] for result in results.values()} == {"completed"}
        await eventually(lambda: _withheld(second) == 0, 10, "something is still parked")


async def test_a_step_that_does_not_wait_fails_while_the_circuit_is_open(log: KafkaLog, provisioned: Topics) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(_guarded(WhenOpen.FAIL))
        engine = await system.engine()
        await system.agent("caller", Bank().answer)
        await system.client.start_many("guarded", {f"f{n}": {} for n in range(20)})
        await eventually(lambda: _circuit(engine) == "open", 20, "the circuit is not open")
        results = await system.client.wait_all([f"f{n}" for n in range(20)], timeout_s=30)
        assert {result["status"] for result in results.values()} == {"failed"}
        assert "circuit_open" in {result["failure"]["kind"] for result in results.values()}


async def test_a_step_with_a_fallback_takes_it_while_the_circuit_is_open(log: KafkaLog, provisioned: Topics) -> None:
    definition = _guarded(WhenOpen.FALL_BACK, fallback=Fallback(value={"ok": "guessed"}))
    async with System(log, provisioned) as system:
        await system.client.register(definition)
        engine = await system.engine()
        await system.agent("caller", Bank().answer)
        await system.client.start_many("guarded", {f"g{n}": {} for n in range(20)})
        await eventually(lambda: _circuit(engine) == "open", 20, "the circuit is not open")
        results = await system.client.wait_all([f"g{n}" for n in range(20)], timeout_s=30)
        assert {result["status"] for result in results.values()} == {"degraded"}
        result = next(iter(results.values()))
        assert result["output"] == {"call": {"ok": "guessed"}}
        assert result["missing"][0]["stand_in"] == "fallback"
        assert result["completeness"] == 0.0


def _circuit(engine: Engine) -> str | None:
    session = engine.session
    assert session is not None
    view = session._circuits.get("bank")
    return view.status.value if view is not None else None


def _withheld(engine: Engine) -> int:
    session = engine.session
    assert session is not None
    return int(sum(processor.stats().get("withheld", 0) for processor in session.processors.values()))
