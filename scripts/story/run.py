"""One run of the demo: the system, the screen, and every outcome so far."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from sagalog.schemas.records import ResultRecord
from story import sagas
from story.report import Outcome
from story.screen import Screen
from story.settings import DOCUMENT_S_MAX, RESULT_S_MAX
from story.system import System

Files = Mapping[str, Path | str]
"""Workflow id to the path as it was given."""


@dataclass(slots=True)
class Run:
    system: System
    screen: Screen
    json: bool
    outcomes: list[Outcome] = field(default_factory=list)

    async def start(self, definition: str, files: Files) -> None:
        """Starts one workflow per file."""
        await self.system.client.start_many(definition, {name: _input(file) for name, file in files.items()})

    async def finished(self, files: Files, *, quiet: bool = False) -> list[Outcome]:
        """Waits for their ends and tells each."""
        found: list[Outcome] = []
        width = min(48, max(len(Path(file).name) for file in files.values()))
        with self.screen.bar("documents", len(files)) if not quiet else nullcontext() as bar:
            async with self.system.results(files, RESULT_S_MAX + DOCUMENT_S_MAX * len(files)) as results:
                for result in results:
                    outcome = self.note(files, await result)
                    found.append(outcome)
                    if bar is not None:
                        self.screen.line(
                            f"{Path(outcome.file).name:<{width}}  {outcome.describe()}",
                            style=None if outcome.ended_well else "magenta",
                        )
                        bar.advance()
        return found

    async def documents(self, files: Files, definition: str = sagas.invoice.name) -> list[Outcome]:
        """Runs documents through the saga and tells each one's end."""
        await self.start(definition, files)
        return await self.finished(files)

    def note(self, files: Files, result: ResultRecord) -> Outcome:
        """Keeps an outcome; with --json, prints it."""
        outcome = Outcome(str(files[result["workflow_id"]]), result)
        self.outcomes.append(outcome)
        if self.json:
            sys.stdout.write(outcome.to_json() + "\n")
            sys.stdout.flush()
        return outcome


def _input(file: Path | str) -> dict[str, str]:
    # Absolute: the agents look for it from a directory of their own.
    return {"file": str(Path(file).absolute())}
