"""Brings a database's schema up to date: `infra/sql/migrations/NNN_name.sql`, in order, each once.

Rules:
- All of it in one transaction, under a lock: of several projectors that start at once one migrates, the others find it done.
- What was applied is not changed any more: a file whose text differs from what the database remembers is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import Final

from .sql import MigratingTransaction, MigrationError

_FILE: Final = re.compile(r"([0-9]{3})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return sha256(self.text.encode()).hexdigest()


def load_migrations() -> list[Migration]:
    """The package's migrations in order. AssertionError when a number is missing or there twice."""
    found = []
    for file in resources.files("sagalog.infra.sql").joinpath("migrations").iterdir():
        match = _FILE.fullmatch(file.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.version)
    versions = [migration.version for migration in found]
    assert versions == list(range(1, len(found) + 1)), "migrations: numbered 1, 2, 3, ..., each once"
    return found


async def migrate(
    transaction: MigratingTransaction, schema: str, prefix: str, migrations: Sequence[Migration] | None = None
) -> list[str]:
    """Applies what is missing and claims the schema for the prefix. Returns the names applied. Raises MigrationError."""
    migrations = load_migrations() if migrations is None else migrations
    await transaction.fetch("migrations_lock", {"schema": schema})
    # Asked for first: making a schema that exists needs a right that using it does not.
    if not (await transaction.fetch("schema_found", {"schema": schema}))[0]["found"]:
        await transaction.script(f'CREATE SCHEMA "{schema.replace(chr(34), chr(34) * 2)}"')
    await transaction.execute("migrations_table_make")
    applied = {row["version"]: row for row in await transaction.fetch("migrations_read")}
    _check(schema, migrations, {version: row["checksum"] for version, row in applied.items()})
    made = []
    for migration in migrations:
        if migration.version in applied:
            continue
        await transaction.script(migration.text)
        await transaction.execute(
            "migrations_note",
            {"version": migration.version, "name": migration.name, "checksum": migration.checksum},
        )
        made.append(migration.name)
    await _claim(transaction, schema, prefix)
    return made


def _check(schema: str, migrations: Sequence[Migration], applied: dict[int, str]) -> None:
    known = {migration.version: migration for migration in migrations}
    for version, checksum in sorted(applied.items()):
        migration = known.get(version)
        if migration is None:
            raise MigrationError(
                f"the schema {schema} is at migration {version:03}, which this version of sagalog does not know: "
                "upgrade it, or drop the schema to have it filled again"
            )
        if migration.checksum != checksum:
            raise MigrationError(
                f"migration {version:03}_{migration.name} is not what was applied to the schema {schema} (checksum "
                f"{checksum[:12]} there, {migration.checksum[:12]} here): restore the file and put the change into a new "
                "migration, or drop the schema to have it filled again"
            )


async def _claim(transaction: MigratingTransaction, schema: str, prefix: str) -> None:
    await transaction.execute("owner_claim", {"prefix": prefix})
    owner = (await transaction.fetch("owner_read"))[0]["prefix"]
    if owner != prefix:
        raise MigrationError(
            f"the schema {schema} holds the projection of the prefix {owner!r}, not of {prefix!r}: name another schema"
        )
