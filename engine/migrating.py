"""Whether workflows fit another hash of their definition, and whether a request to move them was taken: from the log alone.

Rule: nothing is guessed. The events are folded as the engine folds them, so what is said here is what it does, or will do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from sagalog.engine.audit import Progress, records_of
from sagalog.engine.client import TopicsMissing
from sagalog.engine.kernel.effects import Effect, Ignored, Migrated
from sagalog.engine.kernel.migration import problems
from sagalog.engine.kernel.partition import Partition
from sagalog.engine.kernel.record import Record
from sagalog.engine.kernel.state import WorkflowState
from sagalog.schemas.definitions import Definition
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import TYPE_OF, MigrationRequested, parse_event
from sagalog.topics.log import Log
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

_REQUESTED = TYPE_OF[MigrationRequested].encode()


@dataclass(frozen=True, slots=True)
class Check:
    """One workflow beside the definition that it is to move to."""

    workflow_id: str
    definition: str
    """The hash that it is on."""
    there: bool
    """It is on the other one already."""
    problems: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request, by the log."""

    taken: bool
    reason: str | None = None
    """Why it was ignored."""
    problems: list[str] = field(default_factory=list)
    """What did not fit at that moment."""


async def check(log: Log, topics: Topics, workflow_id: str, to: Definition) -> Check | None:
    """Whether a workflow fits a definition now; None when the log does not know it. Raises LogError, TopicsMissing."""
    key = workflow_id.encode()
    number = partition_of(key, await _partitions(log, topics))
    fold, _ = await _fold(log, topics, number, key, ())
    state = fold.get(workflow_id)
    return _checked(fold, state, to) if state is not None else None


async def check_all(
    log: Log, topics: Topics, name: str, hash_: str, to: Definition, *, progress: Progress | None = None
) -> list[Check]:
    """The same of every workflow that is on one definition and has not ended, the one started first first.

    Reads the whole log. Raises LogError, LogTruncated, TopicsMissing.
    """
    found: list[tuple[int, Check]] = []
    for number in range(await _partitions(log, topics)):
        fold, _ = await _fold(log, topics, number, None, (), progress)
        for workflow_id in fold.ids():
            state = fold.get(workflow_id)
            if state is not None and not state.terminal and (state.name, state.definition) == (name, hash_):
                found.append((state.started_ms, _checked(fold, state, to)))
    return [one for _, one in sorted(found, key=lambda entry: (entry[0], entry[1].workflow_id))]


async def outcome(log: Log, topics: Topics, workflow_id: str, request: str) -> Outcome | None:
    """What became of a request; None when it is not in the log (yet)."""
    key = workflow_id.encode()
    number = partition_of(key, await _partitions(log, topics))
    _, found = await _fold(log, topics, number, key, (request,))
    return found.get(request)


async def outcomes(
    log: Log, topics: Topics, requests: Collection[str], *, progress: Progress | None = None
) -> dict[str, Outcome]:
    """What became of requests, by their ids; those that are not in the log are left out. Reads the whole log."""
    found: dict[str, Outcome] = {}
    for number in range(await _partitions(log, topics)):
        found |= (await _fold(log, topics, number, None, requests, progress))[1]
    return found


def _checked(fold: Partition, state: WorkflowState, to: Definition) -> Check:
    plan = fold.plans.get(to.hash)
    if plan is None:
        unknown = (
            f"definition: {to.name}@{to.hash} is not known to its partition; register it (sagalog definitions register)"
        )
        return Check(state.workflow_id, state.definition, there=False, problems=[unknown])
    if state.definition == to.hash and not state.terminal:
        return Check(state.workflow_id, state.definition, there=True)
    found = problems(state, fold.plan_of(state), plan)
    return Check(state.workflow_id, state.definition, there=False, problems=found)


async def _fold(
    log: Log,
    topics: Topics,
    number: int,
    key: bytes | None,
    requests: Collection[str],
    progress: Progress | None = None,
) -> tuple[Partition, dict[str, Outcome]]:
    """A partition, or one workflow of it, at the log's present end, and what became of the requests on the way."""
    fold, found = Partition(), dict[str, Outcome]()
    effects: list[Effect] = []
    async for record in records_of(log, topics, number, key, progress):
        asked = (record.ce_id or b"").decode(errors="replace")
        if record.ce_type != _REQUESTED or asked not in requests or asked in found:
            fold.apply(record, effects)
        else:
            before = _problems_before(fold, record)
            fold.apply(record, effects)
            found[asked] = _outcome(effects, before)
        effects.clear()
    return fold, found


def _problems_before(fold: Partition, record: Record) -> list[str]:
    state = fold.get((record.key or b"").decode(errors="replace"))
    try:
        event = parse_event(record.ce_type, record.value)
    except InvalidRecord as error:
        return [str(error)]
    assert isinstance(event, MigrationRequested)
    plan = fold.plans.get(event.definition.partition("@")[2])
    return problems(state, fold.plan_of(state), plan) if state is not None and plan is not None else []


def _outcome(effects: list[Effect], before: list[str]) -> Outcome:
    if any(isinstance(effect, Migrated) for effect in effects):
        return Outcome(taken=True)
    reasons = [effect.reason.value for effect in effects if isinstance(effect, Ignored)]
    return Outcome(taken=False, reason=reasons[0] if reasons else "quarantined", problems=before)


async def _partitions(log: Log, topics: Topics) -> int:
    partitions = await log.partitions(topics.events)
    if partitions is None:
        raise TopicsMissing(f"topic {topics.events} does not exist; make the topics with: sagalog topics create")
    return partitions
