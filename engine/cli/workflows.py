"""Commands about workflows: start, wait, list, show, history, cancel."""

from __future__ import annotations

import asyncio
import getpass
import itertools
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sagalog.engine.backlog import Overloaded
from sagalog.schemas.codec import decode
from sagalog.schemas.definitions import parse_definition
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import OnDuplicate
from sagalog.schemas.identity import check_identity
from sagalog.schemas.ids import split_item
from sagalog.schemas.limits import PAYLOAD_BYTES_MAX, PRIORITY_DEFAULT, PRIORITY_MAX
from sagalog.schemas.mermaid import mermaid as draw
from sagalog.schemas.records import ResultRecord

from .context import NotFound, open_client, open_sql, run, settings
from .output import at, err, out, pretty, print_json, table

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
WorkflowId = Annotated[str, typer.Argument(help="The workflow's id.")]
ENDED_WELL = ("completed", "degraded")


def register(app: typer.Typer) -> None:
    for name, command in (
        ("start", start),
        ("wait", wait),
        ("list", list_),
        ("show", show),
        ("history", history),
        ("cancel", cancel),
    ):
        app.command(name)(command)


def start(
    definition: Annotated[str, typer.Argument(help="A registered definition: name, or name@hash.")],
    input: Annotated[str, typer.Option("--input", "-i", help="JSON; @FILE reads a file, - standard input.")] = "{}",
    workflow_id: Annotated[str | None, typer.Option("--id", help="The workflow's id; default: a new one.")] = None,
    deadline_ms: Annotated[int | None, typer.Option(help="Milliseconds from the start to the last step's end.")] = None,
    correlation_id: Annotated[str | None, typer.Option(help="Any text to find it by.")] = None,
    wait_s: Annotated[float | None, typer.Option("--wait", help="Wait so many seconds for the result.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose workflow it is.")] = None,
    priority: Annotated[
        int, typer.Option(min=0, max=PRIORITY_MAX, help="0 to 9, the higher first.")
    ] = PRIORITY_DEFAULT,
    attribute: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE to find it by; a number, true or false is one. Repeatable.")
    ] = None,
    on_duplicate: Annotated[
        OnDuplicate, typer.Option(help="When the id is in use, or was within 7 days.")
    ] = OnDuplicate.IGNORE,
    wait_when_overloaded_s: Annotated[
        float,
        typer.Option("--wait-when-overloaded", min=0, help="Try again for so many seconds when starts are refused."),
    ] = 0.0,
    json: Json = False,
) -> None:
    """Start a workflow. A second start with the same id changes nothing, unless --on-duplicate says otherwise.

    \b
    Examples: sagalog start invoice -i '{"file": "a.png"}' --id invoice-1
              sagalog start invoice -i @input.json --wait 60
              sagalog start invoice --tenant acme --priority 8 --attribute customer=4711
              sagalog start invoice --id invoice-1 --on-duplicate reject

    When the engine is too far behind (SAGALOG_START_LAG_RECORDS_MAX) nothing is sent, and the exit code is 6.
    """
    value = read_input(input)
    attributes = read_attributes(attribute or (), "--attribute")

    async def work() -> tuple[str, ResultRecord | None]:
        async with open_client(settings()) as client:
            started = await patient(
                lambda: client.start(
                    definition,
                    value,
                    workflow_id=workflow_id,
                    deadline_ms=deadline_ms,
                    correlation_id=correlation_id,
                    tenant=tenant,
                    priority=priority if priority != PRIORITY_DEFAULT else None,
                    attributes=attributes,
                    on_duplicate=on_duplicate,
                ),
                wait_when_overloaded_s,
            )
            return started, await client.wait(started, timeout_s=wait_s) if wait_s is not None else None

    started, result = run(work())
    if result is not None:
        _print_result(result, json)
    elif json:
        print_json({"workflow_id": started})
    else:
        out.print(started, markup=False)


async def patient(start: Callable[[], Awaitable[str]], patience_s: float) -> str:
    """Starts, again and again while starts are refused, until the patience would be over. Raises Overloaded."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + patience_s
    for tries in itertools.count(1):
        try:
            return await start()
        except Overloaded as error:
            wait_s = error.retry_after_ms / 1000
            if loop.time() + wait_s > until_s:
                raise
            err.print(f"refused {tries} times: {error}", style="dim", markup=False)
            await asyncio.sleep(wait_s)
    raise AssertionError("it returns or raises")


def wait(
    workflow_id: WorkflowId,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds to wait at most.")] = 60.0,
    json: Json = False,
) -> None:
    """Wait for a workflow's result. Exits 0 when it completed or is degraded, 1 when it ended otherwise, 4 on time-out.

    Example: sagalog wait invoice-1 --timeout 30
    """

    async def work() -> ResultRecord:
        async with open_client(settings()) as client:
            return await client.wait(workflow_id, timeout_s=timeout_s)

    _print_result(run(work()), json)


def _print_result(result: ResultRecord, json: bool) -> None:
    if json:
        print_json(result)
    else:
        out.print(f"{result['workflow_id']}: {result['status']}", style="bold", markup=False)
        failure = result.get("failure")
        if failure is not None:
            out.print(f"because {failure.get('step', 'the workflow')}: {failure['message']}", markup=False)
        for missing in result["missing"]:
            out.print(f"missing {missing['step']}: {missing['why']} ({missing['stand_in']} stands in)", markup=False)
        if "output" in result:
            out.print(pretty(result["output"]), markup=False)
    if result["status"] not in ENDED_WELL:
        raise typer.Exit(1)


def list_(
    status: Annotated[str | None, typer.Option(help="Only workflows in this status.")] = None,
    name: Annotated[str | None, typer.Option(help="Only workflows of this definition.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only workflows of this tenant.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only workflows with this search attribute, NAME=VALUE. Repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many at most, the newest first.")] = 20,
    json: Json = False,
) -> None:
    """Workflows, the newest first, from PostgreSQL.

    \b
    Examples: sagalog list --status running --limit 50
              sagalog list --tenant acme --where customer=4711
    """
    attributes = read_attributes(where or (), "--where")

    async def work() -> tuple[list[dict[str, Any]], dict[str, int]]:
        from sagalog.engine.projection import queries

        async with open_sql(settings()) as sql:
            page = await queries.list_workflows(
                sql, status=status, name=name, tenant=tenant, where=attributes, limit=limit
            )
            return [asdict(workflow) for workflow in page.workflows], await queries.counts_by_status(sql)

    rows, counts = run(work())
    if json:
        print_json({"workflows": rows, "counts": counts})
        return
    columns = ["workflow_id", "name", "status", "started_at", "finished_at", "completeness"]
    table(None, columns, [[row.get(column) for column in columns] for row in rows])
    out.print(
        "  ".join(f"{status}: {count}" for status, count in sorted(counts.items())) or "no workflows", style="dim"
    )


def show(
    workflow_id: WorkflowId,
    json: Json = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a Mermaid flowchart, its states coloured.")] = False,
) -> None:
    """One workflow: its steps, attempts and undoings, and why it does not move. From PostgreSQL.

    \b
    Examples: sagalog show invoice-1
              sagalog show invoice-1 --mermaid
    """
    if mermaid:
        if json:
            raise typer.BadParameter("stands beside --json; give one of the two", param_hint="--mermaid")
        out.print(run(_drawn(workflow_id)), markup=False, emoji=False, end="", soft_wrap=True)
        return

    async def work() -> dict[str, Any] | None:
        from sagalog.engine.projection import queries

        async with open_sql(settings()) as sql:
            details = await queries.show_workflow(sql, workflow_id)
            if details is None:
                return None
            lineage = await queries.lineage(sql, workflow_id)
            return {**asdict(details), "lineage": asdict(lineage) if lineage is not None else None}

    found = run(work())
    if found is None:
        raise _unknown(workflow_id)
    reasons = why(found)
    if json:
        print_json({**found, "why": reasons})
        return
    workflow = found["workflow"]
    out.print(f"{workflow_id}  ", style="bold", end="", markup=False)
    out.print(f"{workflow['name']}@{workflow['definition']}  {workflow['status']}", markup=False)
    table(
        None,
        ["step", "status", "agent", "attempt", "started", "ended", "note"],
        [
            [s["step"], s["status"], s["agent"], s["attempt"], s["started_at"], s["finished_at"], _note(s)]
            for s in found["steps"]
        ],
    )
    undone = [c for c in found["compensations"] if c["status"] != "not_needed"]
    if undone:
        table(
            "undoing, in this order",
            ["step", "status", "attempt", "note"],
            [
                [c["step"], c["status"], c["attempt"], _note(c)]
                for c in sorted(undone, key=lambda c: c["undone_order"] or 1 << 30)
            ],
        )
    if found["children"]:
        table(
            "workflows that do its steps",
            ["step", "workflow", "status", "started", "ended"],
            [[c["step"], c["workflow_id"], c["status"], c["started_at"], c["finished_at"]] for c in found["children"]],
        )
    if parent := found["parent"]:
        out.print(f"does step {parent['step']} of {parent['parent']}", style="dim", markup=False)
    if about := identity(workflow):
        out.print(about, style="dim", markup=False)
    for reason in reasons:
        out.print(f"- {reason}", markup=False)
    for move in found["migrations"]:
        out.print(f"- {moved(move)}", markup=False)


def identity(workflow: dict[str, Any]) -> str:
    """Whose a workflow is, how urgent, and what it is found by; empty when its start said nothing of that."""
    found = [f"tenant {workflow['tenant']}"] if workflow["tenant"] is not None else []
    if workflow["priority"] != PRIORITY_DEFAULT:
        found.append(f"priority {workflow['priority']}")
    found += [f"{name}={pretty(value)}" for name, value in sorted((workflow["attributes"] or {}).items())]
    return ", ".join(found)


def _unknown(workflow_id: str) -> NotFound:
    return NotFound(
        f"workflow {workflow_id!r} is not in the projection; is the id right? The log itself: sagalog replay {workflow_id}"
    )


async def _drawn(workflow_id: str) -> str:
    from sagalog.engine.projection import queries

    async with open_sql(settings()) as sql:
        details = await queries.show_workflow(sql, workflow_id)
        if details is None:
            raise _unknown(workflow_id)
        hash_ = details.workflow.definition
        document = await queries.definition_document(sql, hash_)
    if document is None:
        raise NotFound(
            f"definition {hash_} of workflow {workflow_id!r} is not in the projection yet; try again, or: sagalog definitions list"
        )
    return draw(
        parse_definition(document, registered=True),
        {step.step: step.status for step in details.steps},
        {undo.step: undo.status for undo in details.compensations},
    )


def why(found: dict[str, Any]) -> list[str]:
    """Why a workflow is where it is: one sentence each."""
    workflow = found["workflow"]
    reasons = []
    if workflow["stopped"]:
        reasons.append(f"stopped: {workflow['stopped']}")
    if workflow["paused"]:
        paused = workflow["paused"]
        reasons.append(f"paused by {paused['who']} since {at(paused['at_ms'])}: {paused['reason']}")
    if workflow["next"]:
        reasons.append(f"a newer start of {at(workflow['next']['at_ms'])} waits for its end, and replaces it then")
    if workflow["failure"]:
        failure = workflow["failure"]
        reasons.append(f"failed in {failure.get('step', 'the workflow')}: {failure['message']} ({failure['kind']})")
    for missing in workflow["missing"] or ():
        reasons.append(f"missing {missing['step']}: {missing['why']} ({missing['stand_in']} stands in)")
    reasons += _lineage(found.get("lineage") or {})
    for withheld in workflow["withheld"] or ():
        reasons.append(f"{withheld['step']} waits since {at(withheld['since_ms'])}: {_waits_for(withheld)}")
    if not workflow["terminal"]:
        # A step that maps waits for its items, which stand there themselves.
        parents = {split_item(step["step"])[0] for step in found["steps"] if split_item(step["step"])[1] >= 0}
        for step in found["steps"]:
            if step["step"] in parents:
                continue
            if step["status"] == "backing_off":
                reasons.append(f"{step['step']} waits for its next attempt at {step['retry_at']}")
            elif step["status"] == "running":
                reasons.append(f"{step['step']} waits for agent {step['agent']}, attempt {step['attempt']}")
            elif step["status"] == "reconciling":
                again = f" again at {step['retry_at']}" if step["retry_at"] is not None else ""
                unsaid = f"whether attempt {step['attempt']} happened is not known"
                reasons.append(f"{step['step']}: {unsaid}, agent {step['agent']} is asked{again}")
            elif step["status"] == "awaiting":
                reasons.append(f"{step['step']} waits, at most until {step['until_at']}")
        for signal in workflow["signals"] or ():
            reasons.append(f"signal {signal['name']} of {at(signal['at_ms'])} is kept until a step waits for it")
    for review in found["reviews"]:
        decided = f"; {review['decision']} by {review['decided_by']}" if review["decided_at"] is not None else ""
        reasons.append(f"review ({review['kind']}): {review['reason']}{decided}")
    for letter in found["dead_letters"]:
        again = letter.get("redriven_by")
        reasons.append(
            f"dead letter: {letter['direction']} {letter['step']}, {letter['failed_attempts']} failed attempts"
            + (f"; tried again in {again}" if again else "")
        )
    return reasons


def moved(move: dict[str, Any]) -> str:
    """One move to another definition, as a sentence."""
    why = f": {move['reason']}" if move["reason"] else ""
    return f"moved from {move['before']} to {move['after']} by {move['who']} at {move['at']}{why}"


def _waits_for(withheld: dict[str, Any]) -> str:
    """What a command that is not sent yet waits for, in words."""
    under = f" under the key {withheld['key']!r}" if withheld.get("key") else ""
    match withheld["reason"]:
        case "circuit_open":
            return f"the circuit of {withheld['service']} is open"
        case "ramp":
            return f"the circuit of {withheld['service']} has closed, and lets more and more through"
        case "concurrency_limit":
            return f"as many are out as limit {withheld['limit']!r} allows{under}"
        case "rate_limit":
            return f"limit {withheld['limit']!r} allows no more at this time{under}"
        case "limit_keys_full":
            return f"there are too many keys of limits at a time; limit {withheld['limit']!r}{under}"
        case "in_flight_limit":
            return "its agent has as many commands as it may have at a time"
        case other:
            return str(other)


def _lineage(lineage: dict[str, Any]) -> list[str]:
    """Where a workflow comes from, and what became of it."""
    reasons = []
    if forked := lineage.get("forked_from"):
        said = f" by {forked['who']}" if forked.get("who") else ""
        why = f": {forked['reason']}" if forked.get("reason") else ""
        reasons.append(f"forked from {forked['workflow_id']} at offset {forked['at_offset']}{said}{why}")
    for rewound in lineage.get("rewinds") or ():
        how = "once that was undone" if rewound["undo"] else "without undoing"
        reasons.append(f"rewound to {rewound['step']} {how}, by {rewound['who']}: {rewound['reason']}")
    reasons += [f"forked into {fork}" for fork in lineage.get("forks") or ()]
    return reasons


def _note(row: dict[str, Any]) -> str:
    if row.get("stand_in"):
        return f"{row['stand_in']} stands in"
    failures = row["failures"]
    return failures[-1]["message"] if failures else ""


def history(workflow_id: WorkflowId, json: Json = False) -> None:
    """Every event of a workflow, as it stands in the log.

    Example: sagalog history invoice-1 --json
    """

    async def work() -> list[dict[str, Any]]:
        async with open_client(settings()) as client:
            return await client.history(workflow_id)

    found = run(work())
    if not found:
        raise NotFound(f"workflow {workflow_id!r} is not in the log; is the id, or SAGALOG_PREFIX, right?")
    if json:
        print_json(found)
        return
    for event in found:
        out.print(f"{event['offset']:>8}  {at(event['at_ms'])}  ", style="dim", end="")
        out.print(event.get("ce_type", "?"), style="bold", markup=False, end="  ")
        out.print(f"{event['data']}"[:200], markup=False)


def cancel(
    workflow_id: WorkflowId,
    reason: Annotated[str, typer.Option(help="Why; it stands in the log.")],
    who: Annotated[str | None, typer.Option(help="Who; default: the user of this process.")] = None,
) -> None:
    """Stop a workflow and undo what it did. A compensation that runs already goes on.

    Example: sagalog cancel invoice-1 --reason "entered twice"
    """

    async def work() -> None:
        async with open_client(settings()) as client:
            await client.cancel(workflow_id, reason=reason, who=who or getpass.getuser())

    run(work())
    out.print(f"asked {workflow_id} to stop; its outcome: sagalog wait {workflow_id}", markup=False)


def read_attributes(given: Sequence[str], option: str) -> dict[str, str | int | float | bool]:
    """Search attributes given as NAME=VALUE. What is a number, true or false in JSON is one; quoted ("7") it is a text."""
    found: dict[str, str | int | float | bool] = {}
    for one in given:
        name, equals, text = one.partition("=")
        if not equals:
            raise InvalidRecord(option, f"{one[:80]!r} is not NAME=VALUE")
        try:
            value = decode(text.encode(errors="surrogateescape"), option)
        except InvalidRecord:
            value = text
        found[name] = value if isinstance(value, str | int | float) else text
    check_identity(None, None, found)
    return found


def read_input(text: str) -> Any:
    """A JSON value given on the command line, in a file (@FILE) or on standard input (-). Raises InvalidRecord."""
    if text == "-":
        raw = sys.stdin.buffer.read(PAYLOAD_BYTES_MAX + 1)
    elif text.startswith("@"):
        try:
            with Path(text[1:]).open("rb") as file:
                raw = file.read(PAYLOAD_BYTES_MAX + 1)
        except OSError as error:
            raise InvalidRecord("--input", f"{text[1:]} cannot be read ({error.strerror})") from None
    else:
        # Bytes that are not UTF-8 come from the shell as half surrogate pairs; as bytes again, they are named as what they are.
        raw = text.encode(errors="surrogateescape")
    if len(raw) > PAYLOAD_BYTES_MAX:
        raise InvalidRecord(
            "--input", f"is more than {PAYLOAD_BYTES_MAX:,} bytes; store it elsewhere and pass a reference"
        )
    return decode(raw, "--input")
