"""`bench fold`: what folding costs without a broker, and what an idle workflow weighs.

The machine of one partition folds four-step sagas, decoding every event and encoding every command, result and checkpoint, among
more and more workflows that are open and idle. Processor time, so that neighbours on the machine count less.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkContext
from multiprocessing.synchronize import Barrier
from typing import Any, Final

from benchmarks import system
from benchmarks.report import Figure, Report
from benchmarks.settings import BenchError
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
CHILD_SECONDS_MAX: Final = 300.0
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


def message(offset: int, key: str, event: Event, ce_id: str = "") -> _Message:
    """An event as it is read from the log."""
    written = system.record(event, key, ce_id or f"{key}/{offset}")
    return _Message(offset, START_MS + offset, written.key, written.value, written.headers)


class World:
    """A machine and what it sent. It is live once it has folded `claim`."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Out]] = []
        self.machine = WorkflowMachine(Topics("bench"), 0, 8, 8, self._append, EngineMetrics())
        self.machine.tick(START_MS, START_MS)

    def _append(self, topic: str, partition: int, records: Sequence[Out]) -> None:
        self.sent += [(topic, record) for record in records]

    @staticmethod
    def claim() -> _Message:
        return message(0, "@owner", Owned(1, _MEMBER), "owner")

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
    # To be pinned to: elsewhere than on Linux nothing can be.
    cores = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
    sums: list[float] = []
    for run in range(1, runs + 1):
        if len(cores) > 1:
            sums.append(side_by_side(log, cores))
        for count in opened:
            world = _opened(count, idle)
            costs[count].append(_measure(world, log))
            del world
            gc.collect()
        progress(
            f"fold {run}/{runs}: "
            + ", ".join(f"{values[-1]:.1f} us ({n:,} open)" for n, values in costs.items())
            + "".join(f", two processes {found:.2f} of one" for found in sums[-1:])
        )
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
        {
            f"cost_at_{last}_vs_{first}_open": min(costs[last]) / min(costs[first]),
            **({"two_partitions_vs_one": statistics.median(sums)} if sums else {}),
        },
        (
            "us_per_event: decoding, folding, effects, encoding of commands, results and checkpoints. "
            f"bytes_per_idle_workflow: the checkpoint of {FINISHED_STEPS} finished steps without outputs. "
            "two_partitions_vs_one: events per second of two processes, a partition each, on a core each, over those of one. "
            "Without a broker: what is left of it where broker and agents have cores of their own.",
        ),
    )


def resident_bytes(checkpoint: bytes, count: int) -> float:
    """What one such checkpoint takes of a process's memory among `count` of them. Call it before anything else was allocated."""
    before = _resident_bytes()
    world = _opened(count, checkpoint)
    found = (_resident_bytes() - before) / count
    del world
    return found


def side_by_side(log: Sequence[_Message], cores: Sequence[int]) -> float:
    """Events per second of two processes over those of one, pinned to a core each."""
    context = multiprocessing.get_context("fork")
    alone = [_together(context, log, [core]) for core in cores]  # one of them may be busier than the other
    return _together(context, log, cores) / statistics.mean(alone)


def _together(context: ForkContext, log: Sequence[_Message], cores: Sequence[int]) -> float:
    """Events per second of all."""
    barrier = context.Barrier(len(cores) + 1)
    children = [context.Process(target=_fold_on, args=(core, log, barrier)) for core in cores]
    for child in children:
        child.start()
    barrier.wait(CHILD_SECONDS_MAX)
    began = time.perf_counter()
    for child in children:
        child.join(CHILD_SECONDS_MAX)
        if child.exitcode != 0:
            raise BenchError(f"a process that folds ended with {child.exitcode}")
    return len(cores) * len(log) / (time.perf_counter() - began)


def _fold_on(core: int, log: Sequence[_Message], barrier: Barrier) -> None:
    os.sched_setaffinity(0, {core})
    world = World()
    barrier.wait(CHILD_SECONDS_MAX)
    _measure(world, log)


def _opened(count: int, idle: bytes) -> World:
    """As a take-over loads them: with their deadlines and their part of the digest, which weigh, too."""
    world = World()
    due = [("sagalog_due", b"%d" % (START_MS + DAY_MS))]
    for number in range(count):
        # A copy each, as they come from the broker.
        checkpoint = _Message(number, START_MS, b"idle-%08d" % number, bytes(bytearray(idle)), due)
        world.machine.load(checkpoint)
    return world


def _measure(world: World, log: Sequence[_Message]) -> float:
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
    world = World()
    definition, payload = system.definition(), system.payload(payload_bytes)
    log: list[_Message] = []

    def append(event: Event, key: str, ce_id: str) -> None:
        log.append(message(len(log), key, event, ce_id))

    def turn(folded: int) -> Iterator[Command]:
        world.sent.clear()
        world.machine.fold(log[folded:], world)
        for topic, record in world.sent:
            if topic.startswith("bench.commands."):
                yield parse_command(record.value)

    log.append(world.claim())
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
