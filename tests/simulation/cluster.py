"""The processes of one run: engines, agent hosts, a starter; how they are started, broken and brought back.

Rule: what the harness does runs in its own context. A timer set in the context of a process that is killed would die with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from sagalog.agents import AgentHost
from sagalog.engine.client import AnswerTimeout, Client, DuplicateStart
from sagalog.engine.projection.projector import Projector
from sagalog.engine.runtime.engine import Engine
from sagalog.infra.simulation import Process, SimulatedClock, SimulatedRng, SimulationLoop, current_process
from sagalog.schemas.definitions import Definition, Step
from sagalog.schemas.errors import SagalogError
from sagalog.schemas.events import Action, OnDuplicate
from sagalog.schemas.records import TYPE_RESULT
from sagalog.topics.log import Log, LogError, header
from sagalog.topics.partitioner import partition_of
from sagalog.topics.provision import provision
from sagalog.topics.specs import Topics, all_specs

from .database import Network
from .definitions import ALL_AGENTS
from .person import operate
from .plan import Fault, Kind, Plan, Start
from .rogue import forged, garbage, health, replayed
from .spy import Sent, SpyLog
from .timetables import Timetable
from .trace import Trace
from .world import World

TOPICS: Final = Topics("sim")
RESTART_MS: Final = 300
"""After a process ended of itself, or an agent killed its host."""
ACTION_TRIES_MAX: Final = 5_000
RETRY_S: Final = 0.3
PROBE_TIMEOUT_S: Final = 500.0
ANSWER_S: Final = 1.0
"""How long the client waits to be told whether its start counted, before it goes on with the plan."""
GRACE_S: Final = 30.0
"""How long an engine that is told to stop may take before it is killed."""
READY_S: Final = 60.0
"""How long a rolling restart waits for the engine that it has started."""
LOOK_S: Final = 0.1
PROBE: Final = Definition(name="probe", steps=(Step(name="probe", agent="a0"),))


@dataclass(slots=True)
class Machine:
    """Where a process runs, and runs again after it was killed. The clock is the machine's."""

    name: str
    main: Callable[[Machine, asyncio.Event], Coroutine[Any, Any, None]]
    clock: SimulatedClock
    wanted: bool = True
    """It is started again when its process ended."""
    incarnation: int = 0
    process: Process | None = None
    stop: asyncio.Event | None = None
    engine: Engine | None = None


@dataclass(slots=True)
class Cluster:
    plan: Plan
    loop: SimulationLoop
    kafka: Any
    world: World
    trace: Trace
    rng: random.Random
    network: Network | None = None
    """To the database, where there are projectors."""
    machines: dict[str, Machine] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    acked: dict[str, None] = field(default_factory=dict)
    """Workflows whose start the client was told to be durable, in order."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """All that was to be started is."""
    probes: dict[str, bool] = field(default_factory=dict)
    """Workflows that show at the end that a partition is served; true while one has not ended."""
    skipped: set[tuple[str, int, int]] = field(default_factory=set)
    """(topic, partition, offset) of commands that somebody made their agent's group pass over."""
    extras: int = 0
    rogues: int = 0
    _rolls: list[asyncio.Task[None]] = field(default_factory=list)
    _context: contextvars.Context = field(default_factory=contextvars.copy_context)

    # --- building

    async def build(self) -> None:
        log = self.kafka.log("setup")
        await provision(log, TOPICS, all_specs(ALL_AGENTS), partitions=self.plan.partitions, replication=1)
        await log.close()
        self.world.kill_host = self._kill_current
        for number in range(self.plan.engines):
            self._add(f"engine-{number}", self._engine)
        for number in range(self.plan.hosts):
            self._add(f"host-{number}", self._host)
        self._add("starter", self._starter)
        self._add("operator", self._operator)
        for number in range(self.plan.projectors):
            self._add(f"projector-{number}", self._projector)

    def _add(self, name: str, main: Callable[[Machine, asyncio.Event], Coroutine[Any, Any, None]]) -> Machine:
        machine = self.machines[name] = Machine(name, main, SimulatedClock(self.loop))
        self.start(machine)
        return machine

    def start(self, machine: Machine) -> None:
        if not machine.wanted or (machine.process is not None and not machine.process.dead):
            return
        machine.incarnation += 1
        name = machine.name if machine.incarnation == 1 else f"{machine.name}#{machine.incarnation}"
        process = machine.process = self.loop.process(name)
        machine.stop, machine.engine = asyncio.Event(), None
        task = process.spawn(machine.main(machine, machine.stop), name="main")
        task.add_done_callback(lambda done: self._exited(machine, process, done), context=self._context)
        self.trace.note(f"start {name}")

    def _exited(self, machine: Machine, process: Process, task: asyncio.Task[Any]) -> None:
        """The program's end is the end of all its tasks."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.trace.note(f"{process.name} ended with {type(error).__name__}: {error}")
            if not isinstance(error, SagalogError):
                self.problems.append(f"{process.name} ended with {type(error).__name__}: {error}")
        process.kill()
        if machine.wanted and machine.process is process and error is not None:
            self._later(RESTART_MS, lambda: self.start(machine))

    def _later(self, ms: float, work: Callable[[], None]) -> None:
        self.loop.call_later(ms / 1000, work, context=self._context)

    def log(self, process: str) -> Log:
        log: Log = SpyLog(self.kafka.log(process), process, self.sent.append, self.loop.time)
        return log

    # --- programs

    def _chance(self, what: str) -> SimulatedRng:
        return SimulatedRng(f"{self.plan.seed}/{what}")

    async def _engine(self, machine: Machine, stop: asyncio.Event) -> None:
        assert machine.process is not None
        name = machine.process.name
        log = self.log(name)
        machine.engine = Engine(log, TOPICS, clock=machine.clock, rng=self._chance(name), member=name)
        await machine.engine.run(stop)
        await log.close()

    async def _host(self, machine: Machine, stop: asyncio.Event) -> None:
        assert machine.process is not None
        name = machine.process.name
        log = self.log(name)
        host = AgentHost(self.world.agents(), log, TOPICS, clock=machine.clock, rng=self._chance(name), grace_ms=1_000)
        await host.run(stop)
        await log.close()

    async def _projector(self, machine: Machine, stop: asyncio.Event) -> None:
        assert machine.process is not None and self.network is not None
        name, network = machine.process.name, self.network
        machine.process.on_death.append(lambda: network.died(name))
        log = self.log(name)
        projector = Projector(log, network.sql(), TOPICS, clock=machine.clock, rng=self._chance(name))
        await projector.run(stop)
        await log.close()

    async def _starter(self, machine: Machine, stop: asyncio.Event) -> None:
        """Starts and cancels by the plan, with a new client after every error, until each action is done."""
        actions = sorted([*_actions(self.plan.starts), *_schedule_actions(self.plan.timetables)], key=lambda a: a[0])
        place = tries = 0
        log = self.kafka.log("starter")
        while place < len(actions) and tries < ACTION_TRIES_MAX:
            tries += 1
            try:
                async with Client(
                    log, TOPICS, rng=self._chance(f"starter/{tries}"), clock=SimulatedClock(self.loop)
                ) as client:
                    # The changes first: who starts a workflow by its name gets the definition as it was.
                    for definition in (*self.plan.changes, *self.plan.definitions):
                        await client.register(definition)
                    while place < len(actions):
                        at_ms, what, start = actions[place]
                        await asyncio.sleep(max(0.0, at_ms / 1000 - self.loop.time()))
                        await self._do(client, what, start)
                        place += 1
            except LogError as error:
                self.trace.note(f"the client failed, trying again: {error}")
                await asyncio.sleep(RETRY_S)
        if place < len(actions):
            self.problems.append(f"the client could not do all it was asked to in {tries} tries")
        self.started.set()
        await log.close()

    async def _do(self, client: Client, what: str, start: Start | Timetable) -> None:
        if isinstance(start, Timetable):
            await self._do_schedule(client, what, start)
            return
        workflow_id, who = start.workflow_id, "simulation"
        match what.split():
            case ["start"]:
                await self._start(client, start, start.on_duplicate, start.priority, deadline_ms=start.deadline_ms)
            case ["further", number]:
                _, policy, priority = start.further[int(number)]
                await self._start(client, start, policy, priority)
            case ["prioritize"]:
                await client.prioritize(workflow_id, 9 - (start.priority or 0), reason="by plan", who=who)
            case ["cancel"]:
                await client.cancel(workflow_id, reason="by plan", who=who)
            case ["signal", name, number]:
                # Sent again after an error, it is the same signal.
                await client.signal(workflow_id, name, {"number": number}, who=who, signal_id=f"{workflow_id}/{number}")
            case ["migrate", to]:
                await client.migrate(workflow_id, to, reason="by plan", who=who)
            case ["rewind", step, undo]:
                await client.rewind(workflow_id, step, undo=undo == "undo", reason="by plan", who=who)
            case [action]:
                await client.act(workflow_id, Action(action), reason="by plan", who=who)

    async def _start(
        self, client: Client, start: Start, policy: OnDuplicate, priority: int | None, *, deadline_ms: int | None = None
    ) -> None:
        try:
            await client.start(
                start.definition,
                start.input,
                workflow_id=start.workflow_id,
                deadline_ms=deadline_ms,
                tenant=start.tenant,
                priority=priority,
                attributes=start.attributes,
                on_duplicate=policy,
                answer_timeout_s=ANSWER_S,
            )
        except (DuplicateStart, AnswerTimeout) as error:
            self.trace.note(f"{type(error).__name__}: {start.workflow_id}")
        self.acked[start.workflow_id] = None

    async def _do_schedule(self, client: Client, what: str, table: Timetable) -> None:
        if what == "remove":
            await client.remove_schedule(table.name, reason="by plan", who="simulation")
            return
        await client.set_schedule(
            table.name,
            definition=table.definition,
            cron=table.cron,
            zone=table.zone,
            input={"items": [0, 1], "number": 7},
            overlap=table.overlap,
            catch_up_ms=table.catch_up_ms,
            jitter_ms=table.jitter_ms,
            who="simulation",
        )

    async def _operator(self, machine: Machine, stop: asyncio.Event) -> None:
        log = self.kafka.log("operator")
        await operate(log, TOPICS, self._chance, self.rng, stop, self.resumable)

    def resumable(self) -> list[str]:
        """Once all is healed: workflows that somebody had paused, and that are to go on."""
        if not self.world.calm or not self.started.is_set():
            return []
        ended = ended_ids(self.plan, self.kafka)
        return [
            start.workflow_id
            for start in self.plan.starts
            if start.pause_at_ms is not None and (start.several or start.workflow_id not in ended)
        ]

    async def probe(self) -> None:
        """One workflow more in every partition: each has to be served again."""
        process = self.loop.process("prober")
        await process.spawn(self._probe(), name="main")
        process.kill()

    async def _probe(self) -> None:
        log = self.kafka.log("prober")
        tries = 0
        while len(self.probes) < self.plan.partitions or any(self.probes.values()):
            tries += 1
            try:
                async with Client(log, TOPICS, rng=self._chance(f"prober/{tries}")) as client:
                    await self._probe_each(client)
            except LogError as error:
                # An outage may outlast the faults.
                self.trace.note(f"the prober failed, trying again: {error}")
                await asyncio.sleep(RETRY_S)
        await log.close()

    async def _probe_each(self, client: Client) -> None:
        await client.register(PROBE)
        for partition in range(self.plan.partitions):
            number = 0
            while partition_of(f"probe-{partition}-{number}".encode(), self.plan.partitions) != partition:
                number += 1
            workflow_id = f"probe-{partition}-{number}"
            self.probes[workflow_id] = True
            await client.start("probe", None, workflow_id=workflow_id)
            self.acked[workflow_id] = None
        for workflow_id in self.probes:
            await client.wait(workflow_id, timeout_s=PROBE_TIMEOUT_S)
            self.probes[workflow_id] = False

    # --- breaking

    def _kill_current(self) -> None:
        process = current_process()
        assert process is not None
        for machine in self.machines.values():
            if machine.process is process:
                self.kill(machine, RESTART_MS)

    def kill(self, machine: Machine, restart_ms: int) -> None:
        assert machine.process is not None
        self.trace.note(f"KILL {machine.process.name}")
        machine.process.kill()
        if machine.wanted:
            self._later(restart_ms, lambda: self.start(machine))

    async def break_things(self) -> None:
        for fault in self.plan.faults:
            await asyncio.sleep(max(0.0, fault.at_ms / 1000 - self.loop.time()))
            self.trace.note(f"FAULT {fault}")
            await self._break(fault)

    async def _break(self, fault: Fault) -> None:
        machine = self.machines.get(fault.target)
        process = machine.process if machine is not None else None
        match fault.kind:
            case Kind.KILL:
                assert machine is not None and process is not None
                self._kill_at(machine, process, fault)
            case Kind.FREEZE:
                assert process is not None
                process.freeze()
                self._later(fault.for_ms, process.thaw)
            case Kind.STOP:
                assert machine is not None
                self._stop(machine, fault.for_ms)
            case Kind.ROLL:
                self._rolls.append(self.loop.create_task(self._roll(fault.for_ms, fault.amount)))
            case Kind.OUTAGE:
                self.kafka.outage(fault.for_ms)
            case Kind.CLOCK_STEP:
                assert machine is not None
                machine.clock.step_ms(fault.amount)
            case Kind.DRIFT:
                assert machine is not None
                machine.clock.set_drift(fault.amount / 100)
                self._later(fault.for_ms, lambda: machine.clock.set_drift(0.0))
            case Kind.JOIN:
                self._join(fault.for_ms, "extra", self._engine)
            case Kind.STORM:
                self._storm(fault.amount, TOPICS.engine_group)
            case Kind.COMPACT:
                self.kafka.compact(TOPICS.checkpoints)
                self.kafka.compact(TOPICS.circuits)
            case Kind.SKIP:
                self._skip(fault.for_ms)
            case Kind.SERVICE_DOWN:
                self._service(fault.target, 1)
                self._later(fault.for_ms, lambda: self._service(fault.target, -1))
            case Kind.REPLAY | Kind.FORGE | Kind.GARBAGE | Kind.HEALTH:
                self._rogue(fault)
            case _:
                self._break_projection(fault)

    def _break_projection(self, fault: Fault) -> None:
        network = self.network
        assert network is not None
        match fault.kind:
            case Kind.DATABASE_DOWN:
                network.shut(fault.for_ms)
            case Kind.DATABASE_SILENT:
                network.silence(fault.for_ms)
            case Kind.DATABASE_EMPTIED:
                network.lose_rows(fault.for_ms)
            case Kind.PROJECTOR_JOINS:
                self._join(fault.for_ms, "projector-extra", self._projector)
            case Kind.PROJECTOR_STORM:
                self._storm(fault.amount, TOPICS.projector_group)
            case _:
                raise AssertionError(f"nobody knows how to break it: {fault}")

    def _storm(self, amount: int, group: str) -> None:
        for number in range(amount):
            disturb = self.kafka.expire if self.rng.random() < 0.2 else self.kafka.rebalance
            self._later(number * self.rng.randint(50, 1_500), lambda disturb=disturb: disturb(group))

    def _kill_at(self, machine: Machine, process: Process, fault: Fault) -> None:
        if not fault.amount:
            if not process.dead:
                self.kill(machine, fault.for_ms)
            return
        process.kill_after(fault.amount)
        process.on_death.append(lambda: self._later(fault.for_ms, lambda: self.start(machine)))

    def _stop(self, machine: Machine, restart_ms: int) -> None:
        process = machine.process
        if process is None or process.dead or machine.stop is None:
            return
        machine.stop.set()
        process.on_death.append(lambda: self._later(restart_ms, lambda: self.start(machine)))

    async def _roll(self, for_ms: int, apart_ms: int) -> None:
        """As whoever deploys does it: SIGTERM, SIGKILL for one that takes too long, and then the next."""
        for number in range(self.plan.engines):
            machine = self.machines[f"engine-{number}"]
            process, stop = machine.process, machine.stop
            if process is not None and not process.dead and stop is not None:
                self.trace.note(f"ROLL {process.name}")
                stop.set()
                if not await self._until(lambda process=process: process.dead, GRACE_S):
                    process.kill()
                await asyncio.sleep(for_ms / 1000)
            self.start(machine)
            if apart_ms:
                await asyncio.sleep(apart_ms / 1000)
            else:
                await self._until(lambda machine=machine: _is_ready(machine), READY_S)

    async def _until(self, true: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it came to be true in time."""
        until_s = self.loop.time() + timeout_s
        while not true():
            if self.loop.time() > until_s:
                return False
            await asyncio.sleep(LOOK_S)
        return True

    async def rolled(self) -> None:
        """Until all rolling restarts are over."""
        await asyncio.gather(*self._rolls)

    def _join(
        self, for_ms: int, kind: str, main: Callable[[Machine, asyncio.Event], Coroutine[Any, Any, None]]
    ) -> None:
        self.extras += 1
        machine = self._add(f"{kind}-{self.extras}", main)
        machine.wanted = False
        assert machine.stop is not None and machine.process is not None
        end = machine.stop.set if self.rng.random() < 0.5 else machine.process.kill
        self._later(for_ms, end)

    def _skip(self, restart_ms: int) -> None:
        for machine in self.living("host"):
            self.kill(machine, restart_ms)
        for agent in ALL_AGENTS:
            offsets = self.kafka.groups.group(TOPICS.agent_group(agent)).offsets
            for partition, (offset, _) in list(offsets.items()):
                after = [message.offset for message in self.kafka.records(*partition) if message.offset >= offset]
                if after:
                    self.skipped.update((*partition, skipped) for skipped in after)
                    offsets[partition] = (after[-1] + 1, "")

    def _service(self, service: str, by: int) -> None:
        self.world.down[service] = self.world.down.get(service, 0) + by

    def _rogue(self, fault: Fault) -> None:
        self.rogues += 1
        process = self.loop.process(f"rogue-{self.rogues}")
        make = {Kind.REPLAY: replayed, Kind.FORGE: forged, Kind.GARBAGE: garbage, Kind.HEALTH: health}[fault.kind]
        records = make(self.kafka, TOPICS, self.plan.partitions, self.rng, fault.amount)

        async def write() -> None:
            log = self.kafka.log(process.name)
            try:
                producer = await log.producer(process.name)
                for topic, partition, record in records:
                    producer.append(topic, partition, [record]).add_done_callback(lambda done: done.exception())
                    await asyncio.sleep(self.rng.uniform(0.0, 0.05))
                await producer.close()
                await log.close()
            except LogError as error:
                self.trace.note(f"the rogue could not write: {error}")

        process.spawn(write(), name="main")

    # --- healing

    def heal(self) -> None:
        """Nothing is broken any more, and what was killed comes back."""
        self.trace.note("HEAL")
        self.world.calm = True
        self.world.down.clear()
        self.kafka.faults.calm()
        if self.network is not None:
            self.network.calm()
        for machine in self.machines.values():
            machine.clock.set_drift(0.0)
            process = machine.process
            assert process is not None
            process.fuse = None
            process.thaw()
            if machine.wanted and process.dead and not (machine.name == "starter" and self.started.is_set()):
                self.start(machine)

    def living(self, kind: str) -> list[Machine]:
        return [
            machine
            for machine in self.machines.values()
            if machine.name.startswith(kind) and machine.process is not None and not machine.process.dead
        ]

    async def stop(self, timeout_s: float, *kinds: str) -> None:
        """Processes of these kinds end in good order: the last snapshots, the last commits."""
        machines = [machine for kind in kinds for machine in self.living(kind)]
        for machine in machines:
            machine.wanted = False
            assert machine.stop is not None
            machine.stop.set()

        def left() -> list[str]:
            return [machine.name for machine in machines if machine.process is not None and not machine.process.dead]

        if not await self._until(lambda: not left(), timeout_s):
            self.problems.append(f"{', '.join(left())} did not stop within {timeout_s:g} s")


def _is_ready(machine: Machine) -> bool:
    engine, process = machine.engine, machine.process
    return engine is not None and process is not None and not process.dead and engine.health.ready().ok


def ended_ids(plan: Plan, kafka: Any) -> set[str]:
    """Workflows with a result; answers to starts lie beside them."""
    found = (message for partition in range(plan.partitions) for message in kafka.records(TOPICS.results, partition))
    return {m.key.decode() for m in found if header(m.headers, "ce_type") == TYPE_RESULT.encode()}


def _schedule_actions(tables: tuple[Timetable, ...]) -> list[tuple[int, str, Timetable]]:
    return [
        action
        for table in tables
        for action in ((table.set_at_ms, "set", table), (table.remove_at_ms, "remove", table))
    ]


def _actions(starts: tuple[Start, ...]) -> list[tuple[int, str, Start]]:
    actions: list[tuple[int, str, Start]] = []
    for start in starts:
        wanted = [
            ("start", start.at_ms),
            ("start", start.at_ms + 50 if start.again else None),
            ("cancel", start.cancel_at_ms),
            ("pause", start.pause_at_ms),
            ("resume", start.resume_at_ms),
            ("terminate", start.terminate_at_ms),
            *((f"further {number}", at_ms) for number, (at_ms, _, _) in enumerate(start.further)),
            ("prioritize", start.prioritize_at_ms),
            *((f"signal {name} {number}", at_ms) for number, (at_ms, name) in enumerate(start.signals)),
            *((f"migrate {to}", at_ms) for at_ms, to in start.migrations),
            *((f"rewind {step} {'undo' if undo else 'no-undo'}", at_ms) for at_ms, step, undo in start.rewinds),
        ]
        actions += [(at_ms, what, start) for what, at_ms in wanted if at_ms is not None]
    return sorted(actions, key=lambda action: action[0])
