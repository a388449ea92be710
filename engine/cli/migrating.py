"""The command that moves running workflows to another hash of their definition: migrate."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer

from sagalog.engine import migrating
from sagalog.engine.client import Client, WaitTimeout
from sagalog.engine.migrating import Check, Outcome
from sagalog.schemas.definitions import Definition
from sagalog.schemas.errors import InvalidRecord
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.specs import Topics

from .audit import _progress as Bar
from .context import NotFound, open_log, run, settings, topics_of
from .output import out, print_json
from .workflows import Json

MANY_MAX: Final = 10_000
BATCH: Final = 500
"""Requests under way at a time."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of one workflow. `outcome` None: nothing was asked."""

    check: Check
    to: str
    outcome: Outcome | None = None

    @property
    def ok(self) -> bool:
        return self.outcome.taken if self.outcome is not None else self.check.fits

    def document(self) -> dict[str, Any]:
        problems = self.check.problems if self.outcome is None else self.outcome.problems
        return {
            "workflow_id": self.check.workflow_id,
            "from": self.check.definition,
            "to": self.to,
            "fits": self.check.fits,
            "problems": problems,
            "moved": self.outcome is not None and self.outcome.taken,
            "reason": self.outcome.reason if self.outcome is not None else None,
        }


@dataclass(slots=True)
class Summary:
    """What came of many."""

    moved: list[Moved] = field(default_factory=list)
    left: int = 0
    """Workflows beyond the limit."""


def register(app: typer.Typer) -> None:
    app.command("migrate")(migrate)


def migrate(
    to: Annotated[str, typer.Option(help="A registered definition: name (the newest), or name@hash.")],
    workflow_id: Annotated[str | None, typer.Argument(help="The workflow's id; or give --definition.")] = None,
    definition: Annotated[
        str | None, typer.Option(help="name@hash: all workflows on it that have not ended, the oldest first.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; it stands in the log.")] = "",
    who: Annotated[str | None, typer.Option(help="Who; default: the user of this process.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what does not fit.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=MANY_MAX, help="With --definition: how many at most.")] = 1_000,
    wait_s: Annotated[float, typer.Option(help="How long to wait until the log shows what came of it.")] = 30.0,
    json: Json = False,
) -> None:
    """Move running workflows to another hash of their definition. What does not fit is said, and not moved.

    Exits 0 when all fit (and were moved, or are there already), 1 when one does not, 4 when the log did not show in time what
    came of it, 5 when the log knows no such workflow. With --definition the whole log is read, twice when it is no dry run.

    \b
    Examples: sagalog migrate order-1 --to order --dry-run
              sagalog migrate order-1 --to order@0db87802e083bffc --reason "the bank has a new agent"
              sagalog migrate --definition order@95c4bb2e1aab3fd7 --to order --reason "fix 4711"
    """
    if (workflow_id is None) == (definition is None):
        raise InvalidRecord("migrate", "takes a workflow's id, or --definition name@hash; give one of the two")
    asked = _Asked(to, reason, who or getpass.getuser(), dry_run, wait_s)
    if workflow_id is not None:
        moved = run(_one(asked, workflow_id))
        _print_one(moved, dry_run, json)
        ok = moved.ok
    else:
        assert definition is not None
        name, _, hash_ = definition.partition("@")
        if not hash_:
            raise InvalidRecord("--definition", f"is {definition!r}, without a hash; write name@hash")
        summary = run(_many(asked, name, hash_, limit, quiet=json))
        _print_many(summary, dry_run, json)
        ok = all(moved.ok for moved in summary.moved)
    if not ok:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Asked:
    to: str
    reason: str
    who: str
    dry_run: bool
    wait_s: float


async def _one(asked: _Asked, workflow_id: str) -> Moved:
    found = settings()
    topics = topics_of(found)
    async with open_log(found) as log, Client(log, topics) as client:
        to = await client.definition(asked.to)
        checked = await migrating.check(log, topics, workflow_id, to)
        if checked is None:
            raise NotFound(f"workflow {workflow_id!r} is not in the log; is the id, or SAGALOG_PREFIX, right?")
        if asked.dry_run or checked.there or not checked.fits:
            return Moved(checked, to.hash)
        request = await client.migrate(workflow_id, f"{to.name}@{to.hash}", who=asked.who, reason=asked.reason)
        outcome = await _shown(log, topics, workflow_id, request, asked.wait_s)
        return Moved(checked, to.hash, outcome)


async def _shown(log: KafkaLog, topics: Topics, workflow_id: str, request: str, wait_s: float) -> Outcome:
    """The request is in the log, so that one look tells; with a broker in trouble even that may take its time."""
    found = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            found = await migrating.outcome(log, topics, workflow_id, request)
    if found is None:
        raise WaitTimeout(
            f"the log has not shown within {wait_s:g} s whether {workflow_id} was moved; see: sagalog replay {workflow_id}"
        )
    return found


async def _many(asked: _Asked, name: str, hash_: str, limit: int, *, quiet: bool) -> Summary:
    found = settings()
    topics = topics_of(found)
    async with open_log(found) as log, Client(log, topics) as client:
        to = await client.definition(asked.to)
        with Bar(quiet) as progress:
            checks = await migrating.check_all(log, topics, name, hash_, to, progress=progress)
        summary = Summary([Moved(one, to.hash) for one in checks[:limit]], max(0, len(checks) - limit))
        if asked.dry_run:
            return summary
        fitting = [moved.check.workflow_id for moved in summary.moved if moved.check.fits and not moved.check.there]
        requests = await _ask_all(client, fitting, to, asked)
        with Bar(quiet) as progress:
            shown = await migrating.outcomes(log, topics, set(requests.values()), progress=progress)
        if len(shown) < len(requests):
            raise WaitTimeout(
                f"the log does not show yet what came of {len(requests) - len(shown):,} requests; look again with --dry-run"
            )
        summary.moved = [
            Moved(moved.check, moved.to, shown[requests[moved.check.workflow_id]])
            if moved.check.workflow_id in requests
            else moved
            for moved in summary.moved
        ]
        return summary


async def _ask_all(client: Client, workflow_ids: Sequence[str], to: Definition, asked: _Asked) -> dict[str, str]:
    """Workflow id to the request's."""
    requests: dict[str, str] = {}
    named = f"{to.name}@{to.hash}"
    for start in range(0, len(workflow_ids), BATCH):
        batch = workflow_ids[start : start + BATCH]
        sent = await asyncio.gather(*(client.migrate(one, named, who=asked.who, reason=asked.reason) for one in batch))
        requests |= dict(zip(batch, sent, strict=True))
    return requests


# --- printing


def _print_one(moved: Moved, dry_run: bool, json: bool) -> None:
    if json:
        print_json({**moved.document(), "dry_run": dry_run})
        return
    _print_problems(moved)
    if moved.ok:
        out.print(f"{moved.check.workflow_id}: {_said(moved)}", markup=False)


def _print_many(summary: Summary, dry_run: bool, json: bool) -> None:
    fitting = sum(moved.ok for moved in summary.moved)
    if json:
        documents = [moved.document() for moved in summary.moved]
        counts = {"fitting": fitting, "not_fitting": len(documents) - fitting, "left": summary.left}
        print_json({"dry_run": dry_run, "workflows": documents, **counts})
        return
    for moved in summary.moved:
        _print_problems(moved)
    what = "would be moved" if dry_run else "were moved"
    out.print(f"{fitting:,} {what}, {len(summary.moved) - fitting:,} do not fit", markup=False)
    if summary.left:
        out.print(f"{summary.left:,} more are on it: raise --limit, or call it again", style="yellow")


def _print_problems(moved: Moved) -> None:
    if moved.ok:
        return
    reason = f" ({moved.outcome.reason})" if moved.outcome is not None else ""
    out.print(f"{moved.check.workflow_id}: does not fit {moved.to}{reason}", style="red", markup=False)
    for problem in moved.document()["problems"]:
        out.print(f"  {problem}", markup=False)


def _said(moved: Moved) -> str:
    if moved.check.there:
        return f"is on {moved.to} already"
    return f"fits {moved.to}" if moved.outcome is None else f"moved from {moved.check.definition} to {moved.to}"
