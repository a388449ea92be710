"""What the steps of the typed builder may say, and what may stand in for an agent that failed for good.

Rule: the names are those of `Step`, `Map`, `Repeat` and `Compensation`; a test compares them.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Required, TypedDict, TypeVar, overload

from sagalog.schemas.definitions import Budget, Compensation, Fallback, FallbackOn, Retry, Usage, WhenFailed, WhenOpen

from .agent import Agent, AnyAgent
from .context import Context
from .refs import Given, constant

if TYPE_CHECKING:
    from types import CoroutineType

    from .saga import StepOf

P = ParamSpec("P")
T = TypeVar("T")
Out = TypeVar("Out")
Gives = TypeVar("Gives")
TakesT = TypeVar("TakesT", contravariant=True)
GivesT = TypeVar("GivesT", covariant=True)

NO_USAGE: Final = Usage()

if TYPE_CHECKING:
    # The type of a coroutine function is Coroutine to mypy and CoroutineType to pyright; the latter takes no arguments at run time
    # in the older Pythons, so these aliases are for type checkers only.
    Async = (
        Agent[[T], Coroutine[Any, Any, Out]]
        | Agent[[T, Context], Coroutine[Any, Any, Out]]
        | Agent[[Context, T], Coroutine[Any, Any, Out]]
        | Agent[[T], CoroutineType[Any, Any, Out]]
        | Agent[[T, Context], CoroutineType[Any, Any, Out]]
        | Agent[[Context, T], CoroutineType[Any, Any, Out]]
    )
    """A coroutine function of one input."""
    AsyncOf = Agent[P, Coroutine[Any, Any, Out]] | Agent[P, CoroutineType[Any, Any, Out]]
    """A coroutine function."""
    Plain = Agent[[T], Out] | Agent[[T, Context], Out] | Agent[[Context, T], Out]
    """An ordinary function of one input."""


class StandIn(Generic[TakesT, GivesT]):
    """What stands in for an agent that failed for good. Made by `fall_back` and `instead`."""

    def __init__(self, data: Fallback, agent: AnyAgent | None) -> None:
        self.data = data
        self.agent = agent


class StepPolicy(TypedDict, total=False):
    """What every step may say; see `Step`."""

    when: str
    """A condition (CEL). The steps that it names are needed."""
    needs: Sequence[StepOf[Any]]
    """Steps to wait for besides those whose outputs are taken."""
    irreversible: bool
    pivot: bool
    critical: bool
    when_failed: WhenFailed
    compensate: AnyAgent | Compensation | None
    """Who undoes it, with `Undo` of its input and output. Left out: the agent's own compensation, if it has one."""
    required: bool
    """It must not be degraded: the workflow stops and is undone instead."""


class AgentPolicy(StepPolicy, Generic[T, Out, Gives], total=False):
    """What a step that an agent does may say besides."""

    name: str
    """Left out: the name of the agent's function."""
    retry: Retry
    timeout_ms: int
    start_timeout_ms: int
    heartbeat_timeout_ms: int
    service: str
    limits: tuple[str, ...]
    when_open: WhenOpen
    fallback: StandIn[T, Out]
    fallbacks: Sequence[StandIn[T, Out]]
    default: Gives
    budget: Budget
    reserve: Usage


class MapPolicy(AgentPolicy[T, Out, list[Out]], Generic[T, Out], total=False):
    """See `Map`."""

    concurrency: int
    items_max: int
    tolerate: int
    tolerate_percent: float


class RepeatPolicy(AgentPolicy[T, Out, Out], Generic[T, Out], total=False):
    """See `Repeat`."""

    until: Required[str]
    rounds_max: Required[int]
    delay_ms: int


class CompensationPolicy(TypedDict, total=False):
    """See `Compensation`."""

    timeout_ms: int
    retry: Retry
    when_failed: WhenFailed


@overload
def fall_back(agent: Async[T, Out], *, on: Iterable[FallbackOn] = (), reserve: Usage = ...) -> StandIn[T, Out]: ...
@overload
def fall_back(agent: Plain[T, Out], *, on: Iterable[FallbackOn] = (), reserve: Usage = ...) -> StandIn[T, Out]: ...
@overload
def fall_back(
    agent: AsyncOf[P, Out], *, on: Iterable[FallbackOn] = (), reserve: Usage = ...
) -> StandIn[Given[P], Out]: ...
@overload
def fall_back(
    agent: Agent[P, Out], *, on: Iterable[FallbackOn] = (), reserve: Usage = ...
) -> StandIn[Given[P], Out]: ...
def fall_back(agent: Any, *, on: Iterable[FallbackOn] = (), reserve: Usage = NO_USAGE) -> StandIn[Any, Any]:
    """Another agent, for some kinds of failure or for all. It takes and gives what the step's own agent does."""
    return StandIn(Fallback(agent=agent.name, on=tuple(on), reserve=reserve), agent)


def instead(value: T, *, on: Iterable[FallbackOn] = ()) -> StandIn[object, T]:
    """A constant, for some kinds of failure or for all."""
    return StandIn(Fallback(value=constant(value, "instead"), on=tuple(on)), None)
