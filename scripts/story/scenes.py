"""The scenes, in the order in which they are shown. Each injects its fault, watches what happens, and checks what came of it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from decimal import Decimal
from itertools import cycle, islice
from typing import Any, Final

from sagalog.agents.invoices.currency import EXPONENTS
from sagalog.agents.invoices.saga import OCR_SERVICE
from sagalog.engine.projection import queries
from sagalog.engine.projection.sql import SqlError
from sagalog.schemas.records import ResultRecord
from sagalog.schemas.statuses import CircuitStatus, WorkflowStatus
from story import agents, sagas, tail
from story.faults import Fault
from story.report import Outcome
from story.run import Run
from story.settings import (
    PARKED_WORKFLOWS,
    POLL_S,
    RETRIED_FAILURES,
    ROWS_S_MAX,
    SAMPLES,
    SAMPLES_LEFT_OUT,
    VERIFY_S_MAX,
    StoryError,
)

GOOD: Final = "falcon-office.png"
"""The invoice of the scenes with one workflow."""


async def healthy(run: Run) -> None:
    """Shipped invoices: the sound ones are posted, the faulty ones go to a person."""
    run.screen.scene(
        "Healthy runs: read, validate, match, post, notify",
        "Drawn invoices in several layouts, languages and currencies, slightly turned and noisy; some are faulty.",
    )
    samples = shown_samples()
    before = run.system.ledger.balance()
    found = await run.documents({f"healthy-{name.removesuffix('.png')}": SAMPLES / name for name in samples})
    by_name = {outcome.workflow_id.removeprefix("healthy-") + ".png": outcome for outcome in found}
    sound = {name: sample for name, sample in samples.items() if sample["faulty"] is None}
    wrong = [name for name, sample in sound.items() if not _as_expected(by_name[name], sample)]
    run.screen.expect(
        f"{len(sound)} sound invoices are posted with the right number, date, currency and amount",
        not wrong,
        f"{wrong}",
    )
    let_through = [
        name
        for name, sample in samples.items()
        if sample["faulty"] is not None
        and not (by_name[name].status == WorkflowStatus.REVIEW and by_name[name].reasons)
    ]
    run.screen.expect(
        f"{len(samples) - len(sound)} faulty invoices wait for a person, with the reason",
        not let_through,
        f"{let_through}",
    )
    posted = _payables(run.system.ledger.balance(), before)
    run.screen.expect("the ledger holds exactly their amounts", posted == _expected_payables(sound), f"{posted}")


async def retried(run: Run) -> None:
    """An agent that fails twice."""
    run.screen.scene(
        "An agent that fails is tried again, with back-off",
        f"The ledger refuses the first {RETRIED_FAILURES} attempts.",
    )
    with run.system.faulty("ledger", Fault(message="the ledger answers 503", attempts=RETRIED_FAILURES)):
        result = await _told(run, "retried-1", sagas.invoice.name)
    post = _step(result, "post")
    run.screen.expect(
        f"completed, posting at attempt {RETRIED_FAILURES + 1}",
        result["status"] == WorkflowStatus.COMPLETED and post["attempt"] == RETRIED_FAILURES + 1,
        f"{result['status']} at attempt {post['attempt']}",
    )


async def compensated(run: Run) -> None:
    """A step that fails for good behind two that have to be undone."""
    run.screen.scene(
        "A step that fails for good: what was done is undone, in reverse order",
        "The same saga with two more steps: a budget is reserved before the posting, and a bank pays after it. It refuses.",
    )
    result = await _told(run, "undone-1", sagas.payment.name)
    undone = [
        (step["undo"]["order"], step["name"])
        for step in result["steps"]
        if "undo" in step and step["undo"]["status"] == "done"
    ]
    order = [name for _, name in sorted(undone)]
    run.screen.expect(
        "compensated: the posting is reversed first, then the budget is released",
        result["status"] == WorkflowStatus.COMPENSATED and order == ["post", "reserve"],
        f"{result['status']}, undone {order}",
    )
    entries = [entry for entry in run.system.ledger.entries() if entry.key == "undone-1/post"]
    reserved = dict(agents.reservations(run.system.directory))
    run.screen.expect(
        "the ledger shows posting and reversal, which add up to nothing; the budget is free again",
        {entry.kind for entry in entries} == {"posting", "reversal"}
        and sum(entry.minor for entry in entries if entry.account == "payables") == 0
        and reserved.get("undone-1/reserve") is True,
        f"{entries} {reserved}",
    )


async def degraded(run: Run) -> None:
    """An optional step that is down."""
    run.screen.scene(
        "An optional step is down: the result is DEGRADED and says what is missing",
        "The purchase orders cannot be asked.",
    )
    with run.system.faulty("orders", Fault(message="connection to the order system refused")):
        result = await _told(run, "degraded-1", sagas.invoice.name)
    for missing in result["missing"]:
        run.screen.line(
            f"manifest: {missing['step']} is missing because {missing['why']}; a {missing['stand_in']} stands in",
            style="yellow",
        )
    run.screen.line(f"completeness {result['completeness']:.0%}", style="yellow")
    run.screen.expect(
        "degraded: posted all the same, without suggestions, and the manifest says why",
        result["status"] == WorkflowStatus.DEGRADED
        and [missing["step"] for missing in result["missing"]] == ["match"]
        and result["output"]["matches"] == []
        and result["output"]["posting"] is not None,
        f"{result['status']}, missing {result['missing']}",
    )


async def parked(run: Run) -> None:
    """A service that is down: its circuit opens, work waits, and goes on when it is back."""
    screen = run.screen
    screen.scene(
        "The OCR service is down: its circuit opens, work is parked, and released when it is back",
        f"{PARKED_WORKFLOWS} invoices arrive meanwhile. (Documents that were read before come from the reader's memory.)",
    )
    names = sound_samples()
    files = {f"parked-{n}": SAMPLES / name for n, name in enumerate(islice(cycle(names), PARKED_WORKFLOWS), 1)}
    async with tail.circuit(run.system.log, run.system.topics, OCR_SERVICE) as circuit:
        with screen.bar("waiting for the circuit to open") as bar:
            with run.system.faulty("ocr", Fault(message="connection to the OCR service refused")):
                await run.start(sagas.invoice.name, files)
                await circuit.until(CircuitStatus.OPEN)
                screen.line("the circuit of ocr is OPEN: nobody calls it any more", style="red")
                bar.say("waiting for the work to be parked")
                waiting = await _withheld(run, set(files))
                screen.line(f"{len(waiting)} of {len(files)} workflows are parked; none has failed", style="yellow")
            screen.line("the OCR service is back")
            bar.say("waiting for the probe")
            found = await run.finished(files, quiet=True)
            await circuit.until(CircuitStatus.CLOSED)
    # Calls that went well before the fault are states of a closed circuit, too.
    went = circuit.statuses[circuit.statuses.index(CircuitStatus.OPEN) :]
    screen.line(f"the circuit went {' -> '.join(went)}; the parked work was released", style="green")
    screen.expect(
        "the circuit opened, probed and closed",
        went[-2:] == [CircuitStatus.HALF_OPEN, CircuitStatus.CLOSED],
        f"{went}",
    )
    screen.expect("work was parked meanwhile", len(waiting) > 0)
    completed = sum(outcome.status == WorkflowStatus.COMPLETED for outcome in found)
    screen.expect(f"all {len(files)} completed, none failed", completed == len(files), f"{completed} completed")


async def rows(run: Run) -> None:
    """What PostgreSQL shows."""
    screen = run.screen
    screen.scene(
        "The rows in PostgreSQL", f"SELECT * FROM {run.system.sql.schema}.workflows ORDER BY started_at DESC LIMIT 6"
    )
    expected = Counter(outcome.status for outcome in run.outcomes)
    with screen.bar("waiting for the projection"):
        counts = await _until_projected(run, expected)
        page = await queries.list_workflows(run.system.sql, limit=6)
        reviews = await queries.reviews(run.system.sql)
    screen.table(
        ["workflow", "definition", "status", "completeness"],
        [
            [one.workflow_id, one.name, one.status, "" if one.completeness is None else f"{one.completeness:.0%}"]
            for one in page.workflows
        ],
    )
    screen.line(f"... {sum(counts.values())} workflows, {len(reviews)} reviews, for example:")
    for review in reviews[:2]:
        screen.line(f"{review.workflow_id}: {review.reason}", style="magenta")
    screen.expect("the rows count as many of each status as the results did", counts == expected, f"{counts}")
    waiting = {outcome.workflow_id for outcome in run.outcomes if outcome.status == WorkflowStatus.REVIEW}
    screen.expect(
        "every review is in the queue, with its reason",
        waiting == {review.workflow_id for review in reviews if review.reason},
        f"{[review.workflow_id for review in reviews]}",
    )


async def verified(run: Run) -> None:
    """`sagalog verify`."""
    screen = run.screen
    screen.scene(
        "sagalog verify: fold the whole log again and compare",
        "Every checkpoint, result and row must be what the events alone lead to.",
    )
    with screen.bar("sagalog verify"):
        code, out, err = await run.system.children.run("verify", "--json", timeout_s=VERIFY_S_MAX)
    try:
        report = json.loads(out)
    except ValueError:
        raise StoryError(f"`sagalog verify` ended with {code}: {err.decode(errors='replace').strip()}") from None
    total = {
        name: sum(partition[name] for partition in report["partitions"])
        for name in ("events", "workflows", "checkpoints", "results", "rows")
    }
    screen.line(", ".join(f"{count:,} {name}" for name, count in total.items()))
    differences = [line for partition in report["partitions"] for line in partition["differences"]]
    screen.expect(
        "checkpoints, results and rows equal a re-fold of the log", code == 0 and report["ok"], f"{differences}"
    )
    screen.expect(
        f"it looked at all {len(run.outcomes)} workflows",
        total["workflows"] == len(run.outcomes),
        f"{total['workflows']}",
    )


# --- helpers


def shown_samples() -> dict[str, dict[str, Any]]:
    """The shipped invoices that are shown, with what is expected of them."""
    samples: dict[str, dict[str, Any]] = json.loads((SAMPLES / "expected.json").read_text("utf-8"))
    return {name: sample for name, sample in samples.items() if name not in SAMPLES_LEFT_OUT}


def sound_samples() -> list[str]:
    """Names of those without a fault."""
    return [name for name, sample in shown_samples().items() if sample["faulty"] is None]


async def _told(run: Run, workflow_id: str, definition: str) -> ResultRecord:
    """Runs one workflow and tells its events."""
    system = run.system
    with run.screen.bar(workflow_id):
        async with tail.told(system.log, system.topics, system.partitions, workflow_id, run.screen.line) as events:
            await run.start(definition, {workflow_id: SAMPLES / GOOD})
            result = (await run.finished({workflow_id: SAMPLES / GOOD}, quiet=True))[0].result
            await events.until(result["at_offset"])
    return result


def _step(result: ResultRecord, name: str) -> Any:
    return next(step for step in result["steps"] if step["name"] == name)


def _as_expected(outcome: Outcome, sample: dict[str, Any]) -> bool:
    invoice = outcome.invoice
    return (
        outcome.status == WorkflowStatus.COMPLETED
        and all(invoice[name] == sample[name] for name in ("invoice_number", "date", "currency"))
        and Decimal(invoice["amount"]) == Decimal(sample["amount"])
    )


def _payables(after: dict[str, dict[str, int]], before: dict[str, dict[str, int]]) -> dict[str, int]:
    owed = {currency: -accounts.get("payables", 0) for currency, accounts in after.items()}
    for currency, accounts in before.items():
        owed[currency] = owed.get(currency, 0) + accounts.get("payables", 0)
    return {currency: minor for currency, minor in owed.items() if minor}


def _expected_payables(samples: dict[str, dict[str, Any]]) -> dict[str, int]:
    owed: Counter[str] = Counter()
    for sample in samples.values():
        owed[sample["currency"]] += int(Decimal(sample["amount"]).scaleb(EXPONENTS.get(sample["currency"], 2)))
    return dict(owed)


async def _withheld(run: Run, workflow_ids: set[str]) -> set[str]:
    """Which of them PostgreSQL shows as withheld, once the first are and no more come."""
    seen: set[str] = set()
    deadline = asyncio.get_running_loop().time() + ROWS_S_MAX
    while asyncio.get_running_loop().time() < deadline:
        page = await queries.list_workflows(run.system.sql, status=WorkflowStatus.RUNNING, limit=100)
        found = {one.workflow_id for one in page.workflows if one.withheld} & workflow_ids
        if found == workflow_ids or (seen and found <= seen):
            return found | seen
        seen = found
        await asyncio.sleep(5 * POLL_S)
    return seen


async def _until_projected(run: Run, expected: Counter[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    deadline = asyncio.get_running_loop().time() + ROWS_S_MAX
    while asyncio.get_running_loop().time() < deadline:
        try:
            counts = await queries.counts_by_status(run.system.sql)
        except SqlError as error:
            raise StoryError(f"PostgreSQL cannot be asked: {error}") from error
        if counts == expected:
            break
        await asyncio.sleep(POLL_S)
    return counts
