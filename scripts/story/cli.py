"""The run behind `scripts/demo`: its scenes, the table at its end, and an end in order, also on Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import uvloop

from sagalog.agents.invoices import saga
from sagalog.schemas.errors import SagalogError
from sagalog.schemas.statuses import WorkflowStatus
from story import crash, sagas, scenes
from story.arguments import EXIT_EXPECTATION, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_USAGE
from story.report import COLUMNS, Outcome
from story.run import Run
from story.screen import Screen
from story.settings import REPOSITORY
from story.system import System

SCENES: Final[tuple[Callable[[Run], Awaitable[None]], ...]] = (
    scenes.healthy,
    scenes.retried,
    scenes.compensated,
    scenes.degraded,
    scenes.parked,
    crash.killed,
    scenes.rows,
    scenes.verified,
)


def run(options: argparse.Namespace) -> int:
    """Runs what the arguments ask for; returns the exit code."""
    screen = Screen(json=options.json, scenes=len(SCENES))
    try:
        _check_names(options.invoices or ())
        uvloop.run(_until_interrupted(_demo(options, screen)))
    except _Refused as error:
        screen.plain(f"demo: {error}", style="red")
        return EXIT_USAGE
    except (SagalogError, OSError) as error:
        screen.plain(f"demo: {error}", style="red")
        return EXIT_STOPPED
    except (KeyboardInterrupt, asyncio.CancelledError):
        if screen.finished:  # --keep: this is how it is meant to be stopped
            screen.plain("Stopped; everything that was started has ended.", style="dim")
            return EXIT_EXPECTATION if screen.failed else 0
        screen.plain("demo: interrupted; everything that it started has ended", style="yellow")
        return EXIT_INTERRUPTED
    return EXIT_EXPECTATION if screen.failed else 0


async def _demo(options: argparse.Namespace, screen: Screen) -> None:
    own = options.invoices is not None
    definitions = [saga.definition] if own else [sagas.invoice, sagas.payment]
    screen.plain("Starting an embedded Kafka and PostgreSQL, an engine, agents and a projector ...", style="dim")
    system = System(definitions)
    with screen.bar("starting"):
        await system.__aenter__()
    try:
        screen.plain(f"They run after {screen.elapsed_s:.1f} s.", style="dim")
        run = Run(system, screen, options.json)
        watching = asyncio.create_task(system.children.watch())
        showing = asyncio.create_task(_show(run, options))
        try:
            await asyncio.wait([watching, showing], return_when=asyncio.FIRST_COMPLETED)
            # A child's end explains whatever the scene complains about.
            await (watching if watching.done() else showing)
        finally:
            for task in (showing, watching):
                task.cancel()
            await asyncio.gather(showing, watching, return_exceptions=True)
    except (SagalogError, OSError):
        system.keep_files = True
        raise
    finally:
        system.keep_files = system.keep_files or bool(screen.failed)
        await system.__aexit__(None, None, None)
        if system.keep_files:
            screen.plain(f"The logs of the processes are in {system.directory}.")


async def _show(run: Run, options: argparse.Namespace) -> None:
    if options.invoices is not None:
        await _own_documents(run, options.invoices)
    else:
        for scene in SCENES:
            await scene(run)
    _summary(run)
    run.screen.finished = True
    if options.keep:
        await _keep(run)
    else:
        _explore(run.screen)


async def _own_documents(run: Run, paths: Sequence[str]) -> None:
    found = await run.documents({f"invoice-{n:03d}": path for n, path in enumerate(paths, 1)}, saga.definition.name)
    run.screen.plain()
    run.screen.table(COLUMNS, [outcome.row() for outcome in sorted(found, key=lambda outcome: outcome.workflow_id)])
    expected = (WorkflowStatus.COMPLETED, WorkflowStatus.DEGRADED, WorkflowStatus.REVIEW)
    odd = [outcome for outcome in found if outcome.status not in expected]
    run.screen.expect(f"{len(found)} documents are posted or wait for a person", not odd, "; ".join(map(_named, odd)))


def _named(outcome: Outcome) -> str:
    return f"{outcome.file}: {outcome.status}, {'; '.join(outcome.reasons)}"


def _summary(run: Run) -> None:
    screen = run.screen
    screen.plain()
    counts = Counter(outcome.status for outcome in run.outcomes)
    screen.table(["status", "workflows"], [[status, str(count)] for status, count in sorted(counts.items())])
    screen.plain()
    if screen.failed:
        screen.plain(
            f"{len(screen.failed)} of {len(screen.failed) + screen.held} expectations did NOT hold:", style="bold red"
        )
        for what in screen.failed:
            screen.line(what, style="red")
    else:
        screen.plain(f"All {screen.held} expectations held, in {screen.elapsed_s:.0f} s.", style="bold green")


def _explore(screen: Screen) -> None:
    screen.plain()
    screen.plain("To explore further:", style="bold")
    screen.line("./scripts/demo --keep                      the same, and it goes on running")
    screen.line("./scripts/demo --invoices FILE ...         your own documents (PDF or image)")
    screen.line(".venv/bin/sagalog --help                   all commands; list, show, history, replay and verify read")


async def _keep(run: Run) -> None:
    system, screen = run.system, run.screen
    with system.announced() as file:
        screen.plain()
        screen.plain("Everything goes on running.", style="bold")
        screen.line(f"Kafka       {system.stack.bootstrap}")
        screen.line(f"PostgreSQL  {system.stack.postgres}")
        screen.line(f"files       {system.directory}")
        screen.plain()
        if file is None:
            screen.line("Another `sagalog dev` or demo is running in the repository; for this one set first:")
            screen.line(f"export SAGALOG_BOOTSTRAP={system.stack.bootstrap} SAGALOG_POSTGRES='{system.stack.postgres}'")
        else:
            screen.line(f"Try, in {REPOSITORY}:")
        workflow_id = run.outcomes[0].workflow_id
        for command in ("list", f"show {workflow_id}", f"history {workflow_id}", f"replay {workflow_id}", "verify"):
            screen.line(f".venv/bin/sagalog {command}")
        screen.line(
            f'.venv/bin/sagalog start invoice -i \'{{"file": "{REPOSITORY}/agents/invoices/samples/falcon-office.png"}}\' --wait 60'
        )
        screen.plain()
        screen.plain("Press Ctrl-C to stop it.", style="bold")
        await asyncio.Event().wait()


async def _until_interrupted(work: Awaitable[None]) -> None:
    """Runs it; SIGINT and SIGTERM cancel it, and a second one ends the process at once."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    signals: list[int] = []

    def interrupted(number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            os._exit(EXIT_INTERRUPTED)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted, number)
    await task


class _Refused(Exception):
    """Arguments that cannot be used."""


def _check_names(paths: Sequence[str]) -> None:
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            shown = path.encode(errors="surrogateescape").decode(errors="replace")
            raise _Refused(
                f"the name of {shown!r} is not valid UTF-8 and cannot stand in a record; rename it"
            ) from None
