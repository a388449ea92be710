"""What attempts may use, and did: tokens, cost, time, and their number.

Rules:
- An attempt at executing is made only when its reserve fits what is left of the step's and of the definition's budget. So a
  budget is exceeded by no more than what agents use beyond their reserve.
- Undoing is never held up by a budget.
- What an attempt used is what its result says. When nobody can say (it timed out, or was lost), its reserve counts as used.
"""

from __future__ import annotations

from collections.abc import Iterable

from sagalog.schemas.definitions import Budget, Usage
from sagalog.schemas.limits import USAGE_MAX
from sagalog.schemas.records import UsageRecord
from sagalog.schemas.statuses import StepStatus

from .plan import Plan, PlanStep
from .state import StepState, WorkflowState


def breach(state: WorkflowState, plan: Plan, step: StepState, asked: Usage) -> str | None:
    """Which budget an attempt at the step that may use so much would exceed, as a sentence; None when it fits."""
    spec = plan.steps[step.index]
    own, of_all = spec.budget, plan.definition.budget
    if own is None and of_all is None and state.parent is None:
        return None
    parent = state.steps[step.index]
    problem = _exceeded(own, "step", [parent, *parent.items], state, plan, asked) if own is not None else None
    if problem is None and of_all is not None:
        problem = _exceeded(of_all, "workflow", list(state.everything()), state, plan, asked)
    if problem is None and (allowed := _allowed(state)) is not None:
        problem = _exceeded(allowed, "parent", list(state.everything()), state, plan, asked)
    return problem


def allowance(state: WorkflowState, plan: Plan, step: StepState) -> tuple[int | None, int | None]:
    """Tokens and cost that the workflow which does the step may use: its reserve, or else what is left of the budgets."""
    spec = plan.steps[step.index]
    parent = state.steps[step.index]
    held_back = reserve(spec, step)
    budgets = [
        (spec.budget, used([parent, *parent.items])),
        (plan.definition.budget, used(state.everything())),
        (_allowed(state), used(state.everything())),
    ]
    tokens = [budget.tokens - taken["tokens"] for budget, taken in budgets if budget and budget.tokens is not None]
    cost = [budget.cost - taken["cost"] for budget, taken in budgets if budget and budget.cost is not None]
    return (
        held_back.tokens or (max(0, min(tokens)) if tokens else None),
        held_back.cost or (max(0, min(cost)) if cost else None),
    )


def _allowed(state: WorkflowState) -> Budget | None:
    """What the workflow's parent lets it use."""
    if state.parent is None or not ("tokens" in state.parent or "cost" in state.parent):
        return None
    # Made without checking: what another workflow's budget had left is within its bounds.
    return Budget.model_construct(tokens=state.parent.get("tokens"), cost=state.parent.get("cost"))


def reserve(spec: PlanStep, step: StepState) -> Usage:
    """What an attempt of the step's present agent may use."""
    return spec.fallbacks[step.fell_back - 1].reserve if step.agent is not None else spec.reserve


def settle(
    state: WorkflowState, spec: PlanStep, step: StepState, tokens: int | None, cost: int | None, *, unknown: bool
) -> tuple[int, int]:
    """An attempt at executing is over. Returns the tokens and the cost that it counts for."""
    held_back = reserve(spec, step)
    if step.sent_ms:
        step.spent_ms += max(0, state.now_ms - step.sent_ms)
        step.sent_ms = 0
    charged = _bounded(tokens, held_back.tokens if unknown else 0), _bounded(cost, held_back.cost if unknown else 0)
    step.tokens += charged[0]
    step.cost += charged[1]
    return charged


def used(steps: Iterable[StepState]) -> UsageRecord:
    """What these steps, or items, have used so far."""
    record: UsageRecord = {"attempts": 0, "tokens": 0, "cost": 0}
    for step in steps:
        record["attempts"] += step.dropped + _made(step)
        record["tokens"] += step.tokens
        record["cost"] += step.cost
        if step.spent_ms:
            record["ms"] = record.get("ms", 0) + step.spent_ms
    return record


def _exceeded(
    budget: Budget, whose: str, steps: list[StepState], state: WorkflowState, plan: Plan, asked: Usage
) -> str | None:
    so_far = used(steps)
    taken = {
        "attempts": so_far["attempts"],
        "tokens": so_far["tokens"],
        "cost": so_far["cost"],
        "ms": so_far.get("ms", 0),
    }
    for step in steps:
        if step.status is StepStatus.RUNNING and not step.items:
            held_back = reserve(plan.steps[step.index], step)
            taken["tokens"] += held_back.tokens
            taken["cost"] += held_back.cost
            taken["ms"] += max(held_back.ms, state.now_ms - step.sent_ms if step.sent_ms else 0)
    for unit, limit, next_one in (
        ("attempts", budget.attempts, 1),
        ("tokens", budget.tokens, asked.tokens),
        ("cost", budget.cost, asked.cost),
        ("ms", budget.ms, asked.ms),
    ):
        already = taken[unit]
        # With nothing reserved, an attempt is made as long as anything is left.
        if limit is not None and (already + next_one > limit or (next_one == 0 and already >= limit)):
            return f"the {whose}'s budget of {limit:,} {unit} does not suffice: {already:,} used or reserved, {next_one:,} more"
    return None


def _made(step: StepState) -> int:
    """The attempts of the step itself, or of the item: of a step that maps, its items have them."""
    if step.item >= 0:
        return step.attempt - step.first
    return 0 if step.items or step.first else step.attempt


def _bounded(reported: int | None, otherwise: int) -> int:
    return min(max(reported, 0), USAGE_MAX) if reported is not None else otherwise
