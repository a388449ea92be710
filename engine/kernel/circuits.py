"""The other fold: call outcomes to circuit states, one circuit per external service.

    CLOSED --(too many faults in the window)--> OPEN --(recovery time over)--> HALF_OPEN --(probe ok)--> CLOSED
                                                  ^------------(probe failed)-----------/

Rules:
- Half open grants one probe to one partition at a time; a grant that nobody uses in `recovery_ms` goes to the next candidate.
- Every call comes with its partition and offset; one that was seen already (an engine re-folded) changes nothing.
Source of the pattern: M. Nygard, "Release It!", 2007; the window by ratio and minimum as in resilience4j.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NotRequired

import orjson
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sagalog.schemas.codec import decode_object
from sagalog.schemas.definitions import CircuitPolicy
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import Owned, Timer, TimerFired, parse_event
from sagalog.schemas.limits import WINDOW_CALLS_MAX
from sagalog.schemas.records import NO_SERVICE, TYPE_DEMAND, TYPE_OUTCOME, CircuitRecord
from sagalog.schemas.statuses import CircuitStatus

from .effects import ClaimLost, Effect, Ignored, Moved, OwnerChanged, Quarantine, Reason
from .leases import Leases
from .record import Record
from .state import NEVER

CIRCUIT_MOVES: Final[dict[tuple[CircuitStatus, str], CircuitStatus]] = {
    (CircuitStatus.CLOSED, "too_many_faults"): CircuitStatus.OPEN,
    (CircuitStatus.OPEN, "recovery_time_over"): CircuitStatus.HALF_OPEN,
    (CircuitStatus.HALF_OPEN, "probe_failed"): CircuitStatus.OPEN,
    (CircuitStatus.HALF_OPEN, "probe_succeeded"): CircuitStatus.CLOSED,
}


@dataclass(slots=True)
class Circuit:
    """One service's circuit."""

    service: str
    policy: CircuitPolicy
    status: CircuitStatus = CircuitStatus.CLOSED
    since_ms: int = 0
    now_ms: int = 0
    at_offset: int = -1
    opened: int = 0
    turn: int = 0
    reason: str | None = None
    half_open_at_ms: int = NEVER
    probe: int | None = None
    probe_until_ms: int = NEVER
    candidates: list[int] = field(default_factory=list)
    """Partitions with commands that wait, in the order in which they said so."""
    window: list[list[int]] = field(default_factory=list)
    """[at_ms, 1 ok or 0 fault] of the calls in the window, oldest first."""
    seen: dict[int, int] = field(default_factory=dict)
    """Per partition of `events`, the newest offset whose call is counted."""

    def due_ms(self) -> int:
        return min(self.half_open_at_ms, self.probe_until_ms)

    def timer(self) -> tuple[str, int]:
        """(`step`, `attempt`) of the TimerFired that the circuit waits for: its status, and the turn of its timer."""
        return self.status.value, self.turn


class _Outcome(TypedDict):
    service: str
    partition: int
    at_offset: int
    calls: list[tuple[int, int, int]]
    policy: NotRequired[CircuitPolicy]
    agents: NotRequired[dict[str, tuple[int, int]]]
    parked: NotRequired[int]


_OUTCOME: Final = TypeAdapter(_Outcome)


class CircuitPartition:
    """The fold's state of one partition of the outcomes topic: the circuits of its services, and leases of limits."""

    def __init__(self) -> None:
        self.offset = -1
        self.epoch = 0
        self.member = ""
        self.circuits: dict[str, Circuit] = {}
        self.leases = Leases()
        self.touched: dict[str, None] = {}

    def apply(self, record: Record, effects: list[Effect]) -> None:
        """Folds one record; never raises on one."""
        assert record.offset > self.offset
        self.offset = record.offset
        try:
            if record.ce_type == TYPE_OUTCOME.encode():
                self._outcome(_parse(record.value), record, effects)
                return
            if record.ce_type == TYPE_DEMAND.encode():
                self.touched.update(dict.fromkeys(self.leases.demand(record, effects)))
                return
            event = parse_event(record.ce_type, record.value)
        except InvalidRecord as error:
            effects.append(Quarantine(None, str(error), "decode"))
            return
        match event:
            case Owned(epoch=epoch, member=member) if epoch > self.epoch:
                self.epoch, self.member = epoch, member
                effects.append(OwnerChanged(epoch, member))
            case Owned(epoch=epoch, member=member):
                effects.append(ClaimLost(epoch, member))
            case TimerFired(epoch=epoch) if epoch != self.epoch:
                effects.append(Ignored(Reason.OLD_EPOCH, "TimerFired"))
            case TimerFired(timer=Timer.CIRCUIT):
                self._timer(event, record, effects)
            case _:
                effects.append(Ignored(Reason.NOT_WAITED_FOR, type(event).__name__))

    # --- events

    def _outcome(self, outcome: _Outcome, record: Record, effects: list[Effect]) -> None:
        if outcome["service"] == NO_SERVICE:
            effects.append(Ignored(Reason.NO_CIRCUIT, "Outcome"))
            return
        policy = outcome.get("policy") or CircuitPolicy()
        circuit = self.circuits.get(outcome["service"])
        if circuit is None:
            circuit = Circuit(outcome["service"], policy, since_ms=record.time_ms)
            self.circuits[circuit.service] = circuit
        circuit.now_ms = max(circuit.now_ms, record.time_ms)
        circuit.policy = policy
        circuit.at_offset = record.offset
        self.touched[circuit.service] = None
        partition = outcome["partition"]
        self._note_parked(circuit, partition, outcome.get("parked"))
        seen = circuit.seen.get(partition, -1)
        for offset, ok, at_ms in outcome["calls"]:
            if offset <= seen:
                continue
            circuit.seen[partition] = seen = offset
            self._call(circuit, partition, bool(ok), at_ms, effects)

    def _timer(self, event: TimerFired, record: Record, effects: list[Effect]) -> None:
        # It must speak of the state that the circuit is in, and be due by the broker's clock: an owner whose clock is ahead
        # would otherwise take every probe back before it can be answered.
        service = (record.key or b"").decode(errors="replace")
        circuit = self.circuits.get(service)
        if circuit is None or circuit.due_ms() == NEVER or (event.step, event.attempt) != circuit.timer():
            effects.append(Ignored(Reason.NOT_WAITED_FOR, "TimerFired"))
            return
        if max(circuit.now_ms, record.time_ms) < circuit.due_ms():
            effects.append(Ignored(Reason.NOT_DUE, "TimerFired"))
            return
        circuit.now_ms = max(circuit.now_ms, record.time_ms)
        circuit.at_offset = record.offset
        self.touched[service] = None
        if circuit.status is CircuitStatus.OPEN:
            _move(circuit, "recovery_time_over", effects)
            circuit.half_open_at_ms = NEVER
        elif circuit.probe is not None:
            # Whoever had the probe did not use it, or its answer is overdue: it goes to the end of the row.
            circuit.candidates = [c for c in circuit.candidates if c != circuit.probe] + [circuit.probe]
            circuit.probe = None
        _grant(circuit)

    # --- the circuit

    def _call(self, circuit: Circuit, partition: int, ok: bool, at_ms: int, effects: list[Effect]) -> None:
        match circuit.status:
            case CircuitStatus.CLOSED:
                circuit.window.append([at_ms, int(ok)])
                _trim(circuit)
                faults = sum(1 for _, was_ok in circuit.window if not was_ok)
                calls = len(circuit.window)
                # Divided, not multiplied: 55 of 100 is 0.55, but 0.55 * 100 is more than 55.
                if not ok and calls >= circuit.policy.calls_min and faults / calls >= circuit.policy.failure_ratio:
                    circuit.reason = f"{faults} of the last {calls} calls failed"
                    _open(circuit, "too_many_faults", effects)
            case CircuitStatus.HALF_OPEN:
                # Calls that were out when it opened may still end; only the probe's partition is asked now.
                if partition == circuit.probe:
                    if ok:
                        _move(circuit, "probe_succeeded", effects)
                        circuit.window = []
                        circuit.reason = None
                        circuit.probe = None
                        circuit.probe_until_ms = NEVER
                        circuit.candidates = []
                    else:
                        circuit.reason = "the probe failed"
                        _open(circuit, "probe_failed", effects)
            case CircuitStatus.OPEN:
                pass  # the end of a call that was out when it opened says nothing new

    def _note_parked(self, circuit: Circuit, partition: int, parked: int | None) -> None:
        if parked is None:
            return
        if parked > 0 and partition not in circuit.candidates:
            circuit.candidates.append(partition)
        elif parked == 0 and partition in circuit.candidates:
            circuit.candidates.remove(partition)
        if circuit.status is CircuitStatus.HALF_OPEN and circuit.probe is None:
            _grant(circuit)


def _open(circuit: Circuit, trigger: str, effects: list[Effect]) -> None:
    _move(circuit, trigger, effects)
    circuit.opened += 1
    circuit.turn += 1
    circuit.half_open_at_ms = circuit.now_ms + circuit.policy.recovery_ms
    circuit.probe = None
    circuit.probe_until_ms = NEVER


def _grant(circuit: Circuit) -> None:
    circuit.turn += 1
    if circuit.candidates:
        circuit.probe = circuit.candidates[0]
        circuit.probe_until_ms = circuit.now_ms + circuit.policy.recovery_ms
    else:
        circuit.probe_until_ms = NEVER


def _move(circuit: Circuit, trigger: str, effects: list[Effect]) -> None:
    before = circuit.status
    circuit.status = CIRCUIT_MOVES[before, trigger]
    circuit.since_ms = circuit.now_ms
    effects.append(Moved(f"@circuit/{circuit.service}", before, circuit.status, trigger))


def _trim(circuit: Circuit) -> None:
    horizon = circuit.now_ms - circuit.policy.window_ms
    # Partitions report at different times, so an old call may stand behind a newer one.
    circuit.window = [call for call in circuit.window if call[0] >= horizon][-WINDOW_CALLS_MAX:]


def _parse(value: bytes | None) -> _Outcome:
    try:
        return _OUTCOME.validate_python(decode_object(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidRecord(".".join(map(str, first["loc"])) or "value", first["msg"]) from None


def dump_circuit(circuit: Circuit) -> CircuitRecord:
    """The record in `circuits`."""
    record: dict[str, Any] = {
        "v": 1,
        "service": circuit.service,
        "status": circuit.status,
        "since_ms": circuit.since_ms,
        "now_ms": circuit.now_ms,
        "at_offset": circuit.at_offset,
        "opened": circuit.opened,
        "turn": circuit.turn,
        "candidates": circuit.candidates,
        "window": circuit.window,
        "seen": {str(partition): offset for partition, offset in circuit.seen.items()},
        "policy": circuit.policy.model_dump(mode="json"),
    }
    if circuit.reason is not None:
        record["reason"] = circuit.reason
    if circuit.half_open_at_ms != NEVER:
        record["half_open_at_ms"] = circuit.half_open_at_ms
    if circuit.probe is not None:
        record["probe"] = circuit.probe
    if circuit.probe_until_ms != NEVER:
        record["probe_until_ms"] = circuit.probe_until_ms
    return record  # type: ignore[return-value]


def restore_circuit(raw: bytes) -> Circuit:
    """The circuit in a record of `circuits`."""
    record = orjson.loads(raw)
    return Circuit(
        service=record["service"],
        policy=CircuitPolicy.model_validate(record["policy"]),
        status=CircuitStatus(record["status"]),
        since_ms=record["since_ms"],
        now_ms=record["now_ms"],
        at_offset=record["at_offset"],
        opened=record["opened"],
        turn=record["turn"],
        reason=record.get("reason"),
        half_open_at_ms=record.get("half_open_at_ms", NEVER),
        probe=record.get("probe"),
        probe_until_ms=record.get("probe_until_ms", NEVER),
        candidates=record["candidates"],
        window=record["window"],
        seen={int(partition): offset for partition, offset in record["seen"].items()},
    )
