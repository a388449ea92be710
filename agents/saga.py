"""The typed builder of definitions: a wrong binding is an error of the type checker or of the builder, never of production.

    saga = Saga("order", Order)
    reserved = saga.step(reserve, input=saga.input)
    charged = saga.step(charge, input=bind(Charge, amount=saga.input.amount, reservation=reserved.output.id))
    definition = saga.build(output=bind(Receipt, number=charged.output.number))

What a step takes and gives is what its agent's function takes and returns; `saga.input` and `reserved.output` are to the type
checker what they will be (see `refs`). What comes out is a plain `Definition`, data like any other.

Rules:
- Every field of a `Step` can be said here; a test compares the two.
- This module is the part that a type checker reads. What happens is in `drafts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, cast, overload

from pydantic import BaseModel, TypeAdapter
from typing_extensions import Unpack

from sagalog.schemas.definitions import Budget, CircuitPolicy, Definition, Limit, Step, UndoOrder
from sagalog.schemas.shapes import Shape

from .agent import Agent
from .context import Context
from .drafts import UNSET, Drafts
from .policies import (
    AgentPolicy,
    CompensationPolicy,
    MapPolicy,
    RepeatPolicy,
    StandIn,
    StepPolicy,
    fall_back,
    instead,
)
from .refs import CONTEXT, Given, bind

if TYPE_CHECKING:
    from .policies import Async, AsyncOf, Plain

__all__ = ["CONTEXT", "MapOf", "Round", "Saga", "StandIn", "StepOf", "bind", "fall_back", "instead"]

P = ParamSpec("P")
T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 - the input of a saga
Out = TypeVar("Out")
Item = TypeVar("Item")


class Round(BaseModel, Generic[Out]):
    """The item of a step that repeats."""

    round: int
    previous: Out | None


class StepOf(Generic[Out]):
    """A step of a saga under construction. `output` stands for what the step will give."""

    def __init__(self, drafts: Drafts, name: str, output: Shape) -> None:
        self._drafts = drafts
        self._shape = output
        self.name = name

    def __repr__(self) -> str:
        return f"<step {self.name!r}>"

    @property
    def output(self) -> Out:
        return cast(Out, self._drafts.output(self.name, self._shape))

    @overload
    def undone_by(self, agent: Async[T, Any], *, input: T, **policy: Unpack[CompensationPolicy]) -> Self: ...
    @overload
    def undone_by(self, agent: Plain[T, Any], *, input: T, **policy: Unpack[CompensationPolicy]) -> Self: ...
    @overload
    def undone_by(self, agent: Agent[P, Any], *, input: Given[P], **policy: Unpack[CompensationPolicy]) -> Self: ...
    def undone_by(self, agent: Any, *, input: Any, **policy: Unpack[CompensationPolicy]) -> Self:
        """Another agent undoes it, with an input of its own. In it the step's output may be null: its outcome may be unknown."""
        self._drafts.undo(self.name, agent, input, policy)
        return self


class MapOf(StepOf[list[Out]], Generic[Item, Out]):
    """A step that maps."""

    @overload
    def each_undone_by(
        self, agent: Async[T, Any], *, input: Callable[[Item, Out], T], **policy: Unpack[CompensationPolicy]
    ) -> Self: ...
    @overload
    def each_undone_by(
        self, agent: Plain[T, Any], *, input: Callable[[Item, Out], T], **policy: Unpack[CompensationPolicy]
    ) -> Self: ...
    @overload
    def each_undone_by(
        self, agent: Agent[P, Any], *, input: Callable[[Item, Out], Given[P]], **policy: Unpack[CompensationPolicy]
    ) -> Self: ...
    def each_undone_by(
        self, agent: Any, *, input: Callable[[Any, Any], Any], **policy: Unpack[CompensationPolicy]
    ) -> Self:
        """Like `undone_by`, item by item: `input` makes it of the item and the item's output."""
        self._drafts.undo(self.name, agent, input(*self._drafts.item_of(self.name)), policy)
        return self


class Saga(Generic[I]):
    """A saga under construction. Steps stand in the definition in the order in which they are made.

    `input`: the type of the workflow's input, a pydantic model as a rule. Its schema is the definition's `input_schema`.
    """

    def __init__(
        self,
        name: str,
        input: type[I],
        *,
        description: str = "",
        deadline_ms: int | None = None,
        budget: Budget | None = None,
        services: Mapping[str, CircuitPolicy] | None = None,
        limits: Mapping[str, Limit] | None = None,
        undo_order: UndoOrder = UndoOrder.REVERSE,
    ) -> None:
        self._own: dict[str, Any] = {
            "description": description,
            "deadline_ms": deadline_ms,
            "budget": budget,
            "services": dict(services or {}),
            "limits": dict(limits or {}),
            "undo_order": undo_order,
        }
        self._drafts = Drafts(name, TypeAdapter(input).json_schema())

    @property
    def input(self) -> I:
        """Stands for the workflow's input, as it was given: what its model has a default for may be missing in it."""
        return cast(I, self._drafts.input())

    # --- steps that an agent does

    @overload
    def step(self, agent: Async[T, Out], *, input: T, **policy: Unpack[AgentPolicy[T, Out, Out]]) -> StepOf[Out]: ...
    @overload
    def step(self, agent: Plain[T, Out], *, input: T, **policy: Unpack[AgentPolicy[T, Out, Out]]) -> StepOf[Out]: ...
    @overload
    def step(
        self,
        agent: AsyncOf[P, Out],
        *,
        input: Given[P],
        **policy: Unpack[AgentPolicy[Given[P], Out, Out]],
    ) -> StepOf[Out]: ...
    @overload
    def step(
        self, agent: Agent[P, Out], *, input: Given[P], **policy: Unpack[AgentPolicy[Given[P], Out, Out]]
    ) -> StepOf[Out]: ...
    @overload
    def step(
        self,
        agent: AsyncOf[[], Out] | AsyncOf[[Context], Out],
        **policy: Unpack[AgentPolicy[Any, Out, Out]],
    ) -> StepOf[Out]: ...
    @overload
    def step(
        self, agent: Agent[[], Out] | Agent[[Context], Out], **policy: Unpack[AgentPolicy[Any, Out, Out]]
    ) -> StepOf[Out]: ...
    def step(self, agent: Any, *, input: Any = UNSET, **policy: Any) -> StepOf[Any]:
        """A step that an agent does. `input`: a reference, `bind(...)`, or a constant; an agent without an input needs none.

        Raises InvalidDefinition for what cannot run, or need not fit.
        """
        return StepOf(self._drafts, *self._drafts.step(agent, input, policy))

    @overload
    def map(
        self,
        agent: Async[T, Out],
        *,
        over: Iterable[Item],
        input: Callable[[Item], T],
        **policy: Unpack[MapPolicy[T, Out]],
    ) -> MapOf[Item, Out]: ...
    @overload
    def map(
        self,
        agent: Plain[T, Out],
        *,
        over: Iterable[Item],
        input: Callable[[Item], T],
        **policy: Unpack[MapPolicy[T, Out]],
    ) -> MapOf[Item, Out]: ...
    @overload
    def map(
        self,
        agent: AsyncOf[P, Out],
        *,
        over: Iterable[Item],
        input: Callable[[Item], Given[P]],
        **policy: Unpack[MapPolicy[Given[P], Out]],
    ) -> MapOf[Item, Out]: ...
    @overload
    def map(
        self,
        agent: Agent[P, Out],
        *,
        over: Iterable[Item],
        input: Callable[[Item], Given[P]],
        **policy: Unpack[MapPolicy[Given[P], Out]],
    ) -> MapOf[Item, Out]: ...
    @overload
    def map(self, agent: Async[T, Out], *, over: Iterable[T], **policy: Unpack[MapPolicy[T, Out]]) -> MapOf[T, Out]: ...
    @overload
    def map(self, agent: Plain[T, Out], *, over: Iterable[T], **policy: Unpack[MapPolicy[T, Out]]) -> MapOf[T, Out]: ...
    def map(
        self, agent: Any, *, over: Any, input: Callable[[Any], Any] | None = None, **policy: Any
    ) -> MapOf[Any, Any]:
        """A step that is done once for each item of a list. `input` makes an item's input of the item; left out, it is the item."""
        return MapOf(self._drafts, *self._drafts.map(agent, over, input, policy))

    @overload
    def repeat(
        self, agent: Async[T, Out], *, input: Callable[[Round[Out]], T], **policy: Unpack[RepeatPolicy[T, Out]]
    ) -> StepOf[Out]: ...
    @overload
    def repeat(
        self, agent: Plain[T, Out], *, input: Callable[[Round[Out]], T], **policy: Unpack[RepeatPolicy[T, Out]]
    ) -> StepOf[Out]: ...
    @overload
    def repeat(
        self,
        agent: AsyncOf[P, Out],
        *,
        input: Callable[[Round[Out]], Given[P]],
        **policy: Unpack[RepeatPolicy[Given[P], Out]],
    ) -> StepOf[Out]: ...
    @overload
    def repeat(
        self,
        agent: Agent[P, Out],
        *,
        input: Callable[[Round[Out]], Given[P]],
        **policy: Unpack[RepeatPolicy[Given[P], Out]],
    ) -> StepOf[Out]: ...
    def repeat(self, agent: Any, *, input: Callable[[Any], Any], **policy: Any) -> StepOf[Any]:
        """A step that is done again and again, `until` a condition holds. `input` makes a round's input of the round."""
        return StepOf(self._drafts, *self._drafts.repeat(agent, input, policy))

    # --- steps without an agent

    def sleep(
        self,
        name: str,
        *,
        ms: int | None = None,
        until: int | str | datetime | None = None,
        **policy: Unpack[StepPolicy],
    ) -> StepOf[None]:
        """A step that ends after so long, or at a time."""
        return StepOf(self._drafts, *self._drafts.sleep(name, ms, until, dict(policy)))

    @overload
    def wait_for(
        self,
        signal: str,
        payload: type[Out],
        *,
        timeout_ms: int,
        name: str = "",
        default: Out = ...,
        **policy: Unpack[StepPolicy],
    ) -> StepOf[Out]: ...
    @overload
    def wait_for(
        self, signal: str, *, timeout_ms: int, name: str = "", default: Any = ..., **policy: Unpack[StepPolicy]
    ) -> StepOf[Any]: ...
    def wait_for(
        self, signal: str, payload: Any = None, *, timeout_ms: int, name: str = "", default: Any = UNSET, **policy: Any
    ) -> StepOf[Any]:
        """A step that ends when a signal comes, or came. One that does not fit `payload` is ignored."""
        policy["default"] = default
        return StepOf(self._drafts, *self._drafts.wait_for(signal, payload, timeout_ms, name, policy))

    @overload
    def task(
        self,
        name: str,
        title: str,
        form: type[Out],
        *,
        timeout_ms: int,
        input: Any = ...,
        assignee: str | None = None,
        group: str | None = None,
        escalate_to: str | None = None,
        default: Out = ...,
        **policy: Unpack[StepPolicy],
    ) -> StepOf[Out]: ...
    @overload
    def task(
        self,
        name: str,
        title: str,
        *,
        timeout_ms: int,
        input: Any = ...,
        assignee: str | None = None,
        group: str | None = None,
        escalate_to: str | None = None,
        default: Any = ...,
        **policy: Unpack[StepPolicy],
    ) -> StepOf[Any]: ...
    def task(
        self,
        name: str,
        title: str,
        form: Any = None,
        *,
        timeout_ms: int,
        input: Any = UNSET,
        assignee: str | None = None,
        group: str | None = None,
        escalate_to: str | None = None,
        default: Any = UNSET,
        **policy: Any,
    ) -> StepOf[Any]:
        """A step that a person does: they see `input` and fill in `form`. Without a form its output is anything, or the input."""
        values = {
            "title": title,
            "assignee": assignee,
            "group": group,
            "timeout_ms": timeout_ms,
            "escalate_to": escalate_to,
        }
        policy["default"] = default
        return StepOf(self._drafts, *self._drafts.task(name, form, input, values, policy))

    def add(self, step: Step, output: type[Out]) -> StepOf[Out]:
        """A step as plain data. `output` is what it gives: this is believed, like the bindings in the step."""
        return StepOf(self._drafts, *self._drafts.add(step, output))

    # --- the definition

    def build(self, *, output: Any = UNSET) -> Definition:
        """The definition. `output`: the workflow's output; left out, an object of the outputs of the steps that nobody needs.

        Raises InvalidDefinition for what cannot run.
        """
        return self._drafts.build(output, self._own)
