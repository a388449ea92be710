"""An event loop without I/O: time is a number that jumps to the next timer when nothing is left to do.

Rules:
- Everything is a function of the seed. What asyncio keeps in sets (tasks, futures) is hashed by a serial number, not by its
  address; names count per loop. The caller pins PYTHONHASHSEED and keeps the garbage collector away.
- Timers of the same time run in the order in which they were set.
- A callback belongs to the process in whose context it was scheduled. Within a process the order is asyncio's; which process
  comes first in a round is chance, when a `random.Random` is given.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import logging
import random
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from .process import Process, ProcessState, _current

STEPS_MAX: Final = 20_000_000
TIME_MAX_S: Final = 30 * 24 * 3600.0
CANCELLED_TIMERS_MIN: Final = 100
TASKS_LISTED_MAX: Final = 50


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set, but the simulation is not over."""


class StepsExceeded(RuntimeError):
    """More callbacks than allowed: something spins."""


class TimeExceeded(RuntimeError):
    """More simulated time than allowed."""


class SimulatedTask(asyncio.Task[Any]):
    """A task with a hash that does not depend on where it lies in memory."""

    def __init__(self, serial: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self.serial = serial  # first: asyncio keeps a set of all tasks
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.serial


class SimulatedFuture(asyncio.Future[Any]):
    """A future with a hash that does not depend on where it lies in memory."""

    def __init__(self, serial: int, process: Process | None, loop: asyncio.AbstractEventLoop) -> None:
        self.serial = serial
        self.process = process
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.serial


class SimulationLoop(asyncio.BaseEventLoop):
    """`rng` shuffles the processes within each round; without one they run in the order in which they were scheduled."""

    def __init__(
        self, rng: random.Random | None = None, *, steps_max: int = STEPS_MAX, time_max_s: float = TIME_MAX_S
    ) -> None:
        super().__init__()
        self.steps = 0
        self.steps_max = steps_max
        self.time_max_s = time_max_s
        self.processes: list[Process] = []
        self.failures: list[str] = []
        """What asyncio's exception handler was told of living processes: exceptions that nobody looked at."""
        self._rng = rng
        self._now_s = 0.0
        self._serial = itertools.count(1)
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_cancelled_count = 0
        self.set_exception_handler(_note_failure)

    # --- processes

    def process(self, name: str) -> Process:
        """A new process."""
        process = Process(self, name)
        self.processes.append(process)
        return process

    def put_back(self, handles: Iterable[asyncio.Handle]) -> None:
        """Makes callbacks ready again that were kept while their process was frozen."""
        self._ready.extend(handles)

    # --- what asyncio asks of a loop

    def time(self) -> float:
        """Simulated seconds since the start."""
        return self._now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        heapq.heappush(self._timers, (when, next(self._serial), timer))
        return timer

    def create_future(self) -> SimulatedFuture:
        return SimulatedFuture(next(self._serial), _current.get(), self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[Any]:
        self._check_closed()  # type: ignore[attr-defined]
        serial = next(self._serial)
        task = SimulatedTask(serial, coro, loop=self, name=name or f"task-{serial}", context=context, **options)
        process = _current.get() if context is None else context.get(_current)
        if process is not None:
            process.adopt(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Runs the function here and now: threads have no place in a simulation."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as an executor does: it reaches whoever awaits
            future.set_exception(error)
        return future

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    def close(self) -> None:
        """Ends everything: every process is killed and its memory released."""
        for process in self.processes:
            process.kill()
        self._ready.clear()
        self._timers.clear()
        super().close()
        logging.disable(logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for process in self.processes:
                    process.bury()
        finally:
            logging.disable(logging.NOTSET)
        self.processes.clear()

    # --- the round

    def _run_once(self) -> None:
        ready = self._ready
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            self._advance()
        else:
            self._take_due()
        if self._rng is not None and len(ready) > 1:
            self._shuffle(self._rng)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(_current)  # type: ignore[attr-defined]
            if process is not None:
                if process.state is not ProcessState.RUNNING:
                    process.defer(handle)
                    continue
                process.steps += 1
                if process.fuse is not None:
                    process.fuse -= 1
                    if process.fuse < 0:
                        process.kill()
                        continue
            self.steps += 1
            handle._run()
        if self.steps > self.steps_max:
            raise StepsExceeded(f"{self.steps:,} callbacks by {self._now_s:.3f} s; alive:\n{self._listed()}")

    def _advance(self) -> None:
        """Time passes: to the next timer."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(timers)
        if not timers:
            raise Deadlock(f"nothing can happen any more at {self._now_s:.3f} s; waiting:\n{self._listed()}")
        self._now_s = max(self._now_s, timers[0][0])
        if self._now_s > self.time_max_s:
            raise TimeExceeded(f"{self._now_s:.3f} s have passed; alive:\n{self._listed()}")
        self._take_due()

    def _take_due(self) -> None:
        if self._timer_cancelled_count > CANCELLED_TIMERS_MIN and 2 * self._timer_cancelled_count > len(self._timers):
            self._timers = [entry for entry in self._timers if not entry[2]._cancelled]
            heapq.heapify(self._timers)
            self._timer_cancelled_count = 0
        timers = self._timers
        while timers and timers[0][0] <= self._now_s:
            _, _, timer = heapq.heappop(timers)
            timer._scheduled = False  # type: ignore[attr-defined]
            if timer._cancelled:
                self._timer_cancelled_count -= 1
            else:
                self._ready.append(timer)

    def _shuffle(self, rng: random.Random) -> None:
        """Puts the ready callbacks of one process before those of another by chance; within a process nothing changes."""
        groups: dict[Process | None, list[asyncio.Handle]] = {}
        for handle in self._ready:
            groups.setdefault(handle._context.get(_current), []).append(handle)  # type: ignore[attr-defined]
        if len(groups) > 1:
            order = list(groups.values())
            rng.shuffle(order)
            self._ready.clear()
            for handles in order:
                self._ready.extend(handles)

    def _listed(self) -> str:
        """The tasks that wait, by process."""
        lines = [
            f"  {process.name} ({process.state.value}): {task.get_name()} {_place(task)}"
            for process in self.processes
            if not process.dead
            for task in process.pending()
        ]
        more = len(lines) - TASKS_LISTED_MAX
        return "\n".join(lines[:TASKS_LISTED_MAX] + ([f"  and {more} more"] if more > 0 else [])) or "  no task"


def _place(task: asyncio.Task[Any]) -> str:
    frames = task.get_stack(limit=1)
    if not frames:
        return ""
    frame = frames[-1]
    return f"at {frame.f_code.co_qualname} ({frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno})"


def _note_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, SimulationLoop)
    error = context.get("exception")
    process = getattr(context.get("future"), "process", None) or _current.get()
    if process is not None and process.dead:
        return
    said = f"{type(error).__name__}: {error}" if error is not None else ""
    loop.failures.append(f"{context['message']} {said}".strip())
