"""Commands that fold the log again: verify, replay."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from difflib import unified_diff
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sagalog.engine.audit import PartitionReport, Step, replay, told, verify

from .context import NotFound, open_log, postgres_of, run, settings, topics_of
from .output import at, err, out, pretty, print_json, table
from .setup import load_definition

Replayed = tuple[list[Step], dict[str, Any] | None]

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def register(app: typer.Typer) -> None:
    app.command("verify")(verify_command)
    app.command("replay")(replay_command)


def verify_command(
    json: Json = False,
    rows: Annotated[bool, typer.Option(help="Also compare the rows in PostgreSQL.")] = True,
    wait_s: Annotated[float, typer.Option(help="How long to wait for a projection that is behind.")] = 30.0,
) -> None:
    """Prove that checkpoints, results and rows are what the fold makes of the log. Exits 1 when they are not.

    Folds every event again, from the first: it reads the whole log. Example: sagalog verify --no-rows
    """
    reports = run(_verify(rows, wait_s, quiet=json))
    if json:
        print_json({"ok": all(r.ok for r in reports), "partitions": [{**asdict(r), "ok": r.ok} for r in reports]})
    else:
        table(
            None,
            ["partition", "events", "up to offset", "workflows", "checkpoints", "results", "rows", "verdict"],
            [
                [r.partition, r.events, r.marker_offset, r.workflows, r.checkpoints, r.results, r.rows,
                 "equal" if r.ok else "DIFFERENT"]
                for r in reports
            ],
        )  # fmt: skip
        for report in reports:
            for line in report.differences:
                out.print(f"partition {report.partition}: {line}", style="red", markup=False)
            if report.rows_behind:
                out.print(f"partition {report.partition}: {report.rows_behind} rows are behind the log", style="red")
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


async def _verify(rows: bool, wait_s: float, *, quiet: bool) -> list[PartitionReport]:
    found = settings()
    topics = topics_of(found)
    projection = None
    if rows:
        from sagalog.engine.projection.verification import open_rows

        projection = await open_rows(postgres_of(found), found.prefix)
    try:
        async with open_log(found) as log:
            with _progress(quiet) as progress:
                deadline = asyncio.get_running_loop().time() + wait_s
                while True:
                    reports = await verify(log, topics, rows=projection, progress=progress)
                    behind = any(report.rows_behind for report in reports)
                    if not behind or asyncio.get_running_loop().time() > deadline:
                        return reports
                    await asyncio.sleep(0.5)
    finally:
        if projection is not None:
            await projection.close()


class _progress:
    """A bar per partition while the log is read; nothing where output is for a program."""

    def __init__(self, quiet: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(), console=err, transient=True, disable=quiet or not err.is_terminal,
        )  # fmt: skip
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, done: int, of: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=of)
        self._bar.update(self._tasks[what], completed=done, total=of)


def replay_command(
    workflow_id: Annotated[str, typer.Argument()],
    against: Annotated[
        str | None,
        typer.Option(help="A changed definition (file, or module:name): show what would have been otherwise."),
    ] = None,
    json: Json = False,
) -> None:
    """Fold one workflow again from its log, and print every transition.

    With --against, the same events are folded as if the workflow had been started with another definition, and the difference is
    printed; exits 1 when there is one.

    \b
    Examples: sagalog replay invoice-4711
              sagalog replay invoice-4711 --against invoice-next.yaml
    """
    changed = load_definition(against) if against is not None else None

    async def work() -> tuple[Replayed, Replayed | None]:
        found = settings()
        async with open_log(found) as log:
            as_it_was = await replay(log, topics_of(found), workflow_id)
            if changed is None:
                return as_it_was, None
            return as_it_was, await replay(log, topics_of(found), workflow_id, against=changed)

    (steps, state), otherwise = run(work())
    if state is None and not steps:
        raise NotFound(f"workflow {workflow_id!r} is not in the log; is the id, or SAGALOG_PREFIX, right?")
    if otherwise is not None:
        _print_difference(workflow_id, told(steps), told(otherwise[0]), json)
        return
    if json:
        print_json({"workflow_id": workflow_id, "steps": [asdict(step) for step in steps], "state": state})
        return
    for step in steps:
        out.print(f"{step.offset:>8}  {at(step.at_ms)}  ", end="", style="dim")
        out.print(step.event, style="bold", markup=False)
        for line in step.moves:
            out.print(f"{'':>10}{line}", style="cyan", markup=False)
        for line in step.effects:
            out.print(f"{'':>10}{line}", style="dim", markup=False)
    out.print(pretty(state), markup=False)


def _print_difference(workflow_id: str, as_it_was: list[str], otherwise: list[str], json: bool) -> None:
    lines = list(unified_diff(as_it_was, otherwise, "as it was", "with the other definition", lineterm=""))
    if json:
        print_json({"workflow_id": workflow_id, "difference": lines})
    else:
        for line in lines or ["no difference"]:
            style = {"+": "green", "-": "red", "@": "dim"}.get(line[0])
            out.print(line, style=style, markup=False)
    if lines:
        raise typer.Exit(1)
