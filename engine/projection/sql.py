"""The port to the database, the names of its queries and of its schema. The adapter for PostgreSQL is in `postgres`.

Rules:
- The port speaks in names of queries and tables, never in SQL: the text is in `infra/sql/*.sql`, so that a test can stand
  in for the database by doing what a name says.
- Errors say what the caller has to do: SqlUnavailable (connect again), SqlConflict (try again), SqlRefused (the data is at
  fault: trying again will not help), SqlError (anything else).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from hashlib import blake2b
from importlib import resources
from typing import Any, Final, Protocol

from sagalog.schemas.errors import SagalogError

SCHEMA_BYTES_MAX: Final = 63

Row = dict[str, Any]
Params = Mapping[str, Any]


class SqlError(SagalogError):
    """The database did not do what was asked."""


class SqlUnavailable(SqlError):
    """The database does not answer, or the connection to it is lost."""


class SqlConflict(SqlError):
    """The transaction lost against another one; the same again may succeed."""


class SqlRefused(SqlError):
    """The database does not take the data; the same again fails again."""


class MigrationError(SqlError):
    """The schema in the database is not what this version of the software can use. A person has to decide."""


class Transaction(Protocol):
    """One transaction; it commits when its block ends without an error."""

    async def execute(self, query: str, params: Params | None = None) -> int:
        """Runs the named query. Returns the number of rows it touched."""

    async def fetch(self, query: str, params: Params | None = None) -> list[Row]:
        """The rows of the named query; times are `datetime` with a zone, JSON is decoded."""

    async def copy(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Appends rows to a staging table. JSON is given encoded, as text."""


class MigratingTransaction(Transaction, Protocol):
    """What migrations need on top."""

    async def script(self, text: str) -> None:
        """Runs several statements, given as text."""


class Sql(Protocol):
    """A database with the projection's schema, or what stands in for one. One transaction at a time."""

    async def open(self) -> None:
        """Connects; a connection from before is closed. Raises SqlUnavailable."""

    async def migrate(self) -> None:
        """Brings the schema up to date and makes the staging tables; needed before writing. Raises MigrationError."""

    def transaction(self, *, snapshot: bool = False) -> AbstractAsyncContextManager[Transaction]:
        """A transaction. `snapshot`: it only reads, and all it reads is of one moment."""

    async def close(self) -> None: ...


# --- named queries

_NAME: Final = re.compile(r"^-- ([a-z_]+) --$", re.MULTILINE)


@lru_cache(maxsize=1)
def queries() -> Mapping[str, str]:
    """Every named query in `infra/sql/*.sql`. AssertionError when a name is there twice."""
    found: dict[str, str] = {}
    for file in sorted(resources.files("sagalog.infra.sql").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            assert name not in found, f"{file.name}: the query {name} is there twice"
            found[name] = text.strip()
    return found


# --- the schema's name

_PLAIN: Final = re.compile(r"[a-z_][a-z0-9_]*")
_RESERVED: Final = frozenset({"public", "information_schema"})


def schema_name(prefix: str) -> str:
    """The schema of the projection of a topic prefix: the prefix itself when it can be written without quotes in SQL.

    Any other prefix is made plain and gets a hash, so that no two share a schema: `Team.A` becomes `team_a_` and 8 digits.
    """
    if _PLAIN.fullmatch(prefix) and not prefix.startswith("pg_") and prefix not in _RESERVED:
        return prefix
    plain = re.sub(r"[^a-z0-9_]", "_", prefix.lower())
    hash_ = blake2b(prefix.encode(), digest_size=4).hexdigest()
    start = plain if plain[0].isalpha() and not plain.startswith("pg_") else f"p_{plain}"
    return f"{start[: SCHEMA_BYTES_MAX - 9]}_{hash_}"
