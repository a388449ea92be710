"""The invoice saga: read -> validate -> match a purchase order -> post to the ledger -> notify.

    sagalog agent sagalog.agents.invoices.saga:agents
    sagalog definitions register sagalog.agents.invoices.saga:definition
    sagalog start invoice -i '{"file": "/invoices/a.pdf"}' --wait 60

Reading, validating and posting are critical; a posting is reversed when the workflow stops after it. Orders and messages
may be missing: the result is then degraded and says so. What a person must decide ends in the status `review`.
"""

from __future__ import annotations

from typing import Final

from sagalog.schemas.definitions import (
    CircuitPolicy,
    Compensation,
    Definition,
    Fields,
    Retry,
    Step,
    fields,
    from_input,
    from_step,
)

from .agents import Document, Suggestions, agents, match, notify, post, read, validate

__all__ = ["OCR_SERVICE", "agents", "definition", "result"]

OCR_SERVICE: Final = "ocr"
READ_TIMEOUT_MS: Final = 120_000
"""Twice what a document may take (`reading.Limits.seconds_max`): it may wait as long for the one before it."""

_INVOICE: Final = from_step("read")


def result() -> Fields:
    """What a workflow gives back: what was read and checked, how it was posted, and the suggested orders.

    The amount is a string, as everywhere in the records: a JSON number is a float to many readers, and money is none.
    """
    return fields(
        invoice=fields(
            invoice_number=from_step("read", "invoice_number"),
            date=from_step("read", "date"),
            currency=from_step("read", "currency"),
            amount=from_step("read", "amount"),
        ),
        supplier=from_step("read", "supplier"),
        checks=from_step("validate", "confirmations"),
        matches=from_step("match", "matches"),
        posting=from_step("post"),
    )


definition: Final = Definition(
    name="invoice",
    description="Reads an invoice, checks that it adds up, suggests its purchase order, posts it and says so.",
    input_schema=Document.model_json_schema(),
    steps=(
        Step(
            name="read",
            agent=read.name,
            input=fields(file=from_input("file")),
            retry=Retry(attempts=5, base_ms=1_000, cap_ms=60_000),
            timeout_ms=READ_TIMEOUT_MS,
            service=OCR_SERVICE,
            output_schema=read.output_schema,
            irreversible=True,  # it only reads
        ),
        Step(
            name="validate",
            agent=validate.name,
            needs=("read",),
            input=fields(invoice=_INVOICE, file=from_input("file")),
            output_schema=validate.output_schema,
            irreversible=True,
        ),
        Step(
            name="match",
            agent=match.name,
            needs=("validate",),
            input=_INVOICE,
            critical=False,
            default=Suggestions().model_dump(mode="json"),
            output_schema=match.output_schema,
        ),
        Step(
            name="post",
            agent=post.name,
            needs=("match",),
            input=_INVOICE,
            retry=Retry(attempts=5),
            compensate=Compensation(),
            output_schema=post.output_schema,
        ),
        Step(
            name="notify",
            agent=notify.name,
            needs=("post",),
            input=fields(
                posting=from_step("post"), suggestions=from_step("match"), supplier=from_step("read", "supplier")
            ),
            critical=False,
            output_schema=notify.output_schema,
        ),
    ),
    output=result(),
    services={OCR_SERVICE: CircuitPolicy(failure_ratio=0.5, calls_min=5, window_ms=60_000, recovery_ms=15_000)},
)
