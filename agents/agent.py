"""An agent: a typed function that does one kind of step, and the handler that undoes it.

    @agent("ledger", concurrency=8)
    async def post(invoice: Invoice, ctx: Context) -> Posting: ...

    @post.compensation
    async def reverse(undo: Undo[Invoice, Posting], ctx: Context) -> None: ...

    @post.reconcile
    async def look_up(invoice: Invoice, ctx: Context) -> Happened[Posting] | DidNotHappen: ...

How a function's parameters are filled:
- The parameter annotated `Context`, wherever it stands, gets the attempt's context.
- One other parameter: it gets the whole input, validated against its annotation.
- Several others: each gets the field of its name from the input, which must be an object; defaults apply; further fields
  are ignored.
- None: the input is ignored.

A coroutine function runs on the host's event loop and must not block it; an ordinary function runs in a thread of its own.

Rule: what is wrong with a declaration is said when it is declared, never when the first command comes.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, ParamSpec, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError, create_model

from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.ids import Direction, check_name

from .context import Context
from .errors import AgentError
from .limits import CONCURRENCY_DEFAULT, CONCURRENCY_MAX

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
InputT = TypeVar("InputT")
OutputT = TypeVar("OutputT")

_ANY: Final[TypeAdapter[Any]] = TypeAdapter(Any)


class Undo(BaseModel, Generic[InputT, OutputT]):
    """What a compensation gets by default: the step's input, and its output as far as it is known.

    `output` is None when nobody knows whether the step took effect (its attempt timed out or its host was lost). The handler
    must then find out by the idempotency key, and succeed when there is nothing to undo.
    """

    input: InputT
    output: OutputT | None = None


@dataclass(frozen=True, slots=True)
class Happened(Generic[OutputT]):
    """Answers a question: the attempt took effect, and this is its output. It must fit what the agent's function returns."""

    output: OutputT


@dataclass(frozen=True, slots=True)
class DidNotHappen:
    """Answers a question: the attempt took no effect, and will take none.

    Whoever says so sees to it that an execution which is late, on whatever host, cannot take effect any more. A handler that is
    not sure raises `Retryable`, and is asked again.
    """


@dataclass(frozen=True, slots=True)
class Handler:
    """One function with what was found out about its parameters."""

    function: Callable[..., Any]
    is_async: bool
    context: str | None
    """The name of the parameter that gets the context."""
    whole: str | None
    """The name of the only other parameter."""
    fields: tuple[str, ...]
    """The names of the others, when there are several."""
    input: TypeAdapter[Any]
    output: TypeAdapter[Any]

    def arguments(self, value: Any, context: Context) -> dict[str, Any]:
        """The keyword arguments for an input. Raises pydantic's ValidationError."""
        found: dict[str, Any]
        if self.whole is not None:
            found = {self.whole: _validated(self.input, value)}
        elif self.fields:
            model = _validated(self.input, value)
            found = {name: getattr(model, name) for name in self.fields}
        else:
            found = {}
        if self.context is not None:
            found[self.context] = context
        return found


def _validated(adapter: TypeAdapter[Any], value: Any) -> Any:
    try:
        # The adapter's own method passes eight defaults on: as long again as the validation of a small model.
        return adapter.validator.validate_python(value)
    except ValidationError:
        # The value was JSON: a strict model takes a date or a tuple from JSON, but not from the str or list that it became.
        return adapter.validate_json(orjson.dumps(value))


class Agent(Generic[P, R]):
    """A declared agent. Calling it calls the function, as in a unit test of it."""

    def __init__(self, name: str, handler: Handler, function: Callable[P, R], concurrency: int) -> None:
        self.name = name
        self.concurrency = concurrency
        self._function = function
        self._main = handler
        self._undo: Handler | None = None
        self._reconcile: Handler | None = None
        self.__doc__ = function.__doc__
        self.__name__ = getattr(function, "__name__", name)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<agent {self.name!r}: {self._function.__module__}.{self.__name__}>"

    def compensation(self, function: F) -> F:
        """Declares how a step of this agent is undone. Its input is `Undo` unless the definition binds another."""
        if self._undo is not None:
            raise AgentError(f"agent {self.name!r}: has a compensation already; remove one of the two")
        self._undo = _handler(self.name, function, sys._getframe(1).f_locals)
        return function

    def reconcile(self, function: F) -> F:
        """Declares how the agent finds out whether an attempt happened. It gets what the attempt got, and `Context.about`.

        It returns `Happened(output)` or `DidNotHappen()`.
        """
        if self._reconcile is not None:
            raise AgentError(f"agent {self.name!r}: has a reconcile function already; remove one of the two")
        handler = _handler(self.name, function, sys._getframe(1).f_locals)
        # What the attempt would have answered, so it keeps the same contract.
        self._reconcile = replace(handler, output=self._main.output)
        return function

    def around(self, wrap: Callable[[Callable[..., Any], Direction], Callable[..., Any]]) -> AnyAgent:
        """A copy whose functions are what `wrap` makes of them: coroutine functions of the same keyword arguments. For tests."""

        def wrapped(handler: Handler, direction: Direction) -> Handler:
            return replace(handler, function=wrap(handler.function, direction), is_async=True)

        made: AnyAgent = Agent(self.name, wrapped(self._main, Direction.EXECUTE), self._function, self.concurrency)
        if self._undo is not None:
            made._undo = wrapped(self._undo, Direction.COMPENSATE)
        if self._reconcile is not None:
            made._reconcile = wrapped(self._reconcile, Direction.RECONCILE)
        return made

    @property
    def compensates(self) -> bool:
        """Whether it has a compensation of its own."""
        return self._undo is not None

    @property
    def reconciles(self) -> bool:
        """Whether it can say if an attempt happened."""
        return self._reconcile is not None

    def handler(self, direction: Direction) -> Handler:
        """Its own compensation if it has one, else the function: so that another agent can be named to undo a step."""
        if direction is Direction.RECONCILE:
            assert self._reconcile is not None, "asked for before"
            return self._reconcile
        if direction is Direction.COMPENSATE and self._undo is not None:
            return self._undo
        return self._main

    @property
    def input_schema(self) -> dict[str, Any]:
        """JSON Schema of the input."""
        return self._main.input.json_schema()

    @property
    def output_schema(self) -> dict[str, Any]:
        """JSON Schema of the output, for a step's `output_schema`."""
        return self._main.output.json_schema(mode="serialization")


AnyAgent = Agent[..., Any]


def agent(name: str, *, concurrency: int = CONCURRENCY_DEFAULT) -> Callable[[Callable[P, R]], Agent[P, R]]:
    """Declares a function as the agent `name`. `concurrency`: how many commands a host works on at once.

    Raises AgentError for a name, a limit or a signature that cannot be used.
    """
    try:
        check_name(name, "agent")
    except InvalidRecord as error:
        raise AgentError(str(error)) from None
    if type(concurrency) is not int or not 1 <= concurrency <= CONCURRENCY_MAX:
        raise AgentError(f"agent {name!r}: concurrency {concurrency!r} is not a number within 1 to {CONCURRENCY_MAX:,}")
    # Types that are local to the function which declares the agent are visible nowhere else.
    local_names = sys._getframe(1).f_locals

    def declare(function: Callable[P, R]) -> Agent[P, R]:
        return Agent(name, _handler(name, function, local_names), function, concurrency)

    return declare


def _handler(name: str, function: Callable[..., Any], local_names: Mapping[str, Any]) -> Handler:
    where = f"agent {name!r}, function {getattr(function, '__name__', function)!r}"
    if not inspect.isroutine(function):
        raise AgentError(f"{where}: is no function; decorate a function or a coroutine function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise AgentError(f"{where}: is a generator; return one value instead of yielding")
    hints = _hints(where, function, local_names)
    context: str | None = None
    inputs: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise AgentError(f"{where}: parameter {parameter} cannot be filled from an input; use a named one")
        if hints.get(parameter.name) is Context:
            if context is not None:
                raise AgentError(f"{where}: has two parameters annotated Context; remove one")
            context = parameter.name
        else:
            inputs[parameter.name] = parameter
    whole = next(iter(inputs)) if len(inputs) == 1 else None
    try:
        if whole is not None:
            adapter = _adapter(hints.get(whole, Any))
        elif inputs:
            adapter = TypeAdapter(_fields_model(name, inputs, hints))
        else:
            adapter = _ANY
        output = _adapter(hints.get("return", Any))
    except (PydanticUserError, TypeError, NameError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise AgentError(f"{where}: an annotation is no type that pydantic can validate ({reason})") from error
    return Handler(
        function,
        inspect.iscoroutinefunction(function),
        context,
        whole,
        tuple(inputs) if whole is None else (),
        adapter,
        output,
    )


def _hints(where: str, function: Callable[..., Any], local_names: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=dict(local_names), include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise AgentError(f"{where}: an annotation cannot be read ({error}); import the type at run time") from error


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return _ANY if annotation is Any else TypeAdapter(annotation)


def _fields_model(name: str, parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]) -> type[BaseModel]:
    fields: dict[str, Any] = {
        parameter.name: (
            hints.get(parameter.name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in parameters.values()
    }
    config = ConfigDict(arbitrary_types_allowed=False, protected_namespaces=())
    model: type[BaseModel] = create_model(f"{name}_input", __config__=config, **fields)
    return model
