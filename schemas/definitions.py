"""A definition: a saga as data. One pydantic model serves the Python builder, the JSON form and the JSON Schema.

Rules:
- A definition is identified by the hash of its canonical JSON; a running workflow stays on its hash until it is moved.
- What cannot run is refused when the definition is built, with the place, the reason and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cache, cached_property
from hashlib import blake2b
from typing import Annotated, Any, Final, Self

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from . import limits
from .codec import check_json, decode_object, encode_sorted
from .conditions import Condition, Key
from .errors import InvalidDefinition, InvalidRecord
from .ids import NAME_PATTERN
from .shapes import ANY, Shape, items_of, reached, shape_of

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1, max_length=limits.TEXT_CHARS_MAX)]
_CHILD_PATTERN = NAME_PATTERN.removesuffix("$") + "(@[0-9a-f]{16})?$"
WaitMs = Annotated[int, Field(ge=10, le=limits.DEADLINE_MS_MAX)]
TimeoutMs = Annotated[int, Field(ge=10, le=limits.TIMEOUT_MS_MAX)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: Any) -> dict[str, Any]:
        # The hash must not change when a later version adds a field with a default.
        defaults = _defaults(type(self))
        return {
            key: value
            for key, value in handler(self).items()
            if key not in defaults or getattr(self, key) != defaults[key]
        }


@cache
def _defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Once per class: asking pydantic for a default copies it."""
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in model.model_fields.items()
        if not field.is_required()
    }


class FromInput(_Model):
    """A value of the workflow's input. `input` is a dotted path into it; empty means all of it."""

    input: str = Field(max_length=500)


class FromStep(_Model):
    """A value of an earlier step's output. `path` is a dotted path into it; empty means all of it."""

    step: Name
    path: str = Field(default="", max_length=500)


class FromItem(_Model):
    """A value of the item, in a step that maps. `item` is a dotted path into it; empty means all of it."""

    item: str = Field(max_length=500)


class Value(_Model):
    """A constant."""

    value: Any


class Fields(_Model):
    """An object, made field by field."""

    fields: dict[str, Binding] = Field(max_length=100)


Binding = FromInput | FromStep | FromItem | Value | Fields


class Retry(_Model):
    """Exponential back-off with full jitter: attempt n waits a random part of min(cap, base * factor ** (n - 1)).

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    attempts: int = Field(default=3, ge=1, le=limits.ATTEMPTS_MAX, description="Attempts in all, the first included.")
    base_ms: int = Field(default=500, ge=1, le=limits.BACKOFF_MS_MAX)
    factor: float = Field(default=2.0, ge=1.0, le=100.0)
    cap_ms: int = Field(default=30_000, ge=1, le=limits.BACKOFF_MS_MAX)
    total_ms: int | None = Field(
        default=None,
        ge=1,
        le=limits.DEADLINE_MS_MAX,
        description="No attempt begins later than so long after the first of its agent.",
    )
    terminal: tuple[str, ...] = Field(
        default=(), max_length=50, description="Error types (class names) that are never retried."
    )


class WhenOpen(StrEnum):
    """What a step does while its service's circuit is open."""

    PARK = "park"
    FAIL = "fail"
    FALL_BACK = "fall_back"


class FallbackOn(StrEnum):
    """For which failures a fallback is meant."""

    ERROR = "error"
    """`retryable` with no attempt left, `terminal`, `invalid_input`."""
    TIMEOUT = "timeout"
    """`timeout`, `lost`, `unknown_outcome`."""
    INVALID_OUTPUT = "invalid_output"
    REFUSAL = "refusal"
    CIRCUIT_OPEN = "circuit_open"
    OVER_BUDGET = "over_budget"


class Usage(_Model):
    """What one attempt may use; held back from the budgets until its result says what it did use."""

    tokens: int = Field(default=0, ge=0, le=limits.USAGE_MAX)
    cost: int = Field(default=0, ge=0, le=limits.USAGE_MAX, description="In a unit of your own, say millionths.")
    ms: int = Field(default=0, ge=0, le=limits.TIMEOUT_MS_MAX, description="Time, from its command to its answer.")


class Budget(_Model):
    """What all attempts at executing may use together. An attempt that would exceed it is not made: `over_budget`."""

    attempts: int | None = Field(default=None, ge=1, le=limits.BUDGET_MAX)
    tokens: int | None = Field(default=None, ge=0, le=limits.BUDGET_MAX)
    cost: int | None = Field(default=None, ge=0, le=limits.BUDGET_MAX)
    ms: int | None = Field(
        default=None, ge=0, le=limits.BUDGET_MAX, description="Time that attempts are out, side by side or not."
    )


class Fallback(_Model):
    """What stands in when the step's own agent failed for good: another agent, or a constant."""

    agent: Name | None = None
    value: Any = None
    on: tuple[FallbackOn, ...] = Field(default=(), description="For which failures; none named: for all of them.")
    reserve: Usage = Field(default=Usage(), description="What one attempt of this agent may use.")


class WhenFailed(StrEnum):
    """What follows when a critical step, or a compensation, failed for good."""

    STOP = "stop"
    """The workflow stops and is undone. Of a compensation: the rest is undone all the same."""
    REVIEW = "review"
    """It is held, and a review asks an operator to retry it, skip it, complete it by hand or give it up."""


class UndoOrder(StrEnum):
    """In which order a workflow that stops is undone."""

    REVERSE = "reverse"
    """One step after the other, in exact reverse order of completion."""
    BY_NEEDS = "by_needs"
    """A step once all that needs it is undone: independent branches, and items of a map, side by side."""


class Compensation(_Model):
    """How a step is undone. By default the step's agent is asked to, with {"input": ..., "output": ...} of the step."""

    agent: Name | None = Field(default=None, description="Another agent that undoes; none: the step's own.")
    input: Binding | None = None
    timeout_ms: TimeoutMs = 30_000
    retry: Retry = Retry(attempts=10)
    when_failed: WhenFailed = WhenFailed.STOP


class Reconcile(_Model):
    """An attempt that timed out, was lost or took its host with it may have happened: its agent is asked, before all else."""

    timeout_ms: TimeoutMs = Field(default=30_000, description="From the agent's start to its answer, per question.")
    retry: Retry = Field(
        default=Retry(attempts=5), description="Of the question. When it is used up, the outcome stays unknown."
    )


class Sleep(_Model):
    """Instead of an agent: the step ends after so long, or at a time (epoch milliseconds, or text as RFC 3339 has it)."""

    ms: WaitMs | None = None
    until: Binding | None = None


class WaitFor(_Model):
    """Instead of an agent: the step ends when a signal of this name comes, or came; its output is the signal's payload."""

    signal: Name
    timeout_ms: WaitMs = Field(description="Past it the step has failed.")
    payload_schema: dict[str, Any] | None = Field(
        default=None, description="A signal whose payload does not fit is ignored."
    )


class Task(_Model):
    """Instead of an agent: a person does it. They see the step's input; its output is what they fill in."""

    title: Text
    form: dict[str, Any] | None = Field(default=None, description="A JSON Schema that the output must fit.")
    assignee: Text | None = None
    group: Text | None = None
    timeout_ms: WaitMs = Field(description="Past it the step has failed, or is escalated first.")
    escalate_to: Text | None = Field(
        default=None, description="Who is asked once `timeout_ms` has passed; they have as long again."
    )


class Child(_Model):
    """Instead of an agent: another workflow does the step. Its input is the step's, its output becomes the step's.

    It is cancelled when its parent stops, and undone when its parent undoes the step.
    """

    definition: str = Field(pattern=_CHILD_PATTERN, description="A name (the newest at that time), or name@hash.")
    timeout_ms: WaitMs = Field(description="Its deadline.")


class Map(_Model):
    """The step is done once for each item of a list, several at a time. Its output is the list of the items' outputs."""

    over: Binding = Field(description="The list.")
    concurrency: int = Field(default=10, ge=1, le=limits.ITEMS_MAX, description="Items at work at a time.")
    items_max: int = Field(default=100, ge=1, le=limits.ITEMS_MAX, description="A longer list fails the step.")
    tolerate: int = Field(
        default=0,
        ge=0,
        le=limits.ITEMS_MAX,
        description="Items that may fail; their output is null, the step degraded.",
    )
    tolerate_percent: float = Field(
        default=0.0, ge=0.0, le=100.0, description="The same, of the items; the larger holds."
    )


class Repeat(_Model):
    """The step is done again and again, a round at a time, until a condition holds. Its output is the last round's.

    The item of a round (`from_item`) is {"round": its number from 0, "previous": the output of the round before, or null}.
    """

    until: str = Field(description="A condition (CEL), in which the step's own name stands for the round's output.")
    rounds_max: int = Field(ge=1, le=limits.ITEMS_MAX, description="Past it the step has failed.")
    delay_ms: int = Field(default=0, ge=0, le=limits.DEADLINE_MS_MAX, description="Between two rounds.")


class Step(_Model):
    """One step: who does it, with what, and what happens when they cannot.

    An agent does it, another workflow does, or the step sleeps, waits for a signal, or is a person's task: exactly one of the
    five.
    """

    name: Name
    agent: Name | None = None
    workflow: Child | None = None
    sleep: Sleep | None = None
    wait_for: WaitFor | None = None
    task: Task | None = None
    when: str | None = Field(
        default=None, description="A condition (CEL). When it does not hold, the step is skipped: its output is null."
    )
    needs: tuple[Name, ...] = Field(default=(), max_length=limits.NEEDS_MAX)
    map: Map | None = None
    repeat: Repeat | None = None
    irreversible: bool = Field(
        default=False,
        description="Nothing can undo it, or there is nothing to undo: no warning of a missing compensation.",
    )
    pivot: bool = Field(
        default=False, description="Once it has ended well the workflow only goes forward: nothing is undone any more."
    )
    input: Binding = Field(default=FromInput(input=""), description="Of a step that maps, the default is the item.")
    retry: Retry = Retry()
    timeout_ms: TimeoutMs = Field(default=30_000, description="From the agent's start to its answer, per attempt.")
    start_timeout_ms: TimeoutMs = Field(
        default=600_000, description="From the command to the agent's start; past it the attempt counts as lost."
    )
    heartbeat_timeout_ms: TimeoutMs | None = Field(
        default=None, description="A started attempt that is silent for this long counts as lost."
    )
    critical: bool = Field(default=True, description="A critical step that fails stops and undoes the workflow.")
    when_failed: WhenFailed = Field(default=WhenFailed.STOP, description="Of a critical step.")
    default: Any = Field(default=None, description="The neutral output of an optional step that failed.")
    compensate: Compensation | None = None
    reconcile: Reconcile | None = Field(
        default=None, description="Ask the agent whether an attempt with an unknown outcome happened."
    )
    service: Name | None = Field(default=None, description="The external service whose circuit guards this step.")
    when_open: WhenOpen = WhenOpen.PARK
    fallback: Fallback | None = None
    fallbacks: tuple[Fallback, ...] = Field(
        default=(), max_length=limits.FALLBACKS_MAX, description="Several, tried in this order; instead of `fallback`."
    )
    budget: Budget | None = Field(default=None, description="For all attempts at this step.")
    reserve: Usage = Field(default=Usage(), description="What one attempt of the step's own agent may use.")
    output_schema: dict[str, Any] | None = None
    # Last, because in this body its name hides the module's from here on.
    limits: tuple[Name, ...] = Field(
        default=(),
        max_length=limits.STEP_LIMITS_MAX,
        description="Limits of the definition that hold for whatever the step's own agent is asked.",
    )


class CircuitPolicy(_Model):
    """When a service's circuit opens, and how it closes again.

    It opens when, in the last `window_ms`, at least `calls_min` calls ended and `failure_ratio` of them failed.
    """

    failure_ratio: float = Field(default=0.5, gt=0.0, le=1.0)
    calls_min: int = Field(default=5, ge=1, le=limits.WINDOW_CALLS_MAX)
    window_ms: int = Field(default=30_000, ge=100, le=3_600_000)
    recovery_ms: int = Field(default=10_000, ge=50, le=3_600_000, description="From opening to the one probe.")


class Rate(_Model):
    """A token bucket: so many commands may go out at once, and so many a second after those."""

    per_second: float = Field(ge=limits.PER_SECOND_MIN, le=limits.PER_SECOND_MAX)
    burst: int = Field(default=1, ge=1, le=limits.BURST_MAX)


class Limit(_Model):
    """How many commands of the steps that name it may be out at once, and how many may go out in a time; by key, fleet-wide."""

    key: str | None = Field(
        default=None,
        description="CEL over `input`, `tenant` and the step's `service`: each key has the limit for itself. None: one for all.",
    )
    concurrency: int | None = Field(default=None, ge=1, le=limits.CONCURRENCY_MAX, description="Attempts out at once.")
    rate: Rate | None = None
    shared: bool = Field(
        default=False,
        description="Counted together with the shared limits of this name of other definitions; else, of this definition only.",
    )


class Definition(_Model):
    """A saga: steps that need each other (a directed acyclic graph), with one policy each."""

    name: Name
    description: str = Field(default="", max_length=2_000)
    steps: tuple[Step, ...] = Field(min_length=1, max_length=limits.STEPS_MAX)
    deadline_ms: int | None = Field(
        default=None, ge=10, le=limits.DEADLINE_MS_MAX, description="From the start to the last step's end."
    )
    input_schema: dict[str, Any] | None = None
    output: Binding | None = Field(
        default=None, description="None: an object of the outputs of steps that nobody needs."
    )
    services: dict[Name, CircuitPolicy] = Field(default_factory=dict, max_length=100)
    budget: Budget | None = Field(default=None, description="For all attempts at all steps.")
    undo_order: UndoOrder = UndoOrder.REVERSE
    required: tuple[Name, ...] = Field(
        default=(),
        max_length=limits.STEPS_MAX,
        description="Steps that must not be degraded: the workflow fails instead.",
    )
    # Last, because in this body its name hides the module's from here on.
    limits: dict[Name, Limit] = Field(default_factory=dict, max_length=limits.LIMITS_MAX)

    def __init__(self, registered: bool = False, /, **data: Any) -> None:
        """Raises InvalidDefinition with the path of what does not fit. `registered`: see `parse_definition`."""
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise _as_invalid(error) from None
        if not registered:
            _check_paths(self)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_definition(self)
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A checked copy: pydantic's own would keep the hash of what it was copied from."""
        # Not dict(self): that has what the cached properties hold, too.
        own = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**own, **(update or {})})

    @cached_property
    def encoded(self) -> bytes:
        """Canonical JSON."""
        return encode_sorted(self.model_dump(mode="json"))

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits that identify this content."""
        return blake2b(self.encoded, digest_size=8).hexdigest()

    @cached_property
    def input_validator(self) -> SchemaValidator | None:
        return SchemaValidator(self.input_schema, "input") if self.input_schema is not None else None

    @property
    def warnings(self) -> list[str]:
        """What is allowed and probably not meant, as "path: problem; remedy"."""
        return list(_warnings(self))

    @property
    def agents(self) -> list[str]:
        """Every agent that it may send a command to."""
        found: set[str | None] = set()
        for step in self.steps:
            found.add(step.agent)
            found.update(fallback.agent for fallback in fallbacks_of(step))
            found.add(step.compensate.agent if step.compensate is not None else None)
        return sorted(agent for agent in found if agent is not None)

    @property
    def children(self) -> list[str]:
        """Every definition whose workflows may do one of its steps, as it is named there."""
        return sorted({step.workflow.definition for step in self.steps if step.workflow is not None})

    def circuit_policy(self, service: str) -> CircuitPolicy:
        return self.services.get(service, CircuitPolicy())


def fallbacks_of(step: Step) -> tuple[Fallback, ...]:
    """In the order in which they are tried."""
    return step.fallbacks if step.fallback is None else (step.fallback,)


class SchemaValidator:
    """A compiled JSON Schema. `problem` says what does not fit, with the path; remote references are never fetched."""

    def __init__(self, schema: Mapping[str, Any], root: str) -> None:
        try:
            self._validator = jsonschema_rs.validator_for(dict(schema), retriever=_no_remote)
        except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
            raise InvalidDefinition(root, f"is not a JSON Schema ({str(error).splitlines()[0]})") from None
        self._root = root

    def problem(self, document: object) -> str | None:
        """The first violation as "path: problem", or None."""
        error = next(iter(self._validator.iter_errors(document)), None)
        if error is None:
            return None
        path = ".".join([self._root, *map(str, error.instance_path)])
        return f"{path}: {error.message[:300]}"


def _no_remote(uri: str) -> Any:
    raise ValueError(f"the schema refers to {uri[:200]}; only references inside the schema are allowed")


def parse_definition(document: Mapping[str, Any] | bytes, *, registered: bool = False) -> Definition:
    """The definition in a JSON document. Raises InvalidDefinition that names the path and the problem.

    `registered`: it stands in a log. Bindings that lead nowhere are then let through, as they were before they were refused:
    they give null, and workflows that run on it go on.
    """
    try:
        if isinstance(document, bytes):
            document = decode_object(document, "definition", limits.JSON_DEPTH_MAX)
        check_json(dict(document), "definition", limits.DEFINITION_BYTES_MAX)
    except InvalidRecord as error:
        raise InvalidDefinition(error.field, error.problem) from None
    return Definition(registered, **document)


def _as_invalid(error: ValidationError) -> InvalidDefinition:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidDefinition):
        return cause
    path = ".".join(str(part) for part in first["loc"]) or "definition"
    return InvalidDefinition(path, first["msg"])


class _Refused(ValueError, InvalidDefinition):
    """InvalidDefinition that pydantic lets through its validators."""

    def __init__(self, field: str, problem: str) -> None:
        InvalidDefinition.__init__(self, field, problem)


def _check_definition(definition: Definition) -> None:
    try:
        check_json(definition.model_dump(mode="json"), "definition", limits.DEFINITION_BYTES_MAX)
    except InvalidRecord as error:
        raise _Refused(error.field, error.problem) from None
    steps = {step.name: step for step in definition.steps}
    if len(steps) != len(definition.steps):
        names = [step.name for step in definition.steps]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"steps.{twice}", "stands there twice; give each step its own name")
    ancestors = _ancestors(definition.steps)
    for step in definition.steps:
        where = f"steps.{step.name}"
        item = step.map is not None or step.repeat is not None
        _check_binding(step.input, f"{where}.input", ancestors[step.name], item=item)
        if step.map is not None:
            _check_binding(step.map.over, f"{where}.map.over", ancestors[step.name])
        if step.compensate is not None and step.compensate.input is not None:
            reachable = ancestors[step.name] | {step.name}
            _check_binding(step.compensate.input, f"{where}.compensate.input", reachable, item=step.map is not None)
        _check_kind(step, where, ancestors[step.name])
        if step.repeat is not None:
            _check_repeat(step, step.repeat, where, ancestors[step.name])
        if step.when is not None:
            Condition(step.when, f"{where}.when", ancestors[step.name])
        if step.when_open is not WhenOpen.PARK and step.service is None:
            raise _Refused(f"{where}.when_open", f"is {step.when_open.value}, but the step names no service; add one")
        _check_fallbacks(step, where)
        _check_budgets(step, definition.budget, where)
        if step.critical and step.when_failed is WhenFailed.STOP and step.default is not None:
            raise _Refused(f"{where}.default", "is never used by a critical step; set critical to false or drop it")
        if not step.critical and step.when_failed is not WhenFailed.STOP:
            raise _Refused(
                f"{where}.when_failed", "is for critical steps; another one is degraded: set critical or drop it"
            )
        if step.irreversible and step.compensate is not None:
            raise _Refused(f"{where}.irreversible", "stands beside a compensation; drop one of the two")
        if step.output_schema is not None:
            SchemaValidator(step.output_schema, f"{where}.output_schema")
        _check_step_limits(step, definition, where)
    _check_limits(definition)
    for name in definition.required:
        if name not in steps:
            raise _Refused("required", f"names {name!r}, which is no step; the steps are {sorted(steps)}")
    if definition.output is not None:
        _check_binding(definition.output, "output", set(steps))
    if definition.input_schema is not None:
        SchemaValidator(definition.input_schema, "input_schema")
    used = {step.service for step in definition.steps}
    for service in definition.services:
        if service not in used:
            raise _Refused(f"services.{service}", "is used by no step; name it in a step's service or drop it")


def _check_limits(definition: Definition) -> None:
    used = {name for step in definition.steps for name in step.limits}
    for name, limit in definition.limits.items():
        where = f"limits.{name}"
        if limit.concurrency is None and limit.rate is None:
            raise _Refused(where, "limits nothing; give it a concurrency, a rate, or both")
        if limit.key is not None:
            Key(limit.key, f"{where}.key")
        if name not in used:
            raise _Refused(where, "is used by no step; name it in a step's limits or drop it")


def _check_step_limits(step: Step, definition: Definition, where: str) -> None:
    for name in step.limits:
        if name not in definition.limits:
            known = f"there are {sorted(definition.limits)}" if definition.limits else "the definition has none"
            raise _Refused(f"{where}.limits", f"names {name!r}, which is no limit; {known}")
        if step.limits.count(name) > 1:
            raise _Refused(f"{where}.limits", f"names {name!r} twice; once is enough")


def _warnings(definition: Definition) -> Iterator[str]:
    ancestors = _ancestors(definition.steps)
    pivots = {step.name for step in definition.steps if step.pivot}
    for step in definition.steps:
        if step.agent is None or pivots & (ancestors[step.name] | {step.name}):
            continue
        # What can still fail once this step is done: all that it does not wait for itself.
        later = [
            other.name
            for other in definition.steps
            if other.critical and other is not step and other.name not in ancestors[step.name]
        ]
        if step.compensate is None and not step.irreversible and step.critical and later:
            yield (
                f"steps.{step.name}.compensate: is missing, so nothing undoes it when {later[0]!r} fails; "
                "add one, or say irreversible"
            )
    if definition.deadline_ms is not None:
        for step in definition.steps:
            least_ms = step.retry.attempts * step.timeout_ms if step.agent is not None else 0
            if least_ms > definition.deadline_ms:
                yield (
                    f"steps.{step.name}.retry: {step.retry.attempts} attempts of up to {step.timeout_ms:,} ms do not fit "
                    f"the deadline of {definition.deadline_ms:,} ms; allow fewer or shorter ones, or more time"
                )


def _check_fallbacks(step: Step, where: str) -> None:
    if step.fallback is not None and step.fallbacks:
        raise _Refused(f"{where}.fallback", "stands beside fallbacks; put it into that list")
    chain = fallbacks_of(step)
    where = f"{where}.fallback" if step.fallback is not None else f"{where}.fallbacks"
    for place, fallback in enumerate(chain):
        if fallback.agent is None and not fallback.on and place + 1 < len(chain):
            raise _Refused(f"{where}.{place}", "is a constant for every failure: those behind it are never tried")
        if fallback.on == (FallbackOn.CIRCUIT_OPEN,) and step.when_open is not WhenOpen.FALL_BACK:
            raise _Refused(
                f"{where}.{place}.on", "is circuit_open only; set when_open to fall_back, or it is never used"
            )
    if step.when_open is WhenOpen.FALL_BACK and not any(
        not fallback.on or FallbackOn.CIRCUIT_OPEN in fallback.on for fallback in chain
    ):
        raise _Refused(f"steps.{step.name}.when_open", "is fall_back, but the step has no fallback for that; add one")


def _check_budgets(step: Step, all_steps: Budget | None, where: str) -> None:
    if step.agent is None and step.workflow is None:
        return
    for budget, whose in ((step.budget, "the step's"), (all_steps, "the definition's")):
        for unit in ("tokens", "cost", "ms"):
            limit, reserved = getattr(budget, unit, None), getattr(step.reserve, unit)
            if limit is not None and reserved > limit:
                raise _Refused(
                    f"{where}.reserve.{unit}",
                    f"is {reserved:,}, more than {whose} budget of {limit:,}: it could never run",
                )


def _check_kind(step: Step, where: str, reachable: set[str]) -> None:
    kinds = {
        "agent": step.agent,
        "workflow": step.workflow,
        "sleep": step.sleep,
        "wait_for": step.wait_for,
        "task": step.task,
    }
    named = [kind for kind, value in kinds.items() if value is not None]
    if len(named) != 1:
        given = " and ".join(named) or "none"
        raise _Refused(where, f"needs exactly one of {', '.join(kinds)}; it has {given}")
    if step.workflow is not None:
        of_agents = ("timeout_ms", "start_timeout_ms", "heartbeat_timeout_ms")
        falls_back = any(fallback.agent is not None for fallback in fallbacks_of(step))
        for name in ("service", "limits") if falls_back else ("service", "limits", *of_agents):
            if getattr(step, name) != Step.model_fields[name].default:
                raise _Refused(
                    f"{where}.{name}", "is of agents' attempts, and a workflow does this step; see workflow.timeout_ms"
                )
        if step.compensate is not None and step.compensate.agent is None:
            raise _Refused(
                f"{where}.compensate.agent",
                "is missing: without a compensation the workflow is undone; name an agent, or drop it",
            )
    elif step.agent is None:
        for name in ("map", "repeat", "retry", "timeout_ms", "start_timeout_ms", "heartbeat_timeout_ms", "service", "fallback",
            "fallbacks", "budget", "reserve", "reconcile", "limits",
        ):  # fmt: skip
            if getattr(step, name) != Step.model_fields[name].default:
                raise _Refused(f"{where}.{name}", f"is of agents' attempts, and this step has {named[0]}; drop it")
        if step.compensate is not None and step.compensate.agent is None:
            raise _Refused(f"{where}.compensate.agent", "is missing: the step has no agent of its own to undo it")
    if step.sleep is not None:
        if (step.sleep.ms is None) == (step.sleep.until is None):
            raise _Refused(f"{where}.sleep", "needs exactly one of ms, until")
        if step.sleep.until is not None:
            _check_binding(step.sleep.until, f"{where}.sleep.until", reachable)
    if step.wait_for is not None and step.wait_for.payload_schema is not None:
        SchemaValidator(step.wait_for.payload_schema, f"{where}.wait_for.payload_schema")
    if step.task is not None and step.task.form is not None:
        SchemaValidator(step.task.form, f"{where}.task.form")


def _check_repeat(step: Step, repeat: Repeat, where: str, reachable: set[str]) -> None:
    if step.map is not None:
        raise _Refused(f"{where}.repeat", "stands beside a map; give one of them a step of its own")
    Condition(repeat.until, f"{where}.repeat.until", reachable | {step.name})


def _ancestors(steps: tuple[Step, ...]) -> dict[str, set[str]]:
    """All steps that surely ended before a step starts. Raises for unknown names and cycles."""
    names = {step.name for step in steps}
    for step in steps:
        for need in step.needs:
            if need not in names:
                raise _Refused(
                    f"steps.{step.name}.needs", f"names {need!r}, which is no step; the steps are {sorted(names)}"
                )
    ancestors: dict[str, set[str]] = {}
    left = list(steps)
    while left:
        ready = [step for step in left if all(need in ancestors for need in step.needs)]
        if not ready:
            raise _Refused(
                "steps", f"need each other in a cycle: {sorted(step.name for step in left)}; remove one of the needs"
            )
        for step in ready:
            ancestors[step.name] = set(step.needs).union(*(ancestors[need] for need in step.needs))
        left = [step for step in left if step.name not in ancestors]
    return ancestors


def _check_binding(binding: Binding, where: str, reachable: set[str], *, item: bool = False) -> None:
    match binding:
        case FromStep(step=step):
            if step not in reachable:
                raise _Refused(
                    where, f"takes the output of {step!r}, which need not have ended by then; add it to needs"
                )
        case Fields(fields=fields):
            for name, inner in fields.items():
                _check_binding(inner, f"{where}.{name}", reachable, item=item)
        case FromItem():
            if not item:
                raise _Refused(
                    where, "takes an item, but the step neither maps nor repeats; give it a map, or bind something else"
                )
        case FromInput() | Value():
            pass


def _check_paths(definition: Definition) -> None:
    """Refuses bindings that, by the schemas which the definition itself has, surely lead nowhere."""
    schemas = {step.name: _output_schema(step) for step in definition.steps}
    for step in definition.steps:
        where = f"steps.{step.name}"
        items = _items_of(step, definition, schemas, where)
        _check_path(step.input, f"{where}.input", definition, schemas, items)
        if step.sleep is not None and step.sleep.until is not None:
            _check_path(step.sleep.until, f"{where}.sleep.until", definition, schemas, items)
        if step.compensate is not None and step.compensate.input is not None:
            _check_path(step.compensate.input, f"{where}.compensate.input", definition, schemas, items)
    if definition.output is not None:
        _check_path(definition.output, "output", definition, schemas, (ANY,))


def _output_schema(step: Step) -> dict[str, Any] | None:
    """What an output surely fits; None when that is not known, or a constant may stand in that nothing checks."""
    if step.default is not None or any(stand_in.value is not None for stand_in in fallbacks_of(step)):
        return None
    if step.wait_for is not None:
        return step.wait_for.payload_schema
    # Of a step that maps the schema is an item's.
    return step.task.form if step.task is not None else step.output_schema if step.map is None else None


_ROUND_SCHEMA: Final = {"type": "object", "properties": {"round": {}, "previous": {}}, "additionalProperties": False}


def _items_of(
    step: Step, definition: Definition, schemas: Mapping[str, dict[str, Any] | None], where: str
) -> Sequence[Shape]:
    if step.repeat is not None:
        return (shape_of(_ROUND_SCHEMA),)
    if step.map is None:
        return (ANY,)
    over = _check_path(step.map.over, f"{where}.map.over", definition, schemas, (ANY,))
    items = items_of(over)
    if isinstance(items, str):
        raise InvalidDefinition(f"{where}.map.over", f"takes {items}, and only a list has items; bind a list")
    return items


def _check_path(
    binding: Binding,
    where: str,
    definition: Definition,
    schemas: Mapping[str, dict[str, Any] | None],
    items: Sequence[Shape],
) -> Sequence[Shape]:
    """What the binding may give."""
    match binding:
        case FromInput(input=path):
            what, shapes = "the input", _shapes(definition.input_schema)
        case FromStep(step=name, path=path):
            what, shapes = f"the output of {name!r}", _shapes(schemas[name])
        case FromItem(item=path):
            what, shapes = "the item", items
        case Fields(fields=fields):
            for key, inner in fields.items():
                _check_path(inner, f"{where}.{key}", definition, schemas, items)
            return (ANY,)
        case Value():
            return (ANY,)
    found = reached(shapes, path)
    if isinstance(found, str):
        raise InvalidDefinition(
            where, f"takes {path!r} of {what}, and by its schema {found}; correct the path, or the schema"
        )
    return found


def _shapes(schema: Mapping[str, Any] | None) -> Sequence[Shape]:
    return (ANY,) if schema is None else (shape_of(schema),)


def from_input(path: str = "") -> FromInput:
    """Binds to the workflow's input, or to the part of it at a dotted path."""
    return FromInput(input=path)


def from_step(step: str, path: str = "") -> FromStep:
    """Binds to a step's output, or to the part of it at a dotted path."""
    return FromStep(step=step, path=path)


def from_item(path: str = "") -> FromItem:
    """Binds to the item of a step that maps, or to the part of it at a dotted path."""
    return FromItem(item=path)


def fields(**bindings: Binding | Any) -> Fields:
    """Binds an object field by field; anything that is not a binding is a constant."""
    return Fields(
        fields={
            name: binding
            if isinstance(binding, FromInput | FromStep | FromItem | Value | Fields)
            else Value(value=binding)
            for name, binding in bindings.items()
        }
    )
