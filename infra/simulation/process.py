"""A process of the simulation: everything that was created in its context, which can be killed, frozen and thawed as one.

Rule: a killed process runs nothing any more, no `finally` either. Its coroutines are kept until the loop is closed, because
Python would run their `finally` blocks when it collects them.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from .loop import SimulationLoop

T = TypeVar("T")

_current: Final[contextvars.ContextVar[Process | None]] = contextvars.ContextVar("simulated_process", default=None)

PRUNE_TASKS_MIN: Final = 64
BURY_TRIES_MAX: Final = 50
"""How often a coroutine of a dead process may await in its `finally` blocks before it is left to the collector."""


class ProcessState(Enum):
    RUNNING = "running"
    FROZEN = "frozen"
    DEAD = "dead"


def current_process() -> Process | None:
    """The process whose code runs now; None for the simulation itself."""
    return _current.get()


class Process:
    """Make it with `loop.process(name)`."""

    def __init__(self, loop: SimulationLoop, name: str) -> None:
        self.name = name
        self.state = ProcessState.RUNNING
        self.steps = 0
        """Callbacks run so far."""
        self.fuse: int | None = None
        """Killed after so many more steps."""
        self.on_death: list[Callable[[], None]] = []
        self._loop = loop
        self._context = contextvars.copy_context()
        self._context.run(_current.set, self)
        self._backlog: deque[asyncio.Handle] = deque()
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = PRUNE_TASKS_MIN

    def __repr__(self) -> str:
        return f"<process {self.name} {self.state.value}>"

    @property
    def dead(self) -> bool:
        return self.state is ProcessState.DEAD

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str | None = None) -> asyncio.Task[Any]:
        """Starts a task of this process."""
        assert not self.dead, f"{self} cannot start anything"
        return self._loop.create_task(coro, name=name, context=self._context.copy())

    def run(self, function: Callable[[], T]) -> T:
        """Calls a function as this process."""
        return self._context.copy().run(function)

    def kill(self) -> None:
        """SIGKILL: nothing of it runs from here on. Code that kills its own process goes on to its next `await`; see `die`."""
        if self.dead:
            return
        self.state = ProcessState.DEAD
        self.fuse = None
        self._backlog.clear()
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        for told in self.on_death:
            told()

    async def die(self) -> None:
        """`kill` from within: does not return."""
        self.kill()
        await self._loop.create_future()

    def kill_after(self, steps: int) -> None:
        """Kills it when it has run so many more callbacks: between any two awaits, at a point that time cannot name."""
        self.fuse = steps

    def freeze(self) -> None:
        """SIGSTOP: what becomes due waits."""
        if self.state is ProcessState.RUNNING:
            self.state = ProcessState.FROZEN

    def thaw(self) -> None:
        """SIGCONT: all that became due meanwhile runs now, in its order."""
        if self.state is ProcessState.FROZEN:
            self.state = ProcessState.RUNNING
            self._loop.put_back(self._backlog)
            self._backlog = deque()

    # --- for the loop

    def defer(self, handle: asyncio.Handle) -> None:
        """Keeps a callback that came while the process is frozen; one of a dead process is dropped."""
        if self.state is ProcessState.FROZEN:
            self._backlog.append(handle)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        self._tasks.append(task)
        if self.dead:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        if len(self._tasks) > self._prune_at:
            self._tasks = [found for found in self._tasks if not found.done()]
            self._prune_at = max(PRUNE_TASKS_MIN, 2 * len(self._tasks))

    def pending(self) -> list[asyncio.Task[Any]]:
        return [task for task in self._tasks if not task.done()]

    def bury(self) -> None:
        """Ends its coroutines after the loop was closed, so that their memory is free; what their `finally` does reaches nobody."""
        for task in self._tasks:
            coro = task.get_coro()
            if task.done() or coro is None:
                continue
            for _ in range(BURY_TRIES_MAX):
                with contextlib.suppress(BaseException):
                    coro.close()
                    break
        self._tasks.clear()
        self.on_death.clear()
