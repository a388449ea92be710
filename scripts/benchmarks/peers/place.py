"""Where a run takes place: the embedded servers, the peers' packages, and how one of a peer's processes is started."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.children import Child, running
from benchmarks.peers.settings import PeersSettings
from sagalog.infra.embedded.stack import EmbeddedStack


@dataclass(frozen=True, slots=True)
class Place:
    """Of one run; `name` is new for each, so that nothing of an earlier run is met again."""

    stack: EmbeddedStack
    logs: Path
    settings: PeersSettings
    name: str

    def child(
        self, module: str, arguments: dict[str, Any], python: Path | None = None
    ) -> AbstractAsyncContextManager[Child]:
        """A process that runs `benchmarks.peers.inside.MODULE`, by the peer's own interpreter or by ours."""
        program = (str(python or sys.executable), "-m", f"benchmarks.peers.inside.{module}")
        return running(
            f"{self.name}-{module}", {"payload_bytes": self.settings.payload_bytes, **arguments}, self.logs, program
        )

    def new_database(self, name: str) -> str:
        """Makes an empty database; returns its URL."""
        with psycopg.connect(self.stack.postgres, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"{self.stack.postgres.rpartition('/')[0]}/{name}"

    def drop_database(self, name: str) -> None:
        """And with it the work that the server would otherwise still have with it."""
        with psycopg.connect(self.stack.postgres, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
