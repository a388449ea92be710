"""Commands about schedules: set, list, show, pause, resume, trigger, remove, next."""

from __future__ import annotations

import getpass
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import typer

from sagalog.engine.client import Client
from sagalog.engine.schedules import coming
from sagalog.schemas.cron import check_zone
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import Overlap

from .context import NotFound, open_client, open_sql, run, settings
from .output import out, pretty, print_json, table
from .people import Reason, Who
from .workflows import Json, read_input

Name = Annotated[str, typer.Argument(help="The schedule's name.")]

_UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)")


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Workflows that start by the clock.")
    for name, command in (
        ("set", set_),
        ("list", list_),
        ("show", show),
        ("pause", pause),
        ("resume", resume),
        ("trigger", trigger),
        ("remove", remove),
        ("next", next_),
    ):
        group.command(name)(command)
    app.add_typer(group, name="schedules")


def duration_ms(text: str, field: str) -> int:
    """Milliseconds of `90s`, `10m`, `1h`, `2d`, `500ms`. Raises InvalidRecord."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise InvalidRecord(
            field, f"{text[:40]!r} is no duration; give a whole number with a unit: 500ms, 90s, 10m, 1h, 2d"
        )
    return int(match[1]) * _UNITS_MS[match[2]]


def set_(
    name: Name,
    definition: Annotated[str, typer.Option(help="What it starts: name (the newest at each start), or name@hash.")],
    cron: Annotated[str, typer.Option(help="minute hour day month weekday; with six fields, seconds first.")],
    zone: Annotated[str, typer.Option(help="The time zone, as Europe/Berlin.")] = "UTC",
    input: Annotated[str, typer.Option("--input", "-i", help="JSON; @FILE reads a file, - standard input.")] = "{}",
    overlap: Annotated[Overlap, typer.Option(help="What is done at a due time while a run goes on.")] = Overlap.SKIP,
    catch_up: Annotated[
        str, typer.Option(help="Due times missed for longer than this are left out: 90s, 1h, 2d.")
    ] = "1m",
    jitter: Annotated[str, typer.Option(help="Each run starts up to so much later.")] = "0s",
    paused: Annotated[bool, typer.Option("--paused", help="It begins paused.")] = False,
    who: Who = None,
    json: Json = False,
) -> None:
    """Make a schedule, or change the one of that name. One that is paused stays so until it is resumed.

    \b
    Examples: sagalog schedules set daily --definition report --cron "0 9 * * MON-FRI" --zone Europe/Berlin
              sagalog schedules set sync --definition sync --cron "*/5 * * * *" --overlap cancel_running --catch-up 1h
    """
    value = read_input(input)
    catch_up_ms, jitter_ms = duration_ms(catch_up, "--catch-up"), duration_ms(jitter, "--jitter")

    async def work() -> int:
        async with open_client(settings()) as client:
            return await client.set_schedule(
                name,
                definition=definition,
                cron=cron,
                zone=zone,
                input=value,
                overlap=overlap,
                catch_up_ms=catch_up_ms,
                jitter_ms=jitter_ms,
                paused=paused,
                who=who or getpass.getuser(),
            )

    next_ms = run(work())
    if json:
        print_json({"name": name, "next_ms": next_ms, "next": _in_zone(next_ms, zone)})
    else:
        out.print(f"set {name}; due next at {_in_zone(next_ms, zone)}", markup=False)


def list_(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many at most, by name.")] = 50, json: Json = False
) -> None:
    """Schedules by name, from PostgreSQL.

    Example: sagalog schedules list
    """
    found = _read(None, limit)
    if json:
        print_json(found)
        return
    columns = ["name", "status", "definition", "cron", "zone", "next_at", "running", "started"]
    table(None, [*columns, "skipped"], [[*(row[column] for column in columns), _skipped(row)] for row in found])
    if not found:
        out.print("no schedules", style="dim")


def show(name: Name, json: Json = False) -> None:
    """One schedule: when it is due, its newest runs, and what was left out. From PostgreSQL.

    Example: sagalog schedules show daily
    """
    row = _found(name)
    if json:
        print_json(row)
        return
    zone = row["zone"]
    out.print(f"{name}: {row['status']}", style="bold", markup=False)
    out.print(f"starts {row['definition']} at {row['cron']!r} in {zone}; overlap: {row['overlap']}", markup=False)
    if row["next_at"] is not None:
        out.print(f"due next at {row['next_at'].astimezone(ZoneInfo(zone)).isoformat()}", markup=False)
    for what in ("paused", "removed"):
        if row[what] is not None:
            out.print(f"{what} by {row[what]['who']}: {row[what]['reason']}", markup=False)
    out.print(f"started {row['started']}, skipped: {_skipped(row) or 'none'}", markup=False)
    out.print(f"input {pretty(row['input'])}", markup=False)
    runs = [
        [one["id"], one["status"], _in_zone(one["due_ms"], zone), one.get("triggered_by")] for one in row["runs"] or ()
    ]
    table("runs", ["workflow_id", "status", "due", "triggered by"], reversed(runs))
    skips = [[_in_zone(one["due_ms"], zone), one["why"]] for one in row["skips"] or ()]
    if skips:
        table("without a run", ["due", "why"], reversed(skips))
    if row["waiting"] is not None:
        out.print(f"{row['waiting']['id']} waits for the end of the run that goes on", markup=False)


def pause(name: Name, reason: Reason, who: Who = None) -> None:
    """Pause a schedule: nothing starts at its due times until it is resumed. The run that goes on is left alone.

    Example: sagalog schedules pause daily --reason "the source is down"
    """
    _tell(name, "pause", lambda client, by: client.pause_schedule(name, reason=reason, who=by), who)


def resume(name: Name, reason: Reason, who: Who = None) -> None:
    """Resume a schedule. What was due meanwhile is left out.

    Example: sagalog schedules resume daily --reason "the source is back"
    """
    _tell(name, "resume", lambda client, by: client.resume_schedule(name, reason=reason, who=by), who)


def trigger(name: Name, reason: Reason, who: Who = None) -> None:
    """Ask for a run now, beside the due times, also of a paused schedule. Its overlap policy holds.

    Example: sagalog schedules trigger daily --reason "the data came late"
    """
    _tell(name, "trigger", lambda client, by: client.trigger_schedule(name, reason=reason, who=by), who)


def remove(name: Name, reason: Reason, who: Who = None) -> None:
    """End a schedule. The run that goes on is left alone.

    Example: sagalog schedules remove daily --reason "replaced by hourly"
    """
    _tell(name, "remove", lambda client, by: client.remove_schedule(name, reason=reason, who=by), who)


def next_(
    what: Annotated[str, typer.Argument(help="A schedule's name, or a cron expression.")],
    count: Annotated[int, typer.Option(min=1, max=1_000, help="How many times.")] = 5,
    zone: Annotated[str | None, typer.Option(help="The time zone; default: the schedule's, or UTC.")] = None,
    json: Json = False,
) -> None:
    """The times that are to come, in the zone. Of a schedule, from PostgreSQL; of a cron expression nothing else is needed.

    \b
    Examples: sagalog schedules next daily
              sagalog schedules next "30 2 * * *" --zone Europe/Berlin --count 10
    """
    cron = what
    if " " not in what.strip():
        row = _found(what)
        cron, zone = row["cron"], zone or row["zone"]
    shown_in = check_zone(zone or "UTC")
    times = coming(cron, shown_in, count, time.time_ns() // 1_000_000)
    if json:
        print_json([{"due_ms": at, "due": _in_zone(at, shown_in)} for at in times])
    for at in () if json else times:
        out.print(_in_zone(at, shown_in), markup=False)


# --- helpers


def _tell(name: str, what: str, send: Callable[[Client, str], Awaitable[None]], who: str | None) -> None:
    async def work() -> None:
        async with open_client(settings()) as client:
            await send(client, who or getpass.getuser())

    run(work())
    out.print(f"asked the schedule {name} to {what}; how it is: sagalog schedules show {name}", markup=False)


def _read(name: str | None, limit: int) -> list[dict[str, Any]]:
    async def work() -> list[dict[str, Any]]:
        from sagalog.engine.projection import queries

        async with open_sql(settings()) as sql:
            return [asdict(schedule) for schedule in await queries.schedules(sql, name=name, limit=limit)]

    return run(work())


def _found(name: str) -> dict[str, Any]:
    rows = _read(name, 1)
    if not rows:
        raise NotFound(f"there is no schedule {name!r}; see: sagalog schedules list")
    return rows[0]


def _skipped(row: dict[str, Any]) -> str:
    return "  ".join(f"{why}: {count}" for why, count in sorted((row["skipped"] or {}).items()))


def _in_zone(at_ms: int, zone: str) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(ZoneInfo(zone)).isoformat()
