"""A workflow that begins where another one was: what it keeps of its original counts as done from the start.

Rules:
- What is kept is closed under needs, and its outputs fit the definition that the fork runs by; else the start is rejected.
- The original owns the effects of what is kept: the fork never undoes them. A step that the fork does anew is the fork's.
"""

from __future__ import annotations

from typing import Any

from sagalog.schemas.codec import encode
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import Forked, WorkflowStarted
from sagalog.schemas.ids import check_workflow_id
from sagalog.schemas.limits import (
    ENVELOPE_BYTES_MAX,
    FAILURE_MESSAGE_CHARS_MAX,
    LETTER_ID_CHARS_MAX,
    NAME_CHARS_MAX,
    PAYLOAD_BYTES_MAX,
    STATE_BYTES_MAX,
    TEXT_CHARS_MAX,
    WORKFLOW_ID_BYTES_MAX,
)
from sagalog.schemas.records import FailureRecord, ForkedRecord
from sagalog.schemas.statuses import StepStatus

from .closing import close_step, note_failure
from .effects import Effect
from .plan import Plan, PlanStep
from .state import StepState, WorkflowState


def size_problem(event: WorkflowStarted, size: int) -> str | None:
    """What about the start's size cannot be accepted: what a fork keeps may be as much as a workflow's state may hold."""
    if event.forked is None:
        fits, limit = size <= PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX, PAYLOAD_BYTES_MAX
    else:
        fits, limit = size <= STATE_BYTES_MAX, STATE_BYTES_MAX
        if fits and len(encode(event.input)) > PAYLOAD_BYTES_MAX:
            return f"input: is more than {PAYLOAD_BYTES_MAX:,} bytes; store it elsewhere and pass a reference"
    if fits:
        return None
    return f"input: the start is {size:,} bytes, more than {limit:,}; store it elsewhere and pass a reference"


def lineage(forked: Forked) -> ForkedRecord:
    """What is kept of where a fork comes from."""
    record: ForkedRecord = {"workflow_id": forked.workflow_id[:WORKFLOW_ID_BYTES_MAX], "at_offset": forked.at_offset}
    if forked.dead_letter is not None:
        record["dead_letter"] = forked.dead_letter[:LETTER_ID_CHARS_MAX]
    if forked.who is not None:
        record["who"] = forked.who[:TEXT_CHARS_MAX]
    if forked.reason is not None:
        record["reason"] = forked.reason[:TEXT_CHARS_MAX]
    return record


def problem(forked: Forked, plan: Plan) -> str | None:
    """What of a fork does not fit the definition, with its path; None when all does."""
    try:
        check_workflow_id(forked.workflow_id, "forked.workflow_id")
    except InvalidRecord as error:
        return str(error)
    for field, names in (("skipped", forked.skipped), ("missing", forked.missing)):
        for name in names:
            if name not in forked.steps:
                return f"forked.{field}: {name[:NAME_CHARS_MAX]!r} is not among forked.steps; add it there, or leave it out"
    for name, output in forked.steps.items():
        place = plan.index.get(name)
        if place is None:
            return f"forked.steps: {name[:NAME_CHARS_MAX]!r} is no step of {plan.name!r}; fork before a step that comes earlier"
        spec = plan.steps[place]
        for need in spec.needs:
            if plan.steps[need].name not in forked.steps:
                return f"forked.steps.{name}: needs {plan.steps[need].name!r}, which is not among them; keep both, or neither"
        if name not in forked.skipped and name not in forked.missing:
            found = _output_problem(spec, output)
            if found is not None:
                return f"forked.steps.{name}: {found}"
    return None


def begin(state: WorkflowState, plan: Plan, forked: Forked, effects: list[Effect]) -> None:
    """What is kept has ended; whoever calls begins what follows."""
    left = [plan.index[name] for name in forked.steps]
    left.sort()
    # Each after its needs, so that the order of completion is one that could have been.
    while left:
        ready = [place for place in left if not any(need in left for need in plan.steps[place].needs)]
        for place in ready:
            _keep(state, state.steps[place], plan.steps[place], forked, effects)
        left = [place for place in left if place not in ready]


def _keep(state: WorkflowState, step: StepState, spec: PlanStep, forked: Forked, effects: list[Effect]) -> None:
    if spec.name in forked.skipped:
        close_step(state, step, spec, StepStatus.SKIPPED, "forked", effects)
        return
    step.output = forked.steps[spec.name]
    step.stand_in = "fork"
    gap = forked.missing.get(spec.name)
    if gap is None:
        close_step(state, step, spec, StepStatus.DONE, "forked", effects)
        return
    failure: FailureRecord = {
        "kind": gap.kind[:NAME_CHARS_MAX],
        "message": gap.why[:FAILURE_MESSAGE_CHARS_MAX],
        "at_ms": state.now_ms,
    }
    note_failure(state, step.failures, failure)
    step.failed_attempts += 1
    close_step(state, step, spec, StepStatus.DEGRADED, "forked", effects)


def _output_problem(spec: PlanStep, output: Any) -> str | None:
    """What in a kept output breaks the step's contract."""
    validators = [found for found in (spec.payload_validator, spec.output_validator) if found is not None]
    if spec.map is not None:
        if type(output) is not list:
            return "is no list, but the step maps: it takes one output for each item"
        outputs = output
    else:
        outputs = [output]
    return next((found for v in validators for one in outputs if (found := v.problem(one)) is not None), None)
