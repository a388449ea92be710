"""What a service notices that was down, and what a workflow notices of engines that are restarted on purpose.

Rules:
- Each owner has a ramp of its own per service: a ramp goes by what that owner knows of the circuit.
- Services whose steps have limits are left out: what the ramp lets go may then wait for something else, and is not seen.
- Times are the simulation's own. The clocks of its machines run up to 30 % too fast.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from sagalog.engine.runtime.gate import CIRCUIT_OPEN, RAMP
from sagalog.engine.runtime.limits import RAMP_FIRST, RAMP_MS
from sagalog.infra.simulation import EPOCH_MS

from .limited import DRIFT
from .plan import Kind

if TYPE_CHECKING:
    from .checkers import Evidence

STEP_S: Final = (RAMP_MS - 1) / 1000 / DRIFT
NOTICED_S: Final = 0.3
"""The longest that a workflow may wait while engines are restarted one after the other."""
SETTLED_MS: Final = 5_000
"""By then every engine that was started at the beginning is ready."""


@dataclass(slots=True)
class _Step:
    """What a ramp may let go next."""

    size: int = RAMP_FIRST
    from_s: float = 0.0


def parked_commands_go_out_on_a_ramp(evidence: Evidence) -> list[str]:
    """A circuit that closes lets go few at first, and twice as many a step later: a service that is back is not knocked over."""
    limited = {step.service for definition in evidence.definitions.values() for step in definition.steps if step.limits}
    ways: dict[tuple[str, int, str], list[float]] = {}
    for sent in evidence.sent:
        if sent.withheld is not None and ".commands." in sent.topic:
            reason, service = sent.withheld
            if reason in (CIRCUIT_OPEN, RAMP) and service not in limited:
                ways.setdefault((sent.process, sent.partition, service), []).append(sent.at_s)
    problems = []
    for (process, partition, service), times in ways.items():
        step = _Step()
        for at_s, together in groupby(times):
            count = len(list(together))
            if at_s < step.from_s:
                step = _Step()
            if count > step.size:
                problems.append(
                    f"{process} let {count} commands for {service} out of partition {partition} at {at_s:.3f} s, "
                    f"where {step.size} may go"
                )
            # One that did not use all it may has left nothing, and so was the last of its ramp.
            step = _Step(2 * step.size, at_s + STEP_S) if count >= step.size else _Step()
    return problems


def a_rolling_restart_is_not_noticed(evidence: Evidence) -> list[str]:
    """Where nothing else goes wrong nothing is sent twice, and with another engine to go on nothing waits for long."""
    plan = evidence.plan
    if plan.log_faults or {fault.kind for fault in plan.faults} != {Kind.ROLL}:
        return []
    commands = [sent for sent in evidence.sent if ".commands." in sent.topic]
    times = Counter(sent.ce_id for sent in commands)
    problems = [f"{command_id} was sent {count} times" for command_id, count in times.items() if count > 1]
    roll = plan.faults[0]
    if plan.engines == 1 or len(plan.faults) > 1 or roll.amount or roll.at_ms < SETTLED_MS:
        return problems
    for partition, refold in enumerate(evidence.refolds):
        at_s = {
            message.offset: (message.timestamp - EPOCH_MS) / 1000
            for message in evidence.kafka.records(evidence.topics.events, partition)
        }
        for sent in commands:
            asked_at = refold.dispatched_at.get(sent.ce_id)
            if asked_at is None or sent.withheld is not None or sent.ce_id in refold.limited:
                continue
            waited_s = sent.at_s - at_s[asked_at]
            if waited_s > NOTICED_S and at_s[asked_at] > roll.at_ms / 1000:
                problems.append(f"{sent.ce_id} waited {waited_s * 1000:.0f} ms while engines were restarted")
    return problems
