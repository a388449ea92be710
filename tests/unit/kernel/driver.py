"""Drives the fold by hand: events in, effects out. No runtime, no broker; the driver only numbers records and tells the time."""

from __future__ import annotations

from typing import Any

from sagalog.engine.kernel import Partition, Record
from sagalog.engine.kernel.effects import Dispatch, Effect, Finished, Ignored, Moved
from sagalog.engine.kernel.state import WorkflowState, dump
from sagalog.engine.kernel.timers import due_timers
from sagalog.schemas import ids
from sagalog.schemas.codec import encode
from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import Definition
from sagalog.schemas.events import (
    TYPE_OF,
    AttemptLost,
    AttemptRefused,
    CancelRequested,
    DefinitionRegistered,
    Event,
    FailureKind,
    Owned,
    StepCompleted,
    StepFailed,
    TimerFired,
    WorkflowStarted,
    encode_event,
)
from sagalog.schemas.ids import Direction

WORKFLOW = "wf-1"
SEED = "event-1"


class Driver:
    """One partition and its log. `round_trip` puts every state through its checkpoint after each event."""

    def __init__(self, *definitions: Definition, round_trip: bool = False) -> None:
        self.partition = Partition()
        self.log: list[Record] = []
        self.now_ms = 1_000_000
        self.round_trip = round_trip
        self.moves: list[Moved] = []
        self.append(Owned(epoch=1, member="test"), key=b"@owner")
        for definition in definitions:
            self.append(DefinitionRegistered(definition.model_dump(mode="json")), key=b"@definition")

    def append(self, event: Event, *, key: bytes = WORKFLOW.encode(), ce_id: str = SEED) -> list[Effect]:
        value = encode_event(event)
        return self.append_raw(key, value, TYPE_OF[type(event)].encode(), ce_id.encode())

    def append_raw(self, key: bytes | None, value: bytes | None, ce_type: bytes | None, ce_id: bytes | None = b"x") -> list[Effect]:
        record = Record(len(self.log), self.now_ms, key, value, ce_type, ce_id, len(value or b""))
        self.log.append(record)
        return self.apply(record)

    def apply(self, record: Record) -> list[Effect]:
        effects: list[Effect] = []
        self.partition.apply(record, effects)
        self.moves += [effect for effect in effects if isinstance(effect, Moved)]
        if self.round_trip:
            for workflow_id, state in list(self.partition.hot.items()):
                del self.partition.hot[workflow_id]
                self.partition.cold[workflow_id] = encode(dump(state, self.partition.plan_of(state)))
        return effects

    # --- events in short

    def start(self, definition: str, value: Any = None, workflow_id: str = WORKFLOW, **more: Any) -> list[Effect]:
        return self.append(WorkflowStarted(definition, value, **more), key=workflow_id.encode())

    def done(self, step: str, output: Any = None, *, attempt: int = 1, undo: bool = False) -> list[Effect]:
        direction = Direction.COMPENSATE if undo else Direction.EXECUTE
        return self.append(StepCompleted(step, attempt, direction, self._token(step, attempt, direction), output))

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
        token = self._token(step, attempt, direction)
        return self.append(StepFailed(step, attempt, direction, token, kind, message, **more))

    def lose(self, step: str, attempt: int = 1, *, epoch: int = 1) -> list[Effect]:
        return self.append(AttemptLost(epoch, step, attempt, Direction.EXECUTE, "no answer in time"))

    def refuse(self, step: str, service: str, attempt: int = 1) -> list[Effect]:
        return self.append(AttemptRefused(1, step, attempt, service))

    def cancel(self) -> list[Effect]:
        return self.append(CancelRequested("wanted", "tester"))

    def wait(self, ms: int) -> list[Effect]:
        """Time passes; whatever is due fires."""
        self.now_ms += ms
        effects: list[Effect] = []
        state = self.state
        for timer, step, attempt in due_timers(state, self.partition.plan_of(state), self.now_ms):
            effects += self.append(TimerFired(1, timer, step, attempt))
        return effects

    @property
    def state(self) -> WorkflowState:
        state = self.partition.get(WORKFLOW)
        assert state is not None
        return state

    def _token(self, step: str, attempt: int, direction: Direction) -> str:
        return ids.token(SEED, ids.command_id(WORKFLOW, step, attempt, direction))


def commands(effects: list[Effect]) -> list[str]:
    """The ids of the commands among the effects, without the workflow."""
    return [effect.command.command_id.removeprefix(WORKFLOW + "/") for effect in effects if isinstance(effect, Dispatch)]


def command(effects: list[Effect]) -> Command:
    """The only command among the effects."""
    (dispatch,) = (effect for effect in effects if isinstance(effect, Dispatch))
    return dispatch.command


def ignored(effects: list[Effect]) -> str:
    """The reason, which must be the only effect."""
    (effect,) = effects
    assert isinstance(effect, Ignored), effect
    return effect.reason.value


def result(effects: list[Effect]) -> Any:
    """The result among the effects, which must be there once."""
    (finished,) = (effect for effect in effects if isinstance(effect, Finished))
    return finished.result
