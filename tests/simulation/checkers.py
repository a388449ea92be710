"""What must hold at the end of every run. Each checker is a function from the evidence to problems, as text.

Rule: a checker goes by the log, by what the services saw and by who sent what; of the engine's own words it believes only what it
then compares.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from sagalog.engine.audit import PartitionReport
from sagalog.engine.kernel import CircuitPartition, Partition
from sagalog.engine.kernel.circuits import dump_circuit
from sagalog.engine.kernel.effects import (
    Answered,
    DeadLettered,
    Dispatch,
    Effect,
    Emit,
    Finished,
    Ignored,
    ReviewClosed,
    ReviewNeeded,
    StartAnswered,
)
from sagalog.engine.kernel.invariants import problems
from sagalog.engine.kernel.leases import dump_lease
from sagalog.engine.runtime.outputs import review, to_record
from sagalog.infra.simulation import EPOCH_MS
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.commands import Question, encode_command, parse_command
from sagalog.schemas.definitions import Definition, Step, UndoOrder, WhenFailed
from sagalog.schemas.events import (
    RETRIED,
    TYPE_OF,
    AttemptLost,
    AttemptRefused,
    FailureKind,
    OnDuplicate,
    Owned,
    Quarantined,
    ScheduleDue,
    StepDecided,
    TimerFired,
    WorkflowStarted,
)
from sagalog.schemas.ids import FIRST_RUN, Direction, idempotency_key, of_run, split_item, start_id
from sagalog.schemas.ids import command_id as command_id_of
from sagalog.schemas.limits import REWINDS_MAX
from sagalog.schemas.records import MARKER_KEY, OWNER_KEY, TYPE_OUTCOME, TYPE_START_ANSWERED
from sagalog.topics.log import Message, TopicPartition, header
from sagalog.topics.specs import Topics

from .definitions import ALL_AGENTS
from .limited import Taken, limits_hold, taken
from .plan import BALANCE, Plan
from .projection import (
    no_row_steps_back,
    positions_are_at_the_end,
    rows_are_what_the_log_says,
    what_cannot_be_projected_is_in_quarantine,
)
from .questions import Questions
from .restarts import a_rolling_restart_is_not_noticed, parked_commands_go_out_on_a_ramp
from .rogue import GHOST
from .spy import Sent
from .timetables import schedules_keep_their_times
from .world import Effect as WorldEffect
from .world import World

PROBLEMS_SHOWN_MAX: Final = 8

_GIVEN_UP: Final = ("failed", "skipped")
"""An undoing that did not succeed, by the ledger: what it was to undo may stand, and it may come late."""
_WELL: Final = ("completed", "degraded")
_UNDONE: Final = ("failed", "compensated", "cancelled", "review")
_STARTED: Final = TYPE_OF[WorkflowStarted].encode()
_ANSWERED: Final = TYPE_START_ANSWERED.encode()
_DECIDED: Final = TYPE_OF[StepDecided].encode()
_REFUSED: Final = TYPE_OF[AttemptRefused].encode()
_QUARANTINED: Final = TYPE_OF[Quarantined].encode()
_LOST: Final = TYPE_OF[AttemptLost].encode()
_OWNED: Final = TYPE_OF[Owned].encode()
_OF_OWNERS: Final = {
    TYPE_OF[kind].encode() for kind in (Owned, TimerFired, ScheduleDue, AttemptLost, AttemptRefused, Quarantined)
}


@dataclass(slots=True)
class Refold:
    """One partition of `events`, folded from nothing."""

    dispatched: dict[str, Dispatch] = field(default_factory=dict)
    dispatched_at: dict[str, int] = field(default_factory=dict)
    answered_at: dict[str, int] = field(default_factory=dict)
    dead_letters: set[bytes | None] = field(default_factory=set)
    reviews: set[bytes | None] = field(default_factory=set)
    emitted: dict[tuple[str, str], str | None] = field(default_factory=dict)
    """Events of other workflows: (workflow, id), and of a start the workflow whose child it is."""
    finished_at: dict[str, int] = field(default_factory=dict)
    """Of each run."""
    answers: set[tuple[str, bool]] = field(default_factory=set)
    """(id of a start, whether it was accepted)."""
    kept: list[str] = field(default_factory=list)
    """Children that ended and still wait for their parent to be over."""
    broken: list[str] = field(default_factory=list)
    """Invariants that did not hold after some record."""
    acted: set[int] = field(default_factory=set)
    """Offsets of the records that were not just ignored."""
    questions: Questions = field(default_factory=Questions)
    letters: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    review_effects: list[tuple[bool, Mapping[str, Any]]] = field(default_factory=list)
    """(whether it opens, record), in the log's order."""
    workflows: set[str] = field(default_factory=set)
    """All that the fold remembers in the end."""
    limited: dict[str, tuple[Taken, ...]] = field(default_factory=dict)
    """Commands that take part in limits."""
    quarantined: bool = False
    """Some workflow was; what it had out is not known to end."""


@dataclass
class Evidence:
    plan: Plan
    kafka: Any
    topics: Topics
    world: World
    definitions: dict[str, Definition]
    """By hash."""
    acked: list[str]
    sent: list[Sent]
    reports: list[PartitionReport]
    """Of `sagalog verify`."""
    skipped: set[tuple[str, int, int]] = field(default_factory=set)
    """(topic, partition, offset) of commands that somebody made their agent's group pass over."""
    tables: dict[str, list[dict[str, Any]]] | None = None
    """Every row of the projection, where there is one."""
    said: list[str] = field(default_factory=list)
    """What the harness itself noticed."""
    bugs: list[str] = field(default_factory=list)
    """Exceptions in the logs that none of the project's own errors explain."""

    def each(self, topic: str) -> Iterator[Message]:
        for partition in range(self.plan.partitions):
            yield from self.kafka.records(topic, partition)

    @cached_property
    def results(self) -> dict[str, dict[str, Any]]:
        """The last result of each run: by its workflow's id, and with the run behind it unless it is the first.

        The last by what it was made of: an owner that does not know yet that it is none any more may write an older one behind it.
        """
        found: dict[str, dict[str, Any]] = {}
        for message in self.each(self.topics.results):
            if header(message.headers, "ce_type") != _ANSWERED:
                record = decode_object(message.value)
                before = found.get(_label(record))
                if before is None or before["at_offset"] <= record["at_offset"]:
                    found[_label(record)] = record
        return found

    @cached_property
    def answered_at(self) -> dict[str, int]:
        """Where the first answer to each command lies in its partition."""
        found: dict[str, int] = {}
        for message in self.each(self.topics.events):
            ce_id = (header(message.headers, "ce_id") or b"").decode(errors="replace")
            if ce_id.endswith("/result"):
                found.setdefault(ce_id.removesuffix("/result"), message.offset)
        return found

    @cached_property
    def refolds(self) -> list[Refold]:
        return [self._refold(partition) for partition in range(self.plan.partitions)]

    def _refold(self, partition: int) -> Refold:
        fold, found = Partition(), Refold()
        effects: list[Effect] = []
        for message in self.kafka.records(self.topics.events, partition):
            fold.apply(to_record(message), effects)
            if any(not isinstance(effect, Ignored) for effect in effects):
                found.acted.add(message.offset)
                state = fold.get(_key(message))
                if state is not None:
                    found.broken += problems(state, fold.plan_of(state))
            found.questions.note(message, effects, self.definitions)
            for effect in effects:
                match effect:
                    case Dispatch():
                        found.dispatched[effect.command.command_id] = effect
                        found.dispatched_at[effect.command.command_id] = message.offset
                        if limits := self._limits_of(fold, effect):
                            found.limited[effect.command.command_id] = limits
                    case Answered():
                        found.answered_at.setdefault(effect.command_id, message.offset)
                    case Emit():
                        parent = effect.event.parent if isinstance(effect.event, WorkflowStarted) else None
                        found.emitted[effect.workflow_id, effect.ce_id] = parent.workflow_id if parent else None
                    case DeadLettered():
                        found.dead_letters.add(effect.record["id"].encode())
                        found.letters[effect.record["id"]] = effect.record
                    case ReviewNeeded() | ReviewClosed():
                        found.reviews.add(header(review(effect).headers, "ce_id"))
                        found.review_effects.append((isinstance(effect, ReviewNeeded), effect.record))
                    case Finished():
                        found.finished_at[_label(dict(effect.result))] = message.offset
                    case StartAnswered():
                        found.answers.add((effect.record["start_id"], effect.record["accepted"]))
            effects.clear()
        found.quarantined = any(
            header(message.headers, "ce_type") == _QUARANTINED
            for message in self.kafka.records(self.topics.events, partition)
        )
        for workflow_id in fold.ids():
            state = fold.get(workflow_id)
            if state is not None and state.report is not None:
                found.kept.append(workflow_id)
        found.workflows.update(fold.ids())
        return found

    def _limits_of(self, fold: Partition, effect: Dispatch) -> tuple[Taken, ...]:
        command = effect.command
        state, definition = fold.get(command.workflow_id), self.definitions.get(command.definition)
        if state is None or definition is None or not definition.limits:
            return ()
        return tuple(taken(definition, command.step, command.agent, state.input, state.tenant))

    @cached_property
    def commands(self) -> dict[str, list[tuple[Message, Any]]]:
        """Every command in the topics, by id."""
        found: dict[str, list[tuple[Message, Any]]] = {}
        for agent in ALL_AGENTS:
            for message in self.each(self.topics.commands(agent)):
                if not _is_garbage(message):
                    command = parse_command(message.value)
                    found.setdefault(command.command_id, []).append((message, command))
        return found

    def steps(self, result: dict[str, Any]) -> list[tuple[Step, dict[str, Any], WorldEffect]]:
        """What agents were asked to do: each step, or item of a map, with its spec and with what the services know of it."""
        definition = self.definitions.get(result["definition"])
        if definition is None:
            return []
        by_name = {step.name: step for step in definition.steps}
        found = []
        for step in result["steps"]:
            spec = by_name[step["name"]]
            if spec.agent is not None:
                for leaf in step.get("items") or ([step] if spec.map is None else []):
                    found.append((spec, leaf, self.effect(result, leaf)))
        return found

    def effect(self, result: dict[str, Any], step: dict[str, Any]) -> WorldEffect:
        """What the services know of a step of the run that ended with this result."""
        return self.world.effect(
            idempotency_key(result["workflow_id"], step["name"], _run(result), step.get("round", 0))
        )


def _run(result: dict[str, Any]) -> int:
    run: int = result.get("run", FIRST_RUN)
    return run


def _label(result: dict[str, Any]) -> str:
    return of_run(result["workflow_id"], _run(result))


def _label_of(command_id: str) -> str:
    """The run that a command is of, as results are known by it."""
    workflow_id, _, attempt, _ = command_id.rsplit("/", 3)
    _, marked, run = attempt.partition("@")
    return f"{workflow_id}{marked}{run}"


def _rewound(result: dict[str, Any], *, undone: bool) -> bool:
    """Whether the workflow was ever rewound with, or without, undoing."""
    return any(rewind["undo"] is undone for rewind in result.get("rewinds", ()))


def _key(message: Message) -> str:
    return (message.key or b"").decode(errors="replace")


def _is_garbage(message: Message) -> bool:
    return (header(message.headers, "ce_id") or b"").startswith(b"garbage-")


# --- the checkers


def nothing_is_lost(evidence: Evidence) -> list[str]:
    """Every start that a client was told to be durable, and every one in the log, came to one end."""
    problems = []
    in_log = {
        _key(message): None
        for message in evidence.each(evidence.topics.events)
        if header(message.headers, "ce_type") == _STARTED and not _is_garbage(message)
    }
    for workflow_id in evidence.acked:
        if workflow_id not in in_log:
            problems.append(f"{workflow_id}: its start was acknowledged, and is not in the log")
    ended = {result["workflow_id"] for result in evidence.results.values()}
    for workflow_id in in_log:
        if workflow_id not in ended:
            problems.append(f"{workflow_id}: did not end")
    return problems


def one_result(evidence: Evidence) -> list[str]:
    """Sent again, a result is the same result. A child has a second one when it is undone after its good end."""
    values: dict[str, dict[bytes, None]] = {}
    for message in evidence.each(evidence.topics.results):
        if header(message.headers, "ce_type") != _ANSWERED:
            values.setdefault(_label(decode_object(message.value)), {})[message.value or b""] = None
    problems = []
    for key, found in values.items():
        ends = [decode_object(value) for value in found]
        statuses = [end["status"] for end in ends]
        undone = len(ends) == 2 and "parent" in ends[0] and statuses[0] in _WELL and statuses[1] not in _WELL
        if len(ends) > 1 and not undone:
            problems.append(f"{key}: {len(found)} different results: {', '.join(statuses)}")
    return problems


def children_end_with_their_parents(evidence: Evidence) -> list[str]:
    """What a child did stands only where its parent says so, and everything that one tells the other is in the log."""
    problems = []
    there = {
        (_key(message), (header(message.headers, "ce_id") or b"").decode(errors="replace"))
        for message in evidence.each(evidence.topics.events)
    }
    for refold in evidence.refolds:
        problems += [f"{workflow_id}: is still kept for its parent" for workflow_id in refold.kept]
        for (key, ce_id), whose in refold.emitted.items():
            # Terminating a workflow takes back what is not out yet.
            parent = whose + _run_of(key) if whose is not None else ""
            taken_back = evidence.results.get(parent, {}).get("status") == "terminated"
            if (key, ce_id) not in there and not taken_back:
                problems.append(f"{key}: {ce_id} is to be told to it, and was not")
    for workflow_id, result in evidence.results.items():
        if "parent" not in result or result["status"] not in _WELL:
            continue
        parent = evidence.results.get(result["parent"]["workflow_id"] + _run_of(workflow_id))
        definition = evidence.definitions.get(parent["definition"]) if parent is not None else None
        if parent is None or definition is None or parent["status"] not in _UNDONE:
            continue
        spec = next(step for step in definition.steps if step.name == split_item(result["parent"]["step"])[0])
        for inner, step, effect in evidence.steps(result):
            if not spec.irreversible and inner.compensate is not None and effect.applied and not effect.reversed:
                problems.append(f"{workflow_id}: {step['name']} stands, and its parent is {parent['status']}")
    return problems


def _run_of(child: str) -> str:
    """Of which run of its parent a child is, as results are known by it: a later one has its number in its children's ids."""
    found = re.search(r"\.\d+(@\d+)$", child)
    return found[1] if found is not None else ""


def starts_are_answered(evidence: Evidence) -> list[str]:
    """A start that asked whether it counts is told, one thing; one that replaces runs, once, or is told that it will not."""
    expected = set().union(*[refold.answers for refold in evidence.refolds])
    there = set()
    for message in evidence.each(evidence.topics.results):
        if header(message.headers, "ce_type") == _ANSWERED:
            record = decode_object(message.value)
            there.add((record["start_id"], record["accepted"]))
    problems = [f"start {found}: no answer in the results" for found in sorted(expected - there)]
    problems += [f"start {found}: an answer that the log knows nothing of" for found in sorted(there - expected)]
    ran = Counter(result["start_id"] for result in evidence.results.values() if "start_id" in result)
    problems += [f"start {found}: {count} runs" for found, count in ran.items() if count > 1]
    for message in evidence.each(evidence.topics.events):
        if header(message.headers, "ce_type") != _STARTED or _is_garbage(message):
            continue
        policy = decode_object(message.value).get("on_duplicate")
        if policy is None:
            continue
        found = start_id((header(message.headers, "ce_id") or b"").decode())
        told = {accepted for answered, accepted in there if answered == found}
        if len(told) != 1:
            problems.append(f"{_key(message)}: its start {found} was told {sorted(told)}")
        if policy == OnDuplicate.REPLACE and (True in told) != (found in ran):
            problems.append(f"{_key(message)}: its start {found} was told {sorted(told)}, and ran {ran[found]} times")
    return problems


def refold_is_what_stands_there(evidence: Evidence) -> list[str]:
    """Checkpoints, marker, results and the rows of workflows are what the log says."""
    return [line for report in evidence.reports for line in report.differences]


def invariants_hold(evidence: Evidence) -> list[str]:
    """After every record, of the state that it changed: what is not over has something that will move it, and so on."""
    return [line for refold in evidence.refolds for line in refold.broken]


def circuits_are_what_the_outcomes_say(evidence: Evidence) -> list[str]:
    problems = []
    for partition in range(min(2, evidence.plan.partitions)):
        latest: dict[str, bytes] = {}
        for message in evidence.kafka.records(evidence.topics.circuits, partition):
            latest[_key(message)] = message.value or b""
        marker = latest.pop(MARKER_KEY, None)
        if marker is None:
            problems.append(f"circuits/{partition}: no marker")
            continue
        at_offset = decode_object(marker)["at_offset"]
        fold = CircuitPartition()
        effects: list[Effect] = []
        for message in evidence.kafka.records(evidence.topics.outcomes, partition):
            if message.offset <= at_offset:
                fold.apply(to_record(message), effects)
        expected = {service: encode(dump_circuit(circuit)) for service, circuit in fold.circuits.items()}
        expected |= {key: encode(dump_lease(lease)) for key, lease in fold.leases.by_key.items()}
        latest = {key: value for key, value in latest.items() if value}
        for service in sorted(expected.keys() | latest.keys()):
            if expected.get(service) != latest.get(service):
                problems.append(
                    f"circuits/{partition}: {service} is {latest.get(service)!r}, folded {expected.get(service)!r}"
                )
    return problems


def a_call_counts_once(evidence: Evidence) -> list[str]:
    """A circuit's window holds no more calls than were made; one that is told again is the same call."""
    problems = []
    for partition in range(min(2, evidence.plan.partitions)):
        calls: dict[tuple[str, int, int], tuple[int, int]] = {}
        for message in evidence.kafka.records(evidence.topics.outcomes, partition):
            if header(message.headers, "ce_type") == TYPE_OUTCOME.encode() and not _is_garbage(message):
                outcome = decode_object(message.value)
                for offset, ok, at_ms in outcome["calls"]:
                    calls[outcome["service"], outcome["partition"], offset] = (at_ms, ok)
        made: dict[str, Counter[tuple[int, int]]] = {}
        for (service, _, _), call in calls.items():
            made.setdefault(service, Counter())[call] += 1
        for message in evidence.kafka.records(evidence.topics.circuits, partition):
            if not _key(message).startswith("@") and message.value is not None:
                counted = Counter(tuple(call) for call in decode_object(message.value)["window"])
                if counted - made.get(_key(message), Counter()):
                    problems.append(f"circuits/{partition}: {_key(message)} counts calls that nobody made, or twice")
    return problems


def effects_follow_the_log(evidence: Evidence) -> list[str]:
    """Every command, dead letter and review that the log asks for was sent, and no other."""
    problems = []
    refused = {
        (header(message.headers, "ce_id") or b"").decode(errors="replace").partition("/refused/")[0]
        for message in evidence.each(evidence.topics.events)
        if header(message.headers, "ce_type") == _REFUSED
    } | set(_taken_back(evidence))
    asked: dict[str, Dispatch] = {}
    for refold in evidence.refolds:
        asked |= refold.dispatched
        for command_id, effect in refold.dispatched.items():
            if command_id in evidence.commands or command_id in refused:
                continue
            if isinstance(effect.command, Question) and command_id in refold.answered_at:
                continue  # while it was withheld, the attempt's own answer came
            # Terminating a workflow waits for nothing, and takes back what is not out yet.
            if evidence.results.get(_label_of(command_id), {}).get("status") != "terminated":
                problems.append(f"{command_id}: the log asks for it, and it was neither sent nor refused")
    for command_id, found in evidence.commands.items():
        expected = asked.get(command_id)
        if expected is None:
            problems.append(f"{command_id}: was sent, and the log does not ask for it")
            continue
        for _, command in found:
            command.withheld = expected.command.withheld = None
            # Sent again after a take-over, or released late, it may have the priority of then.
            command.priority = expected.command.priority
            sent, wanted = encode_command(command), encode_command(expected.command)
            if sent != wanted:
                problems.append(f"{command_id}: was sent as {sent!r}, the log asks for {wanted!r}")
    for topic, ids in (
        (evidence.topics.dead_letters, [refold.dead_letters for refold in evidence.refolds]),
        (evidence.topics.reviews, [refold.reviews for refold in evidence.refolds]),
    ):
        expected_ids = set().union(*ids)
        there = {header(message.headers, "ce_id") for message in evidence.each(topic)}
        problems += [f"{found!r}: missing in {topic}" for found in sorted(expected_ids - there)]
        problems += [
            f"{found!r}: in {topic}, and the log knows nothing of it" for found in sorted(there - expected_ids)
        ]
    return problems


def _taken_back(evidence: Evidence) -> Iterator[str]:
    """Commands that waited for a limit when their workflow stopped."""
    for message in evidence.each(evidence.topics.events):
        if header(message.headers, "ce_type") != _LOST or _is_garbage(message):
            continue
        # Of one that an owner before may have sent, the outcome is unknown.
        if decode_object(message.value)["message"].startswith("the workflow stopped while it waited"):
            yield (header(message.headers, "ce_id") or b"").decode().partition("/lost/")[0]


def commands_are_answered(evidence: Evidence) -> list[str]:
    """What an agent's group has committed has its answer in the log, unless it was made to skip it; in the end that is all."""
    answered = {
        (header(message.headers, "ce_id") or b"").decode(errors="replace")
        for message in evidence.each(evidence.topics.events)
    }
    problems = []
    for agent in ALL_AGENTS:
        topic = evidence.topics.commands(agent)
        offsets = evidence.kafka.groups.group(evidence.topics.agent_group(agent)).offsets
        for partition in range(evidence.plan.partitions):
            committed, _ = offsets.get(TopicPartition(topic, partition), (0, ""))
            for message in evidence.kafka.records(topic, partition):
                if _is_garbage(message):
                    continue
                command_id = parse_command(message.value).command_id
                if message.offset >= committed:
                    problems.append(f"{topic}/{partition}/{message.offset}: {command_id} is not committed in the end")
                elif (topic, partition, message.offset) in evidence.skipped:
                    continue
                elif f"{command_id}/result" not in answered:
                    problems.append(
                        f"{topic}/{partition}/{message.offset}: {command_id} is committed without an answer"
                    )
    return problems


def owners_keep_to_their_reign(evidence: Evidence) -> list[str]:
    """An owner sends no command that was answered before it owned, and none that is asked for after its successor's claim.

    What it writes into the log itself counts for as long as it owns. And it knows its own claim: no two are the same.
    """
    problems = _claims_made_twice(evidence)
    for partition, refold in enumerate(evidence.refolds):
        claims = _claims(evidence, partition)
        problems += _late_events(evidence, partition, refold)
        for sent in evidence.sent:
            asked_at = refold.dispatched_at.get(sent.ce_id)
            if sent.partition != partition or ".commands." not in sent.topic or asked_at is None:
                continue
            own = [claim for claim in claims if claim.process == sent.process and claim.at_s <= sent.at_s]
            if not own:
                problems.append(f"{sent.process} sent {sent.ce_id} and never owned partition {partition}")
                continue
            answered_at = refold.answered_at.get(sent.ce_id)
            if answered_at is not None and answered_at < own[0].offset:
                problems.append(
                    f"{sent.process} sent {sent.ce_id}, which was answered before it owned partition {partition}"
                )
            successors = [claim.offset for claim in claims if claim.offset > own[-1].offset]
            if successors and asked_at > successors[0]:
                problems.append(f"{sent.process} sent {sent.ce_id}, which is asked for after its successor's claim")
    return problems


def _claims_made_twice(evidence: Evidence) -> list[str]:
    """Whoever made the second would take the first for its own, and own what lies between the two."""
    made = Counter(
        f"{sent.topic}/{sent.partition}: {sent.ce_id}"
        for sent in evidence.sent
        if sent.ce_id.startswith(f"{OWNER_KEY}/")
    )
    return [f"{claim} was made {count} times" for claim, count in made.items() if count > 1]


def _late_events(evidence: Evidence, partition: int, refold: Refold) -> list[str]:
    problems = []
    epoch = 0
    for message in evidence.kafka.records(evidence.topics.events, partition):
        ce_type = header(message.headers, "ce_type")
        if _is_garbage(message) or ce_type not in _OF_OWNERS:
            continue
        said = decode_object(message.value)["epoch"]
        if ce_type == _OWNED:
            epoch = max(epoch, said)
        elif said != epoch and message.offset in refold.acted:
            problems.append(f"events/{partition}/{message.offset} is of epoch {said}, and counted in epoch {epoch}")
    return problems


@dataclass(frozen=True, slots=True)
class _Claim:
    process: str
    offset: int
    at_s: float


def _claims(evidence: Evidence, partition: int) -> list[_Claim]:
    """Of a partition, the claims that won."""
    epoch = 0
    found = []
    for message in evidence.kafka.records(evidence.topics.events, partition):
        if header(message.headers, "ce_type") == _OWNED and not _is_garbage(message):
            owned = decode_object(message.value)
            if owned["epoch"] > epoch:
                epoch = owned["epoch"]
                at_s = (message.timestamp - EPOCH_MS) / 1000
                found.append(_Claim(owned["member"].partition("/")[0], message.offset, at_s))
    return found


def compensation_is_in_reverse(evidence: Evidence) -> list[str]:
    """Undone is in the exact reverse order of done, or by needs: by the result, and by what the services saw."""
    problems = []
    for workflow_id, result in evidence.results.items():
        steps = evidence.steps(result)
        ended = sorted(
            (evidence.answered_at[command_id], step["order"], step["name"])
            for _, step, _ in steps
            if step["status"] == "done"
            and (
                command_id := command_id_of(
                    result["workflow_id"], step["name"], step["attempt"], Direction.EXECUTE, _run(result)
                )
            )
            in evidence.answered_at
            and not _by_hand(step)
            and not _reconciled(step)
        )
        if [order for _, order, _ in ended] != sorted(order for _, order, _ in ended):
            problems.append(f"{workflow_id}: answered in the order {ended}, which is not the order of ends")
        if evidence.definitions[result["definition"]].undo_order is UndoOrder.BY_NEEDS:
            if "migrated" not in result and "rewinds" not in result:  # by needs as they were before, and round by round
                problems += _not_by_needs(workflow_id, evidence.definitions[result["definition"]], steps)
            continue
        undone = [(step["undo"]["order"], step["order"], step["name"]) for _, step, _ in steps if _was_undone(step)]
        by_undo = [name for _, _, name in sorted(undone)]
        by_end = [name for _, _, name in sorted(undone, key=lambda found: -found[1])]
        # One that was stopped while it was rewound had begun to undo in the middle.
        if by_undo != by_end and "rewinds" not in result:
            problems.append(f"{workflow_id}: ended {by_end[::-1]}, undone {by_undo}")
        # An undoing that was given up for lost may come late, one that is held waits for a person.
        acted = [
            (effect, step)
            for spec, step, effect in steps
            if effect.undone
            and step.get("undo", {}).get("status") == "done"
            and spec.compensate is not None
            and spec.compensate.when_failed is WhenFailed.STOP
        ]
        seen = [step["name"] for _, step in sorted(acted, key=lambda found: found[0].undone)]
        if seen != [name for name in by_undo if name in seen]:
            problems.append(f"{workflow_id}: the services saw {seen} undone, the ledger says {by_undo}")
    return problems


def _not_by_needs(
    workflow_id: str, definition: Definition, steps: list[tuple[Step, dict[str, Any], WorldEffect]]
) -> list[str]:
    needs = {step.name: step.needs for step in definition.steps}

    def before(name: str) -> set[str]:
        return set(needs[name]).union(*(before(need) for need in needs[name]))

    problems = []
    for spec, step, effect in steps:
        for other, needed, undone in steps:
            if other.name not in before(spec.name) or not _was_undone(step) or not _was_undone(needed):
                continue
            both = effect.undone and undone.undone and step["undo"]["status"] == needed["undo"]["status"] == "done"
            # As above: an undoing that was given up for lost may come late.
            awaited = spec.compensate is not None and spec.compensate.when_failed is WhenFailed.STOP
            seen = both and awaited and effect.undone > undone.undone
            if seen or step["undo"]["order"] > needed["undo"]["order"]:
                problems.append(f"{workflow_id}: {needed['name']} was undone before {step['name']}, which needs it")
    return problems


def _was_undone(step: dict[str, Any]) -> bool:
    return step.get("undo", {}).get("order") is not None


def needs_come_first(evidence: Evidence) -> list[str]:
    problems = []
    for workflow_id, result in evidence.results.items():
        steps = evidence.steps(result)
        if _rewound(result, undone=False):
            continue  # what stood was not done again, but what it needs was tried once more
        for spec, step, effect in steps:
            if not effect.applied or step["status"] != "done":
                continue
            for other, before, done in steps:
                needed = other.name in spec.needs and before["status"] == "done" and not _by_hand(before)
                if needed and not 0 < done.applied < effect.applied:
                    problems.append(f"{workflow_id}: {step['name']} acted before {before['name']}, which it needs")
    return problems


def _by_hand(step: dict[str, Any]) -> bool:
    return step.get("stand_in") == "operator"


def _reconciled(step: dict[str, Any]) -> bool:
    """Not what its host answered first ended its newest attempt."""
    return any("outcome" in found and found.get("attempt") == step["attempt"] for found in step.get("failures", []))


def questions_come_first(evidence: Evidence) -> list[str]:
    """Of a step with `reconcile`: what has an unknown outcome is asked about first, and what happened is not tried again."""
    return [line for refold in evidence.refolds for line in refold.questions.problems]


def effects_stand_where_they_should(evidence: Evidence) -> list[str]:
    """What a workflow says of its steps is what the services know."""
    problems = []
    for workflow_id, result in evidence.results.items():
        forward = result["status"] in ("completed", "degraded")
        if result["status"] == "terminated":
            continue  # as it stands
        for spec, step, effect in evidence.steps(result):
            stands = bool(effect.applied) and not effect.reversed
            status = step["status"]
            name = f"{workflow_id} ({result['status']}): step {step['name']} is {status}"
            if _by_hand(step):
                continue
            by_agent = status == "done" or (step.get("stand_in") or "").startswith("fallback:")
            if forward:
                if by_agent and not stands:
                    problems.append(f"{name}, but its effect does not stand")
                elif not by_agent and stands and not step.get("unknown") and not _rewound(result, undone=False):
                    problems.append(f"{name}, but its effect stands")
            elif status == "waiting":
                problems.append(f"{name} after the end")
            elif stands and spec.compensate is not None and step.get("undo", {}).get("status") not in _GIVEN_UP:
                problems.append(f"{name}, undo {step.get('undo', {}).get('status')}, but its effect stands")
    return problems


def rounds_before_are_undone(evidence: Evidence) -> list[str]:
    """What a rewinding took back does not stand, unless a person said so about the undoing."""
    problems = []
    decided = {
        _key(message)
        for message in evidence.each(evidence.topics.events)
        if header(message.headers, "ce_type") == _DECIDED and b'"compensate"' in (message.value or b"")
    }
    for workflow_id, result in evidence.results.items():
        if workflow_id in decided or result["status"] in ("terminated", "compensation_failed"):
            continue
        for spec, step, _ in evidence.steps(result):
            for round_ in range(step.get("round", 0) if spec.compensate is not None else 0):
                effect = evidence.world.effect(
                    idempotency_key(result["workflow_id"], step["name"], _run(result), round_)
                )
                if effect.applied and not effect.reversed:
                    problems.append(
                        f"{workflow_id}: {step['name']} was rewound, and what its round {round_} did stands"
                    )
    return problems


def nothing_is_done_under_a_key_that_was_undone(evidence: Evidence) -> list[str]:
    """Whoever keeps a key in mind would not do it, and be right: a round after an undoing has a key of its own."""
    problems = []
    for refold in evidence.refolds:
        undone: set[str] = set()
        for command_id, effect in refold.dispatched.items():
            command = effect.command
            if command.direction is Direction.COMPENSATE:
                undone.add(command.idempotency_key)
            elif command.idempotency_key in undone:
                problems.append(f"{command_id} is asked for under {command.idempotency_key}, which was undone")
    return problems


def money_is_conserved(evidence: Evidence) -> list[str]:
    """But for what is under way for ever in workflows that were terminated, which undoes nothing."""
    balances = evidence.world.balances
    expected = BALANCE * len(balances)
    for result in evidence.results.values():
        if result["status"] == "terminated":
            for name, sign in (("withdraw", -1), ("deposit", 1)):
                for round_ in range(REWINDS_MAX + 1):
                    effect = evidence.world.effect(idempotency_key(result["workflow_id"], name, _run(result), round_))
                    if effect.applied and not effect.reversed:
                        expected += sign * effect.amount
    total = sum(balances.values())
    return [f"{total} on the accounts where {expected} should be: {balances}"] if total != expected else []


def outputs_are_the_agents_own(evidence: Evidence) -> list[str]:
    """Nobody else's answer was believed."""
    problems = []
    for workflow_id, result in evidence.results.items():
        for spec, step, effect in evidence.steps(result):
            nonsense = step.get("output") == {"nonsense": True} and spec.output_schema is None
            if step["status"] == "done" and step.get("output") != effect.output and not nonsense and not _by_hand(step):
                problems.append(
                    f"{workflow_id}: {step['name']} has {step.get('output')}, its agent said {effect.output}"
                )
            for failure in step.get("failures", []):
                if failure["message"] == "forged":
                    problems.append(f"{workflow_id}: {spec.name} failed by a forged answer")
    return problems


def nothing_acts_after_the_end(evidence: Evidence) -> list[str]:
    """A step whose outcome the workflow knew does not act once the workflow is over."""
    problems = []
    for workflow_id, result in evidence.results.items():
        partition = next(
            p
            for p, refold in enumerate(evidence.refolds)
            if workflow_id in refold.finished_at or p == evidence.plan.partitions - 1
        )
        at_offset = evidence.refolds[partition].finished_at.get(workflow_id)
        message = next(
            (m for m in evidence.kafka.records(evidence.topics.events, partition) if m.offset == at_offset), None
        )
        if message is None or result["status"] == "terminated":
            continue
        for spec, step, effect in evidence.steps(result):
            if effect.undone_ms > message.timestamp and step.get("undo", {}).get("status") not in _GIVEN_UP:
                problems.append(
                    f"{workflow_id}: {spec.name} was undone {effect.undone_ms - message.timestamp} ms after the end"
                )
            if effect.applied_ms > message.timestamp and not step.get("unknown"):
                problems.append(
                    f"{workflow_id}: {spec.name} was done {effect.applied_ms - message.timestamp} ms after the end"
                )
    return problems


def hosts_keep_their_promises(evidence: Evidence) -> list[str]:
    """Nothing twice in one process, nothing of one key side by side."""
    return evidence.world.problems


def retries_are_used_up(evidence: Evidence) -> list[str]:
    """A step that failed by something that is tried again was tried as often as its policy says, and never more often."""
    problems = []
    for workflow_id, result in evidence.results.items():
        for spec, step, _ in evidence.steps(result):
            own = step["attempt"] - step.get("fell_back_after", 0)
            if own > spec.retry.attempts:
                problems.append(f"{workflow_id}: {spec.name} was tried {own} times, {spec.retry.attempts} are allowed")
            gave_up = step["status"] == "failed" or step.get("stand_in") in ("default", "fallback")
            if not gave_up or not step.get("failures") or spec.retry.total_ms is not None:
                continue
            last = step["failures"][-1]
            if (
                FailureKind(last["kind"]) in RETRIED
                and last.get("error_type") not in spec.retry.terminal
                and own < spec.retry.attempts
            ):
                problems.append(
                    f"{workflow_id}: {spec.name} was given up after {own} of {spec.retry.attempts} attempts"
                )
    return problems


def attempts_are_accounted_for(evidence: Evidence) -> list[str]:
    """A further attempt is made because one failed: of a step that was done, all but the last did."""
    problems = []
    for workflow_id, result in evidence.results.items():
        for _, step, _ in evidence.steps(result):
            # An attempt that no budget allows failed before it was made.
            unmade = sum(failure["kind"] == FailureKind.OVER_BUDGET for failure in step.get("failures", []))
            failed = step.get("failed_attempts", 0) - unmade
            made = {"done": failed + 1, "failed": failed}.get(step["status"])
            if "rewinds" in result:
                continue  # their numbers go on, and the failures of the round before are not there any more
            # A condition that cannot be evaluated fails a step before any attempt.
            begun = step["attempt"] > 0
            if made is not None and begun and step["attempt"] != made and not _by_hand(step):
                problems.append(
                    f"{workflow_id}: {step['name']} is {step['status']} with attempt {step['attempt']}, {failed} failed"
                )
            undo = step.get("undo", {})
            failed = undo.get("failed_attempts", 0)
            made = {"done": failed + 1, "failed": failed}.get(undo.get("status"))
            # Where several agents are asked in turn, each may have had its one good attempt.
            turns = undo.get("turn", 0)
            turns += undo.get("late", 0) * (turns + 1)  # once more for each result that came late
            if made is not None and not failed <= undo["attempt"] - (made - failed) <= failed + turns:
                problems.append(
                    f"{workflow_id}: {step['name']} was undone with attempt {undo['attempt']}, {failed} failed"
                )
    return problems


def budgets_hold(evidence: Evidence) -> list[str]:
    """No more attempts at executing than a step, or a workflow, may make; by the commands that were sent."""
    problems = []
    sent: Counter[tuple[str, str]] = Counter()
    for found in evidence.commands.values():
        command = found[0][1]
        if command.direction == Direction.EXECUTE:
            sent[_label_of(command.command_id), split_item(command.step)[0]] += 1
    for workflow_id, result in evidence.results.items():
        definition = evidence.definitions.get(result["definition"])
        if definition is None:
            continue
        limits = {step.name: step.budget.attempts for step in definition.steps if step.budget is not None}
        for name, limit in limits.items():
            if limit is not None and sent[workflow_id, name] > limit:
                problems.append(
                    f"{workflow_id}: {name} was tried {sent[workflow_id, name]} times, {limit} are budgeted"
                )
        total = sum(sent[workflow_id, step.name] for step in definition.steps)
        if definition.budget is not None and total > (definition.budget.attempts or total):
            problems.append(f"{workflow_id}: {total} attempts, {definition.budget.attempts} are budgeted")
    return problems


def cancelled_by_request(evidence: Evidence) -> list[str]:
    """Nobody's workflow is cancelled who did not ask; nobody's deadline passes who set none."""
    problems = []
    starts = {start.workflow_id: start for start in evidence.plan.starts}
    for workflow_id, result in evidence.results.items():
        start = starts.get(result["workflow_id"])
        definition = evidence.definitions.get(result["definition"])
        kind = (result.get("failure") or {}).get("kind")
        if start is None or definition is None:
            continue
        # A client that does not know whether its start is in the log sends it again, and so replaces its own.
        replaced = start.several or start.on_duplicate is OnDuplicate.REPLACE
        asked = replaced or start.cancel_at_ms is not None or start.terminate_at_ms is not None
        if kind == FailureKind.CANCELLED and not asked:
            problems.append(f"{workflow_id}: cancelled, and nobody asked")
        if kind == FailureKind.DEADLINE and start.deadline_ms is None and definition.deadline_ms is None:
            problems.append(f"{workflow_id}: its deadline passed, and it has none")
    return problems


def quarantine_holds_garbage_only(evidence: Evidence) -> list[str]:
    problems = []
    for message in evidence.kafka.records(evidence.topics.quarantine, 0):
        record = decode_object(message.value)
        topic, partition, offset = record["origin"].rsplit("/", 2)
        origin = next((m for m in evidence.kafka.records(topic, int(partition)) if m.offset == int(offset)), None)
        if origin is None or not _is_garbage(origin):
            problems.append(f"{record['origin']} is in quarantine: {record['reason']}")
    for message in evidence.each(evidence.topics.checkpoints):
        if (
            message.value is not None
            and b'"status":"quarantined"' in message.value
            and not _key(message).startswith(GHOST)
        ):
            problems.append(f"{_key(message)}: is stopped by a quarantined record")
    return problems


def nothing_unexpected(evidence: Evidence) -> list[str]:
    counts = Counter(evidence.bugs)
    return [f"{count} times: {bug}" if count > 1 else bug for bug, count in counts.items()]


def harness_is_content(evidence: Evidence) -> list[str]:
    """All came to an end in time, every partition was served at the end, every program stopped when told to."""
    return evidence.said


CHECKERS: Final[tuple[Callable[[Evidence], list[str]], ...]] = (
    harness_is_content,
    nothing_unexpected,
    nothing_is_lost,
    one_result,
    children_end_with_their_parents,
    starts_are_answered,
    schedules_keep_their_times,
    refold_is_what_stands_there,
    invariants_hold,
    circuits_are_what_the_outcomes_say,
    a_call_counts_once,
    effects_follow_the_log,
    commands_are_answered,
    owners_keep_to_their_reign,
    compensation_is_in_reverse,
    needs_come_first,
    questions_come_first,
    effects_stand_where_they_should,
    rounds_before_are_undone,
    nothing_is_done_under_a_key_that_was_undone,
    money_is_conserved,
    outputs_are_the_agents_own,
    nothing_acts_after_the_end,
    hosts_keep_their_promises,
    retries_are_used_up,
    attempts_are_accounted_for,
    budgets_hold,
    limits_hold,
    parked_commands_go_out_on_a_ramp,
    a_rolling_restart_is_not_noticed,
    cancelled_by_request,
    quarantine_holds_garbage_only,
    rows_are_what_the_log_says,
    positions_are_at_the_end,
    no_row_steps_back,
    what_cannot_be_projected_is_in_quarantine,
)


def check(evidence: Evidence) -> list[tuple[str, str]]:
    """(checker, problem) of all that is wrong."""
    found: list[tuple[str, str]] = []
    for checker in CHECKERS:
        problems = checker(evidence)
        found += [(checker.__name__, problem) for problem in problems[:PROBLEMS_SHOWN_MAX]]
        if len(problems) > PROBLEMS_SHOWN_MAX:
            found.append((checker.__name__, f"and {len(problems) - PROBLEMS_SHOWN_MAX} more"))
    return found
