"""Which commands may go out now. What may not is withheld here, with a reason, and nothing is dropped.

Rules:
- Withholding is not in the log: it only delays. It shows as an annotation beside the checkpoint and in the command itself.
- Open circuit: by the step's policy a command is parked, or refused (which becomes an event and is folded).
- Half open: one command, and only in the partition that was granted the probe.
- After closing, parked commands go out on a ramp, so that a service that just came back is not knocked over.
- What waits goes by its workflow's priority, then by age; nothing waits for ever (`infra.queues`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sagalog.engine.kernel.effects import Dispatch
from sagalog.infra.queues import PriorityQueue
from sagalog.schemas.commands import Withheld
from sagalog.schemas.definitions import WhenOpen
from sagalog.schemas.records import WithheldRecord
from sagalog.schemas.statuses import CircuitStatus

from .limits import IN_FLIGHT_MAX, PARKED_ANNOUNCE_MS, RAMP_FIRST, RAMP_MS


@dataclass(frozen=True, slots=True)
class CircuitView:
    """What a gate knows of a circuit."""

    status: CircuitStatus
    since_ms: int
    probe: int | None = None
    probe_until_ms: int = 0


@dataclass(slots=True)
class _Held:
    effect: Dispatch
    reason: str
    since_ms: int
    queue: PriorityQueue[str]


@dataclass(slots=True)
class _Service:
    """One service, as this partition sees it."""

    view: CircuitView
    queue: PriorityQueue[str] = field(default_factory=PriorityQueue)
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
    """The gate of one partition of `events`."""

    def __init__(self, partition: int, in_flight_max: int = IN_FLIGHT_MAX) -> None:
        self._partition = partition
        self._in_flight_max = in_flight_max
        self._services: dict[str, _Service] = {}
        self._held: dict[str, _Held] = {}
        self._by_workflow: dict[str, set[str]] = {}
        self._agents: dict[str, PriorityQueue[str]] = {}
        """Commands that wait for a place among their agent's."""
        self._in_flight: dict[str, int] = {}
        self._out: dict[str, str] = {}
        """Command id to agent, of commands that are out."""
        self.changed: set[str] = set()
        """Workflows whose annotation changed since the last snapshot."""

    @property
    def held(self) -> int:
        return len(self._held)

    # --- commands

    def admit(self, effect: Dispatch, now_ms: int) -> bool | None:
        """True: send it. False: it is withheld. None: refuse it, its circuit is open and its step does not wait."""
        command = effect.command
        if command.command_id in self._held:
            return False
        if command.service is not None:
            service = self._services.get(command.service)
            if service is not None:
                reason = self._blocked(service)
                if reason is not None:
                    if effect.when_open is not WhenOpen.PARK and reason == "circuit_open":
                        service.wanted = True
                        return None
                    self._hold(effect, reason, now_ms, service.queue)
                    return False
        return self._admit_agent(effect, now_ms)

    def answered(self, command_id: str) -> None:
        """The attempt is over, whether its command went out or was still withheld."""
        agent = self._out.pop(command_id, None)
        if agent is not None:
            self._in_flight[agent] -= 1
        elif (held := self._held.pop(command_id, None)) is not None:
            held.queue.discard(command_id)
            self._forget(command_id)

    def prioritize(self, workflow_id: str, priority: int) -> None:
        """What this workflow has waiting goes by another priority from now on, and keeps its age."""
        for command_id in self._by_workflow.get(workflow_id, ()):
            held = self._held[command_id]
            held.effect.command.priority = priority
            held.queue.move(command_id, priority)

    def release(self, now_ms: int) -> list[Dispatch]:
        """Commands that may go out now, each saying how long it was withheld and why."""
        if not self._held:
            return []
        released: list[Dispatch] = []
        for service in self._services.values():
            self._release_service(service, now_ms, released)
        for agent, queue in self._agents.items():
            while queue and self._in_flight.get(agent, 0) < self._in_flight_max:
                self._take(queue.pop(), now_ms, released)
        return released

    # --- circuits

    def circuit(self, service: str, view: CircuitView, now_ms: int) -> None:
        """The circuit of a service changed."""
        entry = self._services.setdefault(service, _Service(_CLOSED))
        before, entry.view = entry.view, view
        if view.status is CircuitStatus.CLOSED and before.status is not CircuitStatus.CLOSED:
            entry.ramp_size, entry.ramp_next_ms = (RAMP_FIRST, now_ms) if entry.queue else (0, 0)
            entry.wanted = False
        elif view.status is not CircuitStatus.CLOSED:
            entry.ramp_size = 0

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

    # --- annotations

    def withheld(self, workflow_id: str) -> list[WithheldRecord]:
        """Why this workflow's commands wait."""
        records: list[WithheldRecord] = []
        for command_id in sorted(self._by_workflow.get(workflow_id, ())):
            held = self._held[command_id]
            command = held.effect.command
            record: WithheldRecord = {
                "step": command.step,
                "attempt": command.attempt,
                "direction": command.direction.value,
                "reason": held.reason,
                "since_ms": held.since_ms,
            }
            if command.service is not None:
                record["service"] = command.service
            records.append(record)
        return records

    def hold_again(self, effect: Dispatch, record: dict[str, Any]) -> None:
        """After a take-over: what the owner before had withheld, since when it says."""
        command = effect.command
        service = record.get("service")
        if service is not None:
            queue = self._services.setdefault(service, _Service(_CLOSED)).queue
        else:
            queue = self._agents.setdefault(command.agent, PriorityQueue())
        self._hold(effect, record["reason"], record["since_ms"], queue)

    def held_of(self, workflow_id: str) -> list[Dispatch]:
        """This workflow's commands that wait, in a fixed order."""
        return [self._held[command_id].effect for command_id in sorted(self._by_workflow.get(workflow_id, ()))]

    def held_workflows(self) -> list[str]:
        return sorted(self._by_workflow)

    def holds(self, command_id: str) -> bool:
        return command_id in self._held

    def reasons(self) -> dict[tuple[str, str], int]:
        """(reason, service or agent) to the number of commands withheld."""
        counts: dict[tuple[str, str], int] = {}
        for held in self._held.values():
            key = (held.reason, held.effect.command.service or held.effect.command.agent)
            counts[key] = counts.get(key, 0) + 1
        return counts

    # --- inside

    def _blocked(self, service: _Service) -> str | None:
        match service.view.status:
            case CircuitStatus.CLOSED:
                # Whoever comes during the ramp goes to the end of the queue.
                return "ramp" if service.ramp_size or service.queue else None
            case CircuitStatus.OPEN:
                return "circuit_open"
            case CircuitStatus.HALF_OPEN:
                if service.queue or not self._probe_free(service):
                    return "circuit_open"
                service.probe_used = service.view
                return None

    def _probe_free(self, service: _Service) -> bool:
        return service.view.probe == self._partition and service.probe_used != service.view

    def _release_service(self, service: _Service, now_ms: int, released: list[Dispatch]) -> None:
        match service.view.status:
            case CircuitStatus.OPEN:
                return
            case CircuitStatus.HALF_OPEN:
                while service.queue and self._probe_free(service):
                    if self._take(service.queue.pop(), now_ms, released):
                        service.probe_used = service.view
            case CircuitStatus.CLOSED:
                if service.queue and not service.ramp_size:
                    service.ramp_size, service.ramp_next_ms = RAMP_FIRST, now_ms
                while service.queue and now_ms >= service.ramp_next_ms:
                    for _ in range(min(service.ramp_size, len(service.queue))):
                        self._take(service.queue.pop(), now_ms, released)
                    service.ramp_size *= 2
                    service.ramp_next_ms += RAMP_MS
                if not service.queue:
                    service.ramp_size = 0

    def _admit_agent(self, effect: Dispatch, since_ms: int) -> bool:
        agent = effect.command.agent
        out = self._in_flight.get(agent, 0)
        if out >= self._in_flight_max:
            self._hold(effect, "in_flight_limit", since_ms, self._agents.setdefault(agent, PriorityQueue()))
            return False
        self._in_flight[agent] = out + 1
        self._out[effect.command.command_id] = agent
        return True

    def _hold(self, effect: Dispatch, reason: str, since_ms: int, queue: PriorityQueue[str]) -> None:
        command = effect.command
        self._held[command.command_id] = _Held(effect, reason, since_ms, queue)
        self._by_workflow.setdefault(command.workflow_id, set()).add(command.command_id)
        queue.push(command.command_id, command.priority)
        self.changed.add(command.workflow_id)

    def _take(self, command_id: str, now_ms: int, released: list[Dispatch]) -> bool:
        """Lets a command out of a queue; False when it was answered (cancelled, timed out) while it waited."""
        held = self._held.pop(command_id, None)
        if held is None:
            return False
        self._forget(command_id, held.effect.command.workflow_id)
        command = held.effect.command
        command.withheld = Withheld(held.reason, held.since_ms, max(0, now_ms - held.since_ms), command.service)
        if self._admit_agent(held.effect, held.since_ms):
            released.append(held.effect)
        return True

    def _forget(self, command_id: str, workflow_id: str | None = None) -> None:
        workflow_id = workflow_id or command_id.rsplit("/", 3)[0]
        ids = self._by_workflow.get(workflow_id)
        if ids is not None:
            ids.discard(command_id)
            if not ids:
                del self._by_workflow[workflow_id]
        self.changed.add(workflow_id)
