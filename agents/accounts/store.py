"""The accounts' state in one SQLite file, with every effect recorded by its idempotency key.

Rules:
- An effect and its record are one transaction, so that a host killed at any moment leaves both or none.
- Done again, an effect gives back what it gave the first time. Undone, it stays undone: what was never done is marked too,
  so that an execution which comes late, after its compensation, is refused.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel

from sagalog.agents.errors import AgentError, Terminal

DATABASE_VARIABLE: Final = "ACCOUNTS_DATABASE"
"""The environment's variable that names the file. Without SAGALOG_ before it: the agents' settings are not the engine's."""
LOCK_TIMEOUT_S: Final = 10.0

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS effect (
    key TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('done', 'undone')),
    output TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS user (user_id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS mailbox (address TEXT PRIMARY KEY, user_id TEXT NOT NULL, quota_mib INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS subscription (
    subscription_id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    monthly_cents INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS outbox (message_id TEXT PRIMARY KEY, recipient TEXT NOT NULL, body TEXT NOT NULL);
"""

M = TypeVar("M", bound=BaseModel)


def database() -> Path:
    """The file that the environment names. Raises AgentError."""
    path = os.environ.get(DATABASE_VARIABLE)
    if not path:
        raise AgentError(f"{DATABASE_VARIABLE} is not set; set it to the SQLite file of the accounts")
    return Path(path)


@contextmanager
def transaction() -> Iterator[sqlite3.Connection]:
    """One transaction that has the file to itself; rolled back when the block raises."""
    connection = sqlite3.connect(database(), timeout=LOCK_TIMEOUT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_SCHEMA)
        # IMMEDIATE: a transaction that reads first and writes later would fail instead of waiting.
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    finally:
        connection.close()


def once(key: str, output: type[M], effect: Callable[[sqlite3.Connection], M]) -> M:
    """Does an effect unless it was done already, and gives back its output. Raises Terminal when it was undone."""
    with transaction() as connection:
        row = connection.execute("SELECT state, output FROM effect WHERE key = ?", (key,)).fetchone()
        if row is not None:
            state, stored = row
            if state == "undone":
                raise Terminal(f"{key} was undone before; it is not done any more")
            return output.model_validate_json(stored)
        made = effect(connection)
        connection.execute("INSERT INTO effect VALUES (?, 'done', ?)", (key, made.model_dump_json()))
        return made


def undo(key: str, output: type[M], reverse: Callable[[sqlite3.Connection, M], None]) -> None:
    """Reverses an effect if it was done, whether or not the caller knows its output. Done again, it does nothing."""
    with transaction() as connection:
        row = connection.execute("SELECT state, output FROM effect WHERE key = ?", (key,)).fetchone()
        if row is not None and row[0] == "undone":
            return
        if row is not None:
            reverse(connection, output.model_validate_json(row[1]))
        connection.execute(
            "INSERT INTO effect VALUES (?, 'undone', NULL) ON CONFLICT (key) DO UPDATE SET state = 'undone'", (key,)
        )
