"""A definition, compiled once per hash into what the fold needs at every event: indices instead of names, binding functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from sagalog.schemas import ids
from sagalog.schemas.codec import check_json
from sagalog.schemas.conditions import Condition, Key
from sagalog.schemas.definitions import (
    Binding,
    Budget,
    Child,
    CircuitPolicy,
    Compensation,
    Definition,
    Fallback,
    Fields,
    FromInput,
    FromItem,
    FromStep,
    Limit,
    Map,
    Reconcile,
    Repeat,
    Retry,
    SchemaValidator,
    Sleep,
    Step,
    Task,
    Usage,
    Value,
    WaitFor,
    WhenFailed,
    WhenOpen,
    fallbacks_of,
    parse_definition,
)
from sagalog.schemas.limits import DEFINITION_BYTES_MAX

if TYPE_CHECKING:
    from .state import StepState, WorkflowState

Resolve = Callable[["WorkflowState", int], Any]
"""What a binding is for a workflow, and for the item (-1: of a step that does not map)."""


PLANS_KEPT_MAX: Final = 1_024
"""Of all that the partitions of a process know; others are compiled again when a partition learns of them."""


@dataclass(frozen=True, slots=True)
class PlanLimit:
    """A limit that a step takes part in. The fold has nothing to do with it: the gate has."""

    name: str
    scope: str
    """The definition whose commands count together, by name; `*`: every one that shares it."""
    limit: Limit
    key: Key | None


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step, ready to run."""

    index: int
    name: str
    agent: str
    """Empty when the step awaits something instead, `@` and the definition when another workflow does it."""
    child: Child | None
    awaits: Sleep | WaitFor | Task | None
    resolve_until: Resolve | None
    """Of a sleep until a time."""
    payload_validator: SchemaValidator | None
    """Of a signal's payload, or a task's output."""
    when: Condition | None
    when_steps: tuple[tuple[str, int], ...]
    """The steps that `when` looks at, with their places."""
    map: Map | None
    repeat: Repeat | None
    until: Condition | None
    until_steps: tuple[tuple[str, int], ...]
    """The steps that `until` looks at, with their places."""
    resolve_items: Resolve | None
    """The list that the step maps over, or what its rounds get."""
    pivot: bool
    required: bool
    needs: tuple[int, ...]
    dependents: tuple[int, ...]
    followers: frozenset[int]
    """All steps that need it, directly or not."""
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
    reconcile: Reconcile | None
    service: str | None
    when_open: WhenOpen
    fallbacks: tuple[Fallback, ...]
    budget: Budget | None
    reserve: Usage
    output_validator: SchemaValidator | None
    limits: tuple[PlanLimit, ...]

    def name_of(self, step: StepState) -> str:
        """The step's name, or its item's."""
        return self.name if step.item < 0 else ids.item_name(self.name, step.item)

    def agent_of(self, step: StepState) -> str:
        """Who made the newest attempt: a fallback agent, or the step's own as its definition had it then, or has it now."""
        return step.agent or step.asked or self.agent

    def input_of(self, state: WorkflowState, step: StepState) -> Any:
        """What the step, or the item, gets; of a step that maps the list that it maps over."""
        if self.resolve_items is not None and step.item < 0:
            return self.resolve_items(state, -1)
        return self.resolve_input(state, step.item)

    @property
    def patience_ms(self) -> int:
        """From sending a command to giving its attempt up for lost."""
        return self.start_timeout_ms + self.timeout_ms

    @property
    def undo_patience_ms(self) -> int:
        return self.start_timeout_ms + (self.compensate.timeout_ms if self.compensate else self.timeout_ms)

    @property
    def question_patience_ms(self) -> int:
        return self.start_timeout_ms + (self.reconcile.timeout_ms if self.reconcile else self.timeout_ms)


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
    pivots: bool
    """Whether any of its steps is a pivot."""
    has_children: bool
    """Whether other workflows do some of its steps."""
    timed: bool
    """Whether a budget limits the time that attempts are out."""
    undoable: bool
    """Whether any of its steps can be undone."""
    signals: frozenset[str]
    """Names of signals that some step waits for."""
    limited: bool
    """Whether any of its steps takes part in a limit."""

    def find(self, state: WorkflowState, name: str) -> StepState | None:
        """The step of that name, or the item of one that maps; None when there is none."""
        place = self.index.get(name)
        if place is not None:
            return state.steps[place]
        step, item = ids.split_item(name)
        place = self.index.get(step)
        if place is None or item < 0 or item >= len(state.steps[place].items):
            return None
        return state.steps[place].items[item]

    def policy(self, service: str) -> CircuitPolicy:
        return self.definition.circuit_policy(service)


def registered_plan(document: Mapping[str, Any] | bytes) -> Plan:
    """The plan of a definition that stands in a log. Raises InvalidDefinition, InvalidRecord.

    By its canonical form, as the checkpoints hold it: the order of keys shows in commands and outputs. Plans are not changed, and
    every partition gets the same definitions: equal ones have one plan.
    """
    if not isinstance(document, bytes):
        document = check_json(dict(document), "definition", DEFINITION_BYTES_MAX)
    return _registered_plan(_canonical(document))


@lru_cache(PLANS_KEPT_MAX)
def _canonical(document: bytes) -> bytes:
    return parse_definition(document, registered=True).encoded


@lru_cache(PLANS_KEPT_MAX)
def _registered_plan(canonical: bytes) -> Plan:
    return compile_plan(parse_definition(canonical, registered=True))


def compile_plan(definition: Definition) -> Plan:
    """The plan of a definition, which was checked when it was built."""
    index = {step.name: place for place, step in enumerate(definition.steps)}
    conditions = [
        Condition(step.when, f"steps.{step.name}.when", index.keys()) if step.when is not None else None
        for step in definition.steps
    ]
    untils = [
        Condition(step.repeat.until, f"steps.{step.name}.repeat.until", index.keys())
        if step.repeat is not None
        else None
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
            agent=step.agent or (f"@{step.workflow.definition}" if step.workflow is not None else ""),
            child=step.workflow,
            awaits=step.sleep or step.wait_for or step.task,
            resolve_until=_compile(step.sleep.until, index) if step.sleep is not None and step.sleep.until else None,
            payload_validator=_payload_validator(step),
            when=conditions[place],
            when_steps=_looked_at(conditions[place], index),
            map=step.map,
            repeat=step.repeat,
            until=untils[place],
            until_steps=_looked_at(untils[place], index),
            resolve_items=_compile_items(step, place, index),
            pivot=step.pivot,
            required=step.name in definition.required,
            needs=tuple(index[need] for need in step.needs),
            dependents=tuple(dependents[place]),
            followers=_followers(place, dependents),
            resolve_input=_compile_input(step, place, index),
            retry=step.retry,
            timeout_ms=step.timeout_ms,
            start_timeout_ms=step.start_timeout_ms,
            heartbeat_timeout_ms=step.heartbeat_timeout_ms,
            critical=step.critical,
            when_failed=step.when_failed,
            default=step.default,
            compensate=step.compensate if step.compensate is not None else _undone_by_child(step),
            resolve_undo_input=_compile_undo(step, place, index),
            reconcile=step.reconcile,
            service=step.service,
            when_open=step.when_open,
            fallbacks=fallbacks_of(step),
            budget=step.budget,
            reserve=step.reserve,
            output_validator=SchemaValidator(step.output_schema, "output") if step.output_schema is not None else None,
            limits=tuple(_compile_limit(definition, name) for name in step.limits),
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
        pivots=any(step.pivot for step in definition.steps),
        has_children=any(step.child is not None for step in steps),
        timed=any(
            budget is not None and budget.ms is not None
            for budget in (definition.budget, *(step.budget for step in definition.steps))
        ),
        undoable=any(step.compensate is not None for step in steps),
        signals=frozenset(step.wait_for.signal for step in definition.steps if step.wait_for is not None),
        limited=any(step.limits for step in definition.steps),
    )


def _compile_limit(definition: Definition, name: str) -> PlanLimit:
    limit = definition.limits[name]
    key = Key(limit.key, f"limits.{name}.key") if limit.key is not None else None
    return PlanLimit(name, "*" if limit.shared else definition.name, limit, key)


def _followers(place: int, dependents: list[list[int]]) -> frozenset[int]:
    found: set[int] = set()
    left = list(dependents[place])
    while left:
        follower = left.pop()
        if follower not in found:
            found.add(follower)
            left += dependents[follower]
    return frozenset(found)


def _undone_by_child(step: Step) -> Compensation | None:
    # It is asked once: a workflow that could not be undone is over, and has retried by itself.
    return Compensation(retry=Retry(attempts=1)) if step.workflow is not None and not step.irreversible else None


def _payload_validator(step: Step) -> SchemaValidator | None:
    if step.wait_for is not None and step.wait_for.payload_schema is not None:
        return SchemaValidator(step.wait_for.payload_schema, "payload")
    if step.task is not None and step.task.form is not None:
        return SchemaValidator(step.task.form, "output")
    return None


def _looked_at(condition: Condition | None, index: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((name, index[name]) for name in condition.steps) if condition is not None else ()


def _compile_items(step: Step, place: int, index: dict[str, int]) -> Resolve | None:
    if step.map is not None:
        return _compile(step.map.over, index)
    return (lambda state, item: _rounds(state, place)) if step.repeat is not None else None


def _rounds(state: WorkflowState, place: int) -> list[dict[str, Any]]:
    """What the rounds so far got."""
    rounds = state.steps[place].items
    return [
        {"round": number, "previous": rounds[number - 1].output if number else None} for number in range(len(rounds))
    ]


def _compile_input(step: Step, place: int, index: dict[str, int]) -> Resolve:
    items = _compile_items(step, place, index)
    by_item = step.map is not None and "input" not in step.model_fields_set
    return _compile(FromItem(item="") if by_item else step.input, index, items=items)


def _compile_undo(step: Step, place: int, index: dict[str, int]) -> Resolve:
    compensate = step.compensate
    if compensate is not None and compensate.input is not None:
        return _compile(compensate.input, index, items=_compile_items(step, place, index), own=place)
    resolve_input = _compile_input(step, place, index)
    return lambda state, item: {"input": resolve_input(state, item), "output": _output_of(state, place, item)}


def _output_of(state: WorkflowState, place: int, item: int) -> Any:
    step = state.steps[place]
    return step.items[item].output if item >= 0 else step.output


def _compile(binding: Binding, index: dict[str, int], *, items: Resolve | None = None, own: int = -1) -> Resolve:
    """`items` is the list that the step maps over; `own` the step whose undoing this is: its output is the item's."""
    match binding:
        case FromInput(input=path):
            parts = _parts(path)
            return lambda state, item: _walk(state.input, parts)
        case FromStep(step=step, path=path):
            place, parts = index[step], _parts(path)
            if place == own:
                return lambda state, item: _walk(_output_of(state, place, item), parts)
            return lambda state, item: _walk(state.steps[place].output, parts)
        case FromItem(item=path):
            assert items is not None, "checked with the definition"
            all_of_it, parts = items, _parts(path)
            return lambda state, item: _walk(all_of_it(state, -1)[item], parts)
        case Value(value=value):
            return lambda state, item: value
        case Fields(fields=fields):
            inner = [(name, _compile(part, index, items=items, own=own)) for name, part in fields.items()]
            return lambda state, item: {name: resolve(state, item) for name, resolve in inner}


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
