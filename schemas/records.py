"""The engine's outputs besides commands: checkpoints, results, dead letters, reviews, outcomes, circuits, quarantine, health.

They are plain JSON objects, described here as TypedDicts; the JSON Schemas are exported from the same types.
Every one carries `at_offset`, the offset in `events` (or `outcomes`) of the record that caused it, so that a reader can tell
the newer of two and recognise one that was sent twice.
"""

from __future__ import annotations

from typing import Any, Final, NotRequired

from typing_extensions import TypedDict

TYPE_CHECKPOINT: Final = "sagalog.checkpoint.v1"
TYPE_MARKER: Final = "sagalog.marker.v1"
TYPE_DEFINITION: Final = "sagalog.definition.v1"
TYPE_RESULT: Final = "sagalog.result.v1"
TYPE_START_ANSWERED: Final = "sagalog.start-answered.v1"
TYPE_DEAD_LETTER: Final = "sagalog.dead-letter.v1"
TYPE_REVIEW: Final = "sagalog.review.v1"
TYPE_OUTCOME: Final = "sagalog.outcome.v1"
TYPE_DEMAND: Final = "sagalog.demand.v1"
TYPE_LEASE: Final = "sagalog.lease.v1"
TYPE_CIRCUIT: Final = "sagalog.circuit.v1"
TYPE_QUARANTINE: Final = "sagalog.quarantine.v1"
TYPE_HEALTH: Final = "sagalog.health.v1"

NO_SERVICE: Final = "@none"
"""Stands in the outcomes for a service where an agent names none: counted by the watch, no circuit."""

MARKER_KEY: Final = "@marker"
DEFINITION_KEY: Final = "@definition/"
OWNER_KEY: Final = "@owner"
SCHEDULE_KEY: Final = "@schedule/"
LEASE_KEY: Final = "@limit/"
"""Keys of the engine's own records in workflow-keyed topics; no workflow id starts with '@'."""


class FailureRecord(TypedDict):
    """One failed attempt, or the cause of a workflow's failure."""

    kind: str
    message: str
    at_ms: int
    step: NotRequired[str]
    attempt: NotRequired[int]
    agent: NotRequired[str]
    error_type: NotRequired[str]
    details: NotRequired[Any]
    landed: NotRequired[bool]
    """Its result came after all."""
    outcome: NotRequired[str]
    """Of an attempt that was asked about: `happened` or `did_not_happen`, once somebody knows."""


class QuestionRecord(TypedDict):
    """What is being asked about a step's newest attempt, whose outcome nobody knows. Its failure is the step's newest."""

    since_ms: int
    out: NotRequired[bool]
    """It is with the agent; else it waits for its time, or for the workflow to be resumed."""
    retry_after_ms: NotRequired[int]
    """What the attempt's failure asked for."""
    tokens: NotRequired[int]
    cost: NotRequired[int]
    """What the attempt was charged with; a late answer of its own says better."""
    asked_before: NotRequired[int]
    """Questions about the attempts before."""
    failed_attempts: NotRequired[int]
    failures: NotRequired[list[FailureRecord]]
    """Of the questions, the newest 20."""


class UndoRecord(TypedDict):
    """One step's entry in the ledger: what became of its compensation."""

    status: str
    attempt: int
    order: NotRequired[int]
    """1 for the step that was asked to be undone first."""
    started_ms: NotRequired[int]
    finished_ms: NotRequired[int]
    retry_at_ms: NotRequired[int]
    tried_before: NotRequired[int]
    """Attempts that count no more: before an operator had it tried anew, or of the agent before."""
    turn: NotRequired[int]
    """Which of the agents that may have done the step is undoing it, if not the first."""
    failed: NotRequired[bool]
    """One of those before could not undo it."""
    late: NotRequired[int]
    """Results that came late, for each of which it is undone once more."""
    again: NotRequired[bool]
    """One came while it was being undone."""
    failed_attempts: NotRequired[int]
    failures: NotRequired[list[FailureRecord]]


class StepRecord(TypedDict):
    """One step as checkpoints, results and PostgreSQL show it."""

    name: str
    status: str
    attempt: int
    agent: NotRequired[str]
    asked: NotRequired[str]
    """Who made the newest attempt, when a migration has given the step another agent since."""
    started_ms: NotRequired[int]
    finished_ms: NotRequired[int]
    order: NotRequired[int]
    """1 for the step that ended first."""
    retry_at_ms: NotRequired[int]
    until_ms: NotRequired[int]
    """Of a step that awaits something: when it wakes, or has waited long enough."""
    escalated: NotRequired[bool]
    fell_back_after: NotRequired[int]
    """Attempts that count no more: before a fallback agent took over, or an operator had it tried anew."""
    fell_back: NotRequired[int]
    """How many of its fallbacks have had their turn."""
    since_ms: NotRequired[int]
    """When the present agent was first asked, if not at the start."""
    tokens: NotRequired[int]
    cost: NotRequired[int]
    """What its attempts at executing used, as their agents said."""
    sent_ms: NotRequired[int]
    spent_ms: NotRequired[int]
    """When its newest attempt went out, and how long all before it were out; where a budget limits time."""
    unknown: NotRequired[bool]
    """An attempt timed out, was lost or answered nonsense: it may have had its effect."""
    suspects: NotRequired[list[str]]
    """The agents of those attempts."""
    stand_in: NotRequired[str]
    """Whose the output is, if not the step's own: `default`, `fallback`, `fallback:<agent>`, `operator`, `fork` (the original's),
    or `items` (some items of a map are missing)."""
    output: NotRequired[Any]
    failed_attempts: NotRequired[int]
    failures: NotRequired[list[FailureRecord]]
    """The newest 20."""
    undo: NotRequired[UndoRecord]
    questions: NotRequired[int]
    """How many questions went out, about all its attempts."""
    question: NotRequired[QuestionRecord]
    """While it is `reconciling`."""
    items: NotRequired[list[StepRecord]]
    """Of a step that maps, once it has begun: one for each item, in the order of the list; `name` is `step[0]` and so on."""
    repeats: NotRequired[bool]
    """Its items are rounds: its output is the last one's."""
    round: NotRequired[int]
    """How often it was begun anew under a new idempotency key: after a rewinding that undid it."""
    first: NotRequired[int]
    """Of an item: attempts of earlier items of its name, which a rewinding dropped. They only keep its numbers apart."""
    undone_before: NotRequired[int]
    """Attempts at undoing that belong to earlier rounds."""
    dropped: NotRequired[int]
    """Of a step that maps: attempts of items that a rewinding dropped. They count for budgets."""


class MissingRecord(TypedDict):
    """One line of the manifest: what a degraded result lacks, why, and what stands in."""

    step: str
    why: str
    kind: str
    stand_in: str


class WithheldRecord(TypedDict):
    """An annotation: a command that is ready but not sent yet, and why. Not part of the state's digest."""

    step: str
    attempt: int
    direction: str
    reason: str
    since_ms: int
    service: NotRequired[str]
    limit: NotRequired[str]
    """The name of the limit that holds it, and below its key."""
    key: NotRequired[str]
    definition: NotRequired[str]
    """The hash under which it was made, when the workflow has moved to another since."""


class SignalRecord(TypedDict):
    """A signal that is kept until a step waits for it."""

    id: str
    name: str
    at_ms: int
    bytes: int
    payload: NotRequired[Any]


class UndoAskedRecord(TypedDict):
    """Which attempt at undoing a child's parent waits for."""

    attempt: int
    token: str


class ParentRecord(TypedDict):
    """Of a workflow that does a step of another one: whose."""

    workflow_id: str
    root: str
    depth: int
    step: str
    attempt: int
    token: str
    tokens: NotRequired[int]
    cost: NotRequired[int]
    """What it may use, beside its own budget."""
    undo: NotRequired[UndoAskedRecord]
    over: NotRequired[bool]
    """It has ended: nothing will be asked any more."""


class ReportRecord(TypedDict):
    """What a child told its parent at its end, kept until the parent is over."""

    status: str
    tokens: int
    cost: int
    output: NotRequired[Any]
    kind: NotRequired[str]
    message: NotRequired[str]


class LineageRecord(TypedDict):
    """Of a workflow that does a step of another one: whose, for all to see."""

    workflow_id: str
    root: str
    step: str


class PausedRecord(TypedDict):
    """Who paused a workflow, when and why."""

    who: str
    reason: str
    at_ms: int


class NextRecord(TypedDict):
    """A start that replaces the run that is on, and waits for its end."""

    definition: str
    """As the start named it."""
    input: Any
    seed: str
    at_offset: int
    """Of the start."""
    at_ms: int
    bytes: int
    deadline_ms: NotRequired[int]
    correlation_id: NotRequired[str]
    trace: NotRequired[str]
    tenant: NotRequired[str]
    priority: NotRequired[int]
    attributes: NotRequired[dict[str, Any]]


class MigratedRecord(TypedDict):
    """One move of a running workflow to another hash of its definition."""

    before: str
    after: str
    """The two hashes."""
    at_ms: int
    who: str
    reason: str


class RewindRecord(TypedDict):
    """One rewinding of a workflow."""

    step: str
    undo: bool
    who: str
    reason: str
    at_ms: int
    dead_letter: NotRequired[str]
    """The dead letter that was tried again by it."""


class ForkedRecord(TypedDict):
    """Which workflow a fork comes from, as it was at an offset."""

    workflow_id: str
    at_offset: int
    dead_letter: NotRequired[str]
    """The dead letter that is tried again by it."""
    who: NotRequired[str]
    reason: NotRequired[str]


class CheckpointRecord(TypedDict):
    """`checkpoints`, key = workflow id: the fold's state at an offset. A finished workflow has no steps (a stub)."""

    v: int
    status: str
    definition: str
    name: str
    seed: str
    started_ms: int
    now_ms: int
    at_offset: int
    input: NotRequired[Any]
    deadline_ms: NotRequired[int]
    correlation_id: NotRequired[str]
    parent: NotRequired[ParentRecord]
    report: NotRequired[ReportRecord]
    trace: NotRequired[str]
    start: NotRequired[dict[str, Any]]
    """What a start that waits for its definition asked for beside its input."""
    failure: NotRequired[FailureRecord]
    stopped: NotRequired[str]
    """Why a quarantined workflow is stopped."""
    paused: NotRequired[PausedRecord]
    signals: NotRequired[list[SignalRecord]]
    heard: NotRequired[list[str]]
    """Ids of the signals, actions and decisions that counted, the newest last."""
    migrated: NotRequired[list[MigratedRecord]]
    """The newest 10."""
    own_deadline: NotRequired[bool]
    """The start named the very deadline that its definition has: a migration leaves it."""
    rewinds: NotRequired[list[RewindRecord]]
    """The oldest first; the last one is under way while the status says so, or `rewinding` does."""
    rewinding: NotRequired[bool]
    pivoted: NotRequired[bool]
    """A pivot that a rewinding took back had ended well."""
    forked_from: NotRequired[ForkedRecord]
    finished_ms: NotRequired[int]
    unsettled: NotRequired[list[str]]
    """Of a finished one: attempts (`step/attempt`) of which nobody knows whether they did it, although the step was undone, or
    another agent did it."""
    bytes: NotRequired[int]
    tenant: NotRequired[str]
    priority: NotRequired[int]
    attributes: NotRequired[dict[str, Any]]
    run: NotRequired[int]
    """Of a workflow whose start replaces: the offset of that start, plus 2."""
    starts: NotRequired[list[str]]
    """Ids (hashed) of the starts under this id that came before this run's, the newest last."""
    next: NotRequired[NextRecord]
    steps: NotRequired[list[StepRecord]]
    withheld: NotRequired[list[WithheldRecord]]


class ScheduleRunRecord(TypedDict):
    """One run of a schedule."""

    id: str
    """Of its workflow."""
    due_ms: int
    started_ms: int
    status: str
    """`running` until the workflow has ended, then how it ended."""
    finished_ms: NotRequired[int]
    triggered_by: NotRequired[str]
    """Who asked for it beside the due times."""
    token: NotRequired[str]
    """What the report of its end must return, as long as it goes on."""


class ScheduleSkipRecord(TypedDict):
    """A due time without a run, and why: `overlap`, `missed`, `paused`, `full`, `removed`."""

    due_ms: int
    why: str


class ScheduleWaitingRecord(TypedDict):
    """A run that waits for the end of the one before."""

    id: str
    due_ms: int
    triggered_by: NotRequired[str]


class ScheduleRecord(TypedDict):
    """`checkpoints`, key = @schedule/NAME: a schedule's state at an offset."""

    v: int
    name: str
    status: str
    definition: str
    cron: str
    zone: str
    overlap: str
    catch_up_ms: int
    seed: str
    set_by: str
    set_ms: int
    now_ms: int
    at_offset: int
    input: NotRequired[Any]
    jitter_ms: NotRequired[int]
    next_ms: NotRequired[int]
    last_due_ms: NotRequired[int]
    """The newest due time that was dealt with."""
    resumed_ms: NotRequired[int]
    """Due times before were left out because it was paused."""
    paused: NotRequired[PausedRecord]
    removed: NotRequired[PausedRecord]
    """By whom, why and when."""
    forget_ms: NotRequired[int]
    waiting: NotRequired[ScheduleWaitingRecord]
    runs: NotRequired[list[ScheduleRunRecord]]
    """Those that go on, and the newest 20 that have ended; the oldest first."""
    skips: NotRequired[list[ScheduleSkipRecord]]
    """The newest 20."""
    started: int
    """Runs since it was first set."""
    skipped: NotRequired[dict[str, int]]
    """Due times without a run, by why."""
    heard: list[str]
    """Ids of what was said of it and counted, the newest last."""


class MarkerRecord(TypedDict):
    """`checkpoints`, key = @marker: what the checkpoints of this partition amount to."""

    at_offset: int
    """The last applied offset; -1 before the first."""
    epoch: int
    member: str
    definitions: list[str]
    """Hashes, in the order in which the partition saw them."""
    workflows: int
    digest: str
    """Sum over all live checkpoints of blake2b-64(key, value), modulo 2**64, in hexadecimal."""
    leaving: NotRequired[bool]
    """The owner is about to stop, and hands over: whoever claims the partition next waits for its last marker."""


class UsageRecord(TypedDict):
    """What all attempts at executing used together."""

    attempts: int
    tokens: int
    cost: int
    ms: NotRequired[int]
    """How long they were out; where a budget limits it."""


class ResultRecord(TypedDict):
    """`results`, key = workflow id: how it ended, with all that the rows of a finished workflow need."""

    workflow_id: str
    definition: str
    name: str
    status: str
    started_ms: int
    finished_ms: int
    at_offset: int
    input: NotRequired[Any]
    output: NotRequired[Any]
    completeness: float
    """Steps that delivered their own output, over all steps: 1.0 when nothing is missing."""
    missing: list[MissingRecord]
    failure: NotRequired[FailureRecord]
    correlation_id: NotRequired[str]
    parent: NotRequired[LineageRecord]
    tenant: NotRequired[str]
    priority: NotRequired[int]
    """As it was at the end, unless it is 5."""
    attributes: NotRequired[dict[str, Any]]
    run: NotRequired[int]
    """Of a workflow whose start replaces: which run under this id it was."""
    start_id: NotRequired[str]
    """The id (hashed) of that start."""
    usage: NotRequired[UsageRecord]
    migrated: NotRequired[list[MigratedRecord]]
    """The newest 10 moves to another definition; `definition` is the last one's."""
    rewinds: NotRequired[list[RewindRecord]]
    forked_from: NotRequired[ForkedRecord]
    steps: list[StepRecord]
    shortened: NotRequired[list[str]]
    """Fields whose payloads did not fit into one record and are missing here; the event log has them."""


class StartAnsweredRecord(TypedDict):
    """`results`, key = workflow id: whether a start counted that asked to be told (`on_duplicate` is `reject` or `replace`)."""

    workflow_id: str
    start_id: str
    """The id of the start's event, hashed."""
    accepted: bool
    at_ms: int
    at_offset: int
    reason: NotRequired[str]
    """Why it did not count."""
    status: NotRequired[str]
    """Of the workflow that was there instead."""


class DeadLetterRecord(TypedDict):
    """`dead-letters`, key = workflow id: a command that failed for good, with every attempt."""

    id: str
    workflow_id: str
    definition: str
    name: str
    step: str
    agent: str
    direction: str
    at_ms: int
    at_offset: int
    input: Any
    failures: list[FailureRecord]
    failed_attempts: int


class DecidedRecord(TypedDict):
    """What somebody decided about a review, or what made it moot."""

    decision: str
    who: str
    reason: str
    at_ms: int


class ReviewRecord(TypedDict):
    """`reviews`, key = workflow id: work that waits for a person, with what they need to decide."""

    id: str
    workflow_id: str
    definition: str
    name: str
    step: NotRequired[str]
    kind: str
    """`task`, `step_failed` and `undo_failed` (held: somebody decides), `review_needed` (the step asked for a person),
    `compensation_failed`, `late_result` (of a step that was given up and undone, after the end) or `quarantined`."""
    reason: str
    details: NotRequired[Any]
    input: NotRequired[Any]
    at_ms: int
    at_offset: int
    decided: NotRequired[DecidedRecord]
    """Set in the record that closes the review; without it the review is open."""


class OutcomeRecord(TypedDict):
    """`outcomes`, key = service: how calls to it ended, as one partition's processor saw them."""

    service: str
    """`@none` for calls of agents that name no service."""
    partition: int
    at_offset: int
    """The newest offset in `events` that this record covers."""
    calls: list[list[int]]
    """[offset, 1 for ok or 0 for a fault of the service, at_ms] each, in the order of offsets."""
    agents: NotRequired[dict[str, list[int]]]
    """Per agent [ok, failed]; for the watch."""
    parked: NotRequired[int]
    """Commands that wait for the circuit in this partition; the partition is a candidate for the probe."""
    policy: NotRequired[dict[str, Any]]
    """The CircuitPolicy of the newest definition that named the service."""


class CircuitRecord(TypedDict):
    """`circuits`, key = service: the circuit's state."""

    v: int
    service: str
    status: str
    since_ms: int
    now_ms: int
    at_offset: int
    opened: int
    """How often it opened since it is known."""
    turn: int
    """How often its timer's meaning changed; a timer of an earlier turn is ignored."""
    reason: NotRequired[str]
    half_open_at_ms: NotRequired[int]
    probe: NotRequired[int]
    """The partition of `events` that may send one command while half open."""
    probe_until_ms: NotRequired[int]
    candidates: NotRequired[list[int]]
    window: NotRequired[list[list[int]]]
    seen: NotRequired[dict[str, int]]
    policy: dict[str, Any]


class DemandRecord(TypedDict):
    """`outcomes`, key = @limit/BUCKET: what a partition could use of a limit's leased part, and what it holds on to."""

    bucket: str
    pool: int
    """How much of the limit is leased."""
    partition: int
    epoch: int
    seq: int
    """With the epoch: which of the partition's words is the newer."""
    needs: int
    """So much of it the partition could use."""
    keeps: int
    """It uses no more than this until it has read a lease that answers this record."""
    fill_ms: int
    """Of a rate: how long a token takes for whoever holds one of the burst; else 0."""


class LeasePartRecord(TypedDict):
    """What one partition holds of a limit."""

    share: int
    needs: int
    epoch: int
    seq: int
    """The newest of its words that was heard."""
    turn: int
    full: int
    """Of a rate: how many of those it was given came with their token."""


class LeaseRecord(TypedDict):
    """`circuits`, key = @limit/BUCKET: who holds how much of a limit's leased part."""

    v: int
    bucket: str
    at_offset: int
    pool: int
    turn: int
    wanted: int
    """How much partitions could use and do not have."""
    takers: int
    """Partitions that could use some."""
    fill_ms: int
    full_ms: int
    """From when on all that is free is full."""
    parts: dict[str, LeasePartRecord]


class QuarantineRecord(TypedDict):
    """`quarantine`, key = origin: a record that could not be read or folded."""

    origin: str
    """topic/partition/offset"""
    reason: str
    stage: str
    """`decode`, `fold` or `project`: what could not be done with it."""
    at_ms: int
    key: str | None
    """Base64."""
    value: str | None
    """Base64, at most the first 64 KiB."""
    value_bytes: int
    headers: list[list[str]]
    workflow_id: NotRequired[str]


class HealthRecord(TypedDict):
    """`health`, key = agent: its error rate in a sliding window, and whether an alert is raised."""

    agent: str
    at_ms: int
    window_ms: int
    ok: int
    failed: int
    error_rate: float
    alert: bool
    since_ms: int
    """When the alert was raised or cleared last."""
