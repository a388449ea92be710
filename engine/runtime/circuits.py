"""The fold of circuits, and of leases, as a processor runs it: outcomes in, states out through the snapshot."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from sagalog.engine.kernel.circuits import CircuitPartition, dump_circuit, restore_circuit
from sagalog.engine.kernel.effects import ClaimLost, Effect, Ignored, Moved, OwnerChanged, Quarantine, Reason
from sagalog.engine.kernel.leases import dump_lease, restore_lease
from sagalog.engine.kernel.state import NEVER
from sagalog.schemas import records
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.events import Timer, TimerFired
from sagalog.schemas.records import LEASE_KEY, MARKER_KEY, MarkerRecord
from sagalog.topics.log import Message, Out, TopicPartition
from sagalog.topics.specs import Topics

from . import outputs
from .digest import REBUILD, CheckpointsDamaged, Digest
from .machine import Append, Cut, LastWord, Ownership
from .metrics import EngineMetrics
from .timers import Timers

logger = logging.getLogger(__name__)


class CircuitMachine:
    """One partition of `outcomes`."""

    def __init__(self, topics: Topics, partition: int, append: Append, metrics: EngineMetrics) -> None:
        self.input = TopicPartition(topics.outcomes, partition)
        self.checkpoints = TopicPartition(topics.circuits, partition)
        self._topics = topics
        self._partition = partition
        self._append = append
        self._metrics = metrics
        self._fold = CircuitPartition()
        self._live = False
        self._stopped = False
        self._timers = Timers()
        self._dirty: dict[str, None] = {}
        self._digest = Digest()
        self._marker: MarkerRecord | None = None
        self._cut_offset = -1
        self._now_ms = 0

    @property
    def offset(self) -> int:
        return self._fold.offset

    @property
    def epoch(self) -> int:
        return self._fold.epoch

    def stats(self) -> Mapping[str, float]:
        return {"circuits": len(self._fold.circuits), "leases": len(self._fold.leases.by_key)}

    def load(self, message: Message) -> None:
        key = (message.key or b"").decode(errors="replace")
        if message.value is None:
            self._fold.leases.by_key.pop(key, None)
            self._digest.drop(key)
            return
        if key == MARKER_KEY:
            self._marker = decode_object(message.value)  # type: ignore[assignment]
            return
        if key.startswith(LEASE_KEY):
            self._fold.leases.put(restore_lease(message.value))
            self._digest.put(key, message.value)
            return
        circuit = restore_circuit(message.value)
        self._fold.circuits[circuit.service] = circuit
        self._timers.set(circuit.service, circuit.due_ms())
        self._digest.put(key, message.value)

    def loaded(self, now_ms: int) -> MarkerRecord | None:
        marker = self._marker
        if marker is None:
            return None
        if self._digest.hex() != marker["digest"]:
            raise CheckpointsDamaged(
                f"{self.checkpoints.topic}/{self._partition}: {len(self._digest)} circuits with digest {self._digest.hex()} where "
                f"the marker says {marker['workflows']} with {marker['digest']}; {REBUILD}"
            )
        self._fold.offset = self._cut_offset = marker["at_offset"]
        self._fold.epoch, self._fold.member = marker["epoch"], marker["member"]
        return marker

    def fold(self, messages: Sequence[Message], ownership: Ownership) -> None:
        effects: list[Effect] = []
        for message in messages:
            if message.offset <= self._fold.offset:
                continue
            self._fold.apply(outputs.to_record(message), effects)
            for effect in effects:
                self._handle(message, effect, ownership)
            effects.clear()
            if self._stopped:
                return
        self._settle_touched()

    def _settle_touched(self) -> None:
        for key in self._fold.touched:
            if not key.startswith(LEASE_KEY):
                self._timers.set(key, self._fold.circuits[key].due_ms())
        self._dirty.update(self._fold.touched)
        self._fold.touched.clear()

    def _handle(self, message: Message, effect: Effect, ownership: Ownership) -> None:
        match effect:
            case OwnerChanged():
                ownership.owner_changed(effect.epoch, effect.member)
            case ClaimLost():
                ownership.claim_lost(effect.epoch, effect.member)
            case Ignored():
                self._metrics.ignored(effect)
                if effect.reason is Reason.NOT_DUE:
                    service = (message.key or b"").decode(errors="replace")
                    left_ms = self._fold.circuits[service].due_ms() - message.timestamp
                    self._timers.set(service, self._now_ms + max(1, left_ms))
            case Quarantine():
                # Folded again after a crash, the record is quarantined again under the same key: nothing is lost.
                self._metrics.quarantined.labels(effect.stage).inc()
                record = outputs.quarantine(message, effect.reason, effect.stage, None, message.timestamp)
                self._append(self._topics.quarantine, 0, [record])
            case Moved():
                logger.info(
                    "circuit %s: %s -> %s (%s)", effect.workflow_id, effect.before, effect.after, effect.trigger
                )
            case _:
                raise AssertionError(f"the circuits' fold made a {type(effect).__name__}")

    def go_live(self, now_ms: int, *, succession: bool = False) -> None:
        self._live = True

    def succeed(self, word: LastWord | None) -> None:
        """Nothing gathers in an outbox here."""

    def stop(self) -> None:
        self._settle_touched()
        self._live, self._stopped = False, True

    def tick(self, now_ms: int, monotonic_ms: int) -> None:
        self._now_ms = now_ms
        if not self._live:
            return
        for service in self._timers.pop_due(now_ms, len(self._fold.circuits)):
            status, opened = self._fold.circuits[service].timer()
            fired = TimerFired(self._fold.epoch, Timer.CIRCUIT, status, opened)
            record = outputs.event(service, fired, f"@circuit/{service}/{status}/{opened}")
            self._append(self.input.topic, self._partition, [record])

    def next_due_ms(self) -> int:
        return self._timers.next_ms() if self._live else NEVER

    def flush(self, now_ms: int) -> None:
        """Nothing is aggregated here."""

    def cut(self, *, leaving: bool = False, always: bool = False) -> Cut | None:
        offset = self._fold.offset
        if not self._dirty and offset == self._cut_offset and not always:
            return None
        dirty, self._dirty = self._dirty, {}
        self._cut_offset = offset
        marker = outputs.marker_at(offset, self._fold.epoch, self._fold.member, [], leaving=leaving)
        cut = Cut(offset, [], dirty, self._checkpoint, lambda: outputs.marker(marker, self._digest))
        return cut.finish()  # there are few

    def _checkpoint(self, key: str) -> Out:
        if not key.startswith(LEASE_KEY):
            circuit = self._fold.circuits[key]
            return self._written(key, records.TYPE_CIRCUIT, encode(dump_circuit(circuit)), circuit.at_offset)
        lease = self._fold.leases.by_key.get(key)
        if lease is not None:
            return self._written(key, records.TYPE_LEASE, encode(dump_lease(lease)), lease.at_offset)
        self._digest.drop(key)
        return Out(key.encode(), None, outputs.headers(records.TYPE_LEASE, f"{key}@{self._fold.offset}"))

    def _written(self, key: str, ce_type: str, raw: bytes, at_offset: int) -> Out:
        self._digest.put(key, raw)
        return Out(key.encode(), raw, outputs.headers(ce_type, f"{key}@{at_offset}"))
