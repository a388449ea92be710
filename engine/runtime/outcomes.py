"""Call outcomes of one partition, gathered per service until they are sent to the circuits' owner and to the watch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sagalog.engine.kernel.effects import Called
from sagalog.schemas import records
from sagalog.schemas.codec import encode
from sagalog.schemas.definitions import CircuitPolicy
from sagalog.schemas.limits import OUTCOME_CALLS_MAX
from sagalog.topics.log import Out

from .outputs import headers


@dataclass(slots=True)
class _Gathered:
    calls: list[list[int]] = field(default_factory=list)
    agents: dict[str, list[int]] = field(default_factory=dict)
    at_offset: int = -1
    parked: int | None = None


class Outcomes:
    """Exact, although aggregated: every call keeps its offset, so that one sent again after a crash is recognised."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._gathered: dict[str, _Gathered] = {}
        self._policies: dict[str, CircuitPolicy] = {}

    def __bool__(self) -> bool:
        return bool(self._gathered)

    def note(self, call: Called, offset: int, policy: CircuitPolicy | None) -> None:
        gathered = self._of(call.service or records.NO_SERVICE)
        gathered.at_offset = offset
        counts = gathered.agents.setdefault(call.agent, [0, 0])
        counts[0 if call.ok else 1] += 1
        if call.service is not None and policy is not None:
            self._policies[call.service] = policy
            gathered.calls.append([offset, int(not call.service_fault), call.at_ms])

    def parked(self, service: str, count: int, offset: int, policy: CircuitPolicy | None) -> None:
        """So many commands of the service wait here."""
        gathered = self._of(service)
        gathered.parked = count
        gathered.at_offset = max(gathered.at_offset, offset)
        if policy is not None:
            self._policies[service] = policy

    def full(self) -> bool:
        return any(len(gathered.calls) >= OUTCOME_CALLS_MAX for gathered in self._gathered.values())

    def take(self) -> list[tuple[str, Out]]:
        """(service, record) of all that has gathered."""
        taken = []
        for service, gathered in self._gathered.items():
            policy = self._policies.get(service)
            record: records.OutcomeRecord = {
                "service": service,
                "partition": self._partition,
                "at_offset": gathered.at_offset,
                "calls": gathered.calls,
                "agents": gathered.agents,
            }
            if policy is not None:
                record["policy"] = policy.model_dump(mode="json")
            if gathered.parked is not None:
                record["parked"] = gathered.parked
            ce_id = f"{service}/{self._partition}/{gathered.at_offset}"
            taken.append((service, Out(service.encode(), encode(record), headers(records.TYPE_OUTCOME, ce_id))))
        self._gathered.clear()
        return taken

    def _of(self, service: str) -> _Gathered:
        gathered = self._gathered.get(service)
        if gathered is None:
            gathered = self._gathered[service] = _Gathered()
        return gathered
