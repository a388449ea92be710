"""Schedules in the simulation: which a plan has, and what must hold of them at the end.

Rule: they are drawn from a stream of their own, so that a plan without them is the plan that it was.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from sagalog.engine.kernel import Partition
from sagalog.engine.kernel.effects import Effect, Emit, Ignored
from sagalog.engine.kernel.schedules import ScheduleState
from sagalog.engine.runtime.outputs import to_record
from sagalog.schemas.cron import next_after
from sagalog.schemas.definitions import Definition
from sagalog.schemas.events import TYPE_OF, ChildEnded, Overlap, ScheduleDue, WorkflowStarted, parse_event
from sagalog.schemas.ids import run_id
from sagalog.schemas.limits import CATCH_UP_MS_MIN
from sagalog.schemas.records import SCHEDULE_KEY
from sagalog.topics.log import Message

if TYPE_CHECKING:
    from .checkers import Evidence

PREFIX: Final = "timetable"
"""Of the names of the simulation's schedules, and so of the ids of their runs."""
CRONS: Final = ("*/2 * * * * *", "*/5 * * * * *", "1-59/3 * * * * *")


@dataclass(frozen=True, slots=True)
class Timetable:
    """One schedule."""

    name: str
    definition: str
    cron: str
    zone: str
    overlap: Overlap
    catch_up_ms: int
    jitter_ms: int
    set_at_ms: int
    remove_at_ms: int


def timetables(rng: random.Random, definitions: Iterable[Definition], chaos_ms: int) -> tuple[Timetable, ...]:
    """In one plan of three: one schedule or two, removed when the faults are over."""
    names = [definition.name for definition in definitions]
    if rng.random() >= 1 / 3:
        return ()
    return tuple(
        Timetable(
            name=f"{PREFIX}-{number}",
            definition=rng.choice(names),
            cron=rng.choice(CRONS),
            zone=rng.choice(("UTC", "Europe/Berlin")),
            overlap=rng.choice(list(Overlap)),
            catch_up_ms=rng.choice((CATCH_UP_MS_MIN, 60_000)),
            jitter_ms=rng.choice((0, 0, 1_500)),
            set_at_ms=rng.randint(0, chaos_ms // 2),
            remove_at_ms=chaos_ms + rng.randint(0, 5_000),
        )
        for number in range(rng.randint(1, 2))
    )


def schedules_keep_their_times(evidence: Evidence) -> list[str]:
    """Each due time has one run or one reason, no more runs go on than the policy allows, and each run has its end."""
    problems: list[str] = []
    started = {
        _key(message)
        for message in evidence.each(evidence.topics.events)
        if _is(message, WorkflowStarted) and is_run(_key(message))
    }
    asked: set[str] = set()
    for partition in range(evidence.plan.partitions):
        found = _Told()
        for message in evidence.kafka.records(evidence.topics.events, partition):
            found.fold(message)
        problems += found.problems
        asked |= found.asked
        for key, state in found.partition.schedules.items():
            problems += _counted(key, state, found)
    problems += [f"{run}: is to be started, and was not" for run in sorted(asked - started)]
    problems += [f"{run}: was started, and no schedule asked for it" for run in sorted(started - asked)]
    return problems


def is_run(workflow_id: str) -> bool:
    """Whether it is a run of one of the simulation's schedules; a child of one has a further part."""
    return workflow_id.startswith(f"{PREFIX}-") and workflow_id.count("/") == 1


class _Told:
    """One partition's schedules, by what its log says."""

    def __init__(self) -> None:
        self.partition = Partition()
        self.problems: list[str] = []
        self.asked: set[str] = set()
        self.due: dict[str, list[int]] = {}
        self._going: dict[str, set[str]] = {}

    def fold(self, message: Message) -> None:
        effects: list[Effect] = []
        self.partition.apply(to_record(message), effects)
        key = _key(message)
        if not key.startswith(SCHEDULE_KEY) or any(isinstance(effect, Ignored) for effect in effects):
            return
        state = self.partition.schedules.get(key)
        going = self._going.setdefault(key, set())
        if state is None:
            return
        if _is(message, ScheduleDue):
            due: Any = parse_event(to_record(message).ce_type, message.value)
            self.due.setdefault(key, []).extend(at for at in due.due_ms if at <= state.last_due_ms)
        elif _is(message, ChildEnded):
            ended: Any = parse_event(to_record(message).ce_type, message.value)
            going.discard(ended.child)
        for effect in effects:
            if isinstance(effect, Emit) and isinstance(effect.event, WorkflowStarted):
                if effect.workflow_id in self.asked:
                    self.problems.append(f"{effect.workflow_id}: is started twice")
                self.asked.add(effect.workflow_id)
                going.add(effect.workflow_id)
        if len(going) > 1 and state.overlap is not Overlap.ALLOW:
            self.problems.append(f"{key}: {len(going)} runs go on, and its policy is {state.overlap}")


def _counted(key: str, state: ScheduleState, found: _Told) -> list[str]:
    problems = []
    due = sorted(set(found.due.get(key, [])))
    if state.started + sum(state.skipped.values()) != len(due):
        problems.append(f"{key}: {len(due)} due times, {state.started} runs, left out: {state.skipped}")
    if going := state.going():
        problems.append(f"{key}: does not know that {len(going)} of its runs have ended")
    runs = {run_id(state.name, at) for at in due}
    own = {run for run in found.asked if run.startswith(f"{state.name}/")}
    problems += [f"{run}: is no due time's" for run in sorted(own - runs)]
    for before, after in pairwise(due):
        if next_after(state.cron, state.zone, before) != after:
            problems.append(f"{key}: between {before} and {after} it was due, and that is nowhere")
    return problems


def _key(message: Message) -> str:
    return (message.key or b"").decode(errors="replace")


def _is(message: Message, kind: type[Any]) -> bool:
    return to_record(message).ce_type == TYPE_OF[kind].encode()
