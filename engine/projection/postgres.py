"""The database port on a real PostgreSQL, by psycopg 3. Nothing else in the projection imports the client.

Rules:
- Nothing waits for ever: connecting, statements and silent networks have limits.
- A failed connection is not repaired: `open` makes a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import psycopg
from psycopg import sql as composing
from psycopg.rows import dict_row

from .migrations import migrate
from .sql import Params, Row, SqlConflict, SqlError, SqlRefused, SqlUnavailable, queries, schema_name

logger = logging.getLogger(__name__)

CONNECT_S_MAX: Final = 10
STATEMENT_MS_MAX: Final = 60_000
IDLE_TRANSACTION_MS_MAX: Final = 60_000
"""A projector that hangs in a transaction must not block the one that took over for longer."""
NETWORK_SILENCE_MS_MAX: Final = 15_000
CLOSE_S_MAX: Final = 5.0


class PostgresSql:
    """PostgreSQL by one connection. `conninfo` is a URL or a keyword string; the schema follows from `prefix`.

    `connect` makes the connection, as the client's own does; the simulation has another one.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        prefix: str,
        schema: str | None = None,
        connect: Callable[..., Awaitable[psycopg.AsyncConnection[Row]]] = psycopg.AsyncConnection.connect,
    ) -> None:
        self.prefix = prefix
        self.schema = schema or schema_name(prefix)
        self._conninfo = conninfo
        self._connect = connect
        self._connection: psycopg.AsyncConnection[Row] | None = None

    async def open(self) -> None:
        await self.close()
        with _translated("connecting"):
            async with asyncio.timeout(CONNECT_S_MAX + 1):
                self._connection = await self._connect(
                    self._conninfo,
                    autocommit=True,
                    row_factory=dict_row,
                    connect_timeout=CONNECT_S_MAX,
                    tcp_user_timeout=NETWORK_SILENCE_MS_MAX,
                    keepalives_idle=5,
                    keepalives_interval=5,
                    keepalives_count=2,
                    application_name=f"sagalog {self.prefix}",
                )
            # Set by statements, not by start-up options, which poolers refuse.
            for name, value in (
                ("search_path", composing.Identifier(self.schema).as_string(None)),
                ("statement_timeout", str(STATEMENT_MS_MAX)),
                ("idle_in_transaction_session_timeout", str(IDLE_TRANSACTION_MS_MAX)),
                ("timezone", "UTC"),
            ):
                await self._connection.execute("SELECT set_config(%s, %s, false)", (name, value))

    async def migrate(self) -> None:
        async with self.transaction() as transaction:
            await migrate(transaction, self.schema, self.prefix)
        with _translated("making staging tables"):
            await self._open.execute(_text("staging_make"))

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[_PostgresTransaction]:
        connection = self._open
        with _translated("a transaction"):
            async with connection.transaction():
                if snapshot:
                    await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                yield _PostgresTransaction(connection)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                async with asyncio.timeout(CLOSE_S_MAX):
                    await connection.close()
            except (psycopg.Error, OSError) as error:  # TimeoutError is one
                logger.warning("closing the connection to PostgreSQL failed: %s", error)

    @property
    def _open(self) -> psycopg.AsyncConnection[Row]:
        if self._connection is None or self._connection.closed:
            raise SqlUnavailable("there is no connection to PostgreSQL; open one first")
        return self._connection


class _PostgresTransaction:
    def __init__(self, connection: psycopg.AsyncConnection[Row]) -> None:
        self._connection = connection

    async def execute(self, query: str, params: Params | None = None) -> int:
        with _translated(query):
            return (await self._connection.execute(_text(query), params)).rowcount

    async def fetch(self, query: str, params: Params | None = None) -> list[Row]:
        with _translated(query):
            return await (await self._connection.execute(_text(query), params)).fetchall()

    async def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        statement = composing.SQL("COPY {} ({}) FROM STDIN").format(
            composing.Identifier(table), composing.SQL(", ").join(map(composing.Identifier, columns))
        )
        with _translated(f"copying into {table}"):
            async with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
                for row in rows:
                    await copy.write_row(row)

    async def script(self, text: str) -> None:
        """Runs a migration: several statements, which nothing but a migration brings."""
        with _translated("a migration"):
            await self._connection.execute(text)


def _text(query: str) -> str:
    return queries()[query]


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turns the client's errors into the port's."""
    try:
        yield
    except (psycopg.Error, OSError) as error:  # TimeoutError is an OSError
        raise _as_sql_error(error, doing) from error


def _as_sql_error(error: Exception, doing: str) -> SqlError:
    state = getattr(error, "sqlstate", None) or ""
    lines = str(error).strip().splitlines()
    why = f"{doing} failed: {type(error).__name__}: {lines[0] if lines else 'no message'}"
    match error:
        case psycopg.errors.UndefinedTable() | psycopg.errors.InvalidSchemaName():
            return SqlError(
                f"{why}; the projection's schema is missing or was dropped: start a projector, which makes it"
            )
        case psycopg.DataError() | psycopg.IntegrityError():
            return SqlRefused(why)
        case psycopg.Error() if state.startswith("54"):  # a limit of the server, such as the size of an index entry
            return SqlRefused(why)
        case psycopg.Error() if state.startswith("40"):  # serialisation failures and deadlocks
            return SqlConflict(why)
        case psycopg.OperationalError() | psycopg.InterfaceError() | OSError():
            return SqlUnavailable(f"{why}; start PostgreSQL, or correct SAGALOG_POSTGRES")
        case _:
            return SqlError(why)
