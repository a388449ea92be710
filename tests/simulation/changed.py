"""Definitions as somebody changes them while their workflows run, and when workflows are moved to them and back.

Rules:
- It has a random stream of its own: without migrations a seed means what it meant before.
- What the checkers go by at the end (policies, conditions, what can be undone) stays; steps come, go, and change hands.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sagalog.schemas.definitions import Compensation, Definition, Retry, Step

from .definitions import AGENTS, DEPOSIT, UNDO_RETRY, UNDOER, WITHDRAW

if TYPE_CHECKING:
    from .plan import Start

SEEDS_WITH: Final = 0.5
WORKFLOWS_WITH: Final = 0.4
DELAY_MS_MAX: Final = 3_000


def changes_of(seed: int, definitions: Sequence[Definition]) -> tuple[Definition, ...]:
    """Another version of each definition; none at all for some seeds."""
    rng = random.Random(f"changes/{seed}")
    if rng.random() >= SEEDS_WITH:
        return ()
    found = [_changed(rng, definition) for definition in definitions]
    return tuple(change for change, before in zip(found, definitions, strict=True) if change.hash != before.hash)


def with_migrations(
    seed: int, starts: Sequence[Start], definitions: Sequence[Definition], changes: Sequence[Definition]
) -> tuple[Start, ...]:
    """Some workflows are moved a while after their start, and some of them back again."""
    rng = random.Random(f"migrations/{seed}")
    back = {definition.name: f"{definition.name}@{definition.hash}" for definition in definitions}
    to = {change.name: f"{change.name}@{change.hash}" for change in changes}
    found = []
    for start in starts:
        moves: list[tuple[int, str]] = []
        if start.definition in to and rng.random() < WORKFLOWS_WITH:
            at_ms = start.at_ms + rng.randint(0, DELAY_MS_MAX)
            moves.append((at_ms, to[start.definition]))
            if rng.random() < 0.3:
                moves.append((at_ms + rng.randint(0, DELAY_MS_MAX), back[start.definition]))
        found.append(replace(start, migrations=tuple(moves)) if moves else start)
    return tuple(found)


def _changed(rng: random.Random, definition: Definition) -> Definition:
    steps = [_step_changed(rng, step) for step in definition.steps]
    update: dict[str, Any] = {}
    if rng.random() < 0.3 and definition.output is None and len(steps) > 1 and not _needed(steps, steps[-1].name):
        steps.pop()
    if rng.random() < 0.6:
        before = [step.name for step in steps]
        new = _new(rng, "new", tuple(name for name in before if rng.random() < 0.3)[:2])
        steps.insert(rng.randint(0, len(steps)), new)
        last = steps[-1]
        if rng.random() < 0.5 and last.name not in new.needs and last is not new and not _needed(steps, last.name):
            steps[-1] = last.model_copy(update={"needs": (*last.needs, new.name)})
    if definition.deadline_ms is not None and rng.random() < 0.5:
        update["deadline_ms"] = definition.deadline_ms + rng.randint(-1_000, 4_000)
    used = {step.service for step in steps}
    update["services"] = {name: policy for name, policy in definition.services.items() if name in used}
    return definition.model_copy(update={**update, "steps": tuple(steps)})


def _step_changed(rng: random.Random, step: Step) -> Step:
    update: dict[str, Any] = {}
    if step.agent in AGENTS and rng.random() < 0.4:
        update["agent"] = rng.choice(AGENTS)
    if step.agent not in (WITHDRAW, DEPOSIT) and step.compensate is not None and rng.random() < 0.2:
        update["compensate"] = step.compensate.model_copy(update={"agent": UNDOER})
    if step.task is not None and rng.random() < 0.5:
        update["task"] = step.task.model_copy(update={"title": f"{step.task.title}, changed"})
    return step.model_copy(update=update) if update else step


def _new(rng: random.Random, name: str, needs: tuple[str, ...]) -> Step:
    return Step(
        name=name,
        agent=rng.choice(AGENTS),
        needs=needs,
        retry=Retry(attempts=2, base_ms=50, cap_ms=500),
        timeout_ms=800,
        start_timeout_ms=6_000,
        critical=rng.random() < 0.7,
        compensate=Compensation(retry=UNDO_RETRY, timeout_ms=800) if rng.random() < 0.7 else None,
    )


def _needed(steps: Sequence[Step], name: str) -> bool:
    return any(name in step.needs for step in steps)
