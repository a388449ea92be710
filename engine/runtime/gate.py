"""Which commands may go out now. What may not is withheld here, with a reason, and nothing is dropped.

Rules:
- Withholding is not in the log: it only delays. It shows as an annotation beside the checkpoint and in the command itself.
- Open circuit: by the step's policy a command is parked, or refused (which becomes an event and is folded).
- Half open: one command, and only in the partition that was granted the probe.
- After closing, parked commands go out on a ramp, so that a service that just came back is not knocked over.
- What waits goes by turns among tenants, then by its workflow's priority, then by age; nothing waits for ever (`infra.queues`).
- A command waits in one queue at a time: of its service's circuit, of a limit's key, of its agent. So what waits for one key
  holds up no other. It takes places of limits in a fixed order and keeps those it has, so no two commands wait for each other;
  tokens and the agent's place are taken together, at the end, so that no tokens are saved up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Final

from sagalog.engine.kernel.effects import Dispatch
from sagalog.infra.queues import FairQueue
from sagalog.schemas.commands import Withheld
from sagalog.schemas.definitions import WhenOpen
from sagalog.schemas.records import DemandRecord, LeaseRecord, WithheldRecord
from sagalog.schemas.statuses import CircuitStatus

from .buckets import CONCURRENCY, NEVER_MS, NO_CLAIMS, RATE, Bucket, Claim, Claims
from .limits import (
    BUCKET_SWEEP_MS,
    BUCKETS_MAX,
    IN_FLIGHT_MAX,
    LEASE_IDLE_MS,
    PARKED_ANNOUNCE_MS,
    RAMP_FIRST,
    RAMP_MS,
)

CIRCUIT_OPEN: Final = "circuit_open"
RAMP: Final = "ramp"
CONCURRENCY_LIMIT: Final = "concurrency_limit"
RATE_LIMIT: Final = "rate_limit"
KEYS_FULL: Final = "limit_keys_full"
IN_FLIGHT_LIMIT: Final = "in_flight_limit"


@dataclass(frozen=True, slots=True)
class CircuitView:
    """What a gate knows of a circuit."""

    status: CircuitStatus
    since_ms: int
    probe: int | None = None
    probe_until_ms: int = 0


@dataclass(slots=True)
class _Waiting:
    """A command on its way through the gate."""

    effect: Dispatch
    claims: Claims
    since_ms: int
    number: int
    """The lower came first."""
    reason: str = ""
    claim: Claim | None = None
    """Of the limit that holds it."""
    queue: FairQueue[str] | None = None
    taken: int = 0
    """So many of the places that it needs are taken already."""
    passed: CircuitView | None = None
    """The circuit's state in which it was let through."""


@dataclass(slots=True)
class _Service:
    """One service, as this partition sees it."""

    view: CircuitView
    queue: FairQueue[str]
    probe_used: CircuitView | None = None
    """The grant that was used already."""
    ramp_next_ms: int = 0
    ramp_size: int = 0
    """0: no ramp."""
    wanted: bool = False
    """A command that does not wait was refused: this partition would use a probe."""
    announced_ms: int = 0
    announced: int = -1


_CLOSED = CircuitView(CircuitStatus.CLOSED, 0)


class Gate:
    """The gate of one partition of `events`. `leases` is read, not changed: the newest of the fleet, by bucket."""

    def __init__(
        self,
        partition: int,
        in_flight_max: int = IN_FLIGHT_MAX,
        *,
        partitions: int = 1,
        leases: Mapping[str, LeaseRecord] | None = None,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        self._partition = partition
        self._partitions = partitions
        self._in_flight_max = in_flight_max
        self._weights = weights or {}
        self._services: dict[str, _Service] = {}
        self._held: dict[str, _Waiting] = {}
        self._by_workflow: dict[str, set[str]] = {}
        self._agents: dict[str, FairQueue[str]] = {}
        """Commands that wait for a place among their agent's."""
        self._in_flight: dict[str, int] = {}
        self._out: dict[str, str] = {}
        """Command id to agent, of commands that are out; empty where it is not known."""
        self._limited: dict[str, dict[str, tuple[str, ...]]] = {}
        """Workflow to those of them that have places of limits: command id to buckets."""
        self._number = 0
        self._buckets: dict[str, Bucket] = {}
        self._keys_full = self._new_queue()
        """Commands with a key that is one too many."""
        self._freed: dict[str, None] = {}
        """Buckets in which there may be room for what waits."""
        self._due: list[tuple[int, str]] = []
        """A heap of (when there is a token, bucket) of rates for which something waits."""
        self._scheduled: dict[str, int] = {}
        """Bucket to its entry in the heap that counts."""
        self._leases = leases if leases is not None else {}
        self._epoch = 0
        """The owner's; 0 before it is live."""
        self._said = 0
        self._begun_ms = 0
        self._monotonic_ms = 0
        self._swept_ms = 0
        self._refused: list[Dispatch] = []
        self._reasons: dict[str, int] = {}
        self.changed: set[str] = set()
        """Workflows whose annotation changed since the last snapshot."""

    @property
    def held(self) -> int:
        return len(self._held)

    def begin(self, epoch: int, monotonic_ms: int) -> None:
        """The owner is live."""
        self._epoch = epoch
        self._begun_ms = self._monotonic_ms = monotonic_ms
        for bucket in self._buckets.values():
            bucket.filled_ms, bucket.tokens = monotonic_ms, 0.0
        for name, record in self._leases.items():
            if str(self._partition) in record["parts"]:
                self._inherit(name, record)
        for name in self._buckets:
            self.leased(name)

    def time(self, monotonic_ms: int) -> None:
        """Rates and ramps go by the monotonic clock."""
        self._monotonic_ms = monotonic_ms

    # --- commands

    def admit(self, effect: Dispatch, now_ms: int, claims: Claims = NO_CLAIMS) -> bool | None:
        """True: send it. False: it is withheld. None: refuse it, its circuit is open and its step does not wait."""
        command_id = effect.command.command_id
        if command_id in self._held:
            return False
        if command_id in self._out:
            return True  # it is sent again, and has its place
        command = effect.command
        free = command.service is None and not claims.places and not claims.tokens
        if free and self._has_place(command.agent):
            self._go_out(command_id, command.workflow_id, command.agent, claims)  # as most do
            return True
        self._number += 1
        waiting = _Waiting(effect, claims, now_ms, self._number)
        if self._pass(waiting, None):
            return True
        if waiting.reason == CIRCUIT_OPEN and effect.when_open is not WhenOpen.PARK:
            self._want_probe(waiting)
            return None
        self._hold(waiting)
        return False

    def sent(self, effect: Dispatch, claims: Claims = NO_CLAIMS) -> None:
        """The owner before has sent it: it counts, whether there is room or not."""
        command = effect.command
        if command.command_id not in self._out:
            for claim in claims.places:
                self._bucket_of(claim).out += 1
            self._go_out(command.command_id, command.workflow_id, command.agent, claims)

    def answered(self, command_id: str) -> None:
        """The attempt is over, whether its command went out or was still withheld."""
        self.over(command_id)
        if (waiting := self._held.pop(command_id, None)) is not None:
            assert waiting.queue is not None
            waiting.queue.discard(command_id)
            self._give_back(waiting)
            self._forget(waiting)

    def over(self, command_id: str) -> None:
        """The command is out no more, or was not: whatever becomes of it is no reason for others to wait."""
        agent = self._out.pop(command_id, None)
        if agent is None:
            return
        if agent:
            self._in_flight[agent] -= 1
        if self._limited:
            workflow_id = command_id.rsplit("/", 3)[0]
            limited = self._limited.get(workflow_id, {})
            for name in limited.pop(command_id, ()):
                self._free(name)
                self.changed.add(workflow_id)
            if not limited:
                self._limited.pop(workflow_id, None)

    def prioritize(self, workflow_id: str, priority: int) -> None:
        """What this workflow has waiting goes by another priority from now on, and keeps its age."""
        for command_id in self._by_workflow.get(workflow_id, ()):
            waiting = self._held[command_id]
            waiting.effect.command.priority = priority
            assert waiting.queue is not None
            waiting.queue.move(command_id, priority)

    def release(self, now_ms: int) -> list[Dispatch]:
        """Commands that may go out now, each saying how long it was withheld and why."""
        if not self._held:
            return []
        released: list[Dispatch] = []
        for service in self._services.values():
            self._release_service(service, now_ms, released)
        while self._keys_full and len(self._buckets) < BUCKETS_MAX:
            self._take(self._keys_full, now_ms, released)
        while self._freed:
            name, _ = self._freed.popitem()
            bucket = self._buckets.get(name)
            while bucket is not None and bucket.queue and bucket.room > 0:
                self._take(bucket.queue, now_ms, released)
        self._release_rates(now_ms, released)
        for agent, queue in self._agents.items():
            while queue and self._in_flight.get(agent, 0) < self._in_flight_max:
                self._take(queue, now_ms, released)
        return released

    def take_refused(self) -> list[Dispatch]:
        """Commands that waited for something else when their circuit opened, and whose steps do not wait for it."""
        refused, self._refused = self._refused, []
        return refused

    def next_due_ms(self) -> int:
        """When, by the monotonic clock, a token is there for something that waits."""
        return self._due[0][0] if self._due and self._held else NEVER_MS

    # --- circuits

    def circuit(self, service: str, view: CircuitView) -> None:
        """The circuit of a service changed."""
        entry = self._service(service)
        before, entry.view = entry.view, view
        if view.status is not before.status:
            entry.ramp_size = 0  # a ramp begins with the first release after a circuit has closed
            entry.wanted = entry.wanted and view.status is not CircuitStatus.CLOSED

    def announcements(self, now_ms: int) -> list[tuple[str, int]]:
        """(service, commands waiting) to tell the circuits' owner: on change, and again while it lasts."""
        told: list[tuple[str, int]] = []
        for name, service in self._services.items():
            if service.view.status is CircuitStatus.CLOSED:
                service.announced = -1
                continue
            waiting = len(service.queue) or int(service.wanted)
            fresh = (waiting > 0) != (service.announced > 0)
            if fresh or (waiting and now_ms - service.announced_ms >= PARKED_ANNOUNCE_MS):
                service.announced, service.announced_ms = waiting, now_ms
                told.append((name, waiting))
        return told

    # --- leases

    def leased(self, name: str) -> None:
        """The lease of a bucket changed."""
        record = self._leases.get(name)
        bucket = self._buckets.get(name)
        if bucket is None:
            if record is None or not self._epoch or str(self._partition) not in record["parts"]:
                return
            bucket = self._inherit(name, record)
        bucket.read(record, self._partition, self._epoch, self._monotonic_ms)
        self._wake(name, bucket)

    def demands(self) -> list[DemandRecord]:
        """What to tell the leases' owner; and what is idle is dropped."""
        now_ms = self._monotonic_ms
        crowded = len(self._buckets) > BUCKETS_MAX // 2
        found = []
        for bucket in self._buckets.values():
            if not bucket.has_business:
                continue
            said = bucket.word(now_ms, 0 if crowded else LEASE_IDLE_MS)
            if said is not None:
                self._said += 1
                found.append(bucket.say(said, self._partition, self._epoch, self._said, now_ms))
        if now_ms - self._swept_ms >= BUCKET_SWEEP_MS:
            self._swept_ms = now_ms
            for name in [name for name, bucket in self._buckets.items() if bucket.idle(now_ms)]:
                del self._buckets[name]
        return found

    # --- annotations

    def withheld(self, workflow_id: str) -> list[WithheldRecord]:
        """Why this workflow's commands wait."""
        records: list[WithheldRecord] = []
        for command_id in sorted(self._by_workflow.get(workflow_id, ())):
            waiting = self._held[command_id]
            command = waiting.effect.command
            record: WithheldRecord = {
                "step": command.step,
                "attempt": command.attempt,
                "direction": command.direction.value,
                "reason": waiting.reason,
                "since_ms": waiting.since_ms,
            }
            if command.service is not None:
                record["service"] = command.service
            if waiting.claim is not None:
                record["limit"], record["key"] = waiting.claim.limit, waiting.claim.key
            records.append(record)
        return records

    def hold_again(self, effect: Dispatch, record: Mapping[str, Any], claims: Claims = NO_CLAIMS) -> None:
        """After a take-over: what the owner before had withheld, since when it says. To be called for the oldest first."""
        self._number += 1
        waiting = _Waiting(effect, claims, record["since_ms"], self._number, record["reason"])
        limit, key = record.get("limit"), record.get("key")
        wanted = RATE if waiting.reason == RATE_LIMIT else CONCURRENCY
        for claim in (*claims.places, *claims.tokens):
            if (claim.kind, claim.limit, claim.key) == (wanted, limit, key):
                waiting.claim, waiting.queue = claim, self._bucket_of(claim).queue
        command = effect.command
        if waiting.queue is None:
            parked = command.service is not None and waiting.reason in (CIRCUIT_OPEN, RAMP)
            waiting.queue = self._service(command.service or "").queue if parked else self._agent(command.agent)
        self._hold(waiting)
        if waiting.claim is not None:
            self._wake(waiting.claim.bucket, self._buckets[waiting.claim.bucket])

    def counted(self, workflow_id: str) -> dict[str, list[Any]]:
        """What of this workflow is out and has places of limits, for whoever takes over: bucket to [limit's amount, commands]."""
        found: dict[str, list[Any]] = {}
        for command_id, places in self._limited.get(workflow_id, {}).items():
            for name in places:
                entry = found.setdefault(name, [self._buckets[name].claim.amount, []])
                entry[1].append(command_id[len(workflow_id) + 1 :])
        return found

    def count_again(self, workflow_id: str, counted: Mapping[str, Iterable[Any]]) -> None:
        """After a take-over: what `counted` said. It may be out at its agent still, so it has its places until it is answered."""
        places: dict[str, list[str]] = {}
        for name, (amount, commands) in counted.items():
            bucket = self._bucket_of(_claim_of(name, amount))
            for command in commands:
                bucket.out += 1
                places.setdefault(f"{workflow_id}/{command}", []).append(name)
        for command_id, names in places.items():
            # Which agent has it is not known: it has no place among its agent's.
            self._out[command_id] = ""
            self._limited.setdefault(workflow_id, {})[command_id] = tuple(names)

    def held_of(self, workflow_id: str) -> list[Dispatch]:
        """This workflow's commands that wait, in a fixed order."""
        return [self._held[command_id].effect for command_id in sorted(self._by_workflow.get(workflow_id, ()))]

    def held_workflows(self) -> list[str]:
        return sorted(self._by_workflow)

    def limit_of(self, command_id: str) -> str | None:
        """The limit that a command waits for; None when it waits for something else."""
        claim = self._held[command_id].claim
        return claim.limit if claim is not None else None

    def holds(self, command_id: str) -> bool:
        return command_id in self._held

    def reasons(self) -> Mapping[str, int]:
        """Reason to the number of commands withheld, of every reason that there has been."""
        return self._reasons

    # --- inside: the way of a command

    def _pass(self, waiting: _Waiting, popped: FairQueue[str] | None) -> bool:
        """Whether it may go out, and then it is out. If not, `waiting` says where it is to wait and why.

        `popped`: the queue in which its turn has come; None for a new one, which overtakes nobody.
        """
        command = waiting.effect.command
        if command.service is not None and not self._pass_circuit(waiting, popped):
            return False
        claims = waiting.claims
        while waiting.taken < len(claims.places):
            claim = claims.places[waiting.taken]
            bucket = self._bucket(claim)
            if bucket is None:
                return _stop(waiting, KEYS_FULL, self._keys_full, claim)
            if (bucket.queue and bucket.queue is not popped) or bucket.room <= 0:
                return _stop(waiting, CONCURRENCY_LIMIT, bucket.queue, claim)
            bucket.out += 1
            waiting.taken += 1
        queue = self._agents.get(command.agent)
        if self._in_flight.get(command.agent, 0) >= self._in_flight_max or (queue and popped is None):
            return _stop(waiting, IN_FLIGHT_LIMIT, self._agent(command.agent), None)
        if claims.tokens and not self._take_tokens(waiting, claims.tokens, popped):
            return False
        self._go_out(command.command_id, command.workflow_id, command.agent, claims)
        return True

    def _has_place(self, agent: str) -> bool:
        """Whether a new command may go to this agent, and overtakes nobody."""
        return self._in_flight.get(agent, 0) < self._in_flight_max and not self._agents.get(agent)

    def _pass_circuit(self, waiting: _Waiting, popped: FairQueue[str] | None) -> bool:
        service = self._services.get(waiting.effect.command.service or "")
        if service is None:
            return True
        # While it waited for something else, the circuit may have opened.
        if popped is not service.queue and waiting.passed != service.view:
            reason = self._blocked(service)
            if reason is not None:
                self._give_back(waiting)
                return _stop(waiting, reason, service.queue, None)
        waiting.passed = service.view
        return True

    def _take_tokens(self, waiting: _Waiting, claims: tuple[Claim, ...], popped: FairQueue[str] | None) -> bool:
        """All of them, or none."""
        buckets = []
        for claim in claims:
            bucket = self._bucket(claim)
            if bucket is None:
                return _stop(waiting, KEYS_FULL, self._keys_full, claim)
            if bucket.fill(self._monotonic_ms) < 1 or (bucket.queue and popped is None):
                return _stop(waiting, RATE_LIMIT, bucket.queue, claim)
            buckets.append(bucket)
        for bucket in buckets:
            bucket.tokens -= 1
            bucket.lease.used = True
        return True

    def _go_out(self, command_id: str, workflow_id: str, agent: str, claims: Claims) -> None:
        self._in_flight[agent] = self._in_flight.get(agent, 0) + 1
        self._out[command_id] = agent
        if claims.places:
            self._limited.setdefault(workflow_id, {})[command_id] = tuple(claim.bucket for claim in claims.places)

    def _give_back(self, waiting: _Waiting) -> None:
        """The places that it has taken so far."""
        for claim in waiting.claims.places[: waiting.taken]:
            self._free(claim.bucket)
        waiting.taken = 0

    def _free(self, name: str) -> None:
        self._buckets[name].out -= 1
        self._freed[name] = None

    def _hold(self, waiting: _Waiting) -> None:
        """Where `waiting` says."""
        command = waiting.effect.command
        if command.command_id not in self._held:
            self._held[command.command_id] = waiting
            self._by_workflow.setdefault(command.workflow_id, set()).add(command.command_id)
        self._reasons[waiting.reason] = self._reasons.get(waiting.reason, 0) + 1
        assert waiting.queue is not None
        waiting.queue.push(command.command_id, command.priority, waiting.claims.tenant, waiting.number)
        self.changed.add(command.workflow_id)
        if waiting.reason == RATE_LIMIT and waiting.claim is not None:
            self._wake(waiting.claim.bucket, self._buckets[waiting.claim.bucket])

    def _take(self, queue: FairQueue[str], now_ms: int, released: list[Dispatch]) -> None:
        """The next of a queue: lets it out, or puts it where it has to wait now."""
        waiting = self._held[queue.pop()]
        reason, claim = waiting.reason, waiting.claim
        self._reasons[reason] -= 1
        if self._pass(waiting, queue):
            command = waiting.effect.command
            del self._held[command.command_id]
            self._forget_annotation(command.command_id, command.workflow_id)
            command.withheld = Withheld(
                reason,
                waiting.since_ms,
                max(0, now_ms - waiting.since_ms),
                command.service,
                claim.limit if claim is not None else None,
                claim.key if claim is not None else None,
            )
            released.append(waiting.effect)
        elif waiting.reason == CIRCUIT_OPEN and waiting.effect.when_open is not WhenOpen.PARK:
            self._want_probe(waiting)
            command = waiting.effect.command
            del self._held[command.command_id]
            self._forget_annotation(command.command_id, command.workflow_id)
            self._refused.append(waiting.effect)
        else:
            self._hold(waiting)

    def _want_probe(self, waiting: _Waiting) -> None:
        self._service(waiting.effect.command.service or "").wanted = True

    def _forget(self, waiting: _Waiting) -> None:
        """It waits no more."""
        self._reasons[waiting.reason] -= 1
        command = waiting.effect.command
        self._forget_annotation(command.command_id, command.workflow_id)

    def _forget_annotation(self, command_id: str, workflow_id: str) -> None:
        ids = self._by_workflow.get(workflow_id)
        if ids is not None:
            ids.discard(command_id)
            if not ids:
                del self._by_workflow[workflow_id]
        self.changed.add(workflow_id)

    # --- inside: circuits

    def _blocked(self, service: _Service) -> str | None:
        match service.view.status:
            case CircuitStatus.CLOSED:
                # Whoever comes during the ramp goes to the end of the queue.
                return RAMP if service.ramp_size or service.queue else None
            case CircuitStatus.OPEN:
                return CIRCUIT_OPEN
            case CircuitStatus.HALF_OPEN:
                if service.queue or not self._probe_free(service):
                    return CIRCUIT_OPEN
                service.probe_used = service.view
                return None

    def _probe_free(self, service: _Service) -> bool:
        return service.view.probe == self._partition and service.probe_used != service.view

    def _release_service(self, service: _Service, now_ms: int, released: list[Dispatch]) -> None:
        match service.view.status:
            case CircuitStatus.OPEN:
                return
            case CircuitStatus.HALF_OPEN:
                if service.queue and self._probe_free(service):
                    service.probe_used = service.view
                    self._take(service.queue, now_ms, released)
            case CircuitStatus.CLOSED:
                if service.queue and not service.ramp_size:
                    service.ramp_size, service.ramp_next_ms = RAMP_FIRST, self._monotonic_ms
                # Step by step even for an owner that was late: no two at once, or there was no ramp.
                if service.queue and self._monotonic_ms >= service.ramp_next_ms:
                    for _ in range(min(service.ramp_size, len(service.queue))):
                        self._take(service.queue, now_ms, released)
                    service.ramp_size *= 2
                    service.ramp_next_ms = self._monotonic_ms + RAMP_MS
                if not service.queue:
                    service.ramp_size = 0

    # --- inside: queues and buckets

    def _release_rates(self, now_ms: int, released: list[Dispatch]) -> None:
        while self._due and self._due[0][0] <= self._monotonic_ms:
            due_ms, name = heappop(self._due)
            if self._scheduled.get(name) != due_ms:
                continue
            del self._scheduled[name]
            bucket = self._buckets.get(name)
            if bucket is None:
                continue
            # No more than there are tokens: those that then wait for their agent have taken none.
            for _ in range(min(int(bucket.fill(self._monotonic_ms)), len(bucket.queue))):
                self._take(bucket.queue, now_ms, released)
            self._wake(name, bucket)

    def _wake(self, name: str, bucket: Bucket) -> None:
        """What waits for the bucket is looked at again once it can go on."""
        if bucket.claim.kind == CONCURRENCY:
            self._freed[name] = None
        elif bucket.queue:
            bucket.fill(self._monotonic_ms)
            due_ms = max(bucket.next_token_ms(), self._monotonic_ms + 1)
            if due_ms < self._scheduled.get(name, NEVER_MS):
                self._scheduled[name] = due_ms
                heappush(self._due, (due_ms, name))

    def _bucket(self, claim: Claim) -> Bucket | None:
        """None: there are too many."""
        if claim.bucket not in self._buckets and len(self._buckets) >= BUCKETS_MAX:
            return None
        return self._bucket_of(claim)

    def _bucket_of(self, claim: Claim) -> Bucket:
        name = claim.bucket
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(claim, self._partitions, self._new_queue(), filled_ms=self._begun_ms)
            bucket.read(self._leases.get(name), self._partition, self._epoch, self._monotonic_ms)
        elif bucket.claim != claim:
            bucket.adopt(claim, self._monotonic_ms)
            self._wake(name, bucket)
        return bucket

    def _inherit(self, name: str, record: LeaseRecord) -> Bucket:
        """This partition holds, or needs, something of a limit that no command of this owner has named yet."""
        return self._bucket_of(_claim_of(name, record["pool"])) if name not in self._buckets else self._buckets[name]

    def _new_queue(self) -> FairQueue[str]:
        return FairQueue(self._weights)

    def _agent(self, agent: str) -> FairQueue[str]:
        return self._agents.setdefault(agent, self._new_queue())

    def _service(self, service: str) -> _Service:
        found = self._services.get(service)
        if found is None:
            found = self._services[service] = _Service(_CLOSED, self._new_queue())
        return found


def _stop(waiting: _Waiting, reason: str, queue: FairQueue[str], claim: Claim | None) -> bool:
    waiting.reason, waiting.queue, waiting.claim = reason, queue, claim
    return False


def _claim_of(bucket: str, amount: int) -> Claim:
    """As far as a bucket's name tells; the next command says the rest."""
    kind, scope, limit, key = bucket.split("/", 3)
    return Claim(kind, scope, limit, key, amount)
