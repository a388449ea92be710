"""Runs agents: one consumer-group member per agent, one producer for all.

    host = AgentHost([post, notify], log, topics, clock=SystemClock(), rng=SystemRng())
    await host.run(stop)                # until the event is set
    async with host: ...                # or for as long as the block lasts

What a handler does in the world is at-least-once. The host sees to it that a command which comes again is not run again
as long as it can know (it remembers the newest answers, and what its commits say); after a crash it cannot. Handlers
de-duplicate by `Context.idempotency_key`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from sagalog.infra.clock import Clock, Rng
from sagalog.topics import specs
from sagalog.topics.log import Log, TopicDescription
from sagalog.topics.provision import provision_beside
from sagalog.topics.specs import Topics

from . import limits
from .agent import AnyAgent
from .errors import AgentError
from .publisher import Publisher
from .worker import Worker

logger = logging.getLogger(__name__)


class AgentHost:
    """Hosts the agents until it is told to stop.

    `grace_ms` is how long running handlers may go on after that; then they are cancelled and their commands come again.
    `deliveries_max` is how often a command is delivered without an answer before it is answered as failed for good.
    `events_wait_ms` is how long the host waits for the engine's topics to be made. The log stays the caller's to close.
    """

    def __init__(
        self,
        agents: Iterable[AnyAgent],
        log: Log,
        topics: Topics,
        *,
        clock: Clock,
        rng: Rng,
        grace_ms: int = limits.GRACE_DEFAULT_MS,
        deliveries_max: int = limits.DELIVERIES_MAX_DEFAULT,
        events_wait_ms: int = limits.EVENTS_WAIT_MS,
    ) -> None:
        self.agents = tuple(agents)
        names = [agent.name for agent in self.agents]
        if not names:
            raise AgentError("a host needs at least one agent")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise AgentError(f"agent {twice!r} is given twice; a host runs one function per name")
        if deliveries_max < 1:
            raise AgentError(f"deliveries_max: {deliveries_max} is less than 1")
        self._log = log
        self._topics = topics
        self._clock = clock
        self._rng = rng
        self._grace_ms = grace_ms
        self._deliveries_max = deliveries_max
        self._events_wait_ms = events_wait_ms
        self._ready = asyncio.Event()
        self._stop: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> asyncio.Event:
        """Set once every agent has been given its partitions for the first time."""
        return self._ready

    def unready(self) -> str | None:
        """Why it does not do all of its work yet; None when it does. From any thread."""
        return None if self._ready.is_set() else "not every agent has been given its partitions yet"

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then shuts down in good order.

        Raises AgentError when the engine's topics do not appear, TopicMismatch when topics do not fit, LogUnavailable when no
        broker answers at the start. What fails later is tried again, with bounded back-off, for as long as it takes.
        """
        await self._provision()
        publisher = Publisher(self._log, f"{self._topics.prefix}-agents-{self._rng.hex(8)}", self._rng)
        await publisher.start()
        try:
            workers = [
                Worker(
                    agent,
                    self._log,
                    self._topics,
                    publisher,
                    clock=self._clock,
                    rng=self._rng,
                    deliveries_max=self._deliveries_max,
                    grace_ms=self._grace_ms,
                )
                for agent in self.agents
            ]
            async with asyncio.TaskGroup() as group:
                mending = group.create_task(publisher.mend(), name="agents-publisher")
                announced = group.create_task(self._announce(workers))
                async with asyncio.TaskGroup() as working:
                    for worker in workers:
                        working.create_task(worker.run(stop), name=f"agent-{worker.agent.name}")
                announced.cancel()
                mending.cancel()
        except BaseExceptionGroup as errors:
            # A group of one says no more than its member, which callers can catch by its class.
            raise _only(errors) from errors
        finally:
            await publisher.close()

    async def __aenter__(self) -> Self:
        """Returns once every agent has been given its partitions."""
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self.run(self._stop), name="agent-host")
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait([ready, self._task], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            raise
        finally:
            ready.cancel()
        if self._task.done():
            await self._task
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stop is not None and self._task is not None
        self._stop.set()
        await self._task

    async def _announce(self, workers: list[Worker]) -> None:
        for worker in workers:
            await worker.joined.wait()
        self._ready.set()
        logger.info("agents %s are at work", ", ".join(agent.name for agent in self.agents))

    async def _provision(self) -> None:
        """Makes the command topics, with as many partitions as `events` has: commands and results lie side by side."""
        events = await self._events()
        wanted = [specs.HEARTBEATS, specs.QUARANTINE, *(specs.commands(agent.name) for agent in self.agents)]
        await provision_beside(self._log, self._topics, wanted, events)

    async def _events(self) -> TopicDescription:
        waited_ms = 0
        while True:
            found = (await self._log.describe([self._topics.events])).get(self._topics.events)
            if found is not None:
                return found
            if waited_ms >= self._events_wait_ms:
                raise AgentError(
                    f"topic {self._topics.events} does not exist after {self._events_wait_ms} ms: "
                    "start the engine, which makes it, or correct SAGALOG_PREFIX"
                )
            if waited_ms == 0:
                logger.info("waiting for topic %s, which the engine makes", self._topics.events)
            await asyncio.sleep(limits.EVENTS_WAIT_STEP_MS / 1000)
            waited_ms += limits.EVENTS_WAIT_STEP_MS


def _only(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
