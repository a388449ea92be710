"""Drives the fold by hand: events in, effects out. No runtime, no broker; the driver only numbers records and tells the time.

Rules:
- Every fold of this folder's tests goes through a driver, so that `TAKEN` knows which rows of the tables were ever taken.
- `shown` writes effects as one line each: a test asserts the whole list, so what must not be among them cannot be.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from sagalog.engine.kernel import CircuitPartition, Partition, Record
from sagalog.engine.kernel.circuits import dump_circuit, restore_circuit
from sagalog.engine.kernel.effects import (
    Answered,
    Called,
    ClaimLost,
    DeadLettered,
    DefinitionKnown,
    Dispatch,
    Effect,
    Emit,
    Finished,
    Ignored,
    Migrated,
    Moved,
    OwnerChanged,
    Prioritized,
    Quarantine,
    ReviewClosed,
    ReviewNeeded,
    StartAnswered,
)
from sagalog.engine.kernel.invariants import problems
from sagalog.engine.kernel.schedules import dump_schedule
from sagalog.engine.kernel.state import NEVER, WorkflowState, dump
from sagalog.engine.kernel.timers import due_timers
from sagalog.schemas import ids
from sagalog.schemas.codec import encode
from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import Definition, Step, from_step
from sagalog.schemas.events import (
    TYPE_OF,
    Action,
    ActionRequested,
    AttemptLost,
    AttemptRefused,
    CancelRequested,
    Decision,
    DefinitionRegistered,
    Event,
    FailureKind,
    MigrationRequested,
    Outcome,
    Owned,
    Quarantined,
    RewindRequested,
    SignalReceived,
    StepCompleted,
    StepDecided,
    StepFailed,
    Timer,
    TimerFired,
    WorkflowStarted,
    encode_event,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.records import SCHEDULE_KEY, TYPE_OUTCOME
from sagalog.schemas.statuses import UndoStatus

WORKFLOW = "wf-1"
SEED = "event-1"
START_MS = 1_000_000


@dataclass
class Taken:
    """The rows of the kernel's tables that a test has taken so far."""

    workflow: set[tuple[str | None, str]] = field(default_factory=set)
    step: set[tuple[str | None, str]] = field(default_factory=set)
    undo: set[tuple[str | None, str]] = field(default_factory=set)
    circuit: set[tuple[str | None, str]] = field(default_factory=set)
    schedule: set[tuple[str | None, str]] = field(default_factory=set)

    def note(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Moved):
                if effect.undo:
                    self.undo.add((effect.before, effect.after))
                    if effect.before == UndoStatus.PENDING:
                        self.undo.add((None, UndoStatus.PENDING))
                elif effect.step is not None:
                    self.step.add((effect.before, effect.after))
                elif effect.workflow_id.startswith("@circuit/"):
                    self.circuit.add((effect.before, effect.trigger))
                elif effect.workflow_id.startswith(SCHEDULE_KEY):
                    self.schedule.add((effect.before, effect.trigger))
                else:
                    self.workflow.add((effect.before, effect.trigger))
            elif isinstance(effect, Finished):
                # The making of a ledger entry is no Moved effect; the entry itself stands in the result.
                for step in effect.result["steps"]:
                    if step.get("undo", {}).get("status") == UndoStatus.NOT_NEEDED:
                        self.undo.add((None, UndoStatus.NOT_NEEDED))


TAKEN = Taken()


class Driver:
    """One partition and its log. `round_trip` puts every state through its checkpoint after each event."""

    def __init__(self, *definitions: Definition, round_trip: bool = False) -> None:
        self.partition = Partition()
        self.log: list[Record] = []
        self.now_ms = START_MS
        self.round_trip = round_trip
        self.moves: list[Moved] = []
        self.emitted: deque[Emit] = deque()
        """Events for other workflows that `deliver` has not written yet."""
        self.append(Owned(epoch=1, member="test"), key=b"@owner")
        for definition in definitions:
            self.register(definition)

    def append(self, event: Event, *, key: bytes = WORKFLOW.encode(), ce_id: str = SEED) -> list[Effect]:
        value = encode_event(event)
        return self.append_raw(key, value, TYPE_OF[type(event)].encode(), ce_id.encode())

    def append_raw(
        self, key: bytes | None, value: bytes | None, ce_type: bytes | None, ce_id: bytes | None = b"x"
    ) -> list[Effect]:
        record = Record(len(self.log), self.now_ms, key, value, ce_type, ce_id, len(value or b""))
        return self.apply(record)

    def apply(self, record: Record) -> list[Effect]:
        self.log.append(record)
        effects: list[Effect] = []
        self.partition.apply(record, effects)
        self.moves += [effect for effect in effects if isinstance(effect, Moved)]
        self.emitted += [effect for effect in effects if isinstance(effect, Emit)]
        TAKEN.note(effects)
        for state in self.partition.hot.values():
            assert problems(state, self.partition.plan_of(state)) == []
        if self.round_trip:
            for workflow_id, state in list(self.partition.hot.items()):
                self.partition.rest(workflow_id, encode(dump(state, self.partition.plan_of(state))))
            for key, schedule in list(self.partition.schedules.items()):
                self.partition.load_schedule(key, encode(dump_schedule(schedule)))
        return effects

    def deliver(self, *, times: int = 1) -> list[Effect]:
        """Writes what the workflows have for each other, each event so many times, until they have nothing more to say."""
        effects: list[Effect] = []
        while self.emitted:
            sent = self.emitted.popleft()
            for _ in range(times):
                effects += self.append(sent.event, key=sent.workflow_id.encode(), ce_id=sent.ce_id)
        return effects

    # --- events in short

    def register(self, definition: Definition) -> list[Effect]:
        return self.append(DefinitionRegistered(definition.model_dump(mode="json")), key=b"@definition")

    def start(self, definition: str, value: Any = None, workflow_id: str = WORKFLOW, **more: Any) -> list[Effect]:
        return self.append(WorkflowStarted(definition, value, **more), key=workflow_id.encode())

    def done(
        self,
        step: str,
        output: Any = None,
        *,
        attempt: int = 1,
        undo: bool = False,
        workflow_id: str = WORKFLOW,
        **more: Any,
    ) -> list[Effect]:
        direction = Direction.COMPENSATE if undo else Direction.EXECUTE
        token = self.token(step, attempt, direction, workflow_id)
        return self.append(StepCompleted(step, attempt, direction, token, output, **more), key=workflow_id.encode())

    def answer(
        self, workflow_id: str, step: str, output: Any = None, *, attempt: int = 1, undo: bool = False,
        fails: bool = False, tokens: int | None = None,
    ) -> list[Effect]:  # fmt: skip
        """An agent answers a workflow that another one started, whose seed is not this driver's."""
        direction = Direction.COMPENSATE if undo else Direction.EXECUTE
        state = self.partition.get(workflow_id)
        assert state is not None
        token = ids.token(state.seed, ids.command_id(workflow_id, step, attempt, direction))
        event: Event = StepCompleted(step, attempt, direction, token, output, tokens=tokens)
        if fails:
            event = StepFailed(step, attempt, direction, token, FailureKind.TERMINAL, "no")
        return self.append(event, key=workflow_id.encode())

    def fail(
        self,
        step: str,
        kind: FailureKind = FailureKind.RETRYABLE,
        message: str = "no",
        *,
        attempt: int = 1,
        undo: bool = False,
        **more: Any,
    ) -> list[Effect]:
        direction = Direction.COMPENSATE if undo else Direction.EXECUTE
        token = self.token(step, attempt, direction)
        return self.append(StepFailed(step, attempt, direction, token, kind, message, **more))

    def lose(
        self,
        step: str,
        attempt: int = 1,
        *,
        epoch: int = 1,
        undo: bool = False,
        kind: FailureKind = FailureKind.LOST,
    ) -> list[Effect]:
        direction = Direction.COMPENSATE if undo else Direction.EXECUTE
        return self.append(AttemptLost(epoch, step, attempt, direction, "no answer in time", kind, self.run_mark))

    def say(self, step: str, outcome: Outcome | None, output: Any = None, *, question: int = 1) -> list[Effect]:
        """An answer to the question whether an attempt happened."""
        token = self.token(step, question, Direction.RECONCILE)
        return self.append(StepCompleted(step, question, Direction.RECONCILE, token, output, outcome=outcome))

    def say_nothing(
        self, step: str, kind: FailureKind = FailureKind.RETRYABLE, *, question: int = 1, **more: Any
    ) -> list[Effect]:
        """The question fails."""
        token = self.token(step, question, Direction.RECONCILE)
        return self.append(StepFailed(step, question, Direction.RECONCILE, token, kind, "no idea", **more))

    def lose_question(
        self, step: str, question: int = 1, *, epoch: int = 1, kind: FailureKind = FailureKind.LOST
    ) -> list[Effect]:
        return self.append(AttemptLost(epoch, step, question, Direction.RECONCILE, "no answer in time", kind))

    def refuse(
        self, step: str, service: str, attempt: int = 1, *, epoch: int = 1, maybe_sent: bool = False
    ) -> list[Effect]:
        return self.append(AttemptRefused(epoch, step, attempt, service, maybe_sent, self.run_mark))

    def cancel(self) -> list[Effect]:
        return self.append(CancelRequested("wanted", "tester"))

    def signal(self, name: str, payload: Any = None, *, ce_id: str = "signal-1") -> list[Effect]:
        return self.append(SignalReceived(name, payload, "tester"), ce_id=ce_id)

    def act(self, action: Action, priority: int | None = None) -> list[Effect]:
        return self.append(ActionRequested(action, "wanted", "tester", priority), ce_id=f"action-{len(self.log)}")

    def decide(self, step: str, decision: Decision, output: Any = None, *, undo: bool = False) -> list[Effect]:
        direction = Direction.COMPENSATE if undo else Direction.EXECUTE
        event = StepDecided(step, decision, "tester", "because", output, direction)
        return self.append(event, ce_id=f"decision-{len(self.log)}")

    def migrate(self, to: Definition | str, *, ce_id: str | None = None) -> list[Effect]:
        named = to if isinstance(to, str) else f"{to.name}@{to.hash}"
        event = MigrationRequested(named, "tester", "wanted")
        return self.append(event, ce_id=ce_id or f"migration-{len(self.log)}")

    def rewind(self, step: str, *, undo: bool = False, **more: Any) -> list[Effect]:
        event = RewindRequested(step, "tester", "because", undo, **more)
        return self.append(event, ce_id=f"rewind-{len(self.log)}")

    def stop(self, *, epoch: int = 1) -> list[Effect]:
        return self.append(Quarantined(epoch, f"sagalog.events/0/{len(self.log)}", "not JSON", self.run_mark))

    def fire(self, timer: Timer, step: str | None = None, attempt: int | None = None, epoch: int = 1) -> list[Effect]:
        return self.append(TimerFired(epoch, timer, step, attempt, self.run_mark))

    def wait(self, ms: int) -> list[Effect]:
        """Time passes; whatever is due fires."""
        self.now_ms += ms
        effects: list[Effect] = []
        state = self.state
        for timer, step, attempt in due_timers(state, self.partition.plan_of(state), self.now_ms):
            effects += self.append(TimerFired(self.partition.epoch, timer, step, attempt, state.run_mark))
        return effects

    # --- reading

    @property
    def state(self) -> WorkflowState:
        state = self.partition.get(WORKFLOW)
        assert state is not None
        return state

    @property
    def run_mark(self) -> int | None:
        """The run that is on, as the engine's own events name it."""
        state = self.partition.get(WORKFLOW)
        return state.run_mark if state is not None else None

    def dumps(self) -> dict[str, bytes]:
        """Every workflow's checkpoint, byte for byte."""
        found: dict[str, bytes] = {}
        for workflow_id in sorted(self.partition.ids()):
            state = self.partition.get(workflow_id)
            assert state is not None
            found[workflow_id] = encode(dump(state, self.partition.plan_of(state)))
        for key, schedule in sorted(self.partition.schedules.items()):
            found[key] = encode(dump_schedule(schedule))
        return found

    def everything(self) -> tuple[Any, ...]:
        """All that a record could change, for comparing before with after."""
        partition = self.partition
        return (
            self.dumps(),
            partition.epoch,
            partition.member,
            list(partition.plans),
            dict(partition.newest),
            sorted(partition.waiting),
            list(partition.touched),
        )

    def token(self, step: str, attempt: int, direction: Direction, workflow_id: str = WORKFLOW) -> str:
        state = self.partition.get(workflow_id)
        seed, run = (state.seed, state.run) if state is not None else (SEED, ids.FIRST_RUN)
        return ids.token(seed, ids.command_id(workflow_id, step, attempt, direction, run))


class CircuitDriver:
    """One partition of the outcomes topic. `round_trip` puts every circuit through its record after each event."""

    def __init__(self, *, round_trip: bool = False) -> None:
        self.partition = CircuitPartition()
        self.now_ms = START_MS
        self.round_trip = round_trip
        self.next_offset = 0
        self.append_raw(b"@owner", encode_event(Owned(1, "test")), TYPE_OF[Owned].encode())

    def append_raw(self, key: bytes | None, value: bytes | None, ce_type: bytes | None) -> list[Effect]:
        effects: list[Effect] = []
        self.partition.apply(
            Record(self.next_offset, self.now_ms, key, value, ce_type, b"x", len(value or b"")), effects
        )
        self.next_offset += 1
        TAKEN.note(effects)
        if self.round_trip:
            for service, circuit in self.partition.circuits.items():
                restored = restore_circuit(encode(dump_circuit(circuit)))
                assert restored == circuit
                self.partition.circuits[service] = restored
        return effects

    def outcome(
        self, *calls: tuple[int, int, int], partition: int = 0, service: str = "bank", **more: Any
    ) -> list[Effect]:
        """Calls as (offset, 1 for ok, milliseconds before now)."""
        record = {
            "service": service,
            "partition": partition,
            "at_offset": calls[-1][0] if calls else 0,
            "calls": [[offset, ok, self.now_ms - ago_ms] for offset, ok, ago_ms in calls],
            "policy": more.pop("policy", {}),
            **more,
        }
        return self.append_raw(service.encode(), encode(record), TYPE_OUTCOME.encode())

    def fire(self, status: str, turn: int, *, service: str = "bank", epoch: int = 1) -> list[Effect]:
        """A timer of the circuit, whether or not it is the one that is set, at the time for which one is."""
        circuit = self.partition.circuits.get(service)
        if circuit is not None and circuit.due_ms() != NEVER:
            self.now_ms = max(self.now_ms, circuit.due_ms())
        return self.fire_as_it_is(status, turn, service=service, epoch=epoch)

    def fire_as_it_is(self, status: str, turn: int, *, service: str = "bank", epoch: int = 1) -> list[Effect]:
        """The same, whatever the time."""
        event = TimerFired(epoch, Timer.CIRCUIT, status, turn)
        return self.append_raw(service.encode(), encode_event(event), TYPE_OF[TimerFired].encode())

    def fire_due(self, *, epoch: int = 1) -> list[Effect]:
        """The timer that is set, as its owner writes it."""
        status, turn = self.partition.circuits["bank"].timer()
        return self.fire(status, turn, epoch=epoch)

    def dump(self, service: str = "bank") -> Any:
        return dump_circuit(self.partition.circuits[service])


# --- reading effects


def commands(effects: list[Effect]) -> list[str]:
    """The ids of the commands among the effects, without the workflow."""
    return [_short(effect.command.command_id) for effect in effects if isinstance(effect, Dispatch)]


def command(effects: list[Effect]) -> Command:
    """The only command among the effects."""
    return dispatched(effects).command


def dispatched(effects: list[Effect]) -> Dispatch:
    """The only dispatch among the effects."""
    (dispatch,) = (effect for effect in effects if isinstance(effect, Dispatch))
    return dispatch


def ignored(effects: list[Effect]) -> str:
    """The reason, which must be the only effect."""
    (effect,) = effects
    assert isinstance(effect, Ignored), effect
    return effect.reason.value


def result(effects: list[Effect]) -> Any:
    """The result among the effects, which must be there once."""
    (finished,) = (effect for effect in effects if isinstance(effect, Finished))
    return finished.result


def dead_letters(effects: list[Effect]) -> list[Any]:
    return [effect.record for effect in effects if isinstance(effect, DeadLettered)]


def reviews(effects: list[Effect]) -> list[Any]:
    return [effect.record for effect in effects if isinstance(effect, ReviewNeeded)]


def shown(effects: list[Effect]) -> list[str]:
    """Every effect as one line."""
    return [_line(effect) for effect in effects]


def _line(effect: Effect) -> str:
    match effect:
        case Dispatch(command=sent):
            other = f" to {sent.agent}" if sent.agent != sent.step else ""
            return f"send {_short(sent.command_id)}{other}"
        case Answered(command_id=command_id):
            return f"answered {_short(command_id)}"
        case Called(agent=agent, ok=ok, service=service, service_fault=fault):
            return f"called {agent} {'ok' if ok else 'failed'}" + (
                f" ({service}{': fault' if fault else ''})" if service else ""
            )
        case Moved(step=None):
            return f"workflow {effect.before} -> {effect.after} by {effect.trigger}"
        case Moved():
            return (
                f"{'undo ' if effect.undo else ''}{effect.step} {effect.before} -> {effect.after} by {effect.trigger}"
            )
        case Emit(workflow_id=other, event=event):
            return f"emit {type(event).__name__} to {other}"
        case Finished(result=record):
            return f"finished {record['status']}"
        case StartAnswered(record=answer):
            return "start accepted" if answer["accepted"] else f"start refused: {answer['reason']}"
        case Prioritized(priority=priority):
            return f"priority {priority}"
        case DeadLettered(record=letter):
            return f"dead letter {_short(letter['id'])}"
        case ReviewNeeded(record=case):
            return f"review {_short(case['id'])}"
        case ReviewClosed(record=case):
            return f"review {_short(case['id'])} closed: {case['decided']['decision']}"
        case Ignored(reason=reason):
            return f"ignored {reason}"
        case Quarantine(stage=stage):
            return f"quarantine {stage}"
        case OwnerChanged(epoch=epoch, member=member):
            return f"owner {epoch} {member}"
        case ClaimLost(epoch=epoch, member=member):
            return f"claim lost {epoch} {member}"
        case DefinitionKnown():
            return "definition known"
        case Migrated(before=old, after=new):
            return f"migrated {old} -> {new}"


def _short(command_id: str) -> str:
    return command_id.removeprefix(WORKFLOW + "/")


# --- definitions in short


def step(name: str, *needs: str, **more: Any) -> Step:
    """A step whose agent has its name."""
    return Step(**{"name": name, "agent": name, "needs": needs, **more})


def waiting(name: str, *needs: str, **more: Any) -> Step:
    """A step without an agent."""
    return Step(**{"name": name, "needs": needs, **more})


def saga(*steps: Step, **more: Any) -> Definition:
    return Definition(**{"name": "saga", "steps": steps, **more})


def chain(*names: str, **more: Any) -> Definition:
    """Steps one after the other, each of which takes the output of the one before and can be undone."""
    steps = []
    before: str | None = None
    for name in names:
        needs = {"needs": (before,), "input": from_step(before)} if before else {}
        steps.append(Step(**{"name": name, "agent": name, "compensate": {}, **needs, **more}))
        before = name
    return saga(*steps)
