"""PostgreSQL as a simulated process reaches it: the product's own adapter, on a connection that blocks and that can be lost.

What is real: the adapter (`engine/projection/postgres.py`), its client, every statement, the server, its locks and its
transactions. What is simulated: the way there. An exchange with the server (a statement, a commit, a piece of a COPY) takes
simulated time before it is made, and none while it is made; around it the connection can be lost, be slow or be silent.

Rules:
- At most one statement runs at a time, to its end. One that has to wait for another transaction is taken back, and made again when
  a transaction has ended: a server that waits while the simulation waits for the server would wait for ever.
- A session that is ended is waited for until it has rolled back, so that nothing happens in real time beside the simulation.
- Limits of the server that count time (idle in a transaction, deadlocks, statements) are kept here, in simulated time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import psycopg
from psycopg import pq, waiting
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo

from sagalog.engine.projection.postgres import (
    IDLE_TRANSACTION_MS_MAX,
    NETWORK_SILENCE_MS_MAX,
    STATEMENT_MS_MAX,
    PostgresSql,
)
from sagalog.engine.projection.sql import Row
from sagalog.infra.simulation import SimulationLoop, current_process

from .postgres import Database

T = TypeVar("T")

EXCHANGE_MS: Final = (2.0, 8.0)
REAL_WAIT_MS: Final = 2
"""For a lock whose owner cannot go on meanwhile: whatever is chosen, it is waited for in vain."""
DEADLOCK_S: Final = 1.0
"""PostgreSQL's `deadlock_timeout`."""
REAL_LOOK_S: Final = 0.1
CONFLICT: Final = "DO $$ BEGIN RAISE 'deadlock detected' USING ERRCODE = '40P01'; END $$"
LOST: Final = "server closed the connection unexpectedly"


@dataclass(slots=True)
class SqlFaults:
    """Probabilities from 0 to 1, per exchange unless said otherwise. Times are (from, to)."""

    refused: float = 0.0
    """Per connection: it does not come about."""
    lost: float = 0.0
    """The connection is lost before the server heard of it."""
    answer_lost: float = 0.0
    """The connection is lost after it took effect."""
    commit_lost: float = 0.0
    """As `lost`, per commit."""
    commit_answer_lost: float = 0.0
    """As `answer_lost`, per commit: all of it is in the database, and the client does not know."""
    left_open: float = 0.0
    """Of the connections that are lost, the share that the server does not miss: its transaction keeps its locks."""
    conflict: float = 0.0
    """Per statement: the server gives this transaction up for another one."""
    slow: float = 0.0
    slow_ms: tuple[int, int] = (50, 2_000)

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        self.refused = self.lost = self.answer_lost = self.commit_lost = self.commit_answer_lost = 0.0
        self.left_open = self.conflict = self.slow = 0.0


class Network:
    """Between the processes of one run and their database."""

    def __init__(self, database: Database, prefix: str, loop: SimulationLoop, rng: random.Random) -> None:
        self.database = database
        self.faults = SqlFaults()
        self._prefix = prefix
        self._loop = loop
        self._rng = rng
        self._down_until_s = 0.0
        self._silent_until_s = 0.0
        self._links: list[Link] = []
        """With a session in the server, oldest first; their clients may have lost them."""
        self._waiting: list[asyncio.Future[None]] = []
        """For the end of a transaction."""

    def sql(self) -> PostgresSql:
        """The database as the process has it that calls."""

        async def connect(conninfo: str, **options: Any) -> psycopg.AsyncConnection[Row]:
            return await Link.open(self, conninfo, **options)

        return PostgresSql(self.database.url, prefix=self._prefix, connect=connect)

    # --- what is done to it

    def shut(self, for_ms: float) -> None:
        """The server is away: every session ends, and none begins."""
        self._down_until_s = max(self._down_until_s, self._loop.time() + for_ms / 1000)
        for link in list(self._links):
            self.end(link)

    def silence(self, for_ms: float) -> None:
        """Nothing gets through, and neither side is told; the server keeps what it holds."""
        self._silent_until_s = max(self._silent_until_s, self._loop.time() + for_ms / 1000)

    def lose_rows(self, for_ms: float) -> None:
        """The server is away, and comes back with empty tables."""
        self.shut(for_ms)
        self.database.lose_rows()

    def died(self, process: str) -> None:
        """A process is gone, and its operating system has closed what it had open."""
        for link in [link for link in self._links if link.process == process and not link.lost]:
            self.end(link)

    def calm(self) -> None:
        self.faults.calm()
        self._down_until_s = self._silent_until_s = 0.0

    def close(self) -> None:
        for link in list(self._links):
            self.end(link)

    # --- for links

    def happens(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability

    async def reach(self) -> None:
        """The way to the server, as far as the network is concerned. Raises OperationalError after too long a silence."""
        await asyncio.sleep(self._rng.uniform(*EXCHANGE_MS) / 1000)
        if self.happens(self.faults.slow):
            await asyncio.sleep(self._rng.uniform(*self.faults.slow_ms) / 1000)
        if self._silent_until_s > self._loop.time():
            left_s = self._silent_until_s - self._loop.time()
            await asyncio.sleep(min(left_s, NETWORK_SILENCE_MS_MAX / 1000))
            if left_s > NETWORK_SILENCE_MS_MAX / 1000:
                raise psycopg.OperationalError("could not receive data from server: Connection timed out")

    async def connected(self) -> None:
        """The way of a connection that is to be made. Raises OperationalError."""
        await self.reach()
        if self._down_until_s > self._loop.time() or self.happens(self.faults.refused):
            raise psycopg.OperationalError("connection failed: Connection refused")

    def opened(self, link: Link) -> None:
        self._links.append(link)
        link.active_s = self._loop.time()

    async def before(self, link: Link) -> None:
        """What comes before an exchange. Raises OperationalError when the connection is, or gets, lost."""
        try:
            await self.reach()
        except psycopg.OperationalError:
            link.lost = True
            raise
        self._end_idle()
        if link.lost:
            raise psycopg.OperationalError(LOST)
        if self.happens(self.faults.commit_lost if link.committing else self.faults.lost):
            self._lose(link)

    async def after(self, link: Link) -> None:
        link.active_s = self._loop.time()
        if self.happens(self.faults.commit_answer_lost if link.committing else self.faults.answer_lost):
            self._lose(link)

    def _lose(self, link: Link) -> None:
        if self.happens(self.faults.left_open):
            link.lost = True
        else:
            self.end(link)
        raise psycopg.OperationalError(LOST)

    def end(self, link: Link) -> None:
        """The session ends; a transaction is rolled back."""
        link.lost = True
        if link in self._links:
            self._links.remove(link)
            in_transaction, pid = link.in_transaction, link.pgconn.backend_pid
            copying = link.pgconn.transaction_status == pq.TransactionStatus.ACTIVE
            if in_transaction and not copying:
                # As the server does by itself when a client is gone, but it is done when this returns.
                link.pgconn.exec_(b"ROLLBACK")
            link.pgconn.finish()
            if copying:
                self.database.end_session(pid)
            if in_transaction:
                self.transaction_ended()

    def transaction_ended(self) -> None:
        waiting_, self._waiting = self._waiting, []
        for future in waiting_:
            if not future.done():
                future.set_result(None)

    def others(self, link: Link) -> list[Link]:
        """Who else is in a transaction."""
        return [other for other in self._links if other is not link and other.in_transaction]

    async def turn(self, link: Link, since_s: float) -> None:
        """Waits for the end of a transaction, for a while. Raises what the server does when that can never come, or not in time."""
        waited_s = self._loop.time() - since_s
        if waited_s >= DEADLOCK_S and all(other.waits for other in self.others(link)):
            raise psycopg.errors.DeadlockDetected("deadlock detected")
        if waited_s >= STATEMENT_MS_MAX / 1000:
            raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append(future)
        link.waits = True
        try:
            await asyncio.wait((future,), timeout=DEADLOCK_S)
        finally:
            link.waits = False
            link.active_s = self._loop.time()
        self._end_idle()
        if link.lost:
            raise psycopg.OperationalError(LOST)

    def _end_idle(self) -> None:
        """Ends the sessions that have been idle in a transaction for too long."""
        limit_s = self._loop.time() - IDLE_TRANSACTION_MS_MAX / 1000
        for link in [
            link for link in self._links if link.active_s < limit_s and not link.waits and link.in_transaction
        ]:
            self.end(link)


class Link(psycopg.AsyncConnection[Row]):
    """A connection: psycopg's own, but for how it waits for the server. Make it with `open`."""

    network: Network
    process: str
    lost = False
    """For its client; the server may not know yet."""
    committing = False
    waits = False
    """For a lock."""
    active_s = 0.0
    _arrived = False

    @classmethod
    async def open(
        cls, network: Network, conninfo: str, *, autocommit: bool, row_factory: Callable[..., Any], **options: Any
    ) -> Self:
        await network.connected()
        pgconn = pq.PGconn.connect(make_conninfo(conninfo, **options).encode())
        if pgconn.status != pq.ConnStatus.OK:
            raise psycopg.OperationalError(pgconn.get_error_message())
        pgconn.nonblocking = 1
        link = cls(pgconn, row_factory)  # type: ignore[arg-type]
        process = current_process()
        link.network, link.process = network, process.name if process is not None else ""
        link.cursor_factory = LinkCursor
        network.opened(link)
        await link.set_autocommit(autocommit)
        return link

    @property
    def closed(self) -> bool:
        return self.lost or super().closed

    @property
    def in_transaction(self) -> bool:
        return self.pgconn.transaction_status not in (pq.TransactionStatus.IDLE, pq.TransactionStatus.UNKNOWN)

    async def wait(self, gen: PQGen[T], interval: float = REAL_LOOK_S, timeout: float | None = None) -> T:
        """One exchange with the server: the only place where this connection waits for anything."""
        if not self._arrived:
            await self.network.before(self)
        was = self.in_transaction
        try:
            found: T = waiting.wait(gen, self.pgconn.socket, interval)
        finally:
            if was and not self.in_transaction:
                self.network.transaction_ended()
        if not self._arrived:
            await self.network.after(self)
        return found

    @contextmanager
    def arrived(self) -> Iterator[None]:
        """What is exchanged within has been on its way already: no simulated time passes."""
        self._arrived = True
        try:
            yield
        finally:
            self._arrived = False

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        try:
            async with super().transaction(savepoint_name, force_rollback) as found:
                yield found
                self.committing = True
        finally:
            self.committing = False

    async def close(self) -> None:
        if not self.lost:
            self.network.end(self)


class LinkCursor(psycopg.AsyncCursor[Row]):
    """A cursor whose statements never wait for a lock in the server."""

    async def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        link = self.connection
        assert isinstance(link, Link)
        network = link.network
        since_s = asyncio.get_running_loop().time()
        await network.before(link)
        if link.in_transaction and network.happens(network.faults.conflict):
            with link.arrived():
                await super().execute(CONFLICT, prepare=False)
        # No await between the look at the others and the statement: what is decided here must still be so there.
        # What the transaction is to be waits for nobody, and is said before anything else.
        settles = str(query).startswith("SET TRANSACTION")
        while link.in_transaction and not settles and network.others(link):
            link.pgconn.exec_(b"SAVEPOINT turn; SET LOCAL lock_timeout = %d" % REAL_WAIT_MS)
            try:
                with link.arrived():
                    await super().execute(query, params, **options)
            except psycopg.errors.LockNotAvailable:
                link.pgconn.exec_(b"ROLLBACK TO turn")
                await network.turn(link, since_s)
            else:
                break
        else:
            with link.arrived():
                await super().execute(query, params, **options)
        await network.after(link)
        return self
