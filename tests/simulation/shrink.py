"""Makes a failing plan smaller: fewer faults, fewer workflows, fewer processes, as long as the same checker still complains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from .plan import Plan, Rates

if TYPE_CHECKING:
    from .harness import Outcome

RUNS_MAX: Final = 100
"""Runs, not seconds: a busy machine finds the same plan as an idle one."""


def shrink(
    plan: Plan, outcome: Outcome, run: Callable[[Plan], Outcome], *, runs_max: int = RUNS_MAX
) -> tuple[Plan, Outcome]:
    """The smallest plan found in `runs_max` runs, with its outcome."""
    wanted = {checker for checker, _ in outcome.problems}
    runs, smaller = 0, True
    while smaller:
        smaller = False
        for candidate in _smaller(plan):
            if runs >= runs_max:
                return plan, outcome
            runs += 1
            found = run(candidate)
            if wanted & {checker for checker, _ in found.problems}:
                plan, outcome, smaller = candidate, found, True
                break
    return plan, outcome


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Candidates, those that leave out most first."""
    for name in ("faults", "starts"):
        items = getattr(plan, name)
        size = (len(items) + 1) // 2
        while size:
            for first in range(0, len(items), size):
                kept = items[:first] + items[first + size :]
                if name == "faults" or kept:
                    yield replace(plan, **{name: kept})
            size //= 2
    if plan.timetables:
        yield replace(plan, timetables=())
        for table in plan.timetables if len(plan.timetables) > 1 else ():
            yield replace(plan, timetables=(table,))
    if plan.log_faults:
        yield replace(plan, log_faults={})
        for name in plan.log_faults:
            yield replace(plan, log_faults={key: value for key, value in plan.log_faults.items() if key != name})
    if plan.sql_faults:
        yield replace(plan, sql_faults={})
        for name in plan.sql_faults:
            yield replace(plan, sql_faults={key: value for key, value in plan.sql_faults.items() if key != name})
    if plan.rates != Rates():
        yield replace(plan, rates=Rates())
    if plan.shuffled:
        yield replace(plan, shuffled=False)
