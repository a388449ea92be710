"""What the command line does: many seeds on all cores, one seed with its trace, all planted bugs."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import signal
import statistics
import time
import traceback
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from .harness import Outcome, run, run_plan
from .patch import Patch
from .plan import Plan, plan_of
from .planted_projection import BUGS
from .postgres import served
from .shrink import shrink

TRACE_LINES: Final = 40
LINE_CHARS: Final = 240
SEEDS: Final[dict[str, bool | None]] = {"some": None, "all": True, "none": False}
INTERRUPT: Final = frozenset({signal.SIGINT})
BROKEN: Final = "harness"
"""In a checker's place: the run raised."""
AHEAD_PER_JOB: Final = 3
RUNS_PER_WORKER: Final = 200
"""A worker is replaced after so many runs: what a run leaves behind cannot gather for hours."""


def simulate(arguments: Namespace) -> int:
    started_s = time.monotonic()
    until_s = started_s + 3_600 * arguments.hours if arguments.hours is not None else None
    work = partial(_run, plant=arguments.plant, as_is=arguments.as_is, **_which(arguments))
    statuses: Counter[str] = Counter()
    checkers: Counter[str] = Counter()
    failed: list[int] = []
    seeds = workflows = steps = 0
    wall_s = longest_s = 0.0
    with served(), _pool(arguments.jobs) as pool:
        for outcome in _each(pool, work, _seeds(arguments.first, arguments.seeds, until_s), arguments.jobs):
            seeds += 1
            workflows += outcome.workflows
            steps += outcome.steps
            wall_s += outcome.wall_s
            longest_s = max(longest_s, outcome.simulated_s)
            statuses += outcome.statuses
            if outcome.failed:
                failed.append(outcome.seed)
                checkers.update({checker for checker, _ in outcome.problems})
                _show(outcome, arguments)
    took_s = time.monotonic() - started_s
    print(", ".join(f"{count} {status}" for status, count in statuses.most_common()))
    print(
        f"{workflows:,} workflows and {steps:,} steps in {took_s:.1f} s: "
        f"{workflows / max(wall_s, 1e-9):,.0f} workflows per second per core; the longest run simulated {longest_s:.0f} s"
    )
    if failed:
        print("by checker: " + ", ".join(f"{checker} {count}" for checker, count in checkers.most_common()))
        print("failed seeds: " + ", ".join(map(str, sorted(failed))))
    print(f"{seeds} seeds, {len(failed)} failed")
    return 1 if failed else 0


def replay(arguments: Namespace) -> int:
    plan = plan_of(arguments.seed, **_which(arguments))
    again = partial(run_plan, plant=arguments.plant, as_is=arguments.as_is)
    with served():
        outcome = again(plan)
        if arguments.shrink and outcome.failed:
            plan, outcome = shrink(plan, outcome, again)
    _show_plan(plan)
    for line in outcome.trace[-arguments.lines :]:
        print(line[:LINE_CHARS])
    print(
        f"{outcome.workflows} workflows, {outcome.steps:,} steps, {outcome.simulated_s:.1f} s simulated in {outcome.wall_s:.2f} s"
    )
    print(f"fingerprint {outcome.fingerprint}")
    for checker, problem in outcome.problems:
        print(f"{checker}: {problem}")
    return 1 if outcome.failed else 0


def planted(arguments: Namespace) -> int:
    names = arguments.bugs or list(BUGS)
    unknown = [name for name in names if name not in BUGS]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; the bugs are {', '.join(BUGS)}")
        return 2
    for name in names:
        with Patch() as patch:
            BUGS[name].plant(patch)  # one that no longer can be would break every run, and look like found
    needed: dict[str, int] = {}
    with served(), _pool(arguments.jobs) as pool:
        for name in names:
            started_s = time.monotonic()
            found = _find(
                pool, name, arguments.seeds, arguments.jobs, _which(arguments) | dict.fromkeys(BUGS[name].only, True)
            )
            took_s = time.monotonic() - started_s
            if found is None:
                print(f"{name:34} not found in {arguments.seeds} seeds ({took_s:.0f} s)", flush=True)
            else:
                needed[name] = found.seed
                by = ", ".join(dict.fromkeys(checker for checker, _ in found.problems))
                print(f"{name:34} {found.seed:5} seeds ({took_s:.0f} s)  {by}", flush=True)
    if needed:
        print(f"median: {statistics.median(needed.values()):g} seeds")
    print(f"found {len(needed)} of {len(names)}")
    return 0 if len(needed) == len(names) else 1


def _which(arguments: Namespace) -> dict[str, bool | None]:
    """Of which seeds `plan_of` is to make what."""
    return {name: SEEDS[getattr(arguments, name)] for name in ("projected", "rolled")}


def _find(pool: Any, name: str, seeds: int, jobs: int, which: dict[str, bool | None]) -> Outcome | None:
    """The first seed, in their order, that shows the bug."""
    work = partial(_run, plant=name, as_is=False, **which)
    without = {"plant": None, "as_is": False, **which}
    for outcome in _each(pool, work, _seeds(1, seeds, None), jobs):
        # A seed that fails without the bug, too, has found something else. And of a run that broke no checker has seen anything.
        if (
            any(checker != BROKEN for checker, _ in outcome.problems)
            and not pool.apply(_run, (outcome.seed,), without).failed
        ):
            return outcome
    return None


def _each(pool: Any, work: Callable[[int], Outcome], seeds: Iterator[int], jobs: int) -> Iterator[Outcome]:
    """Outcomes in the order of their seeds. Only a few are under way: the pool's own `imap` would take all seeds at once."""
    under_way: deque[Any] = deque()
    for seed in seeds:
        under_way.append(pool.apply_async(work, (seed,)))
        if len(under_way) >= AHEAD_PER_JOB * jobs:
            yield under_way.popleft().get()
    while under_way:
        yield under_way.popleft().get()


def _seeds(first: int, count: int, until_s: float | None) -> Iterator[int]:
    for seed in itertools.count(first):
        if seed >= first + count and (until_s is None or time.monotonic() > until_s):
            return
        yield seed


def _pool(jobs: int) -> Any:
    # A Ctrl-C in the middle of a fork would be lost: Python ignores what is raised in its own hooks there.
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPT)
    try:
        return multiprocessing.get_context("fork").Pool(jobs, initializer=_settle, maxtasksperchild=RUNS_PER_WORKER)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPT)


def _settle() -> None:
    """What is imported stays: the collector need not look at it after every run."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPT)
    gc.collect()
    gc.freeze()


def _run(seed: int, *, plant: str | None, as_is: bool, **which: bool | None) -> Outcome:
    try:
        outcome = run(seed, plant=plant, as_is=as_is, **which)
    except Exception:  # noqa: BLE001 - a run that breaks is a run that failed, and the next ones go on
        outcome = Outcome(seed, [(BROKEN, traceback.format_exc())], 0, Counter(), 0, 0.0, 0.0, "")
    if not outcome.failed:
        outcome.trace = []
    return outcome


def _show(outcome: Outcome, arguments: Namespace) -> None:
    options = (f" --plant {arguments.plant}" if arguments.plant else "") + (" --as-is" if arguments.as_is else "")
    for name in ("projected", "rolled"):
        options += f" --{name} {getattr(arguments, name)}" if getattr(arguments, name) != "some" else ""
    print(f"--- seed {outcome.seed} failed")
    for line in outcome.trace[-TRACE_LINES:]:
        print(line[:LINE_CHARS])
    for checker, problem in outcome.problems:
        print(f"{checker}: {problem}")
    print(f"replay: scripts/test replay {outcome.seed}{options}", flush=True)


def _show_plan(plan: Plan) -> None:
    print(
        f"seed {plan.seed}: {plan.partitions} partitions, {plan.engines} engines, {plan.hosts} hosts, "
        f"{len(plan.starts)} workflows, {plan.chaos_ms} ms, {plan.rates}"
    )
    if plan.log_faults:
        print(f"log: {plan.log_faults}")
    for fault in plan.faults:
        print(f"  {fault}")
