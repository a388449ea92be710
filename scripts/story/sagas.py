"""The definitions that the demo runs: the invoice saga with shorter waits, and with a payment at its end."""

from __future__ import annotations

from typing import Final

from sagalog.agents.invoices import saga
from sagalog.schemas.definitions import CircuitPolicy, Compensation, Definition, Retry, Step, from_step
from story import agents

_RETRY: Final = Retry(attempts=5, base_ms=400, cap_ms=2_000)

invoice: Final[Definition] = saga.definition.model_copy(
    update={
        "description": "The invoice saga, with waits so short that one can watch them.",
        "steps": tuple(
            step.model_copy(update={"retry": _RETRY if step.critical else Retry(base_ms=200)})
            for step in saga.definition.steps
        ),
        "services": {
            saga.OCR_SERVICE: CircuitPolicy(failure_ratio=0.5, calls_min=5, window_ms=2_000, recovery_ms=3_000)
        },
    }
)

_STEPS: Final = {step.name: step for step in invoice.steps}

payment: Final = Definition(
    name="invoice-payment",
    description="The invoice saga that also reserves a budget and pays: for showing what is undone when paying fails.",
    input_schema=invoice.input_schema,
    steps=(
        _STEPS["read"],
        _STEPS["validate"],
        _STEPS["match"],
        Step(
            name="reserve",
            agent=agents.budget.name,
            needs=("match",),
            input=from_step("read"),
            compensate=Compensation(),
            output_schema=agents.budget.output_schema,
        ),
        _STEPS["post"].model_copy(update={"needs": ("reserve",)}),
        Step(name="pay", agent=agents.bank.name, needs=("post",), input=from_step("post")),
    ),
    output=saga.result(),
    services=invoice.services,
)
