"""The fold of workflows as a processor runs it: with its gate, timers, losses, outcomes and checkpoints.

Rule: this module decides nothing about a workflow. It folds, sends what the fold asks for, and turns what it sees outside the
log (a timer is due, an attempt is lost, a circuit is open) into events that it appends and folds like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

from sagalog.engine.kernel.children import by_child
from sagalog.engine.kernel.effects import (
    Answered,
    Called,
    ClaimLost,
    DeadLettered,
    DefinitionKnown,
    Dispatch,
    Effect,
    Emit,
    Finished,
    Ignored,
    Moved,
    OwnerChanged,
    Prioritized,
    Quarantine,
    Reason,
    ReviewClosed,
    ReviewNeeded,
    StartAnswered,
)
from sagalog.engine.kernel.migration import as_it_was
from sagalog.engine.kernel.partition import Partition
from sagalog.engine.kernel.plan import Plan
from sagalog.engine.kernel.progress import execute_dispatch, undo_dispatch
from sagalog.engine.kernel.reconcile import question_dispatch
from sagalog.engine.kernel.rewind import concerns
from sagalog.engine.kernel.schedules import dump_schedule
from sagalog.engine.kernel.state import NEVER, WorkflowState, dump, undone_by_child
from sagalog.engine.kernel.timers import due_timers
from sagalog.schemas import records
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.definitions import CircuitPolicy
from sagalog.schemas.events import AttemptLost, AttemptRefused, FailureKind, Quarantined, TimerFired
from sagalog.schemas.ids import Direction
from sagalog.schemas.records import DEFINITION_KEY, LEASE_KEY, MARKER_KEY, SCHEDULE_KEY, LeaseRecord, MarkerRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus
from sagalog.topics.log import Message, Out, TopicPartition
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

from . import outputs, schedules
from .buckets import Claims
from .claims import claims_of
from .digest import REBUILD, CheckpointsDamaged, Digest
from .gate import CircuitView, Gate
from .limits import EVENT_REASON_CHARS_MAX, LOSS_GRACE_MS, OUTCOME_FLUSH_MS
from .losses import Losses, Watched
from .machine import Append, Cut, LastWord, Ownership
from .metrics import EngineMetrics
from .outcomes import Outcomes
from .timers import Timers

TIMERS_PER_TICK_MAX: Final = 2_000

_STOPPING: Final = (WorkflowStatus.COMPENSATING, WorkflowStatus.REWINDING)

# Headers of a checkpoint, so that a take-over need not decode it.
_DUE: Final = "sagalog_due"
_WATCH: Final = "sagalog_watch"
_WAITING: Final = "sagalog_waiting"
_LIMITED: Final = "sagalog_limited"
"""What of the workflow is out and counts for limits, by their keys."""


_DISPATCH: Final = {
    Direction.EXECUTE: execute_dispatch,
    Direction.COMPENSATE: undo_dispatch,
    Direction.RECONCILE: question_dispatch,
}


@dataclass(slots=True)
class _Unsaid:
    """What gathered before an owner's claim, and the owner before may have sent. It is to say so."""

    commands: dict[str, Dispatch]
    emits: dict[str, Emit]
    backlog: list[tuple[str, Out]]
    to_stop: list[tuple[str, str, str, int | None]]


class WorkflowMachine:
    """One partition of `events`."""

    def __init__(
        self,
        topics: Topics,
        partition: int,
        partitions: int,
        outcome_partitions: int,
        append: Append,
        metrics: EngineMetrics,
        *,
        leases: Mapping[str, LeaseRecord] | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        self.input = TopicPartition(topics.events, partition)
        self.checkpoints = TopicPartition(topics.checkpoints, partition)
        self._topics = topics
        self._partition = partition
        self._partitions = partitions
        self._outcome_partitions = outcome_partitions
        self._service_partitions: dict[str, int] = {}
        self._append = append
        self._metrics = metrics
        self._fold = Partition()
        self._live = False
        self._stopped = False
        self.gate = Gate(partition, partitions=partitions, leases=leases, weights=weights)
        self._timers = Timers()
        self._early: dict[str, None] = {}
        """Whose timer came too early by the broker's clock, and is set again by how much."""
        self._losses = Losses()
        self._outcomes = Outcomes(partition)
        self._outcomes_flushed_ms = 0
        self._outbox: dict[str, Dispatch] = {}
        self._commands: dict[str, list[Out]] = {}
        """Per agent the commands that this batch of records caused; they go out together."""
        self._backlog: list[tuple[str, Out]] = []
        """Results, dead letters, reviews, quarantined records of the records folded before this owner was live."""
        self._emits: dict[str, Emit] = {}
        """Events of other workflows, by what their answer names or else their own id: caused since the last batch, or, before
        this owner was live, since its marker and not answered since."""
        self._to_stop: list[tuple[str, str, str, int | None]] = []
        """(workflow, origin, reason, run) of records that could not be read or folded, until their event is appended."""
        self._unsaid: _Unsaid | None = None
        """While the owner before is to say what it has sent."""
        self._dirty: dict[str, None] = {}
        self._resting: dict[str, bytes] = {}
        """Checkpoints of the cut before: whose workflow is not touched until the next cut goes back to bytes."""
        self._new_definitions: dict[str, bytes] = {}
        self._digest = Digest()
        self._marker: MarkerRecord | None = None
        self._loading_definitions: dict[str, bytes] = {}
        self._loading_withheld: set[str] = set()
        self._loading_limited: dict[str, bytes] = {}
        self._cut_offset = -1
        self._cut: Cut | None = None
        """One that is being encoded."""
        self._now_ms = 0
        self._monotonic_ms = 0

    # --- state

    @property
    def offset(self) -> int:
        return self._fold.offset

    @property
    def epoch(self) -> int:
        return self._fold.epoch

    @property
    def fold_state(self) -> Partition:
        return self._fold

    def stats(self) -> Mapping[str, float]:
        return {
            "workflows": len(self._fold.hot) + len(self._fold.cold),
            "schedules": len(self._fold.schedules),
            "withheld": self.gate.held,
            "attempts_out": len(self._losses),
            "timers": len(self._timers),
        }

    # --- take-over

    def load(self, message: Message) -> None:
        key = (message.key or b"").decode(errors="replace")
        value = message.value
        if key == MARKER_KEY:
            if value is not None:
                self._marker = decode_object(value)  # type: ignore[assignment]
        elif key.startswith(DEFINITION_KEY):
            if value is not None:
                self._loading_definitions[key.removeprefix(DEFINITION_KEY)] = value
        elif value is None:
            self._forget(key)
        else:
            self._load_workflow(key, value, message)

    def loaded(self, now_ms: int) -> MarkerRecord | None:
        marker = self._marker
        if marker is None:
            return None
        for hash_ in marker["definitions"]:
            encoded = self._loading_definitions.get(hash_)
            if encoded is None:
                raise CheckpointsDamaged(
                    f"{self.checkpoints.topic}/{self._partition}: the marker at offset {marker['at_offset']} names definition "
                    f"{hash_}, which is not there; {REBUILD}"
                )
            self._fold.load_definition(encoded)
        if self._digest.hex() != marker["digest"]:
            raise CheckpointsDamaged(
                f"{self.checkpoints.topic}/{self._partition}: {len(self._digest)} checkpoints with digest {self._digest.hex()} "
                f"where the marker at offset {marker['at_offset']} says {marker['workflows']} with {marker['digest']}; "
                f"{REBUILD}"
            )
        self._fold.offset = self._cut_offset = marker["at_offset"]
        self._fold.epoch, self._fold.member = marker["epoch"], marker["member"]
        self._losses.begin(self._monotonic_ms)
        for workflow_id, counted in sorted(self._loading_limited.items()):
            self.gate.count_again(workflow_id, decode_object(counted))
        again = [found for workflow_id in sorted(self._loading_withheld) for found in self._held_before(workflow_id)]
        for effect, entry in sorted(again, key=lambda found: found[1]["since_ms"]):
            self.gate.hold_again(effect, entry, self._claims(effect))
        self._loading_definitions.clear()
        self._loading_withheld.clear()
        self._loading_limited.clear()
        return marker

    def _load_workflow(self, workflow_id: str, value: bytes, message: Message) -> None:
        waiting = due = watch = withheld = limited = None
        for name, found in message.headers:
            if name == _DUE:
                due = found
            elif name == _WATCH:
                watch = found
            elif name == _WAITING:
                waiting = found
            elif name == outputs.WITHHELD:
                withheld = found
            elif name == _LIMITED:
                limited = found
        if workflow_id.startswith(SCHEDULE_KEY):
            self._fold.load_schedule(workflow_id, value)
        else:
            self._fold.load_checkpoint(workflow_id, value, waiting=waiting is not None)
        self._timers.set(workflow_id, int(due) if due is not None else NEVER)
        if watch is not None:
            # From `loaded` on: how long the attempts were out already is not known.
            self._losses.watch("@" + workflow_id, Watched(workflow_id), int(watch))
        else:
            self._losses.answered("@" + workflow_id)
        if withheld is not None:
            self._loading_withheld.add(workflow_id)
            document = decode_object(value)
            document.pop("withheld", None)
            value = encode(document)
        else:
            self._loading_withheld.discard(workflow_id)
        if limited is not None:
            self._loading_limited[workflow_id] = limited
        else:
            self._loading_limited.pop(workflow_id, None)
        self._digest.put(workflow_id, value)

    def _forget(self, workflow_id: str) -> None:
        self._fold.hot.pop(workflow_id, None)
        self._fold.cold.pop(workflow_id, None)
        self._fold.schedules.pop(workflow_id, None)
        self._fold.waiting.discard(workflow_id)
        self._timers.set(workflow_id, NEVER)
        self._losses.answered("@" + workflow_id)
        self._loading_withheld.discard(workflow_id)
        self._loading_limited.pop(workflow_id, None)
        self._digest.drop(workflow_id)

    def _held_before(self, workflow_id: str) -> list[tuple[Dispatch, dict[str, Any]]]:
        """What the owner before had withheld of a workflow, with what it said of each."""
        found: list[tuple[Dispatch, dict[str, Any]]] = []
        withheld = decode_object(self._fold.cold[workflow_id]).get("withheld", [])
        now = self._fold.get(workflow_id)
        assert now is not None
        current = self._fold.plan_of(now)
        assert current is not None
        for entry in withheld:
            state, plan = now, current
            made_under = self._fold.plans.get(entry.get("definition", ""))
            if made_under is not None:  # the workflow has moved since
                state, plan = as_it_was(now, current, made_under), made_under
            step = plan.find(state, entry["step"])
            assert step is not None
            make = _DISPATCH[Direction(entry["direction"])]
            effect = make(state, plan, step)
            # The owner before may have let it go after its last snapshot.
            effect.maybe_sent = True
            found.append((effect, entry))
        return found

    # --- the hot path

    def fold(self, messages: Sequence[Message], ownership: Ownership) -> None:
        apply = self._fold.apply
        effects: list[Effect] = []
        for message in messages:
            if message.offset <= self._fold.offset:
                continue  # read again after a seek
            if self._cut is not None:
                self._before(self._cut, message)
            apply(outputs.to_record(message), effects)
            if effects:
                self._handle(message, effects, ownership)
                effects.clear()
                if self._stopped:
                    return
        self._metrics.folded(self._partition, len(messages))
        self._settle_touched()
        if self._live:
            self._send_commands()
            self._send_backlog()
            if self._outcomes.full():
                self.flush(self._now_ms)

    def _handle(self, message: Message, effects: list[Effect], ownership: Ownership) -> None:
        for effect in effects:
            match effect:
                case Moved():
                    if effect.undo:
                        self._metrics.undone(effect)
                    elif effect.step is None and effect.after in _STOPPING and self._live:
                        self._refuse_held(effect.workflow_id)
                case Answered(command_id=answered):
                    self._losses.answered(answered)
                    self.gate.answered(answered)
                    if not self._live:
                        self._outbox.pop(answered, None)
                        self._emits.pop(answered, None)
                    elif self._unsaid is not None:
                        self._unsaid.commands.pop(answered, None)
                        self._unsaid.emits.pop(answered, None)
                case Called():
                    self._outcomes.note(effect, message.offset, self._policy(effect))
                    self._metrics.called(effect)
                case Dispatch():
                    if self._live:
                        self._dispatch(effect)
                    else:
                        self._outbox[effect.command.command_id] = effect
                case Emit():
                    self._emits[effect.command_id or effect.ce_id] = effect
                case Finished():
                    self._backlog.append((self._topics.results, outputs.result(effect)))
                    self._metrics.finished(effect)
                case StartAnswered():
                    self._backlog.append((self._topics.results, outputs.start_answered(effect)))
                case Prioritized():
                    self._prioritize(effect)
                case DeadLettered():
                    self._backlog.append((self._topics.dead_letters, outputs.dead_letter(effect)))
                case ReviewNeeded() | ReviewClosed():
                    self._backlog.append((self._topics.reviews, outputs.review(effect)))
                case Ignored():
                    self._metrics.ignored(effect)
                    if effect.reason is Reason.NOT_DUE:
                        self._set_again(message)
                case Quarantine():
                    self._quarantine(message, effect)
                case DefinitionKnown():
                    self._new_definitions[effect.hash] = effect.encoded
                case OwnerChanged():
                    ownership.owner_changed(effect.epoch, effect.member)
                case ClaimLost():
                    ownership.claim_lost(effect.epoch, effect.member)

    def _dispatch(self, effect: Dispatch) -> None:
        admitted = self.gate.admit(effect, self._now_ms, self._claims(effect))
        if admitted:
            self._send(effect)
        elif admitted is None:
            self._refuse(effect)

    def _claims(self, effect: Dispatch) -> Claims:
        command = effect.command
        return claims_of(self._fold.get(command.workflow_id), self._fold.plans.get(command.definition), command)

    def _prioritize(self, effect: Prioritized) -> None:
        self.gate.prioritize(effect.workflow_id, effect.priority)
        outbox = self._outbox if self._unsaid is None else self._unsaid.commands
        for waiting in outbox.values():
            if waiting.command.workflow_id == effect.workflow_id:
                waiting.command.priority = effect.priority

    def _refuse_held(self, workflow_id: str) -> None:
        """The workflow stops: what waits for a circuit or a limit is not to be sent any more, or the stop would wait for it."""
        for held in self.gate.held_of(workflow_id):
            command = held.command
            if command.direction is not Direction.EXECUTE or self._goes_on(workflow_id, command.step):
                continue
            if command.service is not None:
                self._refuse(held)
            elif (limit := self.gate.limit_of(command.command_id)) is not None:
                self.gate.answered(command.command_id)
                kind = FailureKind.LOST if held.maybe_sent else FailureKind.CANCELLED
                message = f"the workflow stopped while it waited for limit {limit!r}"
                self._lose(command.command_id, self._watched(held), message, kind)

    def _goes_on(self, workflow_id: str, name: str) -> bool:
        """Whether the workflow is only being rewound, and the step is not affected by it."""
        state = self._fold.get(workflow_id)
        plan = self._fold.plan_of(state) if state is not None else None
        if state is None or plan is None or state.status is not WorkflowStatus.REWINDING:
            # Rewound within one event, it runs again already: then nothing of what was affected was out.
            return state is not None and state.status is WorkflowStatus.RUNNING
        step = plan.find(state, name)
        return step is None or not concerns(state, plan, step)

    def _refuse(self, effect: Dispatch) -> None:
        command = effect.command
        assert command.service is not None
        # Out of the gate now, not when the event is folded: the circuit may close before, and it would be sent after all.
        self.gate.answered(command.command_id)
        self._append_event(
            command.workflow_id,
            AttemptRefused(
                self._fold.epoch,
                command.step,
                command.attempt,
                command.service,
                effect.maybe_sent,
                self._run(command.workflow_id),
            ),
            f"{command.command_id}/refused/{self._fold.epoch}",
        )

    def _send(self, effect: Dispatch) -> None:
        command = effect.command
        record = outputs.command(effect)
        if len(record.value or b"") > outputs.VALUE_BYTES_MAX:
            # A binding that repeats payloads; the agent could never get it, so the attempt is over.
            self._metrics.unsendable.inc()
            size = f"its command is {len(record.value or b''):,} bytes, more than {outputs.VALUE_BYTES_MAX:,}"
            message = f"{size}; bind less to the step's input"
            self._lose(command.command_id, self._watched(effect), message, FailureKind.INVALID_INPUT)
            return
        self._commands.setdefault(command.agent, []).append(record)
        self._watch(effect)

    def _watch(self, effect: Dispatch) -> None:
        until_ms = self._monotonic_ms + effect.patience_ms + LOSS_GRACE_MS
        self._losses.watch(effect.command.command_id, self._watched(effect), until_ms)

    def _run(self, workflow_id: str) -> int | None:
        """The run that is on, as events name it. Nothing of an earlier one is out or withheld: it ended with its last answer."""
        state = self._fold.get(workflow_id)
        return state.run_mark if state is not None else None

    def _watched(self, effect: Dispatch) -> Watched:
        command = effect.command
        return Watched(
            workflow_id=command.workflow_id,
            step=command.step,
            attempt=command.attempt,
            direction=command.direction.value,
            timeout_ms=command.timeout_ms,
            heartbeat_ms=command.heartbeat_timeout_ms,
            run=self._run(command.workflow_id),
        )

    def _quarantine(self, message: Message, effect: Quarantine) -> None:
        self._metrics.quarantined.labels(effect.stage).inc()
        at_ms = message.timestamp
        record = outputs.quarantine(message, effect.reason, effect.stage, effect.workflow_id, at_ms)
        self._backlog.append((self._topics.quarantine, record))
        if effect.workflow_id is not None and self._fold.get(effect.workflow_id) is not None:
            origin = f"{message.topic}/{message.partition}/{message.offset}"
            reason = effect.reason[:EVENT_REASON_CHARS_MAX]
            self._to_stop.append((effect.workflow_id, origin, reason, self._run(effect.workflow_id)))

    def _settle_touched(self) -> None:
        """After a batch: timers of what it touched, and what the next cut has to hold."""
        touched = self._fold.touched
        for workflow_id in touched:
            self._timers.set(workflow_id, self._due_ms(workflow_id))
            self._early.pop(workflow_id, None)
        self._dirty.update(touched)
        touched.clear()

    def _send_commands(self) -> None:
        for agent, found in self._commands.items():
            self._append(self._topics.commands(agent), self._partition, found)
            self._metrics.commands_sent(len(found))
        self._commands.clear()

    def _send_backlog(self) -> None:
        """Everything but commands, batched per topic."""
        for workflow_id, origin, reason, run in self._to_stop:
            # Of a record that the owner before had quarantined already, a second event is ignored.
            event = Quarantined(self._fold.epoch, origin, reason, run)
            self._append_event(workflow_id, event, f"{origin}/quarantined")
        self._to_stop.clear()
        by_topic: dict[str, list[Out]] = {}
        for topic, record in self._backlog:
            by_topic.setdefault(topic, []).append(record)
        self._backlog.clear()
        for topic, found in by_topic.items():
            self._append(topic, 0 if topic == self._topics.quarantine else self._partition, found)
        by_partition: dict[int, list[Out]] = {}
        for emit in self._emits.values():
            out = outputs.event(emit.workflow_id, emit.event, emit.ce_id, emit.trace)
            by_partition.setdefault(partition_of(out.key or b"", self._partitions), []).append(out)
        self._emits.clear()
        for partition, found in by_partition.items():
            self._append(self._topics.events, partition, found)

    def go_live(self, now_ms: int, *, succession: bool = False) -> None:
        self._live = True
        self._now_ms = now_ms
        self._unsaid = _Unsaid(self._outbox, self._emits, self._backlog, self._to_stop)
        self._outbox, self._emits, self._backlog, self._to_stop = {}, {}, [], []
        self.gate.begin(self._fold.epoch, self._monotonic_ms)
        for effect in self._unsaid.commands.values():
            self.gate.sent(effect, self._claims(effect))  # until it is known: so nothing takes its place
        if not succession:
            self.succeed(None)

    def succeed(self, word: LastWord | None) -> None:
        unsaid, self._unsaid = self._unsaid, None
        assert unsaid is not None
        again: list[Dispatch] = []
        for workflow_id, unsent in (word or {}).items():
            self._let_go_before(workflow_id, unsent)
        for effect in unsaid.commands.values():
            command = effect.command
            if word is None or command.command_id in word.get(command.workflow_id, ()):
                self.gate.over(command.command_id)
                again.append(effect)
            else:
                self._watch(effect)
        for effect in again:
            effect.maybe_sent = True
            self._dispatch(effect)
        for workflow_id in self.gate.held_workflows():
            state = self._fold.get(workflow_id)
            if state is not None and state.status in _STOPPING:
                self._refuse_held(workflow_id)
        if word is None:
            self._emits = {**unsaid.emits, **self._emits}
            self._backlog = unsaid.backlog + self._backlog
            self._to_stop = unsaid.to_stop + self._to_stop
        self._send_commands()
        self._send_backlog()

    def _let_go_before(self, workflow_id: str, unsent: Set[str]) -> None:
        """What the owner before had withheld by its marker, and has sent since."""
        for effect in self.gate.held_of(workflow_id):
            command_id = effect.command.command_id
            if effect.maybe_sent and command_id not in unsent:
                self.gate.answered(command_id)
                self.gate.sent(effect, self._claims(effect))
                self._watch(effect)

    def stop(self) -> None:
        self._settle_touched()
        if self._live:
            self._send_commands()
            self._send_backlog()
        self._live, self._stopped = False, True

    # --- what is seen outside the log

    def tick(self, now_ms: int, monotonic_ms: int) -> None:
        if now_ms < self._now_ms and self._early:
            # The clock was ahead, and has been put right: what was set by it would come as much too late.
            for key in self._early:
                self._timers.set(key, self._due_ms(key))
            self._early.clear()
        self._now_ms, self._monotonic_ms = now_ms, monotonic_ms
        self.gate.time(monotonic_ms)
        if not self._live:
            return
        if self._timers.next_ms() <= now_ms:
            for workflow_id in self._timers.pop_due(now_ms, TIMERS_PER_TICK_MAX):
                self._fire(workflow_id, now_ms)
        for lost_id, watched in self._losses.pop_lost(monotonic_ms):
            if watched.step is None:
                self._lose_all_out(watched.workflow_id)
            else:
                self._lose(lost_id, watched, watched.message)
        if self.gate.held and self._unsaid is None:  # what waited before the claim, the owner before may have sent
            for effect in self.gate.release(now_ms):
                assert effect.command.withheld is not None
                self._metrics.released(effect.command.withheld)
                self._send(effect)
            for effect in self.gate.take_refused():
                self._refuse(effect)
            self._send_commands()
        if now_ms - self._outcomes_flushed_ms >= OUTCOME_FLUSH_MS:
            self.flush(now_ms)

    def next_due_ms(self) -> int:
        token_ms = self.gate.next_due_ms()
        return min(self._timers.next_ms(), self._now_ms + token_ms - self._monotonic_ms)

    def flush(self, now_ms: int) -> None:
        self._outcomes_flushed_ms = now_ms
        if self._live:
            for demand in self.gate.demands():
                key = LEASE_KEY + demand["bucket"]
                ce_id = f"{demand['bucket']}/{self._partition}/{demand['epoch']}/{demand['seq']}"
                record = Out(key.encode(), encode(demand), outputs.headers(records.TYPE_DEMAND, ce_id))
                number = partition_of(key.encode(), self._outcome_partitions)
                self._append(self._topics.outcomes, number, [record])
        for service, waiting in self.gate.announcements(now_ms):
            self._outcomes.parked(service, waiting, self._fold.offset, None)
        if self._outcomes:
            for service, record in self._outcomes.take():
                self._append(self._topics.outcomes, self._outcome_partition(service), [record])

    def _outcome_partition(self, service: str) -> int:
        found = self._service_partitions.get(service)
        if found is None:
            found = self._service_partitions[service] = partition_of(service.encode(), self._outcome_partitions)
        return found

    def heard(self, beating: str, workflow_id: str, step: str, attempt: int, direction: Direction) -> None:
        """A heartbeat of the command `beating`: the attempt is alive, and has its time or its next heartbeat's from now on."""
        watched = self._losses.get(beating) or self._taken_over(beating, workflow_id, step, attempt, direction)
        if watched is not None:
            patience_ms = watched.heartbeat_ms or watched.timeout_ms
            self._losses.watch(beating, watched, self._monotonic_ms + patience_ms + LOSS_GRACE_MS)

    def _taken_over(
        self, beating: str, workflow_id: str, step: str, attempt: int, direction: Direction
    ) -> Watched | None:
        """An attempt that was out at the take-over, and shows now that it lives: watched by itself from here."""
        if self._losses.get("@" + workflow_id) is None:
            return None
        state = self._fold.get(workflow_id)
        plan = self._fold.plan_of(state) if state is not None else None
        if state is None or plan is None or not state.steps:
            return None
        if beating != state.command_id(step, attempt, direction):
            return None  # of a run before
        found = plan.find(state, step)
        if found is None:
            return None
        spec = plan.steps[found.index]
        if direction is Direction.EXECUTE:
            out, timeout_ms = found.status is StepStatus.RUNNING and found.attempt == attempt, spec.timeout_ms
        elif direction is Direction.RECONCILE:
            out = found.question is not None and found.question.out and found.questions == attempt
            timeout_ms = spec.reconcile.timeout_ms if spec.reconcile is not None else spec.timeout_ms
        else:
            undo, compensate = found.undo, spec.compensate
            out = undo is not None and undo.status is UndoStatus.RUNNING and undo.attempt == attempt
            timeout_ms = compensate.timeout_ms if compensate is not None else spec.timeout_ms
        if not out:
            return None
        return Watched(
            workflow_id,
            step,
            attempt,
            direction.value,
            timeout_ms=timeout_ms,
            heartbeat_ms=spec.heartbeat_timeout_ms,
            run=state.run_mark,
        )

    def circuit(self, service: str, view: CircuitView) -> None:
        self.gate.circuit(service, view)

    def leased(self, bucket: str) -> None:
        """The lease of a limit's key has changed."""
        self.gate.leased(bucket)

    def _due_ms(self, key: str) -> int:
        """When the timer of a workflow or a schedule is due; NEVER without one."""
        state = self._fold.schedules.get(key) or self._fold.get(key)
        return state.due_ms() if state is not None else NEVER

    def _fire_schedule(self, key: str, now_ms: int) -> None:
        found = schedules.fired(self._fold.schedules[key], self._fold.epoch, now_ms)
        if found is not None:
            self._append_event(key, *found)
            self._metrics.timers.inc()

    def _fire(self, workflow_id: str, now_ms: int) -> None:
        if workflow_id in self._fold.schedules:
            self._fire_schedule(workflow_id, now_ms)
            return
        state = self._fold.get(workflow_id)
        if state is None:
            return
        for timer, step, attempt in due_timers(state, self._fold.plan_of(state), now_ms):
            self._append_event(
                workflow_id,
                TimerFired(self._fold.epoch, timer, step, attempt, state.run_mark),
                f"{workflow_id}/{timer.value}/{step or '-'}/{attempt or 0}",
            )
            self._metrics.timers.inc()
        # When the append is lost with the producer, the processor starts over; until the event is folded nothing fires again.

    def _set_again(self, message: Message) -> None:
        """A timer came too early: this owner's clock is ahead of the broker's, which says how long it still is."""
        workflow_id = (message.key or b"").decode(errors="replace")
        due_ms = self._due_ms(workflow_id)
        if due_ms != NEVER:
            self._timers.set(workflow_id, self._now_ms + max(1, due_ms - message.timestamp))
            self._early[workflow_id] = None

    def _lose(self, lost_id: str, watched: Watched, message: str, kind: FailureKind = FailureKind.LOST) -> None:
        assert watched.step is not None
        self._metrics.lost.inc()
        state = self._fold.get(watched.workflow_id)
        if state is not None and state.status is WorkflowStatus.QUARANTINED:
            self.gate.over(lost_id)  # the event will be ignored, and must not keep a place of a limit for ever
        self._append_event(
            watched.workflow_id,
            AttemptLost(
                self._fold.epoch,
                watched.step,
                watched.attempt,
                Direction(watched.direction),
                message,
                kind,
                watched.run,
            ),
            f"{lost_id}/lost/{self._fold.epoch}",
        )

    def _lose_all_out(self, workflow_id: str) -> None:
        """After a take-over the attempts that were out are watched together: those that still are get lost."""
        state = self._fold.get(workflow_id)
        plan = self._fold.plan_of(state) if state is not None else None
        if state is None or plan is None:
            return
        for step in state.leaves():
            spec = plan.steps[step.index]
            name = spec.name_of(step)
            for attempt, direction in step.out():
                if direction is Direction.EXECUTE and by_child(spec, step):
                    continue
                if direction is Direction.COMPENSATE and undone_by_child(step, spec):
                    continue
                lost_id = state.command_id(name, attempt, direction)
                unsaid = self._unsaid is not None and lost_id in self._unsaid.commands
                if self._losses.get(lost_id) is None and not unsaid and not self.gate.holds(lost_id):
                    watched = Watched(workflow_id, name, attempt, direction.value, run=state.run_mark)
                    self._lose(lost_id, watched, "no answer in time since the engine took over")

    def _append_event(self, workflow_id: str, event: Any, ce_id: str) -> None:
        self._append(self._topics.events, self._partition, [outputs.event(workflow_id, event, ce_id)])

    def _policy(self, call: Called) -> CircuitPolicy | None:
        if call.service is None:
            return None
        plan = self._fold.plans.get(call.definition)
        return plan.policy(call.service) if plan is not None else None

    # --- snapshots

    def cut(self, *, leaving: bool = False, always: bool = False) -> Cut | None:
        self._dirty.update(dict.fromkeys(self.gate.changed))
        self.gate.changed.clear()
        offset = self._fold.offset
        if not self._dirty and not self._new_definitions and offset == self._cut_offset and not always:
            return None
        found = [
            Out(
                (DEFINITION_KEY + hash_).encode(),
                encoded,
                outputs.headers(records.TYPE_DEFINITION, f"{DEFINITION_KEY}{hash_}"),
            )
            for hash_, encoded in self._new_definitions.items()
        ]
        fold = self._fold
        marker = outputs.marker_at(offset, fold.epoch, fold.member, list(fold.plans), leaving=leaving)
        self._rest()
        changed, self._dirty = self._dirty, {}
        self._new_definitions.clear()
        self._cut_offset = offset
        self._cut = Cut(offset, found, changed, self._checkpoint, lambda: self._mark(marker))
        return self._cut

    def _mark(self, marker: MarkerRecord) -> Out:
        """The last record of a cut: its digest is over all checkpoints as they were at its offset."""
        self._cut = None
        return outputs.marker(marker, self._digest)

    def _before(self, cut: Cut, message: Message) -> None:
        """A record is about to be folded while a cut is being encoded."""
        key = (message.key or b"").decode(errors="replace")
        if key.startswith(DEFINITION_KEY):
            cut.finish()  # whatever waits for the definition changes with it
        else:
            cut.before(key)

    def _checkpoint(self, workflow_id: str) -> Out:
        schedule = self._fold.schedules.get(workflow_id)
        if schedule is not None:
            raw = encode(dump_schedule(schedule))
            self._digest.put(workflow_id, raw)
            due_ms = schedule.due_ms()
            due = [(_DUE, str(due_ms).encode())] if due_ms != NEVER else []
            return outputs.checkpoint(workflow_id, raw, schedule.at_offset, due)
        state = self._fold.get(workflow_id)
        if state is None:
            self._digest.drop(workflow_id)
            return outputs.checkpoint(workflow_id, None, self._fold.offset, [])
        plan = self._fold.plan_of(state)
        document = dump(state, plan)
        raw = encode(document)
        self._digest.put(workflow_id, raw)
        extra = _hints(state, plan)
        if counted := self.gate.counted(workflow_id):
            extra.append((_LIMITED, encode(counted)))
        if withheld := self.gate.withheld(workflow_id):
            waiting = self.gate.held_of(workflow_id)
            for entry, held in zip(withheld, waiting, strict=True):
                if held.command.definition != state.definition:
                    entry["definition"] = held.command.definition
            document["withheld"] = withheld
            names = [held.command.command_id[len(workflow_id) + 1 :] for held in waiting]
            extra.append((outputs.WITHHELD, encode(names)))
            raw = encode(document)
        else:
            self._resting[workflow_id] = raw
        return outputs.checkpoint(workflow_id, raw, state.at_offset, extra)

    def _rest(self) -> None:
        """Workflows that were not touched for a whole snapshot interval go back to bytes."""
        for workflow_id, raw in self._resting.items():
            if workflow_id not in self._dirty:
                self._fold.rest(workflow_id, raw)
        self._fold.rest_unchanged()
        self._resting = {}


def _hints(state: WorkflowState, plan: Plan | None) -> list[tuple[str, bytes]]:
    """What a take-over needs to know of a workflow without decoding its checkpoint."""
    hints: list[tuple[str, bytes]] = []
    due_ms = state.due_ms()
    if due_ms != NEVER:
        hints.append((_DUE, str(due_ms).encode()))
    if plan is not None and not state.terminal and (watch_ms := state.watch_ms(plan)):
        hints.append((_WATCH, str(watch_ms).encode()))
    if state.status is WorkflowStatus.WAITING:
        hints.append((_WAITING, b"1"))
    return hints
