"""`bench fold`: what folding costs without a broker, and what an idle workflow weighs.

The machine of one partition folds four-step sagas, decoding every event and encoding every command, result and checkpoint, among
more and more workflows that are open and idle. Processor time, so that neighbours on the machine count less.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import system
from benchmarks.report import Figure, Report
from sagalog.engine.kernel import Record
from sagalog.engine.kernel.effects import Dispatch, Effect
from sagalog.engine.kernel.partition import Partition
from sagalog.engine.kernel.state import dump
from sagalog.engine.runtime.metrics import EngineMetrics
from sagalog.engine.runtime.workflows import WorkflowMachine
from sagalog.infra.tuning import tune_garbage_collector
from sagalog.schemas.codec import encode
from sagalog.schemas.commands import Command, parse_command
from sagalog.schemas.definitions import Definition, Step
from sagalog.schemas.events import (
    TYPE_OF,
    DefinitionRegistered,
    Event,
    Owned,
    StepCompleted,
    WorkflowStarted,
    encode_event,
)
from sagalog.topics.log import Headers, Out
from sagalog.topics.specs import DAY_MS, Topics

AT_ONCE: Final = 500
"""Workflows that move side by side, of a partition."""
BATCH: Final = 250
CUT_EVERY: Final = 1_000
"""Events between two snapshots: as many as a partition folds in an interval under load."""
FINISHED_STEPS: Final = 10
START_MS: Final = 1_700_000_000_000
_MEMBER: Final = "bench"


@dataclass(slots=True)
class _Message:
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    topic: str = "bench.events"
    partition: int = 0


class _World:
    """A live machine and what it sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Out]] = []
        self.machine = WorkflowMachine(Topics("bench"), 0, 8, 8, self._append, EngineMetrics())
        self.machine.tick(START_MS, START_MS)

    def _append(self, topic: str, partition: int, records: Sequence[Out]) -> None:
        self.sent += [(topic, record) for record in records]

    def owner_changed(self, epoch: int, member: str) -> None:
        self.machine.go_live(START_MS)

    def claim_lost(self, epoch: int, member: str) -> None:
        raise AssertionError("nobody else claims here")


def fold(
    runs: int, workflows: int, opened: Sequence[int], payload_bytes: int, environment: Mapping[str, Any],
    progress: Callable[[str], None],
) -> Report:  # fmt: skip
    """`workflows` sagas a run, among as many open idle ones as `opened` says, one figure each."""
    tune_garbage_collector()
    log = _log(workflows, payload_bytes)
    idle = idle_checkpoint()
    costs: dict[int, list[float]] = {count: [] for count in opened}
    # First, so that no memory of an earlier round is used again.
    resident = resident_bytes(idle, opened[-1])
    for run in range(1, runs + 1):
        for count in opened:
            world = _opened(count, idle)
            costs[count].append(_measure(world, log))
            del world
            gc.collect()
        progress(f"fold {run}/{runs}: " + ", ".join(f"{values[-1]:.1f} us ({n:,} open)" for n, values in costs.items()))
    first, last = opened[0], opened[-1]
    figures = {"us_per_event": Figure("us", costs[first])}
    figures |= {f"us_per_event_{count}_open": Figure("us", costs[count]) for count in opened[1:]}
    figures["bytes_per_idle_workflow"] = Figure("B", [len(idle)])
    figures["resident_bytes_per_idle_workflow"] = Figure("B", [resident])
    return Report(
        "fold",
        {**environment, "payload_bytes": payload_bytes, "workflows": workflows, "events": len(log), "open": first},
        runs,
        figures,
        {f"cost_at_{last}_vs_{first}_open": min(costs[last]) / min(costs[first])},
        (
            "us_per_event: decoding, folding, effects, encoding of commands, results and checkpoints. Target: at most 12 us, and "
            f"flat. bytes_per_idle_workflow: the checkpoint of {FINISHED_STEPS} finished steps without outputs. Target: 2,048.",
        ),
    )


def resident_bytes(checkpoint: bytes, count: int) -> float:
    """What one such checkpoint takes of a process's memory among `count` of them. Call it before anything else was allocated."""
    before = _resident_bytes()
    world = _opened(count, checkpoint)
    found = (_resident_bytes() - before) / count
    del world
    return found


def _opened(count: int, idle: bytes) -> _World:
    """As a take-over loads them: with their deadlines and their part of the digest, which weigh, too."""
    world = _World()
    due = [("sagalog_due", b"%d" % (START_MS + DAY_MS))]
    for number in range(count):
        # A copy each, as they come from the broker.
        checkpoint = _Message(number, START_MS, b"idle-%08d" % number, bytes(bytearray(idle)), due)
        world.machine.load(checkpoint)
    return world


def _measure(world: _World, log: Sequence[_Message]) -> float:
    """Microseconds of processor time per event."""
    machine, sent = world.machine, world.sent
    began = time.process_time()
    for start in range(0, len(log), BATCH):
        machine.fold(log[start : start + BATCH], world)
        sent.clear()
        if start % CUT_EVERY == 0:
            cut = machine.cut()
            if cut is not None:
                cut.finish()
    return (time.process_time() - began) / len(log) * 1e6


def _log(workflows: int, payload_bytes: int) -> list[_Message]:
    """The log of so many sagas, run once to learn which commands there are to answer."""
    world = _World()
    definition, payload = system.definition(), system.payload(payload_bytes)
    log: list[_Message] = []

    def append(event: Event, key: str, ce_id: str) -> None:
        headers = [("ce_type", TYPE_OF[type(event)].encode()), ("ce_id", ce_id.encode())]
        log.append(_Message(len(log), START_MS + len(log), key.encode(), encode_event(event), headers))

    def turn(folded: int) -> Iterator[Command]:
        world.sent.clear()
        world.machine.fold(log[folded:], world)
        for topic, record in world.sent:
            if topic.startswith("bench.commands."):
                yield parse_command(record.value)

    append(Owned(1, _MEMBER), "@owner", "owner")
    append(DefinitionRegistered(definition.model_dump(mode="json")), "@definition", "definition")
    started = folded = 0
    waiting = list(turn(folded))
    while started < workflows or waiting:
        folded = len(log)
        for command in waiting:
            done = StepCompleted(
                command.step, command.attempt, command.direction, command.token, payload, command.agent, 1
            )
            append(done, command.workflow_id, f"{command.command_id}/result")
        for _ in range(min(AT_ONCE - len(waiting), workflows - started)):
            key = f"bench-{started:08d}"
            append(WorkflowStarted(f"{definition.name}@{definition.hash}", payload), key, f"{key}/start")
            started += 1
        waiting = list(turn(folded))
    return log


def idle_checkpoint() -> bytes:
    """The checkpoint of a workflow that has done ten steps and waits in the eleventh."""
    names = [f"step-{number}" for number in range(FINISHED_STEPS + 1)]
    steps = tuple(
        Step(name=name, agent="worker", needs=(names[place - 1],) if place else ()) for place, name in enumerate(names)
    )
    definition = Definition(name="idle", steps=steps)
    partition = Partition()
    effects: list[Effect] = []

    def apply(event: Event, key: str) -> None:
        value = encode_event(event)
        offset = partition.offset + 1
        record = Record(offset, START_MS + offset, key.encode(), value, TYPE_OF[type(event)].encode(), b"x", len(value))
        partition.apply(record, effects)

    apply(DefinitionRegistered(definition.model_dump(mode="json")), "@definition")
    apply(WorkflowStarted("idle"), "idle-00000000")
    for _ in range(FINISHED_STEPS):
        sent = next(effect.command for effect in reversed(effects) if isinstance(effect, Dispatch))
        apply(StepCompleted(sent.step, 1, sent.direction, sent.token, None, "worker", 12), sent.workflow_id)
    state = partition.get("idle-00000000")
    assert state is not None and not state.terminal
    return encode(dump(state, partition.plan_of(state)))


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * resource.getpagesize()
