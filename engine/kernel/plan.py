"""A definition, compiled once per hash into what the fold needs at every event: indices instead of names, binding functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sagalog.schemas.conditions import Condition
from sagalog.schemas.definitions import (
    Binding,
    CircuitPolicy,
    Compensation,
    Definition,
    Fallback,
    Fields,
    FromInput,
    FromStep,
    Retry,
    SchemaValidator,
    Sleep,
    Step,
    Task,
    Value,
    WaitFor,
    WhenFailed,
    WhenOpen,
)

if TYPE_CHECKING:
    from .state import WorkflowState

Resolve = Callable[["WorkflowState"], Any]


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step, ready to run."""

    index: int
    name: str
    agent: str
    """Empty when the step awaits something instead."""
    awaits: Sleep | WaitFor | Task | None
    resolve_until: Resolve | None
    """Of a sleep until a time."""
    payload_validator: SchemaValidator | None
    """Of a signal's payload, or a task's output."""
    when: Condition | None
    when_steps: tuple[tuple[str, int], ...]
    """The steps that `when` looks at, with their places."""
    needs: tuple[int, ...]
    dependents: tuple[int, ...]
    resolve_input: Resolve
    retry: Retry
    timeout_ms: int
    start_timeout_ms: int
    heartbeat_timeout_ms: int | None
    critical: bool
    when_failed: WhenFailed
    default: Any
    compensate: Compensation | None
    resolve_undo_input: Resolve
    service: str | None
    when_open: WhenOpen
    fallback: Fallback | None
    output_validator: SchemaValidator | None

    @property
    def patience_ms(self) -> int:
        """From sending a command to giving its attempt up for lost."""
        return self.start_timeout_ms + self.timeout_ms

    @property
    def undo_patience_ms(self) -> int:
        return self.start_timeout_ms + (self.compensate.timeout_ms if self.compensate else self.timeout_ms)


@dataclass(frozen=True, slots=True)
class Plan:
    """A definition, ready to run."""

    definition: Definition
    hash: str
    name: str
    steps: tuple[PlanStep, ...]
    index: dict[str, int]
    roots: tuple[int, ...]
    leaves: tuple[int, ...]
    resolve_output: Resolve | None
    input_validator: SchemaValidator | None
    signals: frozenset[str]
    """Names of signals that some step waits for."""

    def policy(self, service: str) -> CircuitPolicy:
        return self.definition.circuit_policy(service)


def compile_plan(definition: Definition) -> Plan:
    """The plan of a definition, which was checked when it was built."""
    index = {step.name: place for place, step in enumerate(definition.steps)}
    conditions = [
        Condition(step.when, f"steps.{step.name}.when", index.keys()) if step.when is not None else None
        for step in definition.steps
    ]
    dependents: list[list[int]] = [[] for _ in definition.steps]
    for place, step in enumerate(definition.steps):
        for need in step.needs:
            dependents[index[need]].append(place)
    steps = tuple(
        PlanStep(
            index=place,
            name=step.name,
            agent=step.agent or "",
            awaits=step.sleep or step.wait_for or step.task,
            resolve_until=_compile(step.sleep.until, index) if step.sleep is not None and step.sleep.until else None,
            payload_validator=_payload_validator(step),
            when=conditions[place],
            when_steps=_looked_at(conditions[place], index),
            needs=tuple(index[need] for need in step.needs),
            dependents=tuple(dependents[place]),
            resolve_input=_compile(step.input, index),
            retry=step.retry,
            timeout_ms=step.timeout_ms,
            start_timeout_ms=step.start_timeout_ms,
            heartbeat_timeout_ms=step.heartbeat_timeout_ms,
            critical=step.critical,
            when_failed=step.when_failed,
            default=step.default,
            compensate=step.compensate,
            resolve_undo_input=_compile_undo(step.compensate, step.input, place, index),
            service=step.service,
            when_open=step.when_open,
            fallback=step.fallback,
            output_validator=SchemaValidator(step.output_schema, "output") if step.output_schema is not None else None,
        )
        for place, step in enumerate(definition.steps)
    )
    return Plan(
        definition=definition,
        hash=definition.hash,
        name=definition.name,
        steps=steps,
        index=index,
        roots=tuple(step.index for step in steps if not step.needs),
        leaves=tuple(step.index for step in steps if not step.dependents),
        resolve_output=_compile(definition.output, index) if definition.output is not None else None,
        input_validator=definition.input_validator,
        signals=frozenset(step.wait_for.signal for step in definition.steps if step.wait_for is not None),
    )


def _payload_validator(step: Step) -> SchemaValidator | None:
    if step.wait_for is not None and step.wait_for.payload_schema is not None:
        return SchemaValidator(step.wait_for.payload_schema, "payload")
    if step.task is not None and step.task.form is not None:
        return SchemaValidator(step.task.form, "output")
    return None


def _looked_at(condition: Condition | None, index: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((name, index[name]) for name in condition.steps) if condition is not None else ()


def _compile_undo(compensate: Compensation | None, step_input: Binding, place: int, index: dict[str, int]) -> Resolve:
    if compensate is not None and compensate.input is not None:
        return _compile(compensate.input, index)
    resolve_input = _compile(step_input, index)
    return lambda state: {"input": resolve_input(state), "output": state.steps[place].output}


def _compile(binding: Binding, index: dict[str, int]) -> Resolve:
    match binding:
        case FromInput(input=path):
            parts = _parts(path)
            return lambda state: _walk(state.input, parts)
        case FromStep(step=step, path=path):
            place, parts = index[step], _parts(path)
            return lambda state: _walk(state.steps[place].output, parts)
        case Value(value=value):
            return lambda state: value
        case Fields(fields=fields):
            inner = [(name, _compile(part, index)) for name, part in fields.items()]
            return lambda state: {name: resolve(state) for name, resolve in inner}


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _walk(value: Any, parts: tuple[str, ...]) -> Any:
    """The value at a path; None where the path leads nowhere (an optional output that is missing)."""
    for part in parts:
        if type(value) is dict:
            value = value.get(part)
        elif type(value) is list and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value
