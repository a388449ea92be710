"""Steps without an agent: how they begin to sleep, to wait for a signal or for a person, and which signal is theirs.

Rules:
- A signal may come before its step waits for it: it is kept, in the order of the log, and the step takes the oldest.
- Whatever is waited for has a time by which it must have come.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sagalog.schemas.definitions import Sleep, Task, WaitFor
from sagalog.schemas.limits import SIGNAL_KEEP_MS, TIME_MS_MAX
from sagalog.schemas.records import SignalRecord
from sagalog.schemas.statuses import StepStatus

from .closing import close_step, move_step_to, review
from .effects import Effect
from .plan import PlanStep
from .state import StepState, WorkflowState


class CannotWait(Exception):
    """What the step is to wait for makes no sense; the message says why."""


def enter(state: WorkflowState, step: StepState, spec: PlanStep, effects: list[Effect]) -> bool:
    """The step begins to wait; True when that is over at once. Raises CannotWait, before anything has changed."""
    match spec.awaits:
        case Sleep(ms=ms):
            until_ms = state.now_ms + ms if ms is not None else _time_ms(state, spec)
            _await(state, step, spec, until_ms, effects)
            if until_ms <= state.now_ms:
                close_step(state, step, spec, StepStatus.DONE, "woke", effects)
                return True
        case WaitFor(signal=name, timeout_ms=timeout_ms):
            _await(state, step, spec, state.now_ms + timeout_ms, effects)
            kept = _take(state, name)
            if kept is not None:
                accept(state, step, kept.get("payload"), kept["bytes"])
                close_step(state, step, spec, StepStatus.DONE, "signalled", effects)
                return True
        case Task() as task:
            _await(state, step, spec, state.now_ms + task.timeout_ms, effects)
            ask(state, step, spec, task, task.assignee, effects)
        case None:
            raise AssertionError("the step has an agent")
    return False


def ask(
    state: WorkflowState, step: StepState, spec: PlanStep, task: Task, assignee: str | None, effects: list[Effect]
) -> None:
    """Puts a task before a person, or before the next one."""
    details: dict[str, Any] = {"input": spec.resolve_input(state, -1), "until_ms": step.until_ms}
    for name, value in (("form", task.form), ("assignee", assignee), ("group", task.group)):
        if value is not None:
            details[name] = value
    if step.escalated:
        details["escalated"] = True
    review(state, "task", task.title, spec.name, effects, details)


def keep(state: WorkflowState, signal: SignalRecord) -> None:
    """Keeps a signal until a step waits for it."""
    state.signals.append(signal)
    state.bytes += signal["bytes"]


def expired(state: WorkflowState) -> tuple[int, int]:
    """How many of the oldest signals nobody has waited for in all that time, and their bytes."""
    count = size = 0
    for signal in state.signals:
        if signal["at_ms"] + SIGNAL_KEEP_MS > state.now_ms:
            break
        count += 1
        size += signal["bytes"]
    return count, size


def drop_expired(state: WorkflowState) -> None:
    """Forgets those."""
    count, size = expired(state)
    del state.signals[:count]
    state.bytes -= size


def accept(state: WorkflowState, step: StepState, payload: Any, size: int) -> None:
    """The payload becomes the step's output."""
    step.output = payload
    state.bytes += size


def _await(state: WorkflowState, step: StepState, spec: PlanStep, until_ms: int, effects: list[Effect]) -> None:
    move_step_to(state, step, spec, StepStatus.AWAITING, "awaited", effects)
    step.attempt += 1
    step.until_ms = until_ms
    step.escalated = False
    if not step.started_ms:
        step.started_ms = state.now_ms


def _take(state: WorkflowState, name: str) -> SignalRecord | None:
    drop_expired(state)
    for place, signal in enumerate(state.signals):
        if signal["name"] == name:
            state.bytes -= signal["bytes"]
            return state.signals.pop(place)
    return None


def _time_ms(state: WorkflowState, spec: PlanStep) -> int:
    assert spec.resolve_until is not None
    value = spec.resolve_until(state, -1)
    found: int | None = None
    if type(value) is int:
        found = value
    elif type(value) is str:
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            parsed = None
        if parsed is not None and parsed.tzinfo is not None:
            found = int(parsed.timestamp() * 1000)
    if found is None:
        shown = repr(value)[:80]
        raise CannotWait(
            f"it is to sleep until {shown}, which is no time: give epoch milliseconds, or RFC 3339 with an offset"
        )
    if found > TIME_MS_MAX:
        raise CannotWait(f"it is to sleep until {found}, which is beyond the year 9999; are these milliseconds?")
    return found
