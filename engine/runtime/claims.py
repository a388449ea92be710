"""What a command needs at the gate: the keys of its step's limits, from the workflow's input, its tenant and the step's service.

Rule: a limit holds for whatever the step's own agent is asked (to do it, to undo it, what became of it), as the step's service
does; not for fallbacks and other agents that undo.
"""

from __future__ import annotations

from sagalog.engine.kernel.plan import Plan, PlanStep
from sagalog.engine.kernel.state import WorkflowState
from sagalog.schemas.commands import Command
from sagalog.schemas.ids import split_item

from .buckets import CONCURRENCY, NO_CLAIMS, RATE, Claim, Claims


def claims_of(state: WorkflowState | None, plan: Plan | None, command: Command) -> Claims:
    """`plan` is that of the definition under which the command was made."""
    if state is None:
        return NO_CLAIMS
    tenant = state.tenant or ""
    if plan is not None and plan.limited:
        place = plan.index.get(split_item(command.step)[0])
        spec = plan.steps[place] if place is not None else None
        if spec is not None and spec.limits and command.agent == spec.agent:
            return _claims(state, spec, tenant)
    return Claims(tenant) if tenant else NO_CLAIMS


def _claims(state: WorkflowState, spec: PlanStep, tenant: str) -> Claims:
    places: list[Claim] = []
    tokens: list[Claim] = []
    for planned in spec.limits:
        limit = planned.limit
        key = planned.key.of(state.input, state.tenant, spec.service) if planned.key is not None else ""
        if limit.concurrency is not None:
            places.append(Claim(CONCURRENCY, planned.scope, planned.name, key, limit.concurrency))
        if (rate := limit.rate) is not None:
            tokens.append(Claim(RATE, planned.scope, planned.name, key, rate.burst, rate.per_second))
    places.sort(key=lambda claim: claim.bucket)
    tokens.sort(key=lambda claim: claim.bucket)
    return Claims(tenant, tuple(places), tuple(tokens))
