"""What people see: headings, lines, expectations, tables, and a bar where there is a terminal.

Rule: with --json, standard output carries JSON and nothing else; everything for people goes to standard error.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

PIPE_WIDTH: Final = 140
STATUS_STYLE: Final = {"completed": "green", "degraded": "yellow", "compensated": "yellow", "review": "magenta"}


class Bar:
    """One line of progress, which is gone when its block ends. `advance` counts, `say` changes its text."""

    def __init__(self, progress: Progress, text: str, total: int | None) -> None:
        self._progress = progress
        self._task = progress.add_task(text, total=total)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def say(self, text: str) -> None:
        self._progress.update(self._task, description=text)


class Screen:
    """What is shown, and what came of the expectations: `failed` are those that did not hold."""

    def __init__(self, *, json: bool, scenes: int) -> None:
        self.console = Console(stderr=json, highlight=False, soft_wrap=False)
        if not self.console.is_terminal:
            self.console.width = PIPE_WIDTH
        self.failed: list[str] = []
        self.held = 0
        self.finished = False
        """Whether all was shown."""
        self._scenes = scenes
        self._scene = 0
        self._started = time.monotonic()

    def scene(self, title: str, text: str) -> None:
        self._scene += 1
        self.console.print()
        self.console.print(f"{self._scene}/{self._scenes}  {title}", style="bold cyan", markup=False, end="  ")
        self.console.print(f"after {self.elapsed_s:.0f} s", style="dim")
        self.line(text, style="dim")

    def line(self, text: str, *, style: str | None = None) -> None:
        self.console.print(f"    {text}", style=style, markup=False, soft_wrap=True)

    def plain(self, text: str = "", *, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=True)

    def expect(self, what: str, holds: bool, found: str = "") -> None:
        """Notes whether an expectation held, and shows it."""
        if holds:
            self.held += 1
            self.console.print(f"  ✓ {what}", style="green", markup=False, soft_wrap=True)
        else:
            self.failed.append(what)
            self.console.print(
                f"  ✗ {what}{f': {found}' if found else ''}", style="bold red", markup=False, soft_wrap=True
            )

    @contextmanager
    def bar(self, text: str, total: int | None = None) -> Iterator[Bar]:
        columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
        if total is not None:
            columns += [BarColumn(), MofNCompleteColumn()]
        columns.append(TimeElapsedColumn())
        progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        with progress:
            yield Bar(progress, text, total)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            shown.add_column(column, overflow="fold")
        for row in rows:
            shown.add_row(*(_cell(value) for value in row))
        self.console.print(shown)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started


def _cell(text: str) -> str:
    escaped = text.replace("[", r"\[")
    style = STATUS_STYLE.get(text) or ("red" if text in ("failed", "rejected", "compensation_failed") else None)
    return f"[{style}]{escaped}[/{style}]" if style else escaped
