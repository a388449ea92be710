"""Connections between clients and the simulated broker: latency, order, and what gets lost.

Rules:
- Like the real broker, one request of a connection is worked on at a time, the others wait their turn: a commit that is sent
  while a join waits for its group is looked at after the join.
- What the broker does runs in the broker's context, what the client does in the client's, so that a harness can kill or freeze
  a client by dropping or holding back its callbacks, and the broker notices only what a real broker would.
- A future is only ever given a result; an error is the result, and `answered` raises it. Nobody is told of an error that a dead
  client never fetched.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Final

from aiokafka import errors as kafka_errors

from .faults import Faults, Request

TICK_S: Final = 1e-6
"""Two requests of one connection never arrive at the same instant, so that no event loop can swap them."""

Reply = Callable[[Any], None]
Handler = Callable[..., None]
"""Takes a `Reply`, which it calls now or later, with a result or an error, and the request's arguments."""


class Network:
    """The way to one broker. `request_timeout_ms` is when a client gives a silent request up."""

    def __init__(
        self, rng: random.Random, faults: Faults, latency_ms: tuple[int, int], request_timeout_ms: int
    ) -> None:
        self.random = rng
        self.faults = faults
        self.request_timeout_s = request_timeout_ms / 1000
        self._latency_ms = latency_ms
        self._context: Context = copy_context()
        self._down_until_s = 0.0
        self._outstanding: dict[Call, None] = {}
        """What the broker works on or holds back, in the order of its arrival."""

    # --- for the broker

    def later(self, delay_s: float, work: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        """Something that the broker does, in its own context."""
        return asyncio.get_running_loop().call_later(delay_s, work, *args, context=self._context)

    def delay_s(self) -> float:
        low, high = self._latency_ms
        return (low + (high - low) * self.random.random()) / 1000

    def happens(self, probability: float | None) -> bool:
        return probability is not None and probability > 0 and self.random.random() < probability

    # --- outages

    @property
    def down(self) -> bool:
        return self._down_until_s > 0 and asyncio.get_running_loop().time() < self._down_until_s

    def cut(self, duration_ms: int) -> None:
        """No client reaches the broker for a while; connections break, answers that are due are lost."""
        until_s = asyncio.get_running_loop().time() + duration_ms / 1000
        self._down_until_s = max(self._down_until_s, until_s)
        for call in list(self._outstanding):
            call.fail(kafka_errors.KafkaConnectionError("the connection broke"))


class Call:
    """One request on its way. It is the `Reply` of its handler."""

    __slots__ = ("args", "connection", "done", "future", "handle", "kind")

    def __init__(
        self, connection: Connection, kind: Request, handle: Handler, args: tuple[Any, ...], future: asyncio.Future[Any]
    ) -> None:
        self.connection = connection
        self.kind = kind
        self.handle = handle
        self.args = args
        self.future = future
        self.done = False

    def arrive(self) -> None:
        network = self.connection.network
        network._outstanding[self] = None
        if network.down:
            self.fail(kafka_errors.KafkaConnectionError("no broker answers"))
            return
        self.connection._queue(self)

    def work(self) -> None:
        network = self.connection.network
        if self.done:
            return
        faults = network.faults
        if faults.lost and network.happens(faults.lost.get(self.kind)):
            self._lose()
        elif faults.refused and network.happens(faults.refused.get(self.kind)):
            self._finish(kafka_errors.UnknownError(), 0.0)
        else:
            self.handle(self, *self.args)

    def __call__(self, result: Any) -> None:
        """The handler's answer."""
        if self.done:
            return
        network = self.connection.network
        faults = network.faults
        delay_s = 0.0
        if faults.slow and network.happens(faults.slow.get(self.kind)):
            delay_s = network.random.uniform(*faults.slow_ms) / 1000
        if faults.answer_lost and network.happens(faults.answer_lost.get(self.kind)):
            self._lose()
        elif faults.unknown and not isinstance(result, Exception) and network.happens(faults.unknown.get(self.kind)):
            self._finish(kafka_errors.UnknownError(), delay_s)
        else:
            self._finish(result, delay_s)

    def _lose(self) -> None:
        network = self.connection.network
        if network.happens(network.faults.noticed_late):
            self._finish(kafka_errors.RequestTimedOutError(), network.request_timeout_s)
        else:
            self.fail(kafka_errors.KafkaConnectionError("the connection broke"))

    def fail(self, error: Exception) -> None:
        self._finish(error, 0.0)

    def _finish(self, result: Any, delay_s: float) -> None:
        if self.done:
            return
        self.done = True
        connection = self.connection
        network = connection.network
        network._outstanding.pop(self, None)
        network.later(delay_s + network.delay_s(), self._deliver, result)
        connection._next(self)

    def _deliver(self, result: Any) -> None:
        if not self.future.done():
            lost = self.connection.network.down and not isinstance(result, Exception)
            self.future.set_result(kafka_errors.KafkaConnectionError("the connection broke") if lost else result)


class Connection:
    """One connection of one client."""

    __slots__ = ("_last_s", "_waiting", "_working", "network")

    def __init__(self, network: Network) -> None:
        self.network = network
        self._last_s = 0.0
        self._waiting: deque[Call] = deque()
        self._working: Call | None = None

    def call(self, kind: Request, handle: Handler, *args: Any) -> asyncio.Future[Any]:
        """Sends a request; the future's result is the answer or an error, see `answered`."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        network = self.network
        when_s = max(loop.time() + network.delay_s(), self._last_s + TICK_S)
        self._last_s = when_s
        call = Call(self, kind, handle, args, future)
        loop.call_at(when_s, call.arrive, context=network._context)
        return future

    def _queue(self, call: Call) -> None:
        if self._working is None and not self._waiting:
            self._work(call)
        else:
            self._waiting.append(call)

    def _work(self, call: Call) -> None:
        self._working = call
        call.work()

    def _next(self, done: Call) -> None:
        if self._working is done:
            self._working = None
            if self._waiting:
                # Not at once: this call may be answered from the midst of what the broker does for another.
                self.network.later(0, self._work_next)
        elif done in self._waiting:
            self._waiting.remove(done)

    def _work_next(self) -> None:
        if self._working is None and self._waiting:
            self._work(self._waiting.popleft())


async def answered(future: asyncio.Future[Any]) -> Any:
    """The answer. Raises what the broker or the way to it answered with instead."""
    result = await future
    if isinstance(result, Exception):
        raise result
    return result
