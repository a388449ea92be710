"""Planted bugs: each a mistake that a good engineer could make, made in memory while a simulation runs.

Rule: a bug replaces the product's own code by a version with the mistake, and nothing else. The checkers run with it, too: they
have to notice by what happened, not by comparing two kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from sagalog.agents.memory import Answers, Undone
from sagalog.agents.offsets import Offsets
from sagalog.agents.publisher import Publisher
from sagalog.agents.runner import Runner
from sagalog.agents.worker import Worker
from sagalog.engine.kernel import (
    attempts,
    children,
    circuits,
    closing,
    control,
    items,
    partition,
    plan,
    progress,
    reconcile,
    rewind,
    runs,
    schedules,
    state,
    timers,
)
from sagalog.engine.kernel.effects import Answered, OwnerChanged, Reason
from sagalog.engine.kernel.state import NEVER, WorkflowState, move_undo
from sagalog.engine.runtime import gate
from sagalog.engine.runtime import schedules as runtime_schedules
from sagalog.engine.runtime.buckets import Bucket
from sagalog.engine.runtime.engine import Session
from sagalog.engine.runtime.gate import Gate
from sagalog.engine.runtime.limits import RAMP_MS
from sagalog.engine.runtime.processor import Phase, Processor
from sagalog.engine.runtime.workflows import WorkflowMachine
from sagalog.schemas import ids
from sagalog.schemas.events import AttemptRefused, FailureKind, Outcome
from sagalog.schemas.ids import Direction
from sagalog.schemas.records import MARKER_KEY
from sagalog.schemas.statuses import CircuitStatus, StepStatus, UndoStatus
from sagalog.topics.log import LogError, ProducerBroken

from .patch import Patch


@dataclass(frozen=True, slots=True)
class Bug:
    name: str
    mistake: str
    plant: Callable[[Patch], None]
    only: tuple[str, ...] = ()
    """It is looked for in such seeds only, as arguments of `plan_of`."""


BUGS: Final[dict[str, Bug]] = {}


def bug(plant: Callable[[Patch], None], *only: str) -> Callable[[Patch], None]:
    """Registers a planted bug under its function's name; its docstring says what the mistake is."""
    name = plant.__name__.replace("_", "-")
    BUGS[name] = Bug(name, (plant.__doc__ or "").strip(), plant, only)
    return plant


def of_rolls(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """A bug that is looked for where engines are restarted, and nothing else goes wrong."""
    return bug(plant, "rolled")


# --- the engine's runtime


@bug
def commit_before_acks(patch: Patch) -> None:
    """A snapshot does not wait until everything that was caused up to it is durable."""

    async def commit(self: Any, cut: Any) -> None:
        await self._transactions.transact(
            {self.machine.checkpoints: cut.records}, self._group, {self.input: cut.offset + 1}
        )

    patch.set(Processor, "_commit", commit)


@bug
def position_from_the_group(patch: Patch) -> None:
    """After a take-over reading goes on where the group's offset pointed when the standby began, not where the marker does."""
    original_follow, original = Processor.follow, Processor._require_log
    began: dict[int, int] = {}

    async def follow(self: Any, reading: Any) -> None:
        committed = await self._log.committed(self._group, [self.input])
        began[id(self)] = committed[self.input][0] - 1 if self.input in committed else -1
        await original_follow(self, reading)

    async def require_log(self: Any, reader: Any) -> None:
        await original(self, reader)
        self.machine._fold.offset = began[id(self)]

    patch.set(Processor, "follow", follow)
    patch.set(Processor, "_require_log", require_log)


@bug
def next_offset_taken_for_the_last(patch: Patch) -> None:
    """The group's offset, which is the next to read, is taken for the last that was applied."""
    original = Processor._require_log

    async def require_log(self: Any, reader: Any) -> None:
        await original(self, reader)
        committed = await self._log.committed(self._group, [self.input])
        if self.input in committed:
            self.machine._fold.offset = committed[self.input][0]

    patch.set(Processor, "_require_log", require_log)


@bug
def fence_skipped(patch: Patch) -> None:
    """Every owner uses a transactional id of its own, so that nobody is fenced."""
    original = Processor.__init__

    def init(self: Any, make: Any, log: Any, producer: Any, transactional_id: str, *rest: Any) -> None:
        original(self, make, log, producer, transactional_id, *rest)
        self._transactional_id = f"{transactional_id}-{self._member}"

    patch.set(Processor, "__init__", init)


@bug
def live_before_the_claim(patch: Patch) -> None:
    """An owner acts as soon as its claim is sent, without waiting to read it."""
    original = Processor.follow

    async def follow(self: Any, reading: Any) -> None:
        def read() -> None:
            reading()
            self._go_live()

        await original(self, read)

    patch.set(Processor, "follow", follow)


@bug
def outbox_keeps_what_is_answered(patch: Patch) -> None:
    """While catching up, an answer does not take its command out of the outbox."""
    original = WorkflowMachine._handle

    def handle(self: Any, message: Any, effects: Any, ownership: Any) -> None:
        kept = dict(self._outbox)
        original(self, message, effects, ownership)
        if not self._live:
            self._outbox = {**kept, **self._outbox}

    patch.set(WorkflowMachine, "_handle", handle)


@bug
def outbox_dropped(patch: Patch) -> None:
    """What was to be sent while an owner caught up is forgotten when it goes live."""
    original = WorkflowMachine.go_live

    def go_live(self: Any, now_ms: int, **more: Any) -> None:
        self._outbox = {}
        original(self, now_ms, **more)

    patch.set(WorkflowMachine, "go_live", go_live)


@bug
def results_of_the_catch_up_dropped(patch: Patch) -> None:
    """Results and dead letters of what was folded before an owner was live are not sent."""
    original = WorkflowMachine.go_live

    def go_live(self: Any, now_ms: int, **more: Any) -> None:
        self._backlog.clear()
        original(self, now_ms, **more)

    patch.set(WorkflowMachine, "go_live", go_live)


@bug
def parked_commands_dropped(patch: Patch) -> None:
    """A circuit that closes forgets the commands that waited for it."""
    original = Gate.circuit

    def circuit(self: Any, service: str, view: Any, now_ms: int) -> None:
        original(self, service, view, now_ms)
        if view.status is CircuitStatus.CLOSED:
            self._services[service].queue.clear()

    patch.set(Gate, "circuit", circuit)


@bug
def withheld_not_held_again(patch: Patch) -> None:
    """A take-over does not read what the owner before had withheld."""
    patch.set(WorkflowMachine, "_held_before", lambda self, workflow_id: [])


@bug
def losses_not_watched_after_takeover(patch: Patch) -> None:
    """Attempts that were out when a partition was taken over are waited for without end."""
    original = WorkflowMachine._load_workflow

    def load_workflow(self: Any, workflow_id: str, value: bytes, message: Any) -> None:
        original(self, workflow_id, value, message)
        self._losses.answered("@" + workflow_id)

    patch.set(WorkflowMachine, "_load_workflow", load_workflow)


@bug
def timers_not_loaded(patch: Patch) -> None:
    """Deadlines and back-offs of workflows that were loaded from checkpoints are not set."""
    original = WorkflowMachine._load_workflow

    def load_workflow(self: Any, workflow_id: str, value: bytes, message: Any) -> None:
        original(self, workflow_id, value, message)
        self._timers.set(workflow_id, NEVER)

    patch.set(WorkflowMachine, "_load_workflow", load_workflow)


@bug
def marker_without_new_definitions(patch: Patch) -> None:
    """A definition that came since the last snapshot is in the marker, but not beside it."""
    original = WorkflowMachine.cut

    def cut(self: Any, **more: Any) -> Any:
        self._new_definitions.clear()
        return original(self, **more)

    patch.set(WorkflowMachine, "cut", cut)


@bug
def dirty_forgotten_on_failed_snapshot(patch: Patch) -> None:
    """A snapshot that fails is taken for made; the processor goes on, and what was in it is never written."""

    async def snapshot(self: Any, **more: Any) -> bool:
        async with self._snapshotting:
            if self.phase is not Phase.LIVE or self._failure is not None:
                return False
            self.machine.flush(self._clock.now_ms())
            cut = self.machine.cut()
            if cut is None:
                return False
            try:
                await self._commit(cut.finish())
            except Exception:  # noqa: BLE001 - the mistake
                self._transactions = await self._log.transactional(self._transactional_id)
                return False
            return True

    patch.set(Processor, "snapshot", snapshot)


@bug
def ownership_loss_ignored(patch: Patch) -> None:
    """Whoever reads a newer claim than its own goes on as if it still owned."""
    original = Processor.owner_changed

    def owner_changed(self: Any, epoch: int, member: str) -> None:
        if member == self._member or self.phase is not Phase.LIVE:
            original(self, epoch, member)

    patch.set(Processor, "owner_changed", owner_changed)


@bug
def standby_keeps_what_it_looked_at(patch: Patch) -> None:
    """A workflow that was decoded while a standby loads stays as it was then, whatever checkpoints follow."""

    def load_checkpoint(self: Any, workflow_id: str, raw: bytes, *, waiting: bool) -> None:
        self.cold[workflow_id] = raw
        self.waiting.discard(workflow_id)
        if waiting:
            self.waiting.add(workflow_id)

    original = Session._on_heartbeat

    def on_heartbeat(self: Any, message: Any) -> None:
        with Patch() as inner:
            inner.set(Processor, "reads", True)
            original(self, message)

    patch.set(partition.Partition, "load_checkpoint", load_checkpoint)
    patch.set(Session, "_on_heartbeat", on_heartbeat)


@bug
def any_marker_is_the_last(patch: Patch) -> None:
    """The first marker that comes after a claim is believed to cover everything before the claim."""
    original = Processor._is_last_marker

    def is_last_marker(self: Any, message: Any) -> bool:
        return original(self, message) or message.key == MARKER_KEY.encode()

    patch.set(Processor, "_is_last_marker", is_last_marker)


@bug
def handed_over_is_not_watched(patch: Patch) -> None:
    """What the owner before has sent is waited for without end."""
    original = WorkflowMachine.succeed

    def succeed(self: Any, word: Any) -> None:
        if word is not None:
            with Patch() as inner:
                inner.set(WorkflowMachine, "_watch", lambda self, effect: None)
                original(self, word)
        else:
            original(self, word)

    patch.set(WorkflowMachine, "succeed", succeed)


@bug
def gate_of_the_owner_before_forgotten(patch: Patch) -> None:
    """What waited at the gate of an owner that hands over is taken for sent."""
    original = WorkflowMachine.succeed
    patch.set(WorkflowMachine, "succeed", lambda self, word: original(self, word and dict.fromkeys(word, ())))


@of_rolls
def what_waits_is_told_by_workflow(patch: Patch) -> None:
    """Where one command of a workflow waits at the gate of an owner that hands over, all of its commands are taken for unsent."""
    original = Processor._is_last_marker

    def is_last_marker(self: Any, message: Any) -> bool:
        last = original(self, message)
        key = (message.key or b"").decode(errors="replace")
        if self._word.get(key):
            self._word[key] = _Everything()
        return last

    patch.set(Processor, "_is_last_marker", is_last_marker)


class _Everything(set[str]):
    def __contains__(self, _: object) -> bool:
        return True


@of_rolls
def marker_before_the_claim_is_the_last(patch: Patch) -> None:
    """A marker just before the claim covers all events before it, and is believed, although the gate let commands go after it."""
    original = Processor._is_last_marker

    def is_last_marker(self: Any, message: Any) -> bool:
        self._owned_at -= 1
        last = original(self, message)
        self._owned_at += 1
        return last

    patch.set(Processor, "_is_last_marker", is_last_marker)


@of_rolls
def gate_lets_out_what_the_owner_before_has_let_out(patch: Patch) -> None:
    """What waited by the marker of the owner before is let out, whatever that one has sent since."""
    patch.set(WorkflowMachine, "_let_go_before", lambda self, workflow_id, unsent: None)


@of_rolls
def claim_breaks_a_snapshot_off(patch: Patch) -> None:
    """A snapshot during which another's claim is read fails, and so nothing is handed over."""
    original = Processor._commit

    async def commit(self: Any, cut: Any) -> None:
        if self._failure is not None:
            raise LogError(f"sending failed before the snapshot: {self._failure}")
        await original(self, cut)

    patch.set(Processor, "_commit", commit)


@of_rolls
def leaves_without_a_word_where_it_is_new(patch: Patch) -> None:
    """An engine that stops says that it hands over only where it may write a snapshot already."""
    original = Processor.leave

    async def leave(self: Any) -> None:
        if self._may_commit:
            await original(self)

    patch.set(Processor, "leave", leave)


@bug
def ramp_makes_up_for_lost_time(patch: Patch) -> None:
    """The steps of a ramp are due by the time since the circuit closed: whoever is late takes the next one sooner."""
    original_circuit, original = Gate.circuit, Gate._release_service

    def circuit(self: Any, service: str, view: Any) -> None:
        original_circuit(self, service, view)
        entry = self._service(service)
        if view.status is CircuitStatus.CLOSED and entry.queue and not entry.ramp_size:
            entry.ramp_size, entry.ramp_next_ms = gate.RAMP_FIRST, self._monotonic_ms

    def release_service(self: Any, service: Any, now_ms: int, released: Any) -> None:
        while True:
            due_ms, before = service.ramp_next_ms, service.ramp_size
            original(self, service, now_ms, released)
            if not before or service.ramp_size == before or service.view.status is not CircuitStatus.CLOSED:
                return
            service.ramp_next_ms = due_ms + RAMP_MS

    patch.set(Gate, "circuit", circuit)
    patch.set(Gate, "_release_service", release_service)


@bug
def circuit_that_closes_lets_all_out(patch: Patch) -> None:
    """When a circuit closes, all that waited for it goes out at once."""
    patch.set(gate, "RAMP_FIRST", 1_000)


@bug
def limit_forgets_what_is_out(patch: Patch) -> None:
    """After a take-over what the owner before had out does not count for its limits."""
    patch.set(Gate, "count_again", lambda self, workflow_id, counted: None)


@bug
def lease_is_used_on_after_it_was_given_back(patch: Patch) -> None:
    """A partition goes on using what it has said it gives back, until it reads that another has it."""
    original = Bucket.say

    def say(self: Any, said: Any, *rest: Any) -> Any:
        usable = max(self.lease.usable, self.lease.share)
        record = original(self, said, *rest)
        self.lease.usable = usable
        return record

    patch.set(Bucket, "say", say)


@bug
def every_partition_has_the_whole_limit(patch: Patch) -> None:
    """A limit holds in each partition by itself."""
    patch.set(Bucket, "allowed", property(lambda self: self.claim.amount))


@bug
def stopped_without_sending(patch: Patch) -> None:
    """Whoever reads a newer claim sends no more of what stands before it in the batch, and hands over as if it had."""

    def stop(self: Any) -> None:
        self._settle_touched()
        self._live, self._stopped = False, True

    patch.set(WorkflowMachine, "stop", stop)


# --- the fold


@bug
def token_not_checked(patch: Patch) -> None:
    """An answer is believed without the token of its command."""
    original = attempts._awaited

    def awaited(state: Any, plan: Any, event: Any, direction: Any, token: Any, effects: Any) -> Any:
        return original(state, plan, event, direction, None, effects)

    patch.set(attempts, "_awaited", awaited)


@bug
def stale_attempt_accepted(patch: Patch) -> None:
    """An answer to an earlier attempt ends the one that is out."""
    original = attempts._awaited

    def awaited(state: Any, plan: Any, event: Any, direction: Any, token: Any, effects: Any) -> Any:
        before = len(effects)
        step = original(state, plan, event, direction, token, effects)
        if step is None and getattr(effects[-1], "reason", None) is Reason.STALE_ATTEMPT:
            found = plan.find(state, event.step)
            if direction is Direction.EXECUTE and found.status is StepStatus.RUNNING:
                del effects[before:]
                effects.append(Answered(ids.command_id(state.workflow_id, event.step, event.attempt, direction)))
                return found
        return step

    patch.set(attempts, "_awaited", awaited)


@bug
def epoch_ignored(patch: Patch) -> None:
    """An engine event counts whatever owner wrote it."""
    original = partition.Partition._apply

    def apply(self: Any, workflow_id: Any, event: Any, record: Any, effects: Any) -> None:
        if hasattr(event, "epoch") and type(event).__name__ != "Owned":
            event = replace(event, epoch=self.epoch)
        original(self, workflow_id, event, record, effects)

    patch.set(partition.Partition, "_apply", apply)


@bug
def second_claim_wins(patch: Patch) -> None:
    """Of two claims to one epoch the later wins."""

    def owned(self: Any, event: Any, effects: Any) -> None:
        self.epoch, self.member = event.epoch, event.member
        effects.append(OwnerChanged(event.epoch, event.member))

    patch.set(partition.Partition, "_owned", owned)


@bug
def duplicate_start_restarts(patch: Patch) -> None:
    """A start that comes twice starts twice."""
    original = partition.Partition._started

    def started(self: Any, workflow_id: Any, state: Any, event: Any, record: Any, effects: Any) -> None:
        original(self, workflow_id, None, event, record, effects)

    patch.set(partition.Partition, "_started", started)


@bug
def finished_forgets_its_id(patch: Patch) -> None:
    """A finished workflow is remembered for no time at all, so a second start of it runs again."""
    patch.set(closing, "REMEMBER_MS", 0)


@bug
def compensation_in_forward_order(patch: Patch) -> None:
    """What ended first is undone first."""
    original = progress.undo_next

    def undo_next(state: Any, plan: Any, effects: Any) -> None:
        if state.paused is not None or any(step.status is StepStatus.RUNNING for step in state.steps):
            return
        held, oldest = False, None
        for step in state.leaves():
            if step.undo is None:
                move_undo(step, UndoStatus.PENDING if progress.to_undo(step, plan) else UndoStatus.NOT_NEEDED)
            if step.undo.status in (UndoStatus.RUNNING, UndoStatus.BACKING_OFF):
                return
            held = held or step.undo.status is UndoStatus.HELD
            if step.undo.status is UndoStatus.PENDING and (oldest is None or step.order < oldest.order):
                oldest = step
        if oldest is not None:
            progress.dispatch_undo(state, plan, oldest, effects)
        elif not held:
            closing.finish(state, plan, progress._how_it_ended(state), effects)

    patch.everywhere(original, undo_next)


@bug
def unknown_outcome_not_undone(patch: Patch) -> None:
    """A step that timed out or got lost is taken for not done."""

    original = progress.to_undo

    def to_undo(step: Any, plan: Any) -> bool:
        return step.status is StepStatus.DONE and original(step, plan)

    patch.set(progress, "to_undo", to_undo)


@bug
def lost_is_not_unknown(patch: Patch) -> None:
    """Only a timeout leaves an outcome unknown; an attempt that is lost counts as not made."""
    _never_unknown(patch, FailureKind.LOST)


@bug
def invalid_output_is_not_unknown(patch: Patch) -> None:
    """An agent that answers nonsense is taken for one that did nothing."""
    _never_unknown(patch, FailureKind.INVALID_OUTPUT)


def _never_unknown(patch: Patch, kind: FailureKind) -> None:
    patch.set(attempts, "UNKNOWN_OUTCOME", attempts.UNKNOWN_OUTCOME - {kind})


@bug
def lost_is_not_asked_about(patch: Patch) -> None:
    """Only what the agent's host gave up is asked about; an attempt that is lost is tried again at once."""
    original = reconcile.asks
    patch.set(reconcile, "asks", lambda spec, kind: kind is not FailureKind.LOST and original(spec, kind))


@bug
def an_answer_is_taken_for_no(patch: Patch) -> None:
    """An agent that was asked has answered, so the step can be tried again; what it said is not looked at."""
    original = attempts._said

    def said(state: Any, plan: Any, step: Any, event: Any, size: int, effects: Any) -> None:
        original(state, plan, step, replace(event, outcome=Outcome.DID_NOT_HAPPEN), size, effects)

    patch.set(attempts, "_said", said)


@bug
def stop_does_not_wait_for_an_answer(patch: Patch) -> None:
    """A workflow that stops undoes what was done while an agent is still asked about a step: what that did is forgotten."""
    for module in (progress, rewind):
        patch.set(module, "OUT", (StepStatus.RUNNING,))


@bug
def no_answer_is_taken_for_no(patch: Patch) -> None:
    """When nobody answers whether an attempt happened, it is taken for one that did not."""
    original = attempts._question_failed

    def question_failed(state: Any, plan: Any, step: Any, *rest: Any) -> None:
        before = step.unknown, list(step.suspects)
        original(state, plan, step, *rest)
        if step.status is not StepStatus.RECONCILING:
            step.unknown, step.suspects = before

    patch.set(attempts, "_question_failed", question_failed)


@bug
def stop_does_not_drain(patch: Patch) -> None:
    """A workflow that stops undoes at once, without waiting for what is out: the late result is forgotten."""
    original = progress.undo_next

    def undo_next(state: Any, plan: Any, effects: Any) -> None:
        for step in state.steps:
            if step.status is StepStatus.RUNNING and not step.items:
                progress.cancel_step(state, plan, step, effects)
        original(state, plan, effects)

    patch.everywhere(original, undo_next)


@bug
def retry_timer_without_check(patch: Patch) -> None:
    """A retry timer that fires a second time, after a take-over, starts a second attempt."""
    original = timers.fired

    def fired(state: Any, plan: Any, event: Any, changed_at: int, effects: Any) -> bool:
        step = timers._step(state, plan, event)
        if event.timer.value == "retry" and step is not None and step.status is StepStatus.RUNNING:
            progress.dispatch(state, plan, step, effects)
            return False
        return original(state, plan, event, changed_at, effects)

    patch.everywhere(original, fired)


@bug
def cancel_interrupts_a_compensation(patch: Patch) -> None:
    """A cancel that comes while the workflow compensates sends what is being undone again, as a new attempt."""
    original = control.cancel

    def cancel(state: Any, plan: Any, event: Any, effects: Any) -> None:
        if state.status == "compensating":
            for step in state.leaves():
                if step.undo is not None and step.undo.status is UndoStatus.RUNNING:
                    step.undo.status = UndoStatus.PENDING
                    progress.undo_next(state, plan, effects)
                    return
        original(state, plan, event, effects)

    patch.everywhere(original, cancel)


@bug
def one_need_is_enough(patch: Patch) -> None:
    """A step goes out as soon as one of the steps that it needs has ended."""

    def needs_met(state: Any, spec: Any) -> bool:
        return not spec.needs or any(state.steps[need].status in progress.ENDED_WELL for need in spec.needs)

    patch.set(progress, "_needs_met", needs_met)


@bug
def one_attempt_too_many(patch: Patch) -> None:
    """`attempts` is taken for the number of retries after the first."""
    original = attempts._next_attempt_in_ms

    def next_attempt_in_ms(state: Any, spec: Any, step: Any, retry_after_ms: Any) -> Any:
        step.attempt -= 1
        try:
            return original(state, spec, step, retry_after_ms)
        finally:
            step.attempt += 1

    patch.set(attempts, "_next_attempt_in_ms", next_attempt_in_ms)


@bug
def fallback_compensated_by_nobody(patch: Patch) -> None:
    """What a fallback agent did is not undone, because its step counts as degraded."""

    original = progress.to_undo

    def to_undo(step: Any, plan: Any) -> bool:
        return (step.status is StepStatus.DONE or step.unknown) and original(step, plan)

    patch.set(progress, "to_undo", to_undo)


@bug
def outcomes_counted_twice(patch: Patch) -> None:
    """A call outcome that is sent again after a take-over counts again towards its circuit."""
    original = circuits.CircuitPartition._outcome

    def outcome(self: Any, found: Any, record: Any, effects: Any) -> None:
        circuit = self.circuits.get(found["service"])
        if circuit is not None:
            circuit.seen.clear()
        original(self, found, record, effects)

    patch.set(circuits.CircuitPartition, "_outcome", outcome)


@bug
def undo_retry_forgotten(patch: Patch) -> None:
    """A compensation that failed is not tried again: its timer is never due."""
    original = progress.back_off_undo

    def back_off_undo(state: Any, spec: Any, step: Any, delay_ms: int, effects: Any) -> None:
        original(state, spec, step, delay_ms, effects)
        step.undo.retry_at_ms = NEVER

    patch.everywhere(original, back_off_undo)


# --- the agents' host


@bug
def commit_before_the_answer(patch: Patch) -> None:
    """A host commits a command's offset when its handler has answered, not when the answer is durable."""
    original = Worker._answered

    def answered(self: Any, job: Any, out: Any) -> None:
        for offsets, offset in job.places:
            offsets.finish(offset)
        self._commit_wanted.set()
        original(self, job, out)

    patch.set(Worker, "_answered", answered)


@bug
def one_key_side_by_side(patch: Patch) -> None:
    """Two commands of one idempotency key run side by side."""
    original = Runner.start

    def start(self: Any, job: Any) -> None:
        before = self._running.pop(job.command.idempotency_key, None)
        if before is None:
            original(self, job)
            return
        self._run(job)

    def ended(self: Any, job: Any) -> None:
        key = job.command.idempotency_key
        self._running.setdefault(key, job)
        other = self._running[key]
        original_ended(self, job)
        if other is not job:
            self._running[key] = other

    original_ended = Runner._ended
    patch.set(Runner, "start", start)
    patch.set(Runner, "_ended", ended)


@bug
def execute_after_compensate(patch: Patch) -> None:
    """A host forgets that a step's compensation came, and executes it afterwards."""
    patch.set(Undone, "__contains__", lambda self, key: False)


@bug
def redelivery_runs_again(patch: Patch) -> None:
    """A host does not remember what it has answered already."""
    patch.set(Answers, "get", lambda self, command_id: None)


@bug
def publisher_forgets_on_break(patch: Patch) -> None:
    """Answers that a broken producer had not delivered are not given to the next one."""
    original = Publisher._replace

    def replace_producer(self: Any, cause: Any) -> None:
        original(self, cause)
        self._open.clear()
        self._empty.set()

    patch.set(Publisher, "_replace", replace_producer)


@bug
def finished_beyond_the_head_committed(patch: Patch) -> None:
    """A commit names the newest finished offset, not the end of the contiguous finished ones."""
    original = Offsets.finish_all

    def finish_all(self: Any, offsets: Any) -> None:
        found = list(offsets)
        original(self, found)
        self._head = max(self._head, min(max(found, default=0) + 1, self._next))

    patch.set(Offsets, "finish_all", finish_all)


@bug
def timeout_answered_twice(patch: Patch) -> None:
    """A handler that ends after its timeout answers a second time."""
    original = Runner._answer

    def answer(self: Any, job: Any, result: str, out: Any, duration_ms: Any = None) -> None:
        job.answered = False
        original(self, job, result, out, duration_ms)

    patch.set(Runner, "_answer", answer)


# --- bugs that the simulation found in the product, planted again


@bug
def refused_but_held(patch: Patch) -> None:
    """A parked command that is refused stays in the gate until its refusal is folded, and a circuit that closes lets it out."""

    def refuse(self: Any, effect: Any) -> None:
        command = effect.command
        refused = AttemptRefused(self._fold.epoch, command.step, command.attempt, command.service, effect.maybe_sent)
        self._append_event(command.workflow_id, refused, f"{command.command_id}/refused/{self._fold.epoch}")

    patch.set(WorkflowMachine, "_refuse", refuse)


@bug
def ended_map_is_filled(patch: Patch) -> None:
    """Resuming a workflow begins the items of all its maps, those that have ended included."""
    original = control._go_on

    def go_on(state: Any, plan: Any, effects: Any) -> None:
        if state.status == "running":
            for step in state.steps:
                if step.items and step.status in progress.ENDED_WELL:
                    items.fill(state, plan, step, effects)
        original(state, plan, effects)

    patch.set(control, "_go_on", go_on)


@bug
def order_lost_with_the_checkpoint(patch: Patch) -> None:
    """Items that an operator has tried anew lose their place in the order of ends, and the count of ends goes by the largest."""
    original = items._anew

    def anew(state: Any, step: Any, spec: Any, effects: Any) -> None:
        before = state.ended_steps
        original(state, step, spec, effects)
        state.ended_steps = before

    patch.set(items, "_anew", anew)


@bug
def given_back_twice(patch: Patch) -> None:
    """A job that is stopped twice before its task began gives its place back twice."""
    original = Runner._cancel

    def cancel(self: Any, job: Any) -> None:
        again = job.stopped and not job.began
        original(self, job)
        if again:
            self._loop.call_soon(self._ended, job)

    patch.set(Runner, "_cancel", cancel)


@bug
def never_given_back(patch: Patch) -> None:
    """A place is given back by its task's `finally`, which a task that is cancelled before its first step never enters."""
    original = Runner._cancel

    def cancel(self: Any, job: Any) -> None:
        began, job.began = job.began, True
        original(self, job)
        job.began = began

    patch.set(Runner, "_cancel", cancel)


@bug
def zombie_folds_its_batch_to_the_end(patch: Patch) -> None:
    """Whoever reads a newer claim in the middle of a batch sends what the rest of the batch asks for."""
    patch.set(WorkflowMachine, "stop", lambda self: None)


@bug
def claim_without_an_identity(patch: Patch) -> None:
    """A claim is known by its engine and epoch: a second take-over takes the first one's claim, behind the marker, for its own."""
    original = Processor.__init__

    def init(self: Any, *args: Any) -> None:
        original(self, *args)
        self._member = self._member.partition("/")[0]

    patch.set(Processor, "__init__", init)


@bug
def refused_although_out(patch: Patch) -> None:
    """A command that the owner before may have sent is refused by its circuit as if nobody had."""
    original = WorkflowMachine._refuse

    def refuse(self: Any, effect: Any) -> None:
        effect.maybe_sent = False
        original(self, effect)

    patch.set(WorkflowMachine, "_refuse", refuse)


@bug
def missing_token_is_a_token(patch: Patch) -> None:
    """A step that comes from a checkpoint has no token in memory, and an answer without one equals it."""
    original = attempts._awaited

    def awaited(state: Any, plan: Any, event: Any, direction: Any, token: Any, effects: Any) -> Any:
        step = plan.find(state, event.step)
        known = getattr(step, "token", None)
        return original(state, plan, event, direction, None if token == (known or "") else token, effects)

    patch.set(attempts, "_awaited", awaited)


@bug
def broken_producer_is_kept(patch: Patch) -> None:
    """After a failed send the partitions are taken over anew, with the same broken producer."""
    original = Session._start_over

    def start_over(self: Any, processor: Any, error: Any = None) -> None:
        cause = error or processor.failure
        original(self, processor, LogError(str(cause)) if isinstance(cause, ProducerBroken) else cause)

    patch.set(Session, "_start_over", start_over)


@bug
def timer_believed_too_early(patch: Patch) -> None:
    """A deadline counts when the owner's clock says so, whatever the broker's says."""
    original = timers.fired

    def fired(state: Any, plan: Any, event: Any, changed_at: int, effects: Any) -> bool:
        true_ms = state.now_ms
        state.now_ms += 3_600_000
        try:
            return original(state, plan, event, changed_at, effects)
        finally:
            state.now_ms = true_ms

    patch.everywhere(original, fired)


# --- schedules


@bug
def runs_of_a_schedule_overlap(patch: Patch) -> None:
    """At a due time a run starts, whatever goes on."""
    patch.set(schedules, "_ask", schedules._start)


@bug
def schedule_told_without_its_missed_times(patch: Patch) -> None:
    """After an outage only the newest due time is told: those between are nowhere."""
    original = runtime_schedules._due

    def due(state: Any, epoch: int, first: int, now_ms: int) -> Any:
        told = original(state, epoch, first, now_ms)
        return told if told.problem is not None else replace(told, due_ms=(told.due_ms[0], *told.due_ms[1:][-1:]))

    patch.set(runtime_schedules, "_due", due)


@bug
def schedule_not_loaded_at_a_take_over(patch: Patch) -> None:
    """A schedule's checkpoint is passed over when a partition is taken over."""
    patch.set(partition.Partition, "load_schedule", lambda self, key, raw: None)


@bug
def end_of_a_run_ignored(patch: Patch) -> None:
    """A schedule does not hear of the ends of its runs."""
    patch.set(schedules, "_ended", lambda state, event, effects: Reason.NOT_WAITED_FOR)


# --- children


@bug
def child_forgotten_at_its_end(patch: Patch) -> None:
    """A child that ended well is a stub at once, like any workflow: when its parent undoes the step, it has nothing to undo."""
    patch.set(children, "may_be_undone", lambda state, plan: False)


@bug
def children_not_let_go(patch: Patch) -> None:
    """A parent that is over does not say so, and its children are kept for ever."""
    patch.set(children, "let_go", lambda state, plan, effects: None)


@bug
def child_taken_for_an_agent(patch: Patch) -> None:
    """The patience with agents is applied to children: after a take-over one that takes its time is lost."""
    original = WorkflowMachine._lose_all_out

    def lose_all_out(self: Any, workflow_id: str) -> None:
        with Patch() as inner:
            inner.everywhere(children.by_child, lambda spec, step: False)
            original(self, workflow_id)

    patch.set(WorkflowMachine, "_lose_all_out", lose_all_out)
    patch.set(WorkflowState, "watch_ms", _watch_ms_of_all)


def _watch_ms_of_all(self: Any, plan: Any) -> int:
    out = (plan.steps[step.index].patience_ms for step in self.leaves() if step.status is StepStatus.RUNNING)
    return max(out, default=0)


@bug
def events_for_others_dropped_at_a_take_over(patch: Patch) -> None:
    """What an owner folds before it is live it need not tell other workflows: the owner before did."""
    original = WorkflowMachine.go_live

    def go_live(self: Any, now_ms: int, **more: Any) -> None:
        self._emits.clear()
        original(self, now_ms, **more)

    patch.set(WorkflowMachine, "go_live", go_live)


@bug
def child_told_to_the_own_partition(patch: Patch) -> None:
    """Events for other workflows are written into the partition of the workflow that causes them."""
    original = WorkflowMachine._send_backlog

    def send_backlog(self: Any) -> None:
        kept = self._partitions
        self._partitions = 1
        try:
            original(self)
        finally:
            self._partitions = kept

    patch.set(WorkflowMachine, "_send_backlog", send_backlog)


@bug
def undone_child_answers_for_the_step(patch: Patch) -> None:
    """The end of an undone child is reported as the end of the attempt, which is over: the undoing waits for ever."""
    original = children.tell

    def tell(state: Any, effects: Any) -> None:
        asked = state.parent.pop("undo", None)
        original(state, effects)
        if asked is not None:
            state.parent["undo"] = asked

    patch.set(children, "tell", tell)


@bug
def by_needs_forgets_the_middle(patch: Patch) -> None:
    """Undone by needs, a step waits for those that need it directly; one in between that has nothing to undo lets it through."""

    def followers(place: int, dependents: list[list[int]]) -> frozenset[int]:
        return frozenset(dependents[place])

    patch.everywhere(plan._followers, followers)


@bug
def undone_side_by_side_whatever_needs_it(patch: Patch) -> None:
    """Undone by needs, everything goes out at once."""
    patch.everywhere(plan._followers, lambda place, dependents: frozenset())


# --- several runs under one id


@bug
def run_is_not_in_the_ids(patch: Patch) -> None:
    """The commands of a run that replaces another have the ids and the keys of the first's."""
    patch.set(ids, "of_run", lambda name, run: name)


@bug
def copy_of_a_start_replaces(patch: Patch) -> None:
    """A start that comes twice replaces the run that it began."""
    patch.set(runs, "_is_known", lambda state, start_id: False)


@bug
def waiting_start_is_not_in_the_checkpoint(patch: Patch) -> None:
    """A start that waits for the end of a run is forgotten with the state's rest in memory."""
    original = state.restore

    def restore(workflow_id: str, record: dict[str, Any]) -> Any:
        return original(workflow_id, {key: value for key, value in record.items() if key != "next"})

    patch.everywhere(original, restore)


# --- rewinding


@bug
def round_keeps_its_key(patch: Patch) -> None:
    """A step that a rewinding undid is done anew under the key that was undone."""
    original = ids.idempotency_key

    def idempotency_key(workflow_id: str, step: str, run: int = ids.FIRST_RUN, round: int = 0) -> str:
        return original(workflow_id, step, run)

    patch.set(ids, "idempotency_key", idempotency_key)


@bug
def rewound_without_undoing(patch: Patch) -> None:
    """A rewinding that is to undo first does not."""
    patch.set(rewind, "_undone", lambda state, plan, affected, effects: True)


@bug
def numbers_of_undoings_begin_anew(patch: Patch) -> None:
    """An undoing after a rewinding has the number, and so the id, of the one before."""
    original = rewind._anew

    def anew(state: Any, plan: Any, step: Any, effects: Any, *, undone: bool) -> None:
        original(state, plan, step, effects, undone=undone)
        step.undone_before = 0

    patch.set(rewind, "_anew", anew)
