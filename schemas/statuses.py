"""The statuses of workflows, steps, undoings and circuits: one word for one thing in code, records, SQL and metrics."""

from enum import StrEnum
from typing import Final


class WorkflowStatus(StrEnum):
    WAITING = "waiting"
    """For its definition to arrive in its partition."""
    RUNNING = "running"
    REWINDING = "rewinding"
    """On its way back to a step, from which it is to go forward again."""
    COMPENSATING = "compensating"
    QUARANTINED = "quarantined"
    """Stopped: one of its records could not be read or folded. A person looks."""
    COMPLETED = "completed"
    DEGRADED = "degraded"
    """Ended with something missing, which the manifest states."""
    FAILED = "failed"
    """A critical step failed; there was nothing to undo."""
    COMPENSATED = "compensated"
    """A critical step failed; all that was done is undone."""
    CANCELLED = "cancelled"
    REVIEW = "review"
    """A step asked for a person; all that was done is undone, and the review says what to decide."""
    COMPENSATION_FAILED = "compensation_failed"
    """Something could not be undone; the review says what."""
    TERMINATED = "terminated"
    """Somebody ended it at once; nothing is undone."""
    REJECTED = "rejected"
    """The start could not be accepted; the reason is in the result."""


TERMINAL: Final = frozenset(
    {
        WorkflowStatus.COMPLETED,
        WorkflowStatus.DEGRADED,
        WorkflowStatus.FAILED,
        WorkflowStatus.COMPENSATED,
        WorkflowStatus.CANCELLED,
        WorkflowStatus.REVIEW,
        WorkflowStatus.COMPENSATION_FAILED,
        WorkflowStatus.TERMINATED,
        WorkflowStatus.REJECTED,
    }
)


class StepStatus(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    RECONCILING = "reconciling"
    """Nobody knows whether an attempt happened: its agent is being asked."""
    AWAITING = "awaiting"
    """No agent is at work: the step waits for a time, a signal or a person."""
    HELD = "held"
    """Failed for good; an operator decides how it goes on."""
    DONE = "done"
    SKIPPED = "skipped"
    """Its condition did not hold: it was not needed."""
    DEGRADED = "degraded"
    """Failed or bypassed; a default, a fallback or an operator's word stands in."""
    FAILED = "failed"
    CANCELLED = "cancelled"
    """Not finished because the workflow stopped."""


class UndoStatus(StrEnum):
    """One step's entry in the ledger of compensations."""

    NOT_NEEDED = "not_needed"
    PENDING = "pending"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    HELD = "held"
    """Failed for good; an operator decides how it goes on."""
    DONE = "done"
    SKIPPED = "skipped"
    """An operator decided that it need not be undone."""
    FAILED = "failed"


class CircuitStatus(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class ScheduleStatus(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    """Nothing starts at its due times until somebody resumes it."""
    REMOVED = "removed"
    """It is over; remembered so that what was said of it is not heard a second time."""
