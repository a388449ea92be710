"""The machine of one partition of `events`, without a broker: what it appends, and what it must not.

Each of these was found by the simulation (tests/simulation) first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from sagalog.engine.kernel.effects import Finished
from sagalog.engine.runtime import outputs
from sagalog.engine.runtime.gate import CircuitView
from sagalog.engine.runtime.metrics import EngineMetrics
from sagalog.engine.runtime.workflows import WorkflowMachine
from sagalog.schemas import ids
from sagalog.schemas.definitions import Child, Compensation, Definition, Limit, Step, WhenOpen
from sagalog.schemas.events import (
    TYPE_OF,
    AttemptLost,
    CancelRequested,
    ChildEnded,
    DefinitionRegistered,
    Event,
    FailureKind,
    MigrationRequested,
    Owned,
    Quarantined,
    StepCompleted,
    StepFailed,
    WorkflowStarted,
    encode_event,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.statuses import CircuitStatus, WorkflowStatus
from sagalog.topics.log import Headers, Out
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

START_MS = 1_000_000


@dataclass
class Record:
    offset: int
    timestamp: int
    key: bytes
    value: bytes
    headers: Headers
    topic: str = "t.events"
    partition: int = 0


@dataclass
class World:
    """A machine, its log, and the member that it is."""

    member: str = "me"
    offset: int = 0
    now_ms: int = START_MS
    sent: list[tuple[str, Out]] = field(default_factory=list)
    placed: list[tuple[str, int, Out]] = field(default_factory=list)
    """The same, each with its partition."""
    partitions: int = 1

    def __post_init__(self) -> None:
        self.machine = WorkflowMachine(Topics("t"), 0, self.partitions, 1, self._append, EngineMetrics())
        self.machine.tick(self.now_ms, self.now_ms)

    def _append(self, topic: str, partition: int, records: Sequence[Out]) -> None:
        self.sent += [(topic, record) for record in records]
        self.placed += [(topic, partition, record) for record in records]

    def owner_changed(self, epoch: int, member: str) -> None:
        if member == self.member:
            self.machine.go_live(self.now_ms)
        else:
            self.machine.stop()

    def claim_lost(self, epoch: int, member: str) -> None:
        raise AssertionError("nobody else claims here")

    def record(self, event: Event, key: str = "w1", ce_id: str = "seed", at_ms: int | None = None) -> Record:
        self.offset += 1
        headers = [("ce_type", TYPE_OF[type(event)].encode()), ("ce_id", ce_id.encode())]
        return Record(self.offset, at_ms or self.now_ms, key.encode(), encode_event(event), headers)

    def fold(self, *records: Record) -> list[tuple[str, Any]]:
        """What the machine appended meanwhile: (topic, document)."""
        self.sent.clear()
        self.placed.clear()
        self.machine.fold(records, self)
        return self.appended()

    def tick(self, ms: int) -> list[tuple[str, Any]]:
        self.sent.clear()
        self.now_ms += ms
        self.machine.tick(self.now_ms, self.now_ms)
        return self.appended()

    def appended(self) -> list[tuple[str, Any]]:
        return [(topic, orjson.loads(record.value or b"null")) for topic, record in self.sent]

    def token(self, command: Any) -> str:
        return str(command["token"])


def definition(**more: Any) -> Definition:
    return Definition(name="saga", steps=(Step(name="a", agent="worker", compensate=Compensation(), **more),))


def started(world: World, saga: Definition) -> list[Record]:
    return [
        world.record(DefinitionRegistered(saga.model_dump(mode="json")), "@definition/x"),
        world.record(WorkflowStarted("saga"), "w1"),
    ]


def handed_to_the_next(first: World, second: World) -> None:
    """The checkpoints of the one are loaded by the other, which has still to claim the partition."""
    cut = first.machine.cut()
    assert cut is not None
    for out in cut.finish().records:
        second.machine.load(
            Record(0, START_MS, out.key or b"", out.value or b"", out.headers, topic="t.checkpoints")  # type: ignore[arg-type]
        )
    assert second.machine.loaded(START_MS) is not None
    second.offset = first.offset


def test_whoever_reads_a_newer_claim_in_the_middle_of_a_batch_sends_what_stands_before_it_and_no_more() -> None:
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    batch = [*started(world, definition()), world.record(Owned(2, "other"), "@owner")]
    behind = world.record(WorkflowStarted("saga"), "w2")

    assert [command["workflow_id"] for _, command in world.fold(*batch, behind)] == ["w1"]
    cut = world.machine.cut(leaving=True)
    assert cut is not None and cut.offset == batch[-1].offset
    cut.finish()
    assert {record.key for record in cut.records} >= {b"w1", b"@marker"}, "it can hand over all that it has folded"
    assert world.machine.offset == batch[-1].offset, "what stands behind the claim is the other's"
    assert world.tick(60_000) == []


def test_what_an_owner_before_may_have_sent_is_refused_as_such_after_a_take_over() -> None:
    world = World()
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    before = started(world, definition(service="bank", when_open=WhenOpen.FAIL))

    appended = world.fold(*before, world.record(Owned(1, "me"), "@owner"))

    assert [(topic, document["maybe_sent"]) for topic, document in appended] == [("t.events", True)]


def test_what_the_owner_itself_never_sent_is_refused_as_that() -> None:
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))

    appended = world.fold(*started(world, definition(service="bank", when_open=WhenOpen.FAIL)))

    assert [document for topic, document in appended if topic == "t.events"] == [
        {"epoch": 1, "step": "a", "attempt": 1, "service": "bank"}
    ]


def test_a_parked_command_from_before_a_take_over_is_refused_as_one_that_may_be_out() -> None:
    world = World()
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    world.fold(*started(world, definition(service="bank")), world.record(Owned(1, "me"), "@owner"))

    appended = world.fold(world.record(CancelRequested("wanted", "tester"), ce_id="cancel"))

    assert [document for topic, document in appended if topic == "t.events"] == [
        {"epoch": 1, "step": "a", "attempt": 1, "service": "bank", "maybe_sent": True}
    ]


def test_a_refused_command_is_not_sent_although_its_circuit_closes_before_the_event_is_folded() -> None:
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    world.fold(*started(world, definition(service="bank")))
    assert world.machine.gate.held == 1

    refused = world.fold(world.record(CancelRequested("wanted", "tester"), ce_id="cancel"))
    world.machine.circuit("bank", CircuitView(CircuitStatus.CLOSED, START_MS + 1))

    assert [topic for topic, _ in refused] == ["t.events"]
    assert [topic for topic, _ in world.tick(1_000) if topic.startswith("t.commands")] == []


def test_a_command_that_was_parked_before_a_migration_goes_out_as_it_was_made_also_after_a_take_over() -> None:
    old = definition(service="bank", input={"fields": {"by": {"value": "old"}}}).model_copy(
        update={"deadline_ms": 9_000}
    )
    new = Definition(
        name="saga", steps=(Step(name="first", agent="x"), Step(name="a", agent="other")), deadline_ms=99_000
    )
    first, second = World(), World("next")
    for world in (first, second):
        world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    first.fold(first.record(Owned(1, "me"), "@owner"), *started(first, old))
    first.fold(first.record(DefinitionRegistered(new.model_dump(mode="json")), "@definition/x"))
    first.fold(first.record(MigrationRequested(f"saga@{new.hash}", "ana", "why"), ce_id="move"))
    handed_to_the_next(first, second)
    second.fold(second.record(Owned(2, "next"), "@owner"))

    sent = []
    for world in (first, second):
        world.machine.circuit("bank", CircuitView(CircuitStatus.CLOSED, START_MS + 1))
        sent.append([document for topic, document in world.tick(1_000) if topic == "t.commands.worker"])

    assert [len(found) for found in sent] == [1, 1] and sent[0] == sent[1]
    ((command,), _) = sent
    assert (command["definition"], command["input"], command["service"]) == (old.hash, {"by": "old"}, "bank")
    assert command["deadline_ms"] == START_MS + 9_000


def test_of_two_parked_commands_only_the_one_from_before_a_migration_goes_out_as_it_was_made_then() -> None:
    """By its id the older one is the first, so the second must not be taken for as old."""
    free = Step(name="c", agent="free")
    old = Definition(name="saga", steps=(Step(name="a", agent="worker", service="bank"), free))
    late = Step(name="b", agent="worker", service="bank", needs=("c",))
    new = old.model_copy(update={"steps": (late, *old.steps)})
    first, second = World(), World("next")
    for world in (first, second):
        world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    first.fold(first.record(Owned(1, "me"), "@owner"))
    ((_, asked),) = [found for found in first.fold(*started(first, old)) if found[0] == "t.commands.free"]
    first.fold(first.record(DefinitionRegistered(new.model_dump(mode="json")), "@definition/x"))
    first.fold(first.record(MigrationRequested(f"saga@{new.hash}", "ana", "why"), ce_id="move"))
    first.fold(first.record(StepCompleted("c", 1, Direction.EXECUTE, asked["token"], None, "free", 1)))
    handed_to_the_next(first, second)
    second.fold(second.record(Owned(2, "next"), "@owner"))

    for world in (first, second):
        world.machine.circuit("bank", CircuitView(CircuitStatus.CLOSED, START_MS + 1))
        sent = [document for topic, document in world.tick(1_000) if topic == "t.commands.worker"]
        assert {command["step"]: command["definition"] for command in sent} == {"a": old.hash, "b": new.hash}


def test_a_timer_that_came_too_early_is_set_again_by_how_much_it_was() -> None:
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    ((topic, command), *_) = world.fold(*started(world, definition()))
    assert topic == "t.commands.worker"
    failed = StepFailed(
        "a", 1, Direction.EXECUTE, world.token(command), FailureKind.RETRYABLE, "no", retry_after_ms=400
    )
    broker_ms = world.now_ms
    world.fold(world.record(failed, at_ms=broker_ms))

    # This owner's clock is ten seconds ahead of the broker's.
    ((topic, fired), *_) = world.tick(10_000)
    assert (topic, fired["timer"]) == ("t.events", "retry")
    world.fold(Record(world.offset + 1, broker_ms + 5, b"w1", *_timer(fired)))
    world.offset += 1

    due_in_ms = world.machine.next_due_ms() - world.now_ms
    assert 390 <= due_in_ms <= 500
    assert world.tick(due_in_ms - 1) == []
    ((_, again), *_) = world.tick(1)
    ((topic, command), *_) = world.fold(Record(world.offset + 1, broker_ms + 5 + due_in_ms, b"w1", *_timer(again)))
    assert (topic, command["attempt"]) == ("t.commands.worker", 2)


def test_a_timer_that_was_set_by_a_clock_ahead_is_set_anew_when_the_clock_is_put_right() -> None:
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    broker_ms = world.now_ms
    world.fold(*started(world, definition().model_copy(update={"deadline_ms": 30_000})))
    ((_, fired), *_) = world.tick(60_000)
    world.fold(Record(world.offset + 1, broker_ms + 5, b"w1", *_timer(fired)))
    world.offset += 1

    world.tick(-60_000)

    assert world.machine.next_due_ms() == broker_ms + 30_000


def test_a_deadline_that_looks_due_does_not_hide_a_retry_that_is() -> None:
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    saga = definition().model_copy(update={"deadline_ms": 30_000})
    ((_, command), *_) = world.fold(*started(world, saga))
    failed = StepFailed("a", 1, Direction.EXECUTE, world.token(command), FailureKind.RETRYABLE, "no")
    world.fold(world.record(failed))

    # A clock that is a minute ahead of the broker's.
    fired = [document["timer"] for _, document in world.tick(60_000) if "timer" in document]
    assert fired == ["deadline", "retry"]


# --- workflows that do steps of others

ORDER = Definition(
    name="saga",
    steps=(
        Step(name="ship", workflow=Child(definition="ship", timeout_ms=60_000)),
        Step(name="thank", agent="mail", needs=("ship",)),
    ),
)
"""Of five partitions its children w1/ship.1 and w2/ship.1 are in two."""


def test_a_child_is_started_in_the_partition_of_its_id_and_never_lost() -> None:
    world = World(partitions=5)
    world.fold(world.record(Owned(1, "me"), "@owner"))

    world.fold(*started(world, ORDER), world.record(WorkflowStarted("saga"), "w2"))

    assert [(out.key, partition) for _, partition, out in world.placed] == [
        (key.encode(), partition_of(key.encode(), 5)) for key in ("w1/ship.1", "w2/ship.1")
    ]
    assert len({partition for _, partition, _ in world.placed}) == 2
    assert world.machine.stats()["attempts_out"] == 0
    assert world.tick(86_400_000) == []


def test_after_a_take_over_only_children_that_have_not_answered_are_started_again() -> None:
    world = World()
    before = [*started(world, ORDER), world.record(WorkflowStarted("saga"), "w2")]
    token = ids.token("seed", ids.command_id("w1", "ship", 1, Direction.EXECUTE))
    ended = ChildEnded("ship", 1, Direction.EXECUTE, token, "w1/ship.1", WorkflowStatus.COMPLETED)

    appended = world.fold(*before, world.record(ended), world.record(Owned(1, "me"), "@owner"))

    assert [(topic, document["step"]) for topic, document in appended if "step" in document] == [
        ("t.commands.mail", "thank")
    ]
    assert [out.key for topic, _, out in world.placed if topic == "t.events"] == [b"w2/ship.1"]


def test_after_a_take_over_an_attempt_of_a_child_is_not_lost() -> None:
    world = World()
    world.fold(*started(world, ORDER), world.record(Owned(1, "me"), "@owner"))

    assert world.machine.fold_state.get("w1").watch_ms(world.machine.fold_state.plans[ORDER.hash]) == 0  # type: ignore[union-attr]
    assert world.tick(86_400_000) == []


def _timer(document: Any) -> tuple[bytes, Headers]:
    return orjson.dumps(document), [("ce_type", b"sagalog.timer-fired.v1"), ("ce_id", b"timer")]


def test_a_result_that_is_too_large_gives_up_the_outputs_of_steps_and_items_first() -> None:
    item = {"name": "each[0]", "status": "done", "attempt": 1, "output": "x" * 600_000}
    step = {"name": "each", "status": "done", "attempt": 1, "items": [item, {**item, "name": "each[1]"}]}
    record: Any = {"workflow_id": "w1", "status": "completed", "steps": [step], "input": "in", "output": "out"}

    sent = orjson.loads(outputs.result(Finished(record)).value or b"")

    assert sent["shortened"] == ["steps"]
    assert (sent["input"], sent["output"]) == ("in", "out")
    assert [list(found) for found in sent["steps"][0]["items"]] == [["name", "status", "attempt"]] * 2


@dataclass
class Successor(World):
    """A machine whose owner waits for the last word of the one before."""

    def owner_changed(self, epoch: int, member: str) -> None:
        self.machine.go_live(self.now_ms, succession=True)

    def succeed(self, word: dict[str, set[str]] | None) -> list[tuple[str, Any]]:
        self.sent.clear()
        self.machine.succeed(word)
        return self.appended()


def command_ids(appended: list[tuple[str, Any]]) -> list[str]:
    return [command["command_id"] for _, command in appended]


def test_what_the_owner_before_has_sent_is_not_sent_again() -> None:
    world = Successor()
    saga = definition()
    claim, behind = world.record(Owned(1, "me"), "@owner"), world.record(WorkflowStarted("saga"), "w2")
    claim.offset, behind.offset = 3, 4

    assert command_ids(world.fold(*started(Successor(), saga), claim, behind)) == ["w2/a/1/execute"], "at once"
    assert world.succeed({"w1": set()}) == []

    lost = world.tick(saga.steps[0].timeout_ms + saga.steps[0].start_timeout_ms + 10_000)
    assert [event["step"] for topic, event in lost if topic == "t.events"] == ["a", "a"], "both are watched"


def test_what_waited_at_the_gate_of_the_owner_before_is_sent_by_the_next() -> None:
    world = Successor()
    world.fold(*started(world, definition()), world.record(Owned(1, "me"), "@owner"))

    assert command_ids(world.succeed({"w1": {"w1/a/1/execute"}})) == ["w1/a/1/execute"]


def test_of_a_workflow_only_what_the_owner_before_has_not_sent_is_sent_by_the_next() -> None:
    """One of its steps waited at that one's gate, another did not."""
    saga = Definition(
        name="saga", steps=(Step(name="a", agent="worker"), Step(name="b", agent="worker", needs=(), service="bank"))
    )
    world = Successor()
    world.fold(*started(world, saga), world.record(Owned(1, "me"), "@owner"))

    assert command_ids(world.succeed({"w1": {"w1/b/1/execute"}})) == ["w1/b/1/execute"]


def test_what_the_owner_before_has_let_out_of_its_gate_since_its_marker_is_not_let_out_again() -> None:
    first, second = World(), Successor("next")
    first.fold(first.record(Owned(1, "me"), "@owner"))
    for world in (first, second):
        world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    saga = definition(service="bank")
    first.fold(*started(first, saga), first.record(WorkflowStarted("saga"), "w2"))
    handed_to_the_next(first, second)
    for world in (first, second):
        world.machine.circuit("bank", CircuitView(CircuitStatus.CLOSED, START_MS + 1))
    second.fold(second.record(Owned(2, "next"), "@owner"))

    assert second.tick(10) == [], "the owner before may have sent it, and is to say so"
    assert command_ids(second.succeed({"w1": set()})) == []
    assert command_ids(second.tick(1_000)) == ["w2/a/1/execute"], "that one it has said nothing new of"
    second.tick(saga.steps[0].timeout_ms + saga.steps[0].start_timeout_ms + 10_000)
    assert {record.key for _, record in second.sent} == {b"w1", b"w2"}, "both are watched"


def test_a_checkpoint_names_what_of_its_workflow_waits() -> None:
    world = World()
    world.machine.circuit("bank", CircuitView(CircuitStatus.OPEN, START_MS))
    free = Step(name="b", agent="worker", needs=())
    saga = Definition(name="saga", steps=(Step(name="a", agent="worker", service="bank"), free))
    world.fold(world.record(Owned(1, "me"), "@owner"), *started(world, saga))

    (found,) = (record for record in checkpoints_of(world) if record.key == b"w1")
    assert dict(found.headers)[outputs.WITHHELD] == b'["a/1/execute"]'


def test_without_a_last_word_everything_is_sent_again() -> None:
    world = Successor()
    world.fold(*started(world, definition()), world.record(Owned(1, "me"), "@owner"))

    assert command_ids(world.succeed(None)) == ["w1/a/1/execute"]


def test_what_is_answered_meanwhile_is_not_sent_again() -> None:
    world = Successor()
    world.fold(*started(world, definition()), world.record(Owned(1, "me"), "@owner"))
    state = world.machine.fold_state.get("w1")
    assert state is not None
    token = ids.token(state.seed, "w1/a/1/execute")
    answer = StepFailed("a", 1, Direction.EXECUTE, token, FailureKind.TERMINAL, "no")
    world.fold(world.record(answer, "w1"))

    assert world.succeed(None) == []


def checkpoints_of(world: World) -> list[Record]:
    cut = world.machine.cut()
    assert cut is not None
    cut.finish()
    return [
        Record(number, world.now_ms, record.key or b"", record.value or b"", record.headers, "t.checkpoints")
        for number, record in enumerate(cut.records)
    ]


def test_a_standby_knows_the_newest_checkpoint_even_if_somebody_has_looked_at_an_older_one() -> None:
    owner, standby = World(), World()
    owner.fold(owner.record(Owned(1, "me"), "@owner"), *started(owner, definition()))
    for record in checkpoints_of(owner):
        standby.machine.load(record)
    standby.machine.heard("w1/a/1/execute", "w1", "a", 1, Direction.EXECUTE)  # decodes the workflow
    owner.fold(owner.record(CancelRequested("enough", "me"), "w1"))
    for record in checkpoints_of(owner):
        standby.machine.load(record)

    standby.machine.loaded(standby.now_ms)

    state = standby.machine.fold_state.get("w1")
    assert state is not None and state.status is WorkflowStatus.COMPENSATING


def test_a_snapshot_is_of_one_offset_although_folding_goes_on_while_it_is_encoded() -> None:
    owner, successor = World(), World()
    saga = definition()
    owner.fold(
        owner.record(Owned(1, "me"), "@owner"), *started(owner, saga), owner.record(WorkflowStarted("saga"), "w2")
    )
    cut = owner.machine.cut()
    assert cut is not None and not cut.advance(1)
    owner.fold(owner.record(CancelRequested("enough", "me"), "w1"), owner.record(CancelRequested("enough", "me"), "w2"))
    assert cut.advance(10)
    for number, record in enumerate(cut.records):
        out = Record(number, owner.now_ms, record.key or b"", record.value or b"", record.headers, "t.checkpoints")
        successor.machine.load(out)

    marker = successor.machine.loaded(successor.now_ms)

    assert marker is not None and marker["at_offset"] == cut.offset == owner.offset - 2
    states = [successor.machine.fold_state.get(workflow_id) for workflow_id in ("w1", "w2")]
    assert [state and state.status for state in states] == [WorkflowStatus.RUNNING] * 2
    following = owner.machine.cut()
    assert following is not None
    assert {record.key for record in following.finish().records} == {b"w1", b"w2", b"@marker"}


def test_what_waits_for_a_definition_is_in_the_snapshot_as_it_was_before_that_came() -> None:
    owner = World()
    saga = definition()
    register, start = started(owner, saga)
    start.offset, register.offset = 4, 5
    owner.fold(owner.record(Owned(1, "me"), "@owner"), start)
    cut = owner.machine.cut()
    assert cut is not None
    owner.fold(register)
    assert cut.advance(10)
    (waiting,) = (orjson.loads(record.value or b"") for record in cut.records if record.key == b"w1")
    assert waiting["status"] == "waiting"


def test_patience_counts_from_the_take_over_however_long_a_standby_has_stood_by() -> None:
    owner, standby = World(), World()
    saga = definition()
    owner.fold(owner.record(Owned(1, "me"), "@owner"), *started(owner, saga))
    for record in checkpoints_of(owner):
        standby.machine.load(record)

    standby.tick(86_400_000)
    standby.machine.loaded(standby.now_ms)
    standby.offset = owner.offset
    standby.fold(standby.record(Owned(2, "me"), "@owner"))

    assert standby.tick(1_000) == [], "it may be answered yet"
    lost = standby.tick(saga.steps[0].timeout_ms + saga.steps[0].start_timeout_ms + 10_000)
    assert [event["step"] for _, event in lost] == ["a"]


# --- limits

LIMITED = Definition(
    name="saga",
    steps=(Step(name="a", agent="worker", limits=("few",), compensate=Compensation()),),
    limits={"few": Limit(key="input.key", concurrency=1)},
)


def limited(world: World, *workflow_ids: str) -> list[Record]:
    return [
        world.record(DefinitionRegistered(LIMITED.model_dump(mode="json")), "@definition/x"),
        *(
            world.record(WorkflowStarted("saga", {"key": "k"}), workflow_id, ce_id=workflow_id)
            for workflow_id in workflow_ids
        ),
    ]


def commands(appended: list[tuple[str, Any]]) -> list[Any]:
    return [document for topic, document in appended if topic == "t.commands.worker"]


def test_what_the_owner_before_had_out_counts_for_its_limit_until_it_is_answered() -> None:
    first, second = World(), World("next")
    first.fold(first.record(Owned(1, "me"), "@owner"))
    (sent,) = commands(first.fold(*limited(first, "w1", "w2")))
    assert sent["workflow_id"] == "w1"
    handed_to_the_next(first, second)

    second.fold(second.record(Owned(2, "next"), "@owner"), second.record(WorkflowStarted("saga", {"key": "k"}), "w3"))
    assert commands(second.tick(5_000)) == []
    assert [entry["reason"] for name in ("w2", "w3") for entry in second.machine.gate.withheld(name)] == [
        "concurrency_limit", "concurrency_limit",
    ]  # fmt: skip

    second.fold(second.record(StepCompleted("a", 1, Direction.EXECUTE, sent["token"], None), "w1"))
    (released,) = commands(second.tick(10))
    assert released["workflow_id"] == "w2"
    withheld = released["withheld"]
    assert (withheld["reason"], withheld["limit"], withheld["key"]) == ("concurrency_limit", "few", "k")
    assert withheld["ms"] == 5_010, "since the owner before withheld it"


def test_a_workflow_that_stops_takes_back_what_waits_for_a_limit() -> None:
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    world.fold(*limited(world, "w1", "w2"))

    appended = world.fold(world.record(CancelRequested("wanted", "tester"), "w2", ce_id="cancel"))
    assert [(document["step"], document["kind"]) for topic, document in appended if topic == "t.events"] == [
        ("a", "cancelled")
    ]
    assert world.machine.gate.held == 0
    lost = AttemptLost(1, "a", 1, Direction.EXECUTE, "it stopped", FailureKind.CANCELLED)
    results = [document for topic, document in world.fold(world.record(lost, "w2")) if topic == "t.results"]
    assert [result["status"] for result in results] == ["cancelled"]


def test_a_quarantined_workflow_keeps_no_place_of_a_limit_for_ever() -> None:
    world = World()
    world.fold(world.record(Owned(1, "me"), "@owner"))
    world.fold(*limited(world, "w1", "w2"))
    world.fold(world.record(Quarantined(1, "t.events/0/9", "broken"), "w1"))
    assert commands(world.tick(60_000)) == []

    assert [command["workflow_id"] for command in commands(world.tick(900_000))] == ["w2"]
