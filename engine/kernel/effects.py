"""What the fold asks the runtime to do. Effects are data; sent twice, they do nothing twice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import CircuitPolicy, WhenOpen
from sagalog.schemas.events import Event
from sagalog.schemas.records import DeadLetterRecord, ResultRecord, ReviewRecord, StartAnsweredRecord


class Reason(StrEnum):
    """Why an event changed nothing."""

    UNKNOWN_WORKFLOW = "unknown_workflow"
    DUPLICATE_START = "duplicate_start"
    ALREADY_FINISHED = "already_finished"
    STALE_ATTEMPT = "stale_attempt"
    NOT_WAITED_FOR = "not_waited_for"
    NOT_DUE = "not_due"
    """A timer that its owner, whose clock is ahead of the broker's, fired too early; it is set again."""
    UNKNOWN_STEP = "unknown_step"
    WRONG_TOKEN = "wrong_token"  # noqa: S105
    OLD_EPOCH = "old_epoch"
    STOPPED = "stopped"
    CANNOT_BE_CANCELLED = "cannot_be_cancelled"
    KNOWN_DEFINITION = "known_definition"
    NO_CIRCUIT = "no_circuit"
    UNKNOWN_SIGNAL = "unknown_signal"
    DUPLICATE = "duplicate"
    INVALID_PAYLOAD = "invalid_payload"
    SIGNALS_FULL = "signals_full"
    UNKNOWN_SCHEDULE = "unknown_schedule"
    INVALID_SCHEDULE = "invalid_schedule"
    SCHEDULES_FULL = "schedules_full"
    NOT_POSSIBLE = "not_possible"
    """Of an action or a decision: the workflow, or the step, is not in a state for it."""
    EARLIER_RUN = "earlier_run"
    """Of an event of the engine's own: it is about a run of the workflow's id that another one has replaced."""
    INVALID_START = "invalid_start"
    """A start that would replace a run, and that could not run itself."""
    NO_ROOM = "no_room"
    """A start that would wait for a run's end, beside which the state cannot hold it."""
    UNKNOWN_DEFINITION = "unknown_definition"
    """Of a migration: the partition does not know the definition that it names."""
    DOES_NOT_FIT = "does_not_fit"
    """Of a migration: the definition that it names does not go with what the workflow has done."""


@dataclass(slots=True)
class Dispatch:
    """Send a command, once the gate lets it pass."""

    command: Command
    when_open: WhenOpen
    patience_ms: int
    """After this long without an answer the attempt counts as lost."""
    policy: CircuitPolicy | None
    trace: str | None = None
    maybe_sent: bool = False
    """Set by the runtime: an owner before may have sent it, so that refusing it does not mean that nobody was asked."""


@dataclass(slots=True)
class Emit:
    """Write an event of another workflow, whichever partition holds it. Written twice, it counts once."""

    workflow_id: str
    event: Event
    ce_id: str
    trace: str | None = None
    command_id: str | None = None
    """Of the attempt that the other workflow is to answer."""


@dataclass(slots=True)
class Answered:
    """A command's attempt is over: whoever holds, watches or re-sends it can stop."""

    command_id: str


@dataclass(slots=True)
class Called:
    """A call of an agent ended, for the circuits and the watch."""

    agent: str
    service: str | None
    ok: bool
    """Whether the agent did its work."""
    service_fault: bool
    """Whether the failure counts against the service's circuit."""
    at_ms: int
    duration_ms: int
    definition: str
    """The hash under which the service's circuit policy stands."""


@dataclass(slots=True)
class Finished:
    """The workflow is over."""

    result: ResultRecord
    trace: str | None = None


@dataclass(slots=True)
class StartAnswered:
    """Whether a start counted that asked to be told."""

    record: StartAnsweredRecord
    trace: str | None = None


@dataclass(slots=True)
class Prioritized:
    """The workflow's priority changed: what waits to be sent goes by the new one."""

    workflow_id: str
    priority: int


@dataclass(slots=True)
class DeadLettered:
    """A command failed for good."""

    record: DeadLetterRecord


@dataclass(slots=True)
class ReviewNeeded:
    """A person has to look."""

    record: ReviewRecord


@dataclass(slots=True)
class ReviewClosed:
    """A review is decided, or moot: its record says so."""

    record: ReviewRecord


@dataclass(slots=True)
class Ignored:
    """The event changed nothing."""

    reason: Reason
    event: str


@dataclass(slots=True)
class Quarantine:
    """A record could not be read or folded."""

    workflow_id: str | None
    reason: str
    stage: str


@dataclass(slots=True)
class Moved:
    """A status changed: of the workflow (`step` is None), of a step, or of a step's undoing."""

    workflow_id: str
    before: str | None
    after: str
    trigger: str
    step: str | None = None
    undo: bool = False
    attempt: int = 0


@dataclass(slots=True)
class Migrated:
    """The workflow is on another definition from now on."""

    workflow_id: str
    before: str
    after: str


@dataclass(slots=True)
class OwnerChanged:
    """From this record on, `member` owns the partition."""

    epoch: int
    member: str


@dataclass(slots=True)
class ClaimLost:
    """`member` claimed an epoch that was taken already."""

    epoch: int
    member: str


@dataclass(slots=True)
class DefinitionKnown:
    """The partition knows a definition from now on."""

    hash: str
    encoded: bytes


Effect = (
    Dispatch
    | Emit
    | Answered
    | Called
    | Finished
    | StartAnswered
    | Prioritized
    | DeadLettered
    | ReviewNeeded
    | ReviewClosed
    | Ignored
    | Quarantine
    | Moved
    | Migrated
    | OwnerChanged
    | ClaimLost
    | DefinitionKnown
)
