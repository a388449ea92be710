"""What became of a document: as one JSON object for programs, as one line and one table row for people.

The JSON of a workflow, with --json:

    file         the path as it was given
    workflow_id  its id; `sagalog show` and `sagalog replay` take it
    status       completed, degraded, review, compensated, failed, ... (sagalog.schemas.statuses)
    invoice      invoice_number, date (ISO 8601), currency, amount (a number); null where it is not known for sure
    missing      the manifest of a degraded result: step, why, kind, stand_in
    steps        name, status, attempts; `reasons` why one failed or asked for a person; `undone` what became of its undoing

Rule: an amount stands here only when it was accepted, or when nothing is to be said against it (see `known_fields`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sagalog.schemas.records import ResultRecord, StepRecord
from sagalog.schemas.statuses import StepStatus, WorkflowStatus

FIELDS: Final = ("invoice_number", "date", "currency", "amount")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A document and the result of its workflow. `file` is the path as it was given."""

    file: str
    result: ResultRecord

    @property
    def workflow_id(self) -> str:
        return self.result["workflow_id"]

    @property
    def status(self) -> str:
        return self.result["status"]

    @property
    def ended_well(self) -> bool:
        return self.status in (WorkflowStatus.COMPLETED, WorkflowStatus.DEGRADED)

    @property
    def invoice(self) -> dict[str, Any]:
        """The fields that are known, as in the records: the amount is a string."""
        steps = {step["name"]: step for step in self.result["steps"]}
        found: Any = None
        if self.status == WorkflowStatus.REVIEW:
            found = _details(self.result).get("invoice")
        elif (validated := steps.get("validate")) is not None and validated["status"] == StepStatus.DONE:
            found = steps["read"].get("output")
        fields = found if isinstance(found, dict) else {}
        return {name: fields.get(name) for name in FIELDS}

    @property
    def reasons(self) -> list[str]:
        """Why it did not simply complete, in sentences."""
        failure = self.result.get("failure")
        if failure is None:
            return [f"{line['step']} is missing: {line['why']}" for line in self.result["missing"]]
        return [str(reason) for reason in _details(self.result).get("reasons", ())] or [failure["message"]]

    @property
    def order(self) -> str | None:
        """The best suggestion of a purchase order."""
        output = self.result.get("output")
        matches = output.get("matches") if isinstance(output, dict) else None
        return str(matches[0]["reference"]) if matches else None

    def to_json(self) -> str:
        invoice = self.invoice
        amount = invoice["amount"]
        document = {
            "file": self.file,
            "workflow_id": self.workflow_id,
            "status": self.status,
            "invoice": invoice | {"amount": _number(amount) if amount is not None else None},
            "missing": self.result["missing"],
            "steps": [_step(step) for step in self.result["steps"]],
        }
        return json.dumps(document, ensure_ascii=False)

    def describe(self) -> str:
        """What was read and what became of it, for a line."""
        invoice = self.invoice
        said = "  ".join(
            str(invoice[name]) for name in ("currency", "amount", "invoice_number", "date") if invoice[name]
        )
        if not self.ended_well:
            return f"{self.status}: {'; '.join(self.reasons)}"
        return f"{said}  posted{f', order {self.order}' if self.order else ''}"

    def row(self) -> list[str]:
        invoice = self.invoice
        return [
            self.file,
            self.status,
            *(str(invoice[name] or "") for name in FIELDS),
            self.order or "",
            "\n".join(self.reasons),
        ]


COLUMNS: Final = ("file", "status", "number", "date", "currency", "amount", "order", "why")


def _details(result: ResultRecord) -> dict[str, Any]:
    details = result.get("failure", {}).get("details")
    return details if isinstance(details, dict) else {}


def _number(amount: str) -> int | float:
    """An accepted amount has at most ten significant digits, which a double holds exactly as they are printed."""
    found = Decimal(amount)
    return int(found) if found == found.to_integral_value() else float(found)


def _step(step: StepRecord) -> dict[str, Any]:
    found: dict[str, Any] = {"name": step["name"], "status": step["status"], "attempts": step["attempt"]}
    if "failures" in step:
        found["reasons"] = [failure["message"] for failure in step["failures"]]
    undo = step.get("undo")
    if undo is not None and undo["status"] != "not_needed":
        found["undone"] = undo["status"]
    return found
