"""The steps of a saga under construction: what was said of them, checked against the models, and the plain data that comes out.

Rules:
- Whatever is given (a reference, what is bound, a constant) is checked against what takes it before it becomes a binding.
- The needs follow from what is taken. Those that others of them wait for anyway are left out, so that the same saga has one form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from sagalog.schemas.conditions import Condition
from sagalog.schemas.definitions import (
    Binding,
    Compensation,
    Definition,
    Fields,
    FromInput,
    FromItem,
    FromStep,
    Map,
    Repeat,
    Sleep,
    Step,
    Task,
    Value,
    WaitFor,
    WhenFailed,
    from_input,
    from_item,
    from_step,
)
from sagalog.schemas.errors import InvalidDefinition, InvalidRecord
from sagalog.schemas.ids import Direction, check_name
from sagalog.schemas.shapes import ANY, NULL, Shape, items_of, list_of, shape_of

from .agent import Agent, AnyAgent
from .fits import Unsure, check_fits
from .policies import StandIn
from .refs import Ref, constant, lowered, references

M = TypeVar("M", bound=BaseModel)

_TIME: Final = shape_of({"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]})
"""What a sleep takes: epoch milliseconds, or text as RFC 3339 has it."""
_UNSURE: Final = "nobody may know whether the step took effect"


class Unset:
    """The default of what may be None."""


UNSET: Final[Any] = Unset()


class Draft:
    """A step and what is known about it before the saga is built."""

    def __init__(self, agent: AnyAgent | None, item: Shape, output: Shape) -> None:
        self.agent = agent
        self.item = item
        self.output = output
        """Of one execution: of an item, in a step that maps."""
        self.step: Step
        self.explicit: tuple[str, ...] = ()
        self.taken: set[str] = set()
        """Steps whose outputs it takes."""
        self.required = False


class Drafts:
    """The steps of one saga, in the order in which they were made. What makes one returns its name and the shape of its output."""

    def __init__(self, name: str, input_schema: dict[str, Any]) -> None:
        self.name = name
        self.input_schema = input_schema
        self.drafts: dict[str, Draft] = {}

    def input(self) -> Ref:
        return Ref(from_input(), shape_of(self.input_schema), self)

    def output(self, name: str, shape: Shape) -> Ref:
        return Ref(from_step(name), shape, self)

    def item_of(self, name: str) -> tuple[Ref, Ref]:
        """The item of a step that maps, and the item's output."""
        draft = self.drafts[name]
        return Ref(from_item(), draft.item, draft), Ref(from_step(name), draft.output, draft)

    # --- steps

    def step(self, agent: Any, input: Any, policy: dict[str, Any]) -> tuple[str, Shape]:
        name = self._new(policy, agent)
        draft = Draft(agent, ANY, _output(agent))
        return name, self._place(name, draft, self._agent_fields(name, draft, input, policy), policy)

    def map(
        self, agent: Any, over: Any, input: Callable[[Any], Any] | None, policy: dict[str, Any]
    ) -> tuple[str, Shape]:
        name = self._new(policy, agent)
        where = f"steps.{name}.map.over"
        check_fits(over, shape_of({"type": "array"}), where, "a map")
        draft = Draft(agent, _items(over), _output(agent))
        item = Ref(from_item(), draft.item, draft)
        values = {key: policy.pop(key) for key in Map.model_fields if key in policy}
        self._take(name, draft, over)
        step = self._agent_fields(name, draft, item if input is None else input(item), policy)
        if input is None:
            del step["input"]
        elif step["input"] == FromInput(input=""):
            # Left out in JSON, because it is the default of a step's input, it would be read as the item.
            raise InvalidDefinition(
                f"steps.{name}.input", "is the workflow's whole input, which an item cannot get; bind its fields"
            )
        step["map"] = _made(Map, f"steps.{name}.map", {"over": lowered(over, where), **values})
        why = "an item may fail within the tolerance" if step["map"].tolerate or step["map"].tolerate_percent else ""
        whole = list_of(Shape(draft.output.schema, draft.output.root, why))
        return name, self._place(name, draft, step, policy, whole)

    def repeat(self, agent: Any, input: Callable[[Any], Any], policy: dict[str, Any]) -> tuple[str, Shape]:
        name = self._new(policy, agent)
        output = _output(agent)
        draft = Draft(agent, _round(output), output)
        values = {key: policy.pop(key) for key in Repeat.model_fields if key in policy}
        step = self._agent_fields(name, draft, input(Ref(from_item(), draft.item, draft)), policy)
        step["repeat"] = _made(Repeat, f"steps.{name}.repeat", values)
        named = Condition(step["repeat"].until, f"steps.{name}.repeat.until", {*self.drafts, name}).steps
        draft.taken.update(other for other in named if other != name)
        return name, self._place(name, draft, step, policy)

    def sleep(self, name: str, ms: int | None, until: Any, policy: dict[str, Any]) -> tuple[str, Shape]:
        name = self._new({"name": name}, None)
        draft = Draft(None, ANY, NULL)
        values: dict[str, Any] = {} if ms is None else {"ms": ms}
        if until is not None:
            where = f"steps.{name}.sleep.until"
            if isinstance(until, datetime) and until.tzinfo is None:
                raise InvalidDefinition(where, f"is {until}, of no zone; give it one, as in datetime(..., tzinfo=UTC)")
            check_fits(until, _TIME, where, "a sleep")
            self._take(name, draft, until)
            values["until"] = lowered(until, where)
        step = {"name": name, "sleep": _made(Sleep, f"steps.{name}.sleep", values)}
        return name, self._place(name, draft, step, policy)

    def wait_for(
        self, signal: str, payload: Any, timeout_ms: int, name: str, policy: dict[str, Any]
    ) -> tuple[str, Shape]:
        name = self._new({"name": name or signal}, None)
        schema = None if payload is None else TypeAdapter(payload).json_schema()
        values = {"signal": signal, "timeout_ms": timeout_ms, "payload_schema": schema}
        step = {"name": name, "wait_for": _made(WaitFor, f"steps.{name}.wait_for", values)}
        draft = Draft(None, ANY, ANY if schema is None else shape_of(schema))
        return name, self._place(name, draft, step, policy)

    def task(
        self, name: str, form: Any, input: Any, values: dict[str, Any], policy: dict[str, Any]
    ) -> tuple[str, Shape]:
        name = self._new({"name": name}, None)
        schema = None if form is None else TypeAdapter(form).json_schema()
        step: dict[str, Any] = {"name": name, "task": _made(Task, f"steps.{name}.task", {"form": schema, **values})}
        draft = Draft(None, ANY, ANY if schema is None else shape_of(schema))
        if input is not UNSET:
            where = f"steps.{name}.input"
            check_fits(input, ANY, where, "a task")
            self._take(name, draft, input)
            step["input"] = lowered(input, where)
        return name, self._place(name, draft, step, policy)

    def add(self, step: Step, output: Any) -> tuple[str, Shape]:
        name = self._new({"name": step.name}, None)
        draft = Draft(None, ANY, shape_of(TypeAdapter(output).json_schema(mode="serialization")))
        draft.step, draft.explicit = step, step.needs
        self.drafts[name] = draft
        return name, draft.output

    # --- the definition

    def build(self, output: Any, own: dict[str, Any]) -> Definition:
        after: dict[str, set[str]] = {}
        steps = []
        for name, draft in self.drafts.items():
            needs = self._needs(draft, after)
            after[name] = set(needs).union(*(after.get(need, set()) for need in needs))
            given = {field: getattr(draft.step, field) for field in draft.step.model_fields_set}
            steps.append(_made(Step, f"steps.{name}", {**given, "needs": needs}) if needs else draft.step)
        if output is not UNSET:
            check_fits(output, ANY, "output", "the workflow's output")
            self._check_whose(output, "output", None)
        return Definition(
            name=self.name,
            steps=tuple(steps),
            input_schema=self.input_schema,
            output=None if output is UNSET else lowered(output, "output"),
            required=tuple(name for name, draft in self.drafts.items() if draft.required),
            **own,
        )

    def _needs(self, draft: Draft, after: Mapping[str, set[str]]) -> tuple[str, ...]:
        """What was named, then what is taken from; without those that others of them wait for anyway."""
        named = dict.fromkeys(draft.explicit)
        taken = [name for name in self.drafts if name in draft.taken and name not in named]
        implied = set[str]().union(*(after.get(name, set()) for name in (*named, *taken)))
        return (*named, *(name for name in taken if name not in implied))

    # --- inside

    def _new(self, policy: dict[str, Any], agent: Any) -> str:
        """The name of a new step."""
        if agent is not None and not isinstance(agent, Agent):
            raise InvalidDefinition("agent", f"{agent!r} is no agent; declare the function with @agent")
        name = policy.pop("name", "") or _named_by(agent)
        try:
            check_name(name, "step")
        except InvalidRecord as error:
            raise InvalidDefinition(f"steps.{name}.name", error.problem) from None
        if name in self.drafts:
            raise InvalidDefinition(f"steps.{name}", "stands there twice; give each step its own name")
        return cast(str, name)

    def _agent_fields(self, name: str, draft: Draft, input: Any, policy: dict[str, Any]) -> dict[str, Any]:
        """What is of agents: input, fallbacks, schema; checked."""
        agent = draft.agent
        assert agent is not None, "only steps of agents come here"
        where = f"steps.{name}.input"
        handler = agent.handler(Direction.EXECUTE)
        step: dict[str, Any] = {"name": name, "agent": agent.name}
        if input is not UNSET:
            self._take(name, draft, input)
            check_fits(input, shape_of(agent.input_schema), where, f"agent {agent.name!r}")
            step["input"] = lowered(input, where)
        elif handler.whole is not None or handler.fields:
            raise InvalidDefinition(where, f"is missing, and agent {agent.name!r} takes one; say input=...")
        if agent.output_schema:
            step["output_schema"] = agent.output_schema
        one, several = policy.pop("fallback", None), policy.pop("fallbacks", ())
        chain: Sequence[StandIn[Any, Any]] = (*([one] if one is not None else ()), *several)
        for place, stand_in in enumerate(chain):
            at = f"steps.{name}.fallback" if one is not None else f"steps.{name}.fallbacks.{place}"
            self._check_stand_in(stand_in, agent, input, at)
        if one is not None:
            step["fallback"] = one.data
        if several:
            step["fallbacks"] = tuple(stand_in.data for stand_in in several)
        self._own_undoing(name, draft, input, [s.agent for s in chain if s.agent is not None], policy)
        return step

    def _check_stand_in(self, stand_in: StandIn[Any, Any], agent: AnyAgent, input: Any, where: str) -> None:
        wanted = shape_of(agent.output_schema)
        if stand_in.agent is None:
            check_fits(stand_in.data.value, wanted, where, f"whoever takes the output of {agent.name!r}")
            return
        if input is not UNSET:
            check_fits(input, shape_of(stand_in.agent.input_schema), where, f"agent {stand_in.agent.name!r}")
        check_fits(_output(stand_in.agent), wanted, where, f"whoever takes the output of {agent.name!r}")

    def _own_undoing(
        self, name: str, draft: Draft, input: Any, stand_ins: list[AnyAgent], policy: dict[str, Any]
    ) -> None:
        """Without another word a step is undone by its agent's own compensation; whoever undoes it must take its `Undo`."""
        agent = draft.agent
        assert agent is not None, "only steps of agents come here"
        if "compensate" not in policy and agent.compensates and not policy.get("irreversible", False):
            policy["compensate"] = Compensation()
        undo = policy.get("compensate")
        where = f"steps.{name}.compensate"
        if isinstance(undo, Agent):
            policy["compensate"] = Compensation(agent=undo.name) if undo is not agent else Compensation()
            undoers = [undo] if undo is not agent else [agent, *stand_ins]
        elif isinstance(undo, Compensation) and undo.agent is None and undo.input is None:
            undoers = [agent, *stand_ins]
        else:
            return
        for undoer in undoers:
            if undoer in (agent, *stand_ins) and not undoer.compensates:
                raise InvalidDefinition(
                    where,
                    f"asks agent {undoer.name!r} to undo what it did, and it has no compensation; declare one with "
                    f"@{undoer.__name__}.compensation, or name another agent",
                )
            taken = {
                "input": ANY if input is UNSET else input,
                "output": Shape(draft.output.schema, draft.output.root, _UNSURE),
            }
            check_fits(taken, shape_of(undo_schema(undoer)), where, f"the compensation of agent {undoer.name!r}")

    def _place(
        self, name: str, draft: Draft, step: dict[str, Any], policy: dict[str, Any], whole: Shape | None = None
    ) -> Shape:
        """Puts the step into the saga, and returns what others get from it."""
        where = f"steps.{name}"
        output = draft.output if whole is None else whole
        if policy.get("default", UNSET) is UNSET:
            policy.pop("default", None)
        elif policy["default"] is not None:
            check_fits(policy["default"], output, f"{where}.default", f"whoever takes the output of {name!r}")
            policy["default"] = constant(policy["default"], f"{where}.default")
        if draft.agent is None and isinstance(policy.get("compensate"), Agent):
            policy["compensate"] = Compensation(agent=policy["compensate"].name)
        if "when" in policy:
            draft.taken.update(Condition(policy["when"], f"{where}.when", set(self.drafts)).steps)
        draft.required = policy.pop("required", False)
        draft.explicit = tuple(self._mine(need, f"{where}.needs") for need in policy.pop("needs", ()))
        undo = policy.get("compensate")
        if isinstance(undo, Compensation) and undo.input is not None:
            draft.taken.update(_steps_of(undo.input) - {name})
        draft.step = _made(Step, where, {**step, **policy})
        self.drafts[name] = draft
        why = _missing(draft.step)
        return Shape(output.schema, output.root, why or output.null)

    def undo(self, name: str, agent: AnyAgent, input: Any, policy: Mapping[str, Any]) -> None:
        draft, where = self.drafts[name], f"steps.{name}.compensate"
        if draft.step.irreversible:
            raise InvalidDefinition(f"steps.{name}.irreversible", "stands beside a compensation; drop one of the two")
        if draft.step.map is not None and any(
            isinstance(ref._binding, FromStep) and ref._binding.step == name and ref._source is not draft
            for ref in references(input)
        ):
            raise InvalidDefinition(
                f"{where}.input", "takes the whole list, and items are undone one by one; use each_undone_by"
            )
        taken = Draft(None, ANY, ANY)
        self._take(name, taken, input, own=draft)
        check_fits(
            input, shape_of(undo_schema(agent)), f"{where}.input", f"agent {agent.name!r}", Unsure(name, _UNSURE)
        )
        values = {"agent": agent.name, "input": lowered(input, f"{where}.input"), **policy}
        draft.taken |= taken.taken - {name}
        draft.step = draft.step.model_copy(update={"compensate": _made(Compensation, where, values)})

    def _take(self, name: str, draft: Draft, value: Any, own: Draft | None = None) -> None:
        """Notes the steps that a value is taken from."""
        self._check_whose(value, f"steps.{name}", own or draft)
        for ref in references(value):
            draft.taken.update(_steps_of(ref._binding))
        if isinstance(value, FromInput | FromStep | FromItem | Value | Fields):
            draft.taken.update(_steps_of(value))

    def _check_whose(self, value: Any, where: str, draft: Draft | None) -> None:
        for ref in references(value):
            if isinstance(ref._binding, FromItem):
                if ref._source is not draft:
                    raise InvalidDefinition(
                        where, "takes an item of another step; an item is there for its own step only"
                    )
            elif ref._source is not self and ref._source is not draft:
                raise InvalidDefinition(where, f"takes {ref!r} of another saga; make the step in this one")

    def _mine(self, step: Any, where: str) -> str:
        if step._drafts is not self:
            raise InvalidDefinition(where, f"names {step!r} of another saga; make it in this one")
        return cast(str, step.name)


def _made(model: type[M], where: str, values: dict[str, Any]) -> M:
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidDefinition(".".join([where, *map(str, first["loc"])]), first["msg"]) from None


def _named_by(agent: AnyAgent | None) -> str:
    return agent.__name__ if agent is not None else ""


def _output(agent: AnyAgent) -> Shape:
    return shape_of(agent.output_schema)


def undo_schema(agent: AnyAgent) -> dict[str, Any]:
    """JSON Schema of what the agent gets when it is asked to undo a step."""
    return agent.handler(Direction.COMPENSATE).input.json_schema()


def _items(over: Any) -> Shape:
    """What one item of a list is; of a constant, or a binding as plain data, it is not known."""
    found = items_of((over._shape,)) if isinstance(over, Ref) else ()
    return found[0] if len(found) == 1 and not isinstance(found, str) else ANY


def _round(output: Shape) -> Shape:
    previous = {"anyOf": [output.schema, {"type": "null"}]}
    properties = {"round": {"type": "integer"}, "previous": previous}
    return Shape(
        {"type": "object", "title": "Round", "properties": properties, "required": ["round", "previous"]}, output.root
    )


def _missing(step: Step) -> str:
    """Why the output of a step that ended may be null all the same; empty when it may not."""
    if step.when is not None:
        return f"{step.name!r} is skipped when its condition does not hold"
    if step.default is not None:
        return ""
    if not step.critical:
        return f"{step.name!r} is optional and has no default"
    return f"an operator may skip {step.name!r}, and it has no default" if step.when_failed is WhenFailed.REVIEW else ""


def _steps_of(binding: Binding) -> set[str]:
    match binding:
        case FromStep(step=step):
            return {step}
        case Fields(fields=fields):
            return set[str]().union(*map(_steps_of, fields.values()))
        case FromInput() | FromItem() | Value():
            return set()
