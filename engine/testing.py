"""The test kit: sagas on the real engine and the real agent host, in one process, without a broker and without waiting.

    def test_an_order_is_undone_when_the_bank_declines():
        with SagaTest([order], [stock, bank]) as t:
            t.fail("bank", Terminal("declined"))
            ended = t.run("order", {"sku": "tea", "amount": 500})

        assert ended.status == "compensated"
        assert ended.undone == ["reserve"]

The log is the simulated Kafka that the project's own simulation uses; time is a number. Where nothing is at work the clocks are
moved to the next timer, so that a wait of thirty days takes milliseconds. Use it from plain functions: it runs an event loop
of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import unified_diff
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sagalog.agents import AgentHost, AnyAgent, Context, DidNotHappen, Happened, Retryable, agent
from sagalog.infra.simulation import Process, SimulatedClock, SimulatedRng, SimulationLoop
from sagalog.schemas.definitions import Definition
from sagalog.schemas.errors import SagalogError
from sagalog.schemas.events import Action, Decision
from sagalog.schemas.ids import Direction
from sagalog.schemas.records import SCHEDULE_KEY, FailureRecord, MissingRecord, ResultRecord, StepRecord
from sagalog.schemas.statuses import ScheduleStatus
from sagalog.topics.provision import provision
from sagalog.topics.simulated import SimulatedKafka
from sagalog.topics.specs import Topics, all_specs

from .audit import replay, told
from .client import Client, WaitTimeout
from .kernel.schedules import dump_schedule
from .kernel.state import NEVER
from .migrating import outcome
from .runtime.engine import Engine
from .runtime.processor import Phase
from .runtime.workflows import WorkflowMachine

T = TypeVar("T")

_TOPICS: Final = Topics("test")
LOOK_S: Final = 0.05
"""Simulated seconds between two looks at whether anything is at work."""
STILL_LOOKS: Final = 4
"""So many looks in a row must show nothing at work."""
WAIT_S_MAX: Final = 3_600.0
"""Simulated seconds of work, beside the time that is skipped, before a wait gives up."""
JUMPS_MAX: Final = 10_000
WHO: Final = "test"


_LATE: Final = TimeoutError("hangs once its work is done")
"""A fault, as None is: it is never raised."""


class NothingMoves(SagalogError):
    """The workflow waits for something that will not come by itself; the message says for what."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a workflow ended."""

    record: ResultRecord

    @property
    def status(self) -> str:
        return self.record["status"]

    @property
    def output(self) -> Any:
        return self.record.get("output")

    @property
    def failure(self) -> FailureRecord | None:
        return self.record.get("failure")

    @property
    def missing(self) -> list[MissingRecord]:
        """The manifest of a degraded result."""
        return self.record["missing"]

    @property
    def steps(self) -> dict[str, StepRecord]:
        """By name, the items of a step that maps among them."""
        return {one["name"]: one for step in self.record["steps"] for one in (step, *step.get("items", []))}

    @property
    def ledger(self) -> dict[str, str]:
        """What became of undoing each step, by name."""
        return {name: step["undo"]["status"] for name, step in self.steps.items() if "undo" in step}

    @property
    def undone(self) -> list[str]:
        """The steps that were undone, in the order in which that was asked."""
        done = [step for step in self.steps.values() if step.get("undo", {}).get("status") == "done"]
        return [step["name"] for step in sorted(done, key=lambda step: step["undo"].get("order", 0))]


class SagaTest:
    """A system for one test. `agents` do the steps; those that are stubbed instead are named with `stub`.

    Raises SagalogError on entering when an agent that a definition names is neither given nor stubbed.
    """

    def __init__(
        self, definitions: Sequence[Definition], agents: Sequence[AnyAgent] = (), *, partitions: int = 1, seed: int = 0
    ) -> None:
        self._definitions = list(definitions)
        self._agents = {given.name: given for given in agents}
        self._partitions = partitions
        self._loop = SimulationLoop(steps_max=1 << 62, time_max_s=1e12)
        self._clocks = [SimulatedClock(self._loop) for _ in range(2)]
        self._seed = seed
        self._faults: dict[tuple[str, Direction], deque[BaseException | None]] = {}
        self._engine: Engine | None = None
        self._processes: dict[str, Process] = {}
        self._started = 0
        self.client: Client

    # --- building

    def stub(self, name: str, answer: Any = None) -> None:
        """An agent that answers with a value, or with what a function of its input gives. Before entering.

        Asked whether an attempt happened (`reconcile`), it tells the truth.
        """
        did: dict[str, Any] = {}

        @agent(name)
        async def stubbed(value: Any, ctx: Context) -> Any:
            found = answer(value) if callable(answer) else answer
            output = await found if inspect.isawaitable(found) else found
            if ctx.direction is Direction.EXECUTE:
                did[ctx.idempotency_key] = output
            return output

        @stubbed.reconcile
        async def remembered(ctx: Context) -> Any:
            return Happened(did[ctx.idempotency_key]) if ctx.idempotency_key in did else DidNotHappen()

        self._agents[name] = stubbed

    def __enter__(self) -> Self:
        wanted = {name for definition in self._definitions for name in definition.agents}
        if lacking := sorted(wanted - self._agents.keys()):
            raise SagalogError(
                f"nobody does the work of {', '.join(lacking)}: pass the agents, or stub them: t.stub({lacking[0]!r}, ...)"
            )
        self._own, self._broker = self._clocks
        self._kafka = SimulatedKafka(self._broker, random.Random(self._seed))  # noqa: S311 - it must repeat itself
        self.do(self._set_up())
        return self

    async def _set_up(self) -> None:
        log = self._kafka.log("test")
        await provision(log, _TOPICS, all_specs(sorted(self._agents)), partitions=self._partitions, replication=1)
        self._start("engine", self._run_engine)
        self._start("host", self._run_host)
        self.client = Client(
            log, _TOPICS, rng=SimulatedRng(f"{self._seed}/client"), source="sagalog/test", clock=self._own
        )
        await self.client.__aenter__()
        for definition in self._definitions:
            await self.client.register(definition)
        await self._until(self._live, "the engine is not live")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.do(self.client.__aexit__(None, None, None))
        finally:
            self._loop.close()

    def _start(self, name: str, main: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        self._started += 1
        process = self._processes[name] = self._loop.process(f"{name}-{self._started}")
        process.spawn(main(process.name), name="main")

    async def _run_engine(self, name: str) -> None:
        rng = SimulatedRng(f"{self._seed}/{name}")
        self._engine = Engine(self._kafka.log(name), _TOPICS, clock=self._own, rng=rng, member=name)
        await self._engine.run(asyncio.Event())

    async def _run_host(self, name: str) -> None:
        agents = [given.around(partial(self._around, given.name)) for given in self._agents.values()]
        rng = SimulatedRng(f"{self._seed}/{name}")
        host = AgentHost(agents, self._kafka.log(name), _TOPICS, clock=self._own, rng=rng)
        await host.run(asyncio.Event())

    def _around(self, name: str, function: Callable[..., Any], direction: Direction) -> Callable[..., Any]:
        async def call(**arguments: Any) -> Any:
            faults = self._faults.get((name, direction))
            if faults:
                fault = faults.popleft()
                if fault is _LATE:
                    found = function(**arguments)
                    if inspect.isawaitable(found):
                        await found
                if fault is None or fault is _LATE:
                    await asyncio.get_running_loop().create_future()
                else:
                    raise fault
            found = function(**arguments)
            return await found if inspect.isawaitable(found) else found

        return call

    # --- running

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine, such as one of `t.client`, and returns what it gives."""
        return self._loop.run_until_complete(work)

    def start(self, definition: str, input: Any = None, **options: Any) -> str:
        """Starts a workflow as `Client.start` does, and returns its id."""
        return self.do(self.client.start(definition, input, **options))

    def run(self, definition: str, input: Any = None, **options: Any) -> Ended:
        """Starts a workflow and waits for its end."""
        return self.wait(self.start(definition, input, **options))

    def wait(self, workflow_id: str) -> Ended:
        """The workflow's end; time that nobody works in is skipped. Raises NothingMoves when nothing would ever end it."""
        return Ended(self.do(self._wait(workflow_id)))

    def settle(self) -> None:
        """Lets all go on that can without time passing: until everything waits for a timer, a signal or a person."""
        self.do(self._settle())

    def advance(self, *, seconds: float = 0, days: float = 0) -> None:
        """Lets time pass: all that is due by then happens, the due times of schedules among it."""
        self.do(self._advance(int((seconds + days * 86_400) * 1000)))

    def schedule(self, name: str, definition: str, cron: str, **options: Any) -> datetime:
        """Sets a schedule as `Client.set_schedule` does, and returns its first due time."""
        first_ms = self.do(self.client.set_schedule(name, definition=definition, cron=cron, who=WHO, **options))
        self.settle()
        return datetime.fromtimestamp(first_ms / 1000, UTC)

    def schedule_state(self, name: str) -> Mapping[str, Any]:
        """A schedule as its checkpoint has it: `status`, `next_ms`, `runs`, `skips`, `started`, `skipped`, ..."""
        for machine in self._machines():
            found = machine.fold_state.schedules.get(SCHEDULE_KEY + name)
            if found is not None:
                return dump_schedule(found)
        raise SagalogError(f"there is no schedule {name!r}")

    def signal(self, workflow_id: str, name: str, payload: Any = None) -> None:
        self.do(self.client.signal(workflow_id, name, payload, who=WHO))
        self.settle()

    def decide(self, workflow_id: str, step: str, decision: str, output: Any = None, *, undo: bool = False) -> None:
        """About a task (`approve`, `reject`), or what is held (`retry`, `skip`, `complete`, `fail`)."""
        decided = Decision(decision)
        self.do(self.client.decide(workflow_id, step, decided, who=WHO, output=output, undo=undo))
        self.settle()

    def act(self, workflow_id: str, action: str) -> None:
        """`pause`, `resume` or `terminate`."""
        self.do(self.client.act(workflow_id, Action(action), reason="test", who=WHO))
        self.settle()

    def prioritize(self, workflow_id: str, priority: int) -> None:
        self.do(self.client.prioritize(workflow_id, priority, reason="test", who=WHO))
        self.settle()

    def cancel(self, workflow_id: str) -> None:
        self.do(self.client.cancel(workflow_id, reason="test", who=WHO))
        self.settle()

    def migrate(self, workflow_id: str, to: Definition) -> list[str]:
        """Registers a changed definition and moves a running workflow to it. What does not fit, each with its remedy: it stays."""
        found = self.do(self._migrate(workflow_id, to))
        self.settle()
        return found

    async def _migrate(self, workflow_id: str, to: Definition) -> list[str]:
        await self.client.register(to)
        request = await self.client.migrate(workflow_id, f"{to.name}@{to.hash}", who=WHO, reason="test")
        log = self._kafka.log("auditor")
        try:
            found = await outcome(log, _TOPICS, workflow_id, request)
        finally:
            await log.close()
        assert found is not None, "it is in the log"
        return [] if found.taken else found.problems or [f"workflow: {found.reason}; see t.state(...)"]

    def rewind(self, workflow_id: str, step: str, *, undo: bool = True) -> None:
        """Back to a step: it and all that needs it are done anew, once they are undone."""
        self.do(self.client.rewind(workflow_id, step, undo=undo, reason="test", who=WHO))
        self.settle()

    # --- faults

    def fail(
        self,
        name: str,
        error: BaseException | None = None,
        *,
        times: int = 1,
        undo: bool = False,
        question: bool = False,
    ) -> None:
        """The next calls of an agent raise: `Retryable` unless another error is given.

        `undo`: of its compensation. `question`: of its answers to whether an attempt happened.
        """
        self._fault(name, _direction(undo, question), [error or Retryable(f"{name} fails") for _ in range(times)])

    def hang(
        self, name: str, *, times: int = 1, undo: bool = False, question: bool = False, late: bool = False
    ) -> None:  # fmt: skip
        """The next calls of an agent never answer: they run into their timeout. `late`: after they have done their work."""
        self._fault(name, _direction(undo, question), [_LATE if late else None] * times)

    def _fault(self, name: str, direction: Direction, faults: Sequence[BaseException | None]) -> None:
        if name not in self._agents:
            raise SagalogError(f"there is no agent {name!r}; there are {', '.join(sorted(self._agents))}")
        self._faults.setdefault((name, direction), deque()).extend(faults)

    def crash_engine(self) -> None:
        """kill -9, and a new one at once: it takes over from the log."""
        self.do(self._again("engine", self._run_engine))

    def crash_host(self) -> None:
        """kill -9 of the agents' host, and a new one at once."""
        self.do(self._again("host", self._run_host))

    async def _again(self, name: str, main: Callable[[str], Coroutine[Any, Any, None]]) -> None:
        self._processes[name].kill()
        self._start(name, main)

    def outage(self, *, seconds: float) -> None:
        """The broker cannot be reached for so long."""
        self.do(self._cut_off(int(seconds * 1000)))

    async def _cut_off(self, ms: int) -> None:
        self._kafka.outage(ms)

    # --- looking

    def state(self, workflow_id: str) -> Mapping[str, Any]:
        """The workflow's state as its checkpoint has it, or its result: folded anew from the log."""
        found: Mapping[str, Any] | None
        _, found = self.do(self._replay(workflow_id))
        if found is None:
            raise SagalogError(f"there is no workflow {workflow_id!r}")
        return found

    def statuses(self, workflow_id: str) -> dict[str, str]:
        """Step name to status, now."""
        return {step["name"]: str(step["status"]) for step in self.state(workflow_id).get("steps", [])}

    def history(self, workflow_id: str) -> list[str]:
        """Every change of a status, in order: `workflow: new -> running`, `reserve: waiting -> running`, ..."""
        steps, _ = self.do(self._replay(workflow_id))
        return [move for step in steps for move in step.moves]

    def replay(self, workflow_id: str, against: Definition) -> list[str]:
        """What the workflow's events would have led to with a changed definition: lines of a diff, none for no difference."""
        steps, _ = self.do(self._replay(workflow_id))
        otherwise, _ = self.do(self._replay(workflow_id, against))
        return list(unified_diff(told(steps), told(otherwise), "as it was", "with the other definition", lineterm=""))

    async def _replay(self, workflow_id: str, against: Definition | None = None) -> Any:
        log = self._kafka.log("auditor")
        try:
            return await replay(log, _TOPICS, workflow_id, against=against)
        finally:
            await log.close()

    # --- time

    async def _wait(self, workflow_id: str) -> ResultRecord:
        for _ in range(JUMPS_MAX):
            try:
                return await self.client.wait(workflow_id, timeout_s=STILL_LOOKS * LOOK_S)
            except WaitTimeout:
                await self._settle()
            try:
                return await self.client.wait(workflow_id, timeout_s=STILL_LOOKS * LOOK_S)
            except WaitTimeout:
                due_in_ms = self._due_in_ms()
            if due_in_ms is None:
                raise NothingMoves(
                    f"{workflow_id} goes on only by a signal or a person: {await self._why(workflow_id)}"
                )
            self._jump(due_in_ms)
        raise NothingMoves(f"{workflow_id} has not ended after {JUMPS_MAX:,} timers: {await self._why(workflow_id)}")

    async def _why(self, workflow_id: str) -> str:
        _, state = await self._replay(workflow_id)
        if state is None:
            return "there is no such workflow"
        waiting = [
            f"{step['name']} is {step['status']}" for step in state.get("steps", []) if "finished_ms" not in step
        ]
        return "it is paused" if "paused" in state else ", ".join(waiting) or f"it is {state['status']}"

    async def _advance(self, ms: int) -> None:
        until_ms = self._own.now_ms() + ms
        for _ in range(JUMPS_MAX):
            await self._settle()
            left_ms = until_ms - self._own.now_ms()
            if left_ms <= 0:
                return
            due_in_ms = self._due_in_ms(schedules=True)
            self._jump(left_ms if due_in_ms is None else min(left_ms, due_in_ms))
        raise NothingMoves(f"{ms:,} ms have not passed after {JUMPS_MAX:,} timers")

    def _jump(self, ms: int) -> None:
        """Moves all clocks on, at once. What waits by the loop's time (a running handler) does not notice."""
        for clock in self._clocks:
            clock.step_ms(max(0, ms) + 1)

    def _due_in_ms(self, *, schedules: bool = False) -> int | None:
        """When the next timer of a workflow that has not ended is due, or of a schedule; None without one."""
        due = [
            state.due_ms()
            for machine in self._machines()
            for workflow_id in machine.fold_state.ids()
            if (state := machine.fold_state.get(workflow_id)) is not None and not state.terminal
        ]
        if schedules:
            due += [
                found.due_ms()
                for machine in self._machines()
                for found in machine.fold_state.schedules.values()
                if found.status is ScheduleStatus.ACTIVE
            ]
        next_ms = min(due, default=NEVER)
        return None if next_ms == NEVER else max(0, next_ms - self._own.now_ms())

    async def _settle(self) -> None:
        still = 0
        before: tuple[int, ...] = ()
        async with asyncio.timeout(WAIT_S_MAX):
            while still < STILL_LOOKS:
                await asyncio.sleep(LOOK_S)
                now = self._offsets()
                quiet = self._live() and now == before and not self._at_work() and not self._behind()
                still = still + 1 if quiet else 0
                before = now

    async def _until(self, condition: Callable[[], bool], problem: str) -> None:
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                while not condition():  # noqa: ASYNC110 - simulated time: it costs nothing
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise NothingMoves(problem) from None

    def _machines(self) -> list[WorkflowMachine]:
        session = self._engine.session if self._engine is not None else None
        processors = session.processors.values() if session is not None else ()
        return [found.machine for found in processors if isinstance(found.machine, WorkflowMachine)]

    def _live(self) -> bool:
        session = self._engine.session if self._engine is not None else None
        if session is None or len(self._machines()) < self._partitions:
            return False
        return all(found.phase is Phase.LIVE for found in session.processors.values())

    def _at_work(self) -> bool:
        return any(machine.stats()["attempts_out"] or machine.stats()["withheld"] for machine in self._machines())

    def _behind(self) -> bool:
        """Whether something is in the log that the engine has not folded: the broker may be out of its reach."""
        for machine in self._machines():
            records = self._kafka.records(*machine.input)
            if records and records[-1].offset > machine.offset:
                return True
        return False

    def _offsets(self) -> tuple[int, ...]:
        return tuple(machine.offset for machine in self._machines())


def _direction(undo: bool, question: bool) -> Direction:
    if question:
        return Direction.RECONCILE
    return Direction.COMPENSATE if undo else Direction.EXECUTE
