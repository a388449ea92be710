"""The state of one workflow, its statuses' tables, and its checkpoint.

Rules:
- Everything that changes a status goes through `WorkflowState.move` or `StepState.move`, which look the change up in a table.
- A checkpoint round trip changes nothing: `restore(dump(state))` folds on exactly like `state`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from sagalog.schemas import ids
from sagalog.schemas.ids import FIRST_RUN, Direction
from sagalog.schemas.limits import PRIORITY_DEFAULT
from sagalog.schemas.records import (
    CheckpointRecord,
    FailureRecord,
    ForkedRecord,
    MigratedRecord,
    NextRecord,
    ParentRecord,
    PausedRecord,
    QuestionRecord,
    ReportRecord,
    RewindRecord,
    SignalRecord,
    StepRecord,
    UndoRecord,
)
from sagalog.schemas.statuses import TERMINAL, StepStatus, UndoStatus, WorkflowStatus

from .plan import Plan, PlanStep

NEVER: Final = 1 << 62
"""Later than every deadline."""

DEGRADED_CHILD: Final = "workflow"
"""Whose the output of a step is when the workflow that did it ended degraded."""


class Trigger(StrEnum):
    """What moves a workflow's status."""

    DEFINITION_ARRIVED = "definition_arrived"
    STARTED = "started"
    AWAITED = "awaited"
    REFUSED = "refused"
    ALL_STEPS_ENDED = "all_steps_ended"
    ENDED_WITH_GAPS = "ended_with_gaps"
    STEP_FAILED = "step_failed"
    CANCELLED = "cancelled"
    DEADLINE_PASSED = "deadline_passed"
    NOTHING_TO_UNDO = "nothing_to_undo"
    UNDONE = "undone"
    UNDONE_AFTER_CANCEL = "undone_after_cancel"
    UNDONE_FOR_REVIEW = "undone_for_review"
    NOT_ALL_UNDONE = "not_all_undone"
    RECORD_QUARANTINED = "record_quarantined"
    RESUMED = "resumed"
    RESUMED_UNDOING = "resumed_undoing"
    TERMINATED = "terminated"
    UNDO_REQUESTED = "undo_requested"
    REWIND_REQUESTED = "rewind_requested"
    REWOUND = "rewound"
    RESUMED_REWINDING = "resumed_rewinding"


_W = WorkflowStatus
_T = Trigger

WORKFLOW_MOVES: Final[dict[tuple[WorkflowStatus | None, Trigger], WorkflowStatus]] = {
    # a start
    (None, _T.STARTED): _W.RUNNING,
    (None, _T.AWAITED): _W.WAITING,
    (None, _T.REFUSED): _W.REJECTED,
    (_W.WAITING, _T.DEFINITION_ARRIVED): _W.RUNNING,
    (_W.WAITING, _T.REFUSED): _W.REJECTED,
    (_W.WAITING, _T.CANCELLED): _W.CANCELLED,
    # forward
    (_W.RUNNING, _T.ALL_STEPS_ENDED): _W.COMPLETED,
    (_W.RUNNING, _T.ENDED_WITH_GAPS): _W.DEGRADED,
    (_W.RUNNING, _T.STEP_FAILED): _W.COMPENSATING,
    (_W.RUNNING, _T.CANCELLED): _W.COMPENSATING,
    (_W.RUNNING, _T.DEADLINE_PASSED): _W.COMPENSATING,
    # back to a step and forward again; whatever stops a running workflow stops one that is being rewound
    (_W.RUNNING, _T.REWIND_REQUESTED): _W.REWINDING,
    (_W.REWINDING, _T.REWOUND): _W.RUNNING,
    (_W.REWINDING, _T.STEP_FAILED): _W.COMPENSATING,
    (_W.REWINDING, _T.CANCELLED): _W.COMPENSATING,
    (_W.REWINDING, _T.DEADLINE_PASSED): _W.COMPENSATING,
    (_W.REWINDING, _T.RECORD_QUARANTINED): _W.QUARANTINED,
    (_W.QUARANTINED, _T.RESUMED_REWINDING): _W.REWINDING,
    (_W.REWINDING, _T.TERMINATED): _W.TERMINATED,
    # backward; a compensation cannot be interrupted
    (_W.COMPENSATING, _T.NOTHING_TO_UNDO): _W.FAILED,
    (_W.COMPENSATING, _T.UNDONE): _W.COMPENSATED,
    (_W.COMPENSATING, _T.UNDONE_AFTER_CANCEL): _W.CANCELLED,
    (_W.COMPENSATING, _T.UNDONE_FOR_REVIEW): _W.REVIEW,
    (_W.COMPENSATING, _T.NOT_ALL_UNDONE): _W.COMPENSATION_FAILED,
    # a child that ended well is undone with its parent's step
    (_W.COMPLETED, _T.UNDO_REQUESTED): _W.COMPENSATING,
    (_W.DEGRADED, _T.UNDO_REQUESTED): _W.COMPENSATING,
    # a record that could not be read or folded stops what it belongs to
    (_W.WAITING, _T.RECORD_QUARANTINED): _W.QUARANTINED,
    (_W.RUNNING, _T.RECORD_QUARANTINED): _W.QUARANTINED,
    (_W.COMPENSATING, _T.RECORD_QUARANTINED): _W.QUARANTINED,
    # an operator's word
    (_W.QUARANTINED, _T.RESUMED): _W.RUNNING,
    (_W.QUARANTINED, _T.RESUMED_UNDOING): _W.COMPENSATING,
    (_W.WAITING, _T.TERMINATED): _W.TERMINATED,
    (_W.RUNNING, _T.TERMINATED): _W.TERMINATED,
    (_W.COMPENSATING, _T.TERMINATED): _W.TERMINATED,
    (_W.QUARANTINED, _T.TERMINATED): _W.TERMINATED,
}

_S = StepStatus

STEP_MOVES: Final[frozenset[tuple[StepStatus, StepStatus]]] = frozenset(
    {
        (_S.WAITING, _S.RUNNING),
        (_S.WAITING, _S.CANCELLED),
        (_S.RUNNING, _S.DONE),
        (_S.RUNNING, _S.BACKING_OFF),
        (_S.RUNNING, _S.RUNNING),  # straight on to its fallback agent
        (_S.RUNNING, _S.DEGRADED),
        (_S.RUNNING, _S.FAILED),
        (_S.RUNNING, _S.CANCELLED),  # failed while the workflow was stopping: not tried again
        (_S.BACKING_OFF, _S.RUNNING),
        (_S.BACKING_OFF, _S.CANCELLED),
        # the next attempt would exceed a budget
        (_S.BACKING_OFF, _S.DEGRADED),
        (_S.BACKING_OFF, _S.FAILED),
        (_S.BACKING_OFF, _S.HELD),
        # a step whose condition does not hold, or cannot be evaluated
        (_S.WAITING, _S.SKIPPED),
        (_S.WAITING, _S.DEGRADED),
        (_S.WAITING, _S.FAILED),
        (_S.WAITING, _S.HELD),
        # nobody knows whether an attempt happened: its agent is asked, and what follows depends on the answer
        (_S.RUNNING, _S.RECONCILING),
        (_S.RECONCILING, _S.DONE),
        (_S.RECONCILING, _S.BACKING_OFF),
        (_S.RECONCILING, _S.RUNNING),  # straight on to its fallback agent
        (_S.RECONCILING, _S.DEGRADED),
        (_S.RECONCILING, _S.FAILED),
        (_S.RECONCILING, _S.HELD),
        (_S.RECONCILING, _S.CANCELLED),
        # a step without an agent: it sleeps, or waits for a signal or a person
        (_S.WAITING, _S.AWAITING),
        (_S.AWAITING, _S.DONE),
        (_S.AWAITING, _S.DEGRADED),
        (_S.AWAITING, _S.FAILED),
        (_S.AWAITING, _S.HELD),
        (_S.AWAITING, _S.CANCELLED),
        # failed for good, and an operator decides
        (_S.RUNNING, _S.HELD),
        (_S.HELD, _S.WAITING),
        (_S.HELD, _S.DEGRADED),
        (_S.HELD, _S.DONE),
        (_S.HELD, _S.FAILED),
        (_S.HELD, _S.CANCELLED),
        # a round of a step that repeats, before its time
        (_S.WAITING, _S.BACKING_OFF),
        # an item of a step that maps, when an operator has the step tried anew
        (_S.FAILED, _S.WAITING),
        (_S.CANCELLED, _S.WAITING),
        # rewound: it is to be done anew
        (_S.DONE, _S.WAITING),
        (_S.DEGRADED, _S.WAITING),
        (_S.SKIPPED, _S.WAITING),
        # a fork keeps what its original did
        (_S.WAITING, _S.DONE),
    }
)

OUT: Final = (_S.RUNNING, _S.RECONCILING)
"""Somebody is asked to do the step, or whether they did."""

_U = UndoStatus

UNDO_MOVES: Final[frozenset[tuple[UndoStatus | None, UndoStatus]]] = frozenset(
    {
        (None, _U.NOT_NEEDED),
        (None, _U.PENDING),
        (_U.PENDING, _U.RUNNING),
        (_U.RUNNING, _U.DONE),
        (_U.RUNNING, _U.BACKING_OFF),
        (_U.RUNNING, _U.FAILED),
        (_U.BACKING_OFF, _U.RUNNING),
        (
            _U.RUNNING,
            _U.RUNNING,
        ),  # straight on to the next agent that may have done it, or once more after a late result
        # a result came late: once more
        (_U.DONE, _U.RUNNING),
        (_U.DONE, _U.BACKING_OFF),
        (_U.RUNNING, _U.HELD),
        (_U.HELD, _U.RUNNING),
        (_U.HELD, _U.DONE),
        (_U.HELD, _U.SKIPPED),
        (_U.HELD, _U.FAILED),
    }
)


@dataclass(slots=True)
class UndoState:
    """One step's entry in the ledger."""

    status: UndoStatus
    attempt: int = 0
    order: int = 0
    started_ms: int = 0
    finished_ms: int = 0
    retry_at_ms: int = NEVER
    failed_attempts: int = 0
    tried_before: int = 0
    """Attempts that count no more: before an operator had it tried anew, or of the agent before."""
    turn: int = 0
    """Which of the agents that may have done the step is undoing it."""
    failed: bool = False
    """One of those before could not undo it."""
    late: int = 0
    """Results that came late, for each of which it is undone once more."""
    again: bool = False
    """One came while it was being undone."""
    failures: list[FailureRecord] = field(default_factory=list)


@dataclass(slots=True)
class QuestionState:
    """What is being asked about a step's newest attempt, whose outcome nobody knows. Its failure is the step's newest."""

    since_ms: int
    out: bool = False
    """It is with the agent; else it waits for its time (the step's `retry_at_ms`), or for the workflow to be resumed."""
    retry_after_ms: int | None = None
    """What the attempt's failure asked for."""
    tokens: int = 0
    cost: int = 0
    """What the attempt was charged with; a late answer of its own says better."""
    asked_before: int = 0
    """Questions about the attempts before."""
    failed_attempts: int = 0
    failures: list[FailureRecord] = field(default_factory=list)
    """Of the questions."""


@dataclass(slots=True)
class StepState:
    """One step, or one item of a step that maps. `index` is the step's place in the definition."""

    index: int
    item: int = -1
    """Which item this is, of a step that maps."""
    status: StepStatus = StepStatus.WAITING
    attempt: int = 0
    agent: str | None = None
    """The agent of the newest attempt, when it is not the step's own (a fallback)."""
    asked: str | None = None
    """The agent of the newest attempt, when it was the step's own then and a migration has given the step another one since."""
    started_ms: int = 0
    finished_ms: int = 0
    order: int = 0
    retry_at_ms: int = NEVER
    until_ms: int = NEVER
    """Of a step that awaits something: when it wakes, or has waited long enough."""
    escalated: bool = False
    unknown: bool = False
    suspects: list[str] = field(default_factory=list)
    """Agents of which nobody can say whether they did it."""
    stand_in: str | None = None
    fell_back: int = 0
    """How many of its fallbacks have had their turn."""
    fell_back_after: int = 0
    since_ms: int = 0
    """When the present agent was first asked."""
    tokens: int = 0
    cost: int = 0
    sent_ms: int = 0
    """When the newest attempt went out, and below how long those before it were out; where a budget limits time."""
    spent_ms: int = 0
    output: Any = None
    failed_attempts: int = 0
    failures: list[FailureRecord] = field(default_factory=list)
    undo: UndoState | None = None
    questions: int = 0
    """How many questions went out, about all its attempts."""
    question: QuestionState | None = None
    """While it is reconciling."""
    items: list[StepState] = field(default_factory=list)
    """Of a step that maps, once it has begun: a state for each item."""
    filling: bool = False
    """Of a step that maps: its items are being begun at this moment."""
    round: int = 0
    """How often it was begun anew under a new idempotency key."""
    first: int = 0
    """Of an item: attempts of earlier items of its name, which only keep its numbers apart."""
    undone_before: int = 0
    """Attempts at undoing that belong to earlier rounds; they only keep its numbers apart."""
    dropped: int = 0
    """Of a step that maps: attempts of items that a rewinding dropped; they count for budgets."""
    token: str = ""
    """Of the newest attempt, as long as it is at hand; it follows from the seed and is not in the checkpoint."""

    def out(self) -> Iterator[tuple[int, Direction]]:
        """What of it is with somebody: attempts at doing it, at asking about it, at undoing it."""
        if self.status is StepStatus.RUNNING:
            yield self.attempt, Direction.EXECUTE
        if self.question is not None and self.question.out:
            yield self.questions, Direction.RECONCILE
        if self.undo is not None and self.undo.status is UndoStatus.RUNNING:
            yield self.undo.attempt, Direction.COMPENSATE


@dataclass(slots=True)
class WorkflowState:
    """One workflow. A finished one keeps only its status and dates (a stub), by which a second start is recognised.

    One that does a step of another workflow keeps its report, and its steps as long as they may have to be undone.
    """

    workflow_id: str
    definition: str
    """The hash; before the definition is known, what the start named."""
    name: str
    seed: str
    started_ms: int
    now_ms: int
    """The clamped clock: the newest time that an event of this workflow brought; it never steps back."""
    status: WorkflowStatus | None = None
    input: Any = None
    deadline_ms: int = NEVER
    """While waiting: until when for the definition. Finished: until when the id is remembered."""
    correlation_id: str | None = None
    parent: ParentRecord | None = None
    """Of a workflow that does a step of another one: whose."""
    report: ReportRecord | None = None
    """What it told its parent at its end, until that one is over."""
    trace: str | None = None
    failure: FailureRecord | None = None
    stopped: str | None = None
    finished_ms: int = 0
    unsettled: list[str] = field(default_factory=list)
    """Finished: attempts (`step/attempt`) whose late result a person has to see."""
    at_offset: int = -1
    bytes: int = 0
    """Encoded size of the payloads held: input and outputs."""
    open_steps: int = 0
    ended_steps: int = 0
    undone_steps: int = 0
    steps: list[StepState] = field(default_factory=list)
    start: dict[str, Any] | None = None
    """What a waiting start asked for beside its input."""
    paused: PausedRecord | None = None
    """Who paused it, when and why; while it is set nothing new begins."""
    signals: list[SignalRecord] = field(default_factory=list)
    """Signals that no step has waited for yet, the oldest first."""
    agenda: deque[int] | None = None
    """Steps that may begin, while they are being begun; None between events."""
    heard: list[str] = field(default_factory=list)
    """Ids of the signals, actions and decisions that counted, the newest last."""
    tenant: str | None = None
    priority: int = PRIORITY_DEFAULT
    attributes: dict[str, Any] | None = None
    """Search attributes."""
    run: int = FIRST_RUN
    """Which run under this id it is: part of the ids of its commands, unless it is the first (`ids.FIRST_RUN`)."""
    starts: list[str] = field(default_factory=list)
    """Ids (hashed) of the starts under this id before the one that is on, the newest last."""
    next: NextRecord | None = None
    """The start that waits for this run's end."""

    @property
    def run_mark(self) -> int | None:
        """The run as events name it, which leave the first out."""
        return self.run if self.run != FIRST_RUN else None

    @property
    def of_several(self) -> bool:
        """Whether a start that replaces has been under this id: what people did in one run must not count in another by a copy."""
        return self.run != FIRST_RUN or self.next is not None or bool(self.starts)

    migrated: list[MigratedRecord] = field(default_factory=list)
    """Its moves to other hashes of its definition, the newest last."""
    own_deadline: bool = False
    """The start named the very deadline that its definition has. One that differs shows by itself whose it is."""
    rewinds: list[RewindRecord] = field(default_factory=list)
    """The oldest first."""
    rewinding: bool = False
    """The last of them is under way; also while the workflow is quarantined."""
    pivoted: bool = False
    """A pivot that a rewinding took back had ended well: from there on the workflow only goes forward, all the same."""
    forked: ForkedRecord | None = None

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    def command_id(self, step: str, attempt: int, direction: Direction) -> str:
        """The id of an attempt's command, of the run that is on. `step`: its name, or its item's."""
        return ids.command_id(self.workflow_id, step, attempt, direction, self.run)

    def move(self, trigger: Trigger) -> tuple[WorkflowStatus | None, WorkflowStatus]:
        """Applies the table's row; AssertionError (a bug in the fold) when there is none."""
        before = self.status
        after = WORKFLOW_MOVES.get((before, trigger))
        assert after is not None, f"no move from {before} by {trigger}"
        self.status = after
        return before, after

    def interrupted(self) -> None:
        """The fold broke in the middle of an event: what holds within one event only is as after a checkpoint."""
        self.agenda = None
        for step in self.steps:
            step.filling = False

    def leaves(self) -> Iterator[StepState]:
        """Every step that attempts belong to: of a step that maps its items, once it has begun."""
        for step in self.steps:
            if step.items:
                yield from step.items
            else:
                yield step

    def everything(self) -> Iterator[StepState]:
        """Every step, each followed by its items."""
        for step in self.steps:
            yield step
            yield from step.items

    def due_ms(self) -> int:
        """When the next of the workflow's own timers is due; NEVER without one. Milliseconds since the epoch."""
        match self.status:
            case WorkflowStatus.RUNNING | WorkflowStatus.REWINDING:
                due_ms = self.deadline_ms
                if self.rewinding:
                    due_ms = min([due_ms, *(s.undo.retry_at_ms for s in self.leaves() if s.undo is not None)])
                for step in self.steps:
                    if step.retry_at_ms < due_ms:
                        due_ms = step.retry_at_ms
                    if step.until_ms < due_ms:
                        due_ms = step.until_ms
                    for item in step.items:
                        if item.retry_at_ms < due_ms:
                            due_ms = item.retry_at_ms
                return due_ms
            case WorkflowStatus.COMPENSATING:
                due_ms = NEVER
                for step in self.leaves():
                    # A step's own: to ask again whether its attempt happened.
                    due_ms = min(due_ms, step.retry_at_ms, step.undo.retry_at_ms if step.undo is not None else NEVER)
                return due_ms
            case WorkflowStatus.QUARANTINED:
                return NEVER
            case _:
                return self.deadline_ms

    def watch_ms(self, plan: Plan) -> int:
        """The longest time that one of the attempts now out may take to answer; 0 when none is out. Milliseconds."""
        longest = 0
        for step in self.leaves():
            spec = plan.steps[step.index]
            if step.status is StepStatus.RUNNING:
                longest = max(longest, spec.patience_ms if spec.child is None or step.agent is not None else 0)
            elif step.question is not None and step.question.out:
                longest = max(longest, spec.question_patience_ms)
            elif step.undo is not None and step.undo.status is UndoStatus.RUNNING and not undone_by_child(step, spec):
                longest = max(longest, spec.undo_patience_ms)
        return longest


def did_by_itself(step: StepState, spec: PlanStep) -> bool:
    """Whether the step is done, and not by hand in place of a workflow: that one had undone what it did."""
    by_hand = spec.child is not None and step.stand_in == "operator"
    return step.status is StepStatus.DONE and not by_hand


def did_it(step: StepState, spec: PlanStep) -> bool:
    """Whether the present agent, or workflow, is known to have done the step."""
    stand_in = step.stand_in or ""
    return did_by_itself(step, spec) or stand_in.startswith("fallback:") or stand_in == DEGRADED_CHILD


def undo_agents(step: StepState, spec: PlanStep) -> list[str]:
    """Who undoes a step, one after the other: the agent that the definition names for it, else whoever did it or may have."""
    assert spec.compensate is not None
    if spec.compensate.agent is not None:
        return [spec.compensate.agent]
    present = spec.agent_of(step)
    # The newest first, as everywhere: a fallback agent, then those of which nobody can say whether they did it before.
    found = dict.fromkeys([*([present] if did_it(step, spec) else ()), *reversed(step.suspects)])
    return list(found) or [present]


def undo_agent(step: StepState, spec: PlanStep) -> str:
    """Who is undoing a step, or is to begin."""
    agents = undo_agents(step, spec)
    return agents[step.undo.turn if step.undo is not None else 0]


def undone_by_child(step: StepState, spec: PlanStep) -> bool:
    """Whether it is the workflow that did the step that undoes it, or is to."""
    return spec.child is not None and spec.compensate is not None and undo_agent(step, spec) == spec.agent


def dump(state: WorkflowState, plan: Plan | None) -> CheckpointRecord:
    """The checkpoint's JSON document. `plan` is None while the definition is not known, and for stubs."""
    record: dict[str, Any] = {
        "v": 1,
        "status": state.status,
        "definition": state.definition,
        "name": state.name,
        "seed": state.seed,
        "started_ms": state.started_ms,
        "now_ms": state.now_ms,
        "at_offset": state.at_offset,
    }
    if state.deadline_ms != NEVER:
        record["deadline_ms"] = state.deadline_ms
    if state.correlation_id is not None:
        record["correlation_id"] = state.correlation_id
    if state.trace is not None:
        record["trace"] = state.trace
    if state.parent is not None:
        record["parent"] = state.parent
    if state.report is not None:
        record["report"] = state.report
    if state.run != FIRST_RUN:
        record["run"] = state.run
    if state.starts:
        record["starts"] = list(state.starts)
    if state.finished_ms:
        record["finished_ms"] = state.finished_ms
        if state.unsettled:
            record["unsettled"] = list(state.unsettled)
        if state.heard:
            record["heard"] = list(state.heard)
        if not state.steps:
            return record  # type: ignore[return-value]
    record["input"] = state.input
    record["bytes"] = state.bytes
    if state.failure is not None:
        record["failure"] = state.failure
    if state.stopped is not None:
        record["stopped"] = state.stopped
    if state.start is not None:
        record["start"] = state.start
    if state.paused is not None:
        record["paused"] = state.paused
    if state.signals:
        record["signals"] = list(state.signals)
    if state.heard:
        record["heard"] = list(state.heard)
    if state.tenant is not None:
        record["tenant"] = state.tenant
    if state.priority != PRIORITY_DEFAULT:
        record["priority"] = state.priority
    if state.attributes:
        record["attributes"] = state.attributes
    if state.next is not None:
        record["next"] = state.next
    if state.migrated:
        record["migrated"] = list(state.migrated)
    if state.own_deadline:
        record["own_deadline"] = True
    if state.rewinds:
        record["rewinds"] = list(state.rewinds)
    if state.rewinding:
        record["rewinding"] = True
    if state.pivoted:
        record["pivoted"] = True
    if state.forked is not None:
        record["forked_from"] = state.forked
    if plan is not None and state.steps:
        record["steps"] = dump_steps(state, plan)
    return record  # type: ignore[return-value]


def dump_steps(state: WorkflowState, plan: Plan) -> list[StepRecord]:
    """The steps' records, in the definition's order."""
    return [_dump_step(step, plan.steps[step.index]) for step in state.steps]


def _dump_step(step: StepState, spec: PlanStep) -> StepRecord:
    record: StepRecord = {"name": spec.name_of(step), "status": step.status, "attempt": step.attempt}
    if step.agent is not None:
        record["agent"] = step.agent
    if step.asked is not None:
        record["asked"] = step.asked
    if step.started_ms:
        record["started_ms"] = step.started_ms
    if step.finished_ms:
        record["finished_ms"] = step.finished_ms
        record["order"] = step.order
    if step.retry_at_ms != NEVER:
        record["retry_at_ms"] = step.retry_at_ms
    if step.until_ms != NEVER:
        record["until_ms"] = step.until_ms
    if step.escalated:
        record["escalated"] = True
    if step.unknown:
        record["unknown"] = True
        record["suspects"] = list(step.suspects)
    if step.stand_in is not None:
        record["stand_in"] = step.stand_in
    if step.fell_back:
        record["fell_back"] = step.fell_back
    if step.since_ms != step.started_ms:
        record["since_ms"] = step.since_ms
    if step.tokens:
        record["tokens"] = step.tokens
    if step.cost:
        record["cost"] = step.cost
    if step.sent_ms:
        record["sent_ms"] = step.sent_ms
    if step.spent_ms:
        record["spent_ms"] = step.spent_ms
    if step.fell_back_after:
        record["fell_back_after"] = step.fell_back_after
    if step.output is not None and not _from_items(step):
        record["output"] = step.output
    if step.failures:
        record["failed_attempts"] = step.failed_attempts
        record["failures"] = list(step.failures)
    if step.undo is not None:
        record["undo"] = _dump_undo(step.undo)
    if step.questions:
        record["questions"] = step.questions
    if step.question is not None:
        record["question"] = _dump_question(step.question)
    if step.round or step.first or step.undone_before or step.dropped:
        _dump_rounds(step, record)
    if step.items:
        record["items"] = [_dump_step(item, spec) for item in step.items]
        if spec.repeat is not None:
            record["repeats"] = True
    return record


def _dump_rounds(step: StepState, record: StepRecord) -> None:
    """What rewindings left behind; a step that none has touched has nothing of it."""
    for key in ("round", "first", "undone_before", "dropped"):
        if value := getattr(step, key):
            record[key] = value


def _from_items(step: StepState) -> bool:
    """Whether its output is its items' outputs: they are in the checkpoint once."""
    ended = step.status is StepStatus.DONE or step.status is StepStatus.DEGRADED
    return bool(step.items) and ended and (step.stand_in is None or step.stand_in == "items")


def _dump_undo(undo: UndoState) -> UndoRecord:
    record: dict[str, Any] = {"status": undo.status, "attempt": undo.attempt}
    for key in ("order", "started_ms", "finished_ms", "tried_before", "turn", "failed", "late", "again"):
        if value := getattr(undo, key):
            record[key] = value
    if undo.retry_at_ms != NEVER:
        record["retry_at_ms"] = undo.retry_at_ms
    if undo.failures:
        record["failed_attempts"] = undo.failed_attempts
        record["failures"] = list(undo.failures)
    return record  # type: ignore[return-value]


def _dump_question(question: QuestionState) -> QuestionRecord:
    record: dict[str, Any] = {"since_ms": question.since_ms}
    for key in ("out", "tokens", "cost", "asked_before"):
        if value := getattr(question, key):
            record[key] = value
    if question.retry_after_ms is not None:
        record["retry_after_ms"] = question.retry_after_ms
    if question.failures:
        record["failed_attempts"] = question.failed_attempts
        record["failures"] = list(question.failures)
    return record  # type: ignore[return-value]


def restore(workflow_id: str, record: dict[str, Any]) -> WorkflowState:
    """The state in a checkpoint. Checkpoints are the engine's own: what does not fit raises KeyError or ValueError."""
    state = WorkflowState(
        workflow_id=workflow_id,
        definition=record["definition"],
        name=record["name"],
        seed=record["seed"],
        started_ms=record["started_ms"],
        now_ms=record["now_ms"],
        status=WorkflowStatus(record["status"]),
        input=record.get("input"),
        deadline_ms=record.get("deadline_ms", NEVER),
        correlation_id=record.get("correlation_id"),
        parent=record.get("parent"),
        report=record.get("report"),
        trace=record.get("trace"),
        failure=record.get("failure"),
        stopped=record.get("stopped"),
        finished_ms=record.get("finished_ms", 0),
        unsettled=record.get("unsettled", []),
        at_offset=record["at_offset"],
        bytes=record.get("bytes", 0),
        start=record.get("start"),
        paused=record.get("paused"),
        signals=record.get("signals", []),
        heard=record.get("heard", []),
        tenant=record.get("tenant"),
        priority=record.get("priority", PRIORITY_DEFAULT),
        attributes=record.get("attributes"),
        run=record.get("run", FIRST_RUN),
        starts=record.get("starts", []),
        next=record.get("next"),
        migrated=record.get("migrated", []),
        own_deadline=record.get("own_deadline", False),
        rewinds=record.get("rewinds", []),
        rewinding=record.get("rewinding", False),
        pivoted=record.get("pivoted", False),
        forked=record.get("forked_from"),
    )
    state.steps = [_restore_step(index, step) for index, step in enumerate(record.get("steps", ()))]
    for step in state.steps:
        state.open_steps += step.finished_ms == 0 and step.status is not StepStatus.CANCELLED
        for one in (step, *step.items):
            state.ended_steps = max(state.ended_steps, one.order)
            if one.undo is not None:
                state.undone_steps = max(state.undone_steps, one.undo.order)
    return state


def _restore_step(index: int, record: dict[str, Any], item: int = -1) -> StepState:
    undo = record.get("undo")
    step = StepState(
        index=index,
        item=item,
        status=StepStatus(record["status"]),
        attempt=record["attempt"],
        agent=record.get("agent"),
        asked=record.get("asked"),
        started_ms=record.get("started_ms", 0),
        finished_ms=record.get("finished_ms", 0),
        order=record.get("order", 0),
        retry_at_ms=record.get("retry_at_ms", NEVER),
        until_ms=record.get("until_ms", NEVER),
        escalated=record.get("escalated", False),
        unknown=record.get("unknown", False),
        suspects=record.get("suspects", []),
        stand_in=record.get("stand_in"),
        fell_back=record.get("fell_back", 0),
        since_ms=record.get("since_ms", record.get("started_ms", 0)),
        tokens=record.get("tokens", 0),
        cost=record.get("cost", 0),
        sent_ms=record.get("sent_ms", 0),
        spent_ms=record.get("spent_ms", 0),
        fell_back_after=record.get("fell_back_after", 0),
        output=record.get("output"),
        failed_attempts=record.get("failed_attempts", 0),
        failures=record.get("failures", []),
        undo=None if undo is None else _restore_undo(undo),
        questions=record.get("questions", 0),
        question=QuestionState(**record["question"]) if "question" in record else None,
        round=record.get("round", 0),
        first=record.get("first", 0),
        undone_before=record.get("undone_before", 0),
        dropped=record.get("dropped", 0),
        items=[_restore_step(index, found, number) for number, found in enumerate(record.get("items", ()))],
    )
    if step.items and _from_items(step):
        step.output = step.items[-1].output if "repeats" in record else [found.output for found in step.items]
    return step


def _restore_undo(record: dict[str, Any]) -> UndoState:
    return UndoState(
        status=UndoStatus(record["status"]),
        attempt=record["attempt"],
        order=record.get("order", 0),
        started_ms=record.get("started_ms", 0),
        finished_ms=record.get("finished_ms", 0),
        retry_at_ms=record.get("retry_at_ms", NEVER),
        failed_attempts=record.get("failed_attempts", 0),
        tried_before=record.get("tried_before", 0),
        turn=record.get("turn", 0),
        failed=record.get("failed", False),
        late=record.get("late", 0),
        again=record.get("again", False),
        failures=record.get("failures", []),
    )


def move_step(step: StepState, after: StepStatus) -> None:
    """Changes a step's status by its table; AssertionError (a bug in the fold) for a change that is not in it."""
    assert (step.status, after) in STEP_MOVES, f"no move of step {step.index} from {step.status} to {after}"
    step.status = after
    step.retry_at_ms = step.until_ms = NEVER


def move_undo(step: StepState, after: UndoStatus) -> UndoState:
    """Changes a step's ledger entry by its table, or makes it."""
    before = step.undo.status if step.undo is not None else None
    assert (before, after) in UNDO_MOVES, f"no move of the undoing of step {step.index} from {before} to {after}"
    if step.undo is None:
        step.undo = UndoState(after, attempt=step.undone_before, tried_before=step.undone_before)
    step.undo.status = after
    step.undo.retry_at_ms = NEVER
    return step.undo
