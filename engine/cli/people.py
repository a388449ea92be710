"""Commands by which people steer workflows: signal, pause, resume, terminate, prioritize, reviews, decide."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import Annotated, Any

import typer

from sagalog.schemas.events import Action, Decision
from sagalog.schemas.limits import PRIORITY_MAX

from .context import open_client, open_sql, run, settings
from .output import out, pretty, print_json, table
from .workflows import Json, WorkflowId, read_input

Reason = Annotated[str, typer.Option(help="Why; it stands in the log.")]
Who = Annotated[str | None, typer.Option(help="Who; default: the user of this process.")]


def register(app: typer.Typer) -> None:
    for name, command in (
        ("signal", signal),
        ("pause", pause),
        ("resume", resume),
        ("terminate", terminate),
        ("prioritize", prioritize),
        ("reviews", reviews),
        ("decide", decide),
    ):
        app.command(name)(command)


def signal(
    workflow_id: WorkflowId,
    name: Annotated[str, typer.Argument(help="The signal's name, as the definition's wait_for has it.")],
    input: Annotated[str, typer.Option("--input", "-i", help="JSON; @FILE reads a file, - standard input.")] = "null",
    signal_id: Annotated[str | None, typer.Option("--id", help="One sent twice with the same id counts once.")] = None,
    who: Who = None,
) -> None:
    """Send a signal to a workflow. One that does not wait for it yet keeps it.

    Example: sagalog signal order-1 paid -i '{"amount": 7}' --id payment-4711
    """
    payload = read_input(input)

    async def work() -> str:
        async with open_client(settings()) as client:
            return await client.signal(workflow_id, name, payload, who=who or getpass.getuser(), signal_id=signal_id)

    sent = run(work())
    out.print(f"sent signal {name} ({sent}) to {workflow_id}", markup=False)


def pause(workflow_id: WorkflowId, reason: Reason, who: Who = None) -> None:
    """Pause a workflow: nothing new begins, forward or backward, until it is resumed. Deadlines and time-outs still count.

    Example: sagalog pause order-1 --reason "the bank called"
    """
    _act(workflow_id, Action.PAUSE, reason, who)


def resume(workflow_id: WorkflowId, reason: Reason, who: Who = None) -> None:
    """Resume a workflow that is paused, or stopped by a record in quarantine.

    Example: sagalog resume order-1 --reason "settled"
    """
    _act(workflow_id, Action.RESUME, reason, who)


def terminate(workflow_id: WorkflowId, reason: Reason, who: Who = None) -> None:
    """End a workflow at once, as it stands: nothing is waited for, nothing is undone. To undo it, cancel it.

    Example: sagalog terminate order-1 --reason "undone by hand"
    """
    _act(workflow_id, Action.TERMINATE, reason, who)


def prioritize(
    workflow_id: WorkflowId,
    priority: Annotated[int, typer.Argument(min=0, max=PRIORITY_MAX, help="0 to 9, the higher first.")],
    reason: Reason,
    who: Who = None,
) -> None:
    """Change a workflow's priority. What its agents have already been sent keeps the one it had.

    Example: sagalog prioritize order-1 8 --reason "the customer waits at the counter"
    """

    async def work() -> None:
        async with open_client(settings()) as client:
            await client.prioritize(workflow_id, priority, reason=reason, who=who or getpass.getuser())

    run(work())
    out.print(f"asked {workflow_id} to go by priority {priority}; how it is: sagalog show {workflow_id}", markup=False)


def _act(workflow_id: str, action: Action, reason: str, who: str | None) -> None:
    async def work() -> None:
        async with open_client(settings()) as client:
            await client.act(workflow_id, action, reason=reason, who=who or getpass.getuser())

    run(work())
    out.print(f"asked {workflow_id} to {action.value}; how it is: sagalog show {workflow_id}", markup=False)


def reviews(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are decided.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many at most, the newest first.")] = 20,
    json: Json = False,
) -> None:
    """What waits for a person, the newest first, from PostgreSQL.

    Example: sagalog reviews
    """

    async def work() -> list[dict[str, Any]]:
        from sagalog.engine.projection import queries

        async with open_sql(settings()) as sql:
            return [asdict(review) for review in await queries.reviews(sql, limit=limit, open_only=not everything)]

    found = run(work())
    if json:
        print_json(found)
        return
    columns = ["workflow_id", "step", "kind", "reason", "created_at"]
    table(None, [*columns, "decided"], [[*(row[column] for column in columns), _decided(row)] for row in found])
    if not found:
        out.print("nothing waits for a person", style="dim")


def _decided(review: dict[str, Any]) -> str:
    return f"{review['decision']} by {review['decided_by']}" if review["decided_at"] is not None else ""


def decide(
    workflow_id: WorkflowId,
    step: Annotated[str, typer.Argument(help="The step that waits for a decision.")],
    decision: Annotated[
        Decision,
        typer.Argument(help="A task: approve, reject. A held step or undoing: retry, skip, complete, fail."),
    ],
    input: Annotated[
        str, typer.Option("--output", "-o", help="The step's output as JSON; @FILE reads a file, - standard input.")
    ] = "null",
    undo: Annotated[bool, typer.Option("--undo", help="About the step's undoing.")] = False,
    reason: Annotated[str, typer.Option(help="Why; it stands in the log.")] = "",
    who: Who = None,
) -> None:
    """Decide about a task, or about a step or an undoing that failed for good and is held.

    \b
    Examples: sagalog decide invoice-1 approve-payment approve --reason "checked"
              sagalog decide invoice-1 post complete -o '{"entry": 17}'
              sagalog decide invoice-1 post retry --undo
    """
    output = read_input(input)

    async def work() -> None:
        async with open_client(settings()) as client:
            await client.decide(
                workflow_id,
                step,
                decision,
                who=who or getpass.getuser(),
                reason=reason,
                output=output,
                undo=undo,
            )

    run(work())
    said = f" with {pretty(output)}" if output is not None else ""
    out.print(
        f"decided {step} of {workflow_id}: {decision.value}{said}; how it is: sagalog show {workflow_id}", markup=False
    )
