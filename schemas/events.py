"""The events topic: every input of every workflow, one dataclass a kind.

An event's kind is in the CloudEvents header `ce_type`, its id in `ce_id`, its time is the broker's LogAppendTime, and its
value is the JSON of the dataclass. To add a kind: a dataclass here, its row in KINDS, and a `case` in the kernel.

Rule: `parse_event` raises InvalidRecord and nothing else, whatever the bytes; the caller sends those to quarantine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from .codec import decode_object
from .errors import InvalidRecord
from .ids import Direction
from .limits import CATCH_UP_MS_DEFAULT, DUE_TIMES_MAX, EVENT_DEPTH_MAX
from .statuses import WorkflowStatus

TYPE_PREFIX: Final = "sagalog."


class FailureKind(StrEnum):
    """Why an attempt, a step or a workflow failed."""

    RETRYABLE = "retryable"
    TERMINAL = "terminal"
    TIMEOUT = "timeout"
    LOST = "lost"
    UNKNOWN = "unknown_outcome"
    """Nobody can say whether it had its effect, and trying again would do harm: it kept killing its host."""
    INVALID_INPUT = "invalid_input"
    INVALID_OUTPUT = "invalid_output"
    REFUSAL = "refusal"
    """The agent, or the model behind it, declined: asking it again changes nothing, another one may do it."""
    CIRCUIT_OPEN = "circuit_open"
    OVER_BUDGET = "over_budget"
    REVIEW_NEEDED = "review_needed"
    REJECTED = "rejected"
    """A person said no."""
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


RETRIED: Final = frozenset({FailureKind.RETRYABLE, FailureKind.TIMEOUT, FailureKind.LOST, FailureKind.INVALID_OUTPUT})
REPORTED: Final = RETRIED | {
    FailureKind.TERMINAL,
    FailureKind.UNKNOWN,
    FailureKind.INVALID_INPUT,
    FailureKind.REFUSAL,
    FailureKind.REVIEW_NEEDED,
}
"""What an agent may report; anything else it says counts as terminal."""
UNKNOWN_OUTCOME: Final = frozenset(
    {FailureKind.TIMEOUT, FailureKind.LOST, FailureKind.UNKNOWN, FailureKind.INVALID_OUTPUT}
)
"""After these the agent may have done it (with an invalid output it surely ran): a compensation must assume that it did."""
ASKED_ABOUT: Final = UNKNOWN_OUTCOME - {FailureKind.INVALID_OUTPUT}
"""After these the agent of a step with `reconcile` is asked whether the attempt happened."""

SERVICE_FAULTS: Final = frozenset({FailureKind.RETRYABLE, FailureKind.TIMEOUT, FailureKind.LOST})
"""What counts against the service's circuit: a business refusal or a bad input is the service doing its work."""


Int = Annotated[int, Field(strict=True)]
"""3 is one; "3", 3.0 and true are not."""


class Outcome(StrEnum):
    """The answer to the question whether an attempt happened."""

    HAPPENED = "happened"
    DID_NOT_HAPPEN = "did_not_happen"
    """And will not: whoever answers this sees to it that the attempt cannot take effect later."""


class Timer(StrEnum):
    """Which of a workflow's deadlines fired."""

    RETRY = "retry"
    UNDO_RETRY = "undo_retry"
    QUESTION = "question"
    """Of a question whether an attempt happened: it is asked again."""
    WAKE = "wake"
    """Of a step that sleeps, or waits for a signal or a person: it is time, or it took too long."""
    DEADLINE = "deadline"
    DEFINITION = "definition"
    FORGET = "forget"
    CIRCUIT = "circuit"
    """Of a service's circuit, in the outcomes topic."""


@dataclass(frozen=True, slots=True)
class Parent:
    """Of a workflow that does a step of another one: whose, and what it may use. Of a schedule's run: the schedule's key."""

    workflow_id: str
    root: str
    """The workflow that nobody's step started."""
    depth: Int
    step: str
    attempt: Int
    token: str
    """What the report of its end must return."""
    tokens: Int | None = None
    cost: Int | None = None
    """What it may use, beside its own budget."""


class OnDuplicate(StrEnum):
    """What becomes of a start whose workflow id is in use, or was within the time that it is remembered."""

    IGNORE = "ignore"
    """It changes nothing."""
    REJECT = "reject"
    """The same, and it is answered either way: its starter must know whether it counted."""
    REPLACE = "replace"
    """The run that is on is cancelled, or waited for, and this one begins once that one has ended."""


@dataclass(slots=True)
class Gap:
    """Of a fork: why a step that it keeps is degraded in the original."""

    why: str
    kind: str


@dataclass(slots=True)
class Forked:
    """Where a fork comes from, and what it keeps: these steps count as done, and the original owns their effects."""

    workflow_id: str
    at_offset: Int
    steps: dict[str, Any] = field(default_factory=dict)
    """Outputs by step."""
    skipped: list[str] = field(default_factory=list)
    """Which of these were not needed."""
    missing: dict[str, Gap] = field(default_factory=dict)
    """Which of these are degraded: their output is a stand-in."""
    dead_letter: str | None = None
    """The dead letter that is tried again."""
    who: str | None = None
    reason: str | None = None


@dataclass(slots=True)  # not frozen: see StepCompleted
class WorkflowStarted:
    """A request to run a workflow. `definition` is a name (the newest the partition knows) or `name@hash`."""

    definition: str
    input: Any = None
    deadline_ms: Int | None = None
    correlation_id: str | None = None
    tenant: str | None = None
    priority: Int | None = None
    """0 to 9, the higher first; none: 5."""
    attributes: Any = None
    """Search attributes: names to texts, numbers, or true and false."""
    on_duplicate: OnDuplicate | None = None
    """None: `ignore`."""
    parent: Parent | None = None
    forked: Forked | None = None


@dataclass(slots=True)  # not frozen: one is made per step, and freezing triples what that costs
class StepCompleted:
    """An attempt's result. For the direction `compensate`, the step is undone; for `reconcile`, a question is answered."""

    step: str
    attempt: Int
    direction: Direction
    token: str
    output: Any = None
    agent: str | None = None
    duration_ms: Int | None = None
    tokens: Int | None = None
    cost: Int | None = None
    """What the attempt used, in the units of the definition's budget."""
    outcome: Outcome | None = None
    """For the direction `reconcile`: what became of the attempt asked about. If it happened, `output` is what it gave."""


@dataclass(slots=True)  # not frozen: see StepCompleted
class StepFailed:
    """An attempt's failure, as the agent's host saw it."""

    step: str
    attempt: Int
    direction: Direction
    token: str
    kind: FailureKind
    message: str
    error_type: str | None = None
    details: Any = None
    retry_after_ms: Int | None = None
    agent: str | None = None
    duration_ms: Int | None = None
    tokens: Int | None = None
    cost: Int | None = None


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Stop the workflow and undo what it did."""

    reason: str
    who: str


@dataclass(frozen=True, slots=True)
class ChildEnded:
    """Engine event, of another partition's owner: the workflow that does a step has ended, or is undone.

    It is believed because of its token, as an agent's result is.
    """

    step: str
    attempt: Int
    direction: Direction
    token: str
    child: str
    """Its id."""
    status: WorkflowStatus
    output: Any = None
    kind: FailureKind | None = None
    message: str | None = None
    """Why it failed, or what is missing."""
    tokens: Int | None = None
    cost: Int | None = None


@dataclass(frozen=True, slots=True)
class UndoRequested:
    """Engine event: the workflow whose step this one did has to undo it."""

    parent_token: str
    """As the start had it: by it the parent is known."""
    attempt: Int
    token: str
    """What the answer must return."""
    reason: str


@dataclass(frozen=True, slots=True)
class ParentEnded:
    """Engine event: the workflow whose step this one does is over; nothing will be asked any more."""

    parent_token: str
    terminate: Annotated[bool, Field(strict=True)] = False
    """It was terminated, and so is this one."""


class Action(StrEnum):
    """What somebody asks of a workflow as a whole."""

    PAUSE = "pause"
    RESUME = "resume"
    TERMINATE = "terminate"
    PRIORITIZE = "prioritize"
    """What is sent from here on has another priority, and what waits to be sent too."""


class Decision(StrEnum):
    """What somebody decided about a step."""

    APPROVE = "approve"
    """Of a task: it is done, with the output as given, or else with the step's input."""
    REJECT = "reject"
    """Of a task: the step failed."""
    RETRY = "retry"
    """Of a held step or undoing: try it anew, with all its attempts."""
    SKIP = "skip"
    """Of a held step: its default stands in. Of a held undoing: it need not be undone."""
    COMPLETE = "complete"
    """Of a held step or undoing: somebody did it by hand."""
    FAIL = "fail"
    """Of a held step or undoing: give it up."""


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """Something that a step waits for, or will. Its id is the event's: one that comes twice is taken once."""

    name: str
    payload: Any = None
    who: str | None = None


@dataclass(frozen=True, slots=True)
class ActionRequested:
    """A person acts on a workflow as a whole."""

    action: Action
    reason: str
    who: str
    priority: Int | None = None
    """Of `prioritize`."""


@dataclass(frozen=True, slots=True)
class StepDecided:
    """A person decided about a step that waits for them: a task, or one that failed for good."""

    step: str
    decision: Decision
    who: str
    reason: str = ""
    output: Any = None
    direction: Direction = Direction.EXECUTE


class Overlap(StrEnum):
    """What becomes of a schedule's due time while a run of its goes on."""

    SKIP = "skip"
    """It is left out, and counted."""
    BUFFER_ONE = "buffer_one"
    """One run waits for the end of the one that goes on; further due times are left out meanwhile."""
    ALLOW = "allow"
    """Runs go on side by side."""
    CANCEL_RUNNING = "cancel_running"
    """The run that goes on is cancelled, and what it did undone; then the new one starts."""
    TERMINATE_RUNNING = "terminate_running"
    """The run that goes on is terminated; then the new one starts."""


class ScheduleAction(StrEnum):
    """What somebody asks of a schedule."""

    PAUSE = "pause"
    RESUME = "resume"
    TRIGGER = "trigger"
    """Now, beside its due times; also of one that is paused."""


@dataclass(frozen=True, slots=True)
class ScheduleSet:
    """A schedule as it is to be from now on; its name is in the key. Runs that go on are left alone."""

    definition: str
    """A name (the newest at each start) or `name@hash`."""
    cron: str
    zone: str
    who: str
    next_ms: Int | None = None
    """When it is due first, by its writer's time-zone data; None when never."""
    input: Any = None
    overlap: Overlap = Overlap.SKIP
    catch_up_ms: Int = CATCH_UP_MS_DEFAULT
    """A due time that was missed for longer than this is left out."""
    jitter_ms: Int = 0
    """Each run starts up to so much later; how much follows from the due time."""
    paused: Annotated[bool, Field(strict=True)] = False
    """It begins paused. One that is paused already stays so."""


@dataclass(frozen=True, slots=True)
class ScheduleActed:
    """A person acts on a schedule."""

    action: ScheduleAction
    reason: str
    who: str


@dataclass(frozen=True, slots=True)
class ScheduleRemoved:
    """The schedule is over. Runs that go on are left alone."""

    reason: str
    who: str


@dataclass(frozen=True, slots=True)
class ScheduleDue:
    """Engine event: a schedule's next due time has come, and perhaps some that were missed."""

    epoch: Int
    due_ms: Annotated[tuple[Int, ...], Field(max_length=DUE_TIMES_MAX)]
    """The due times since the last such event, ascending; the first is the one that the state waits for."""
    next_ms: Int | None = None
    """The one after them, by the owner's time-zone data; None when there is none any more."""
    problem: str | None = None
    """The owner cannot tell its due times (its time-zone data does not know the zone): the schedule is paused."""


@dataclass(frozen=True, slots=True)
class MigrationRequested:
    """Somebody moves a running workflow to another hash of its definition. `definition` as in a start, better with its hash."""

    definition: str
    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class RewindRequested:
    """A person sends a running workflow back to a step: that step and all that needs it are done anew."""

    step: str
    who: str
    reason: str
    undo: Annotated[bool, Field(strict=True)] = False
    """Whether what they did is undone before; else it stands, and the steps are tried once more."""
    dead_letter: str | None = None
    """The dead letter that is tried again."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """Engine event: one of the workflow's deadlines is due. `step` and `attempt` for the retries."""

    epoch: Int
    timer: Timer
    step: str | None = None
    attempt: Int | None = None
    run: Int | None = None
    """Which run of the workflow it is about; none: the first."""


@dataclass(frozen=True, slots=True)
class AttemptLost:
    """Engine event: no answer came in time, and none of the agent's host either."""

    epoch: Int
    step: str
    attempt: Int
    direction: Direction
    message: str
    kind: FailureKind = FailureKind.LOST
    """`invalid_input` for a command that could not be sent at all."""
    run: Int | None = None
    """Which run of the workflow it is about; none: the first."""


@dataclass(frozen=True, slots=True)
class AttemptRefused:
    """Engine event: the service's circuit is open and the step does not wait."""

    epoch: Int
    step: str
    attempt: Int
    service: str
    maybe_sent: Annotated[bool, Field(strict=True)] = False
    """An owner before may have sent the command: what became of it is not known."""
    run: Int | None = None
    """Which run of the workflow it is about; none: the first."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Engine event: a record of this workflow could not be read or folded; it stops until somebody looks."""

    epoch: Int
    origin: str
    reason: str
    run: Int | None = None
    """Which run of the workflow it is about; none: the first."""


@dataclass(frozen=True, slots=True)
class DefinitionRegistered:
    """Broadcast into every partition, so that any version of a log folds without looking elsewhere."""

    definition: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Owned:
    """Engine event: `member` owns the partition from this record's offset on. Of two claims to one epoch the first wins."""

    epoch: Int
    member: str


Event = (
    WorkflowStarted
    | StepCompleted
    | StepFailed
    | ChildEnded
    | UndoRequested
    | ParentEnded
    | CancelRequested
    | SignalReceived
    | ActionRequested
    | StepDecided
    | RewindRequested
    | MigrationRequested
    | ScheduleSet
    | ScheduleActed
    | ScheduleRemoved
    | ScheduleDue
    | TimerFired
    | AttemptLost
    | AttemptRefused
    | Quarantined
    | DefinitionRegistered
    | Owned
)

KINDS: Final[dict[str, type[Any]]] = {
    "sagalog.workflow-started.v1": WorkflowStarted,
    "sagalog.step-completed.v1": StepCompleted,
    "sagalog.step-failed.v1": StepFailed,
    "sagalog.child-ended.v1": ChildEnded,
    "sagalog.undo-requested.v1": UndoRequested,
    "sagalog.parent-ended.v1": ParentEnded,
    "sagalog.cancel-requested.v1": CancelRequested,
    "sagalog.signal-received.v1": SignalReceived,
    "sagalog.action-requested.v1": ActionRequested,
    "sagalog.step-decided.v1": StepDecided,
    "sagalog.migration-requested.v1": MigrationRequested,
    "sagalog.schedule-set.v1": ScheduleSet,
    "sagalog.schedule-acted.v1": ScheduleActed,
    "sagalog.schedule-removed.v1": ScheduleRemoved,
    "sagalog.schedule-due.v1": ScheduleDue,
    "sagalog.rewind-requested.v1": RewindRequested,
    "sagalog.timer-fired.v1": TimerFired,
    "sagalog.attempt-lost.v1": AttemptLost,
    "sagalog.attempt-refused.v1": AttemptRefused,
    "sagalog.quarantined.v1": Quarantined,
    "sagalog.definition-registered.v1": DefinitionRegistered,
    "sagalog.owned.v1": Owned,
}
TYPE_OF: Final[dict[type[Any], str]] = {kind: name for name, kind in KINDS.items()}

_VERSIONED: Final = re.compile(rb"(sagalog\.[a-z][a-z-]{0,62})\.v([1-9][0-9]{0,5})")
_STEP_COMPLETED: Final = TYPE_OF[StepCompleted].encode()
_DIRECTIONS: Final = {direction.value: direction for direction in Direction}
_ADAPTERS: Final = {name.encode(): TypeAdapter(kind) for name, kind in KINDS.items()}


def parse_event(ce_type: bytes | None, value: bytes | None) -> Event:
    """The event in a record. Raises InvalidRecord: no or an unknown type, not JSON, too deep, fields that do not fit."""
    if ce_type is None:
        raise InvalidRecord("ce_type", "is missing; send the CloudEvents headers of the binary mode")
    adapter = _ADAPTERS.get(ce_type)
    if adapter is None:
        raise InvalidRecord("ce_type", _unknown(ce_type))
    document = decode_object(value, depth_max=EVENT_DEPTH_MAX)
    if ce_type == _STEP_COMPLETED and (completed := _completed(document)) is not None:
        return completed
    try:
        event: Event = adapter.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidRecord(".".join(map(str, first["loc"])) or "value", first["msg"]) from None
    return event


def _unknown(ce_type: bytes) -> str:
    """What is wrong with a type that is none of KINDS: a newer sagalog's is told from garbage, because upgrading mends that."""
    shown, remedy = repr(ce_type[:80]), "upgrade the engine, then resume the workflow"
    found = _VERSIONED.fullmatch(ce_type)
    if found is None:
        return f"{shown} is unknown; known are {', '.join(sorted(KINDS))}"
    kind, version = found[1].decode(), int(found[2])
    newest = max((int(name.rpartition(".v")[2]) for name in KINDS if name.rpartition(".v")[0] == kind), default=0)
    if newest and version > newest:
        return f"{shown} is newer than version {newest}, the newest known here: written by a newer sagalog; {remedy}"
    return f"{shown} is unknown here, as a kind of event that a newer sagalog has would be; {remedy}"


def _completed(document: dict[str, Any]) -> StepCompleted | None:
    """A result as nearly all are, a third of the validator's cost; None when the validator has to say what does not fit."""
    get = document.get
    step, attempt, token = get("step"), get("attempt"), get("token")
    direction, agent, duration_ms = get("direction"), get("agent"), get("duration_ms")
    tokens, cost = get("tokens"), get("cost")
    if (
        type(step) is str
        and type(attempt) is int
        and type(token) is str
        and type(direction) is str
        and (asked := _DIRECTIONS.get(direction)) is not None
        and (agent is None or type(agent) is str)
        and (duration_ms is None or type(duration_ms) is int)
        and (tokens is None or type(tokens) is int)
        and (cost is None or type(cost) is int)
        and get("outcome") is None
    ):
        return StepCompleted(step, attempt, asked, token, get("output"), agent, duration_ms, tokens, cost)
    return None


def encode_event(event: Event) -> bytes:
    """The JSON value of an event, without fields that are None or false."""
    return orjson.dumps(_said(event), default=_said, option=orjson.OPT_PASSTHROUGH_DATACLASS)


def _said(event: Any) -> dict[str, Any]:
    return {
        name: value for name in event.__slots__ if (value := getattr(event, name)) is not None and value is not False
    }
