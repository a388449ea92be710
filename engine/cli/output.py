"""What the commands print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

STATUS_STYLE = {
    "completed": "green",
    "done": "green",
    "closed": "green",
    "degraded": "yellow",
    "compensated": "yellow",
    "cancelled": "yellow",
    "review": "magenta",
    "half_open": "yellow",
    "running": "cyan",
    "compensating": "cyan",
    "rewinding": "cyan",
    "waiting": "cyan",
    "backing_off": "cyan",
    "reconciling": "cyan",
}


def error_line(message: str) -> None:
    err.print("Error: ", style="bold red", end="")
    err.print(message, markup=False)


def print_json(document: Any) -> None:
    """One JSON document on a line of its own."""
    sys.stdout.write(orjson.dumps(document, default=str).decode() + "\n")


def pretty(document: Any) -> str:
    return json.dumps(orjson.loads(orjson.dumps(document, default=str)), indent=2, ensure_ascii=False)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table; statuses are coloured, None is blank."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*(cell(value) for value in row))
    out.print(shown)


def cell(value: Any) -> Text:
    """One value of a table. A text of its own, so that brackets in messages of agents are not taken for markup."""
    if value is None:
        return Text()
    if isinstance(value, datetime):
        return Text(value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"))
    text = str(value)
    style = STATUS_STYLE.get(text) or ("red" if text in ("failed", "rejected", "compensation_failed", "open") else "")
    return Text(text, style)


def at(ms: int) -> str:
    """A time in a record, for people. UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{ms % 1000:03d}"
