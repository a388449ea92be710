"""The PostgreSQL behind a simulation: one embedded server for the whole command, one database for each process that runs seeds.

Rules:
- The server lives as long as the block of `served`, however that ends. Should the process be killed, the embedded stack's
  supervisor stops it.
- Between two runs the tables are emptied, not made anew. What could differ from run to run (real time, where rows lie, how a query
  is planned) must reach no projector: every query that it reads from has an order.
- Nothing here is durable: there is nothing to lose.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql as composing
from psycopg.rows import dict_row

from sagalog.engine.projection.postgres import PostgresSql
from sagalog.infra.embedded.stack import EmbeddedStack

TABLES: Final = (
    "workflow",
    "step",
    "compensation",
    "circuit",
    "review",
    "dead_letter",
    "definition",
    "agent_health",
    "marker",
    "position",
    "schedule",
)
_NOT_ROWS: Final = ("projection_of", "schema_migrations")
END_MS_MAX: Final = 10_000
"""How long, in real time, a session whose client is gone may take to roll back."""
LOCK: Final = 1
"""Of workers that make their databases at the same time."""

SETTINGS: Final = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # Of its own accord it would lock tables, and lose against whoever waits.
    "autovacuum": "off",
}

_ASCENDING: Final = (
    (
        "workflow",
        "workflow_id",
        "(NEW.at_offset, NEW.started_at, NEW.rank) < (OLD.at_offset, OLD.started_at, OLD.rank)",
    ),
    ("circuit", "service", "NEW.at_offset < OLD.at_offset"),
    ("review", "id", "(NEW.at_offset, NEW.rank) < (OLD.at_offset, OLD.rank)"),
    ("dead_letter", "id", "NEW.at_offset < OLD.at_offset"),
    ("schedule", "name", "NEW.at_offset < OLD.at_offset"),
    ("marker", "topic", "NEW.at_offset < OLD.at_offset"),
    ("agent_health", "agent", "NEW.at < OLD.at"),
    ("position", "topic", "NEW.next_offset < OLD.next_offset"),
)
"""(table, whose row, when a change of it is a step back)"""

_NOTE_STEP_BACK: Final = """
CREATE FUNCTION note_step_back() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before jsonb = to_jsonb(OLD);
    after jsonb = to_jsonb(NEW);
BEGIN
    INSERT INTO stepped_back VALUES (format('%s %s stepped back from %s to %s', TG_TABLE_NAME, before ->> TG_ARGV[0],
        coalesce(before ->> 'at_offset', before ->> 'next_offset', before ->> 'at'),
        coalesce(after ->> 'at_offset', after ->> 'next_offset', after ->> 'at')));
    RETURN NEW;
END $$
"""

_stack: EmbeddedStack | None = None
_database: Database | None = None


@contextmanager
def served() -> Iterator[None]:
    """The server, for as long as the block; workers that are forked within use it, too."""
    global _stack
    if _stack is not None:
        yield
        return
    # What psycopg warns of when it cannot roll back is what the simulation does to it.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    with EmbeddedStack(kafka=False, postgres_settings=SETTINGS) as stack:
        _stack = stack
        try:
            yield
        finally:
            _stack = None


def database(prefix: str) -> Database:
    """The database of this process, empty. Only within `served`."""
    global _database
    assert _stack is not None, "a seed with projectors needs a server: run it within `served()`"
    key = (_stack.postgres, prefix, os.getpid())
    if _database is None or _database.key != key:
        _database = Database(*key)
    _database.empty()
    return _database


class Database:
    """One process's database, as its administrator sees it: not through the simulated network, and in no simulated time."""

    def __init__(self, server: str, prefix: str, pid: int) -> None:
        self.key = (server, prefix, pid)
        self.url = _make_database(server, pid)
        asyncio.run(_migrate(self.url, prefix))
        self._admin = psycopg.connect(self.url, autocommit=True, row_factory=dict_row)
        self._admin.execute("SELECT set_config('search_path', %s, false)", [prefix])
        there = self._admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [prefix]).fetchall()
        # One that is forgotten here would keep the rows of the seed before.
        assert {row["tablename"] for row in there} == {*TABLES, *_NOT_ROWS}
        self._admin.execute("CREATE TABLE stepped_back (what text NOT NULL)")
        self._admin.execute(_NOTE_STEP_BACK)
        for table, whose, when in _ASCENDING:
            self._admin.execute(
                f"CREATE TRIGGER step_back BEFORE UPDATE ON {table} FOR EACH ROW WHEN ({when}) "  # type: ignore[arg-type]
                f"EXECUTE FUNCTION note_step_back('{whose}')"
            )

    def empty(self) -> None:
        """As it was made. Nobody may be in a transaction."""
        self._admin.execute("TRUNCATE " + ", ".join((*TABLES, "stepped_back")))  # type: ignore[arg-type]

    def lose_rows(self) -> None:
        """As after a restore from before the first row. Nobody may be in a transaction."""
        self._admin.execute("TRUNCATE " + ", ".join(TABLES))  # type: ignore[arg-type]

    def rows(self, table: str) -> list[dict[str, Any]]:
        return self._admin.execute(composing.SQL("SELECT * FROM {}").format(composing.Identifier(table))).fetchall()

    def end_session(self, pid: int) -> None:
        """Returns when a session has rolled back and let go of its locks."""
        self._admin.execute("SELECT pg_terminate_backend(%s, %s)", [pid, END_MS_MAX])


async def _migrate(url: str, prefix: str) -> None:
    sql = PostgresSql(url, prefix=prefix)
    await sql.open()
    await sql.migrate()
    await sql.close()


def _make_database(server: str, pid: int) -> str:
    """Returns its address. Databases of workers that are gone are dropped."""
    name = f"sim_{pid}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        for (left,) in connection.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, 'sim_')"
        ).fetchall():
            if left == name or not _lives(int(left.removeprefix("sim_"))):
                connection.execute(composing.SQL("DROP DATABASE {} WITH (FORCE)").format(composing.Identifier(left)))
        connection.execute(composing.SQL("CREATE DATABASE {}").format(composing.Identifier(name)))
    return f"{server.rpartition('/')[0]}/{name}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
