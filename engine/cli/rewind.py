"""Commands that have something done anew: rewind, fork, redrive, and the list of dead letters."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from sagalog.engine.client import KEEP
from sagalog.engine.originals import CannotFork, CannotRedrive, Redrive, UnknownOriginal
from sagalog.schemas.errors import InvalidRecord

from .context import open_client, open_sql, run, settings
from .output import err, out, print_json, table
from .people import Reason, Who
from .workflows import Json, WorkflowId, read_input

REDRIVEN_MAX: Final = 1_000
"""Dead letters that one call of `redrive --all` tries again."""

dead_letters = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Dead letters: what failed for good.")


def register(app: typer.Typer) -> None:
    for name, command in (("rewind", rewind), ("fork", fork), ("redrive", redrive)):
        app.command(name)(command)
    dead_letters.command("list")(list_)
    app.add_typer(dead_letters, name="dead-letters")


def rewind(
    workflow_id: WorkflowId,
    step: Annotated[str, typer.Argument(help="The step to go back to; all that needs it is done anew as well.")],
    reason: Reason,
    undo: Annotated[
        bool, typer.Option(help="Undo first what they did; else it stands, and they are tried once more.")
    ] = True,
    who: Who = None,
) -> None:
    """Send a running workflow back to a step: it and all that needs it are done anew.

    \b
    Examples: sagalog rewind invoice-1 extract --reason "the model was wrong"
              sagalog rewind invoice-1 notify --no-undo --reason "nobody got it"
    """

    async def work() -> None:
        async with open_client(settings()) as client:
            await client.rewind(workflow_id, step, undo=undo, reason=reason, who=who or getpass.getuser())

    run(work())
    out.print(f"asked {workflow_id} to go back to {step}; how it is: sagalog show {workflow_id}", markup=False)


def fork(
    workflow_id: WorkflowId,
    before: Annotated[str | None, typer.Option(help="Keep what ended well and does not need this step.")] = None,
    at_offset: Annotated[int | None, typer.Option(help="Keep what had ended well at this offset of the log.")] = None,
    input: Annotated[
        str | None, typer.Option("--input", "-i", help="JSON; @FILE reads a file, - standard input. Default: the same.")
    ] = None,
    definition: Annotated[
        str | None, typer.Option(help="Another version: a name (its newest), or name@hash. Default: the same.")
    ] = None,
    new_id: Annotated[str | None, typer.Option("--id", help="The fork's id; default: a new one.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why; it stands in the log.")] = None,
    who: Who = None,
    json: Json = False,
) -> None:
    """Start a workflow that begins where another one was, running or finished. Prints its id.

    \b
    Examples: sagalog fork invoice-1 --before post
              sagalog fork invoice-1 --before extract --definition invoice -i @input.json
    """
    value = KEEP if input is None else read_input(input)

    async def work() -> str:
        async with open_client(settings()) as client:
            return await client.fork(
                workflow_id,
                before=before,
                at_offset=at_offset,
                new_id=new_id,
                definition=definition,
                input=value,
                who=who or getpass.getuser(),
                reason=reason,
            )

    started = run(work())
    if json:
        print_json({"workflow_id": started})
    else:
        out.print(started, markup=False)


def redrive(
    reason: Reason,
    dead_letter: Annotated[
        str | None, typer.Argument(help="A dead letter's id, or a workflow's: then its newest one.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All that nobody has tried again yet, the newest first.")
    ] = False,
    definition: Annotated[str | None, typer.Option(help="With --all: only of this definition.")] = None,
    since: Annotated[str | None, typer.Option(help="With --all: only since this time (RFC 3339).")] = None,
    who: Who = None,
    json: Json = False,
) -> None:
    """Try dead letters again: in place where the workflow runs on with a stand-in, else in a fork. Exits 1 if one cannot be.

    \b
    Examples: sagalog redrive invoice-1/post/3/execute --reason "the bank is back"
              sagalog redrive --all --definition invoice --since 2026-01-31T00:00:00Z --reason "the bank is back"
    """
    if everything == (dead_letter is not None):
        raise InvalidRecord("dead_letter", "give either the id of a dead letter or of a workflow, or --all")
    done, refused = run(_redrive(dead_letter, definition, _time(since), who or getpass.getuser(), reason))
    if json:
        print_json({"redriven": [_shown(how) for how in done], "refused": refused})
    else:
        for how in done:
            where = f"goes back to {how.step}" if how.forked is None else "begins"
            out.print(f"{how.dead_letter}: {how.workflow_id} {where}", markup=False)
        for id_, problem in refused.items():
            err.print(f"{id_}: {problem}", style="red", markup=False)
        if not done and not refused:
            out.print("no dead letter waits to be tried again", style="dim")
    if refused:
        raise typer.Exit(1)


async def _redrive(
    dead_letter: str | None, definition: str | None, since: datetime | None, who: str, reason: str
) -> tuple[list[Redrive], dict[str, str]]:
    wanted = [dead_letter] if dead_letter is not None else await _open(definition, since)
    done: list[Redrive] = []
    refused: dict[str, str] = {}
    async with open_client(settings()) as client:
        for id_ in wanted:
            try:
                done.append(await client.redrive(id_, who=who, reason=reason))
            except (CannotFork, CannotRedrive, UnknownOriginal) as error:
                if dead_letter is not None:
                    raise
                refused[id_] = str(error)
    return done, refused


async def _open(definition: str | None, since: datetime | None) -> list[str]:
    """One dead letter for each workflow, its newest: what else failed there is done anew with it, or shows up again."""
    from sagalog.engine.projection import queries

    async with open_sql(settings()) as sql:
        found = await queries.open_dead_letters(sql, name=definition, since=since, limit=REDRIVEN_MAX)
    newest: dict[str, str] = {}
    for letter in found:
        newest.setdefault(letter.workflow_id, letter.id)
    return list(newest.values())


def _shown(how: Redrive) -> dict[str, Any]:
    return {
        "dead_letter": how.dead_letter,
        "step": how.step,
        "how": "rewind" if how.forked is None else "fork",
        "workflow_id": how.workflow_id,
    }


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRecord("--since", f"{text[:80]!r} is no time; give one as 2026-01-31T00:00:00Z") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def list_(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many at most, the newest first.")] = 20,
    json: Json = False,
) -> None:
    """Dead letters, the newest first, and where they were tried again. From PostgreSQL.

    Example: sagalog dead-letters list --limit 50
    """

    async def work() -> list[dict[str, Any]]:
        from sagalog.engine.projection import queries

        async with open_sql(settings()) as sql:
            return [asdict(letter) for letter in await queries.dead_letters(sql, limit=limit)]

    found = run(work())
    if json:
        print_json(found)
        return
    table(
        None,
        ["id", "definition", "failure", "attempts", "created_at", "tried again in"],
        [
            [
                letter["id"],
                letter["name"],
                letter["failures"][-1]["message"] if letter["failures"] else "",
                letter["failed_attempts"],
                letter["created_at"],
                letter["redriven_by"],
            ]
            for letter in found
        ],
    )
    if not found:
        out.print("no dead letters", style="dim")
