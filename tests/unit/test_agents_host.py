"""The host on a simulated Kafka: order, commits, duplicates, compensations, suspects, poison, broken producers, shutdown."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import orjson
import pytest

from sagalog.agents import AgentError, AgentHost, AnyAgent, Context, Terminal, agent
from sagalog.agents.job import Job
from sagalog.agents.limits import GATHER_ANSWERS, GATHER_MS, OPEN_COMMANDS_MIN
from sagalog.agents.testing import command
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.infra.simulation import SimulatedClock, SimulatedRng, SimulationLoop, current_process
from sagalog.schemas.commands import parse_heartbeat
from sagalog.schemas.events import FailureKind, StepCompleted, StepFailed
from sagalog.schemas.ids import Direction
from sagalog.topics.log import Out, Producer, TopicPartition, header
from sagalog.topics.provision import TopicMismatch, provision
from sagalog.topics.specs import EVENTS, Topics, commands

from .hosting import HostedLog, event_of

PARTITIONS = 2
TOPICS = Topics("unit")
NAME = "worker"
COMMANDS = TOPICS.commands(NAME)
GROUP = TOPICS.agent_group(NAME)
WAIT_S = 10.0


@pytest.fixture
async def log() -> AsyncIterator[HostedLog]:
    found = HostedLog()
    await provision(found, TOPICS, [EVENTS], partitions=PARTITIONS, replication=1)
    yield found
    await found.close()


def host(log: HostedLog, *agents: AnyAgent, **options: Any) -> AgentHost:
    return AgentHost(agents, log, TOPICS, clock=SystemClock(), rng=SystemRng(), **options)


async def until(log: HostedLog, condition: Callable[[], Any]) -> None:
    """Waits for a condition that a record or a commit brings about."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - commits and pauses announce themselves to nobody
            await asyncio.sleep(0.005)


def answers(log: HostedLog) -> list[StepCompleted | StepFailed]:
    return [event for event in log.events(TOPICS.events) if isinstance(event, StepCompleted | StepFailed)]


def committed(log: HostedLog, partition: int = 0) -> tuple[int, str] | None:
    return log.committed_by(GROUP, TopicPartition(COMMANDS, partition))


async def answered(log: HostedLog, count: int) -> list[StepCompleted | StepFailed]:
    await until(log, lambda: len(log.records(TOPICS.events)) >= count)
    return answers(log)


def echo(function: Callable[[Any], Awaitable[Any]] | None = None) -> AnyAgent:
    @agent(NAME, concurrency=4)
    async def work(value: Any) -> Any:
        return await function(value) if function is not None else value

    return work


async def test_answers_lie_beside_their_commands_with_the_headers_of_the_contract(log: HostedLog) -> None:
    async with host(log, echo()):
        assert await log.partitions(COMMANDS) == PARTITIONS
        sent = command(NAME, {"a": 1}, workflow_id="w-7")
        log.put(COMMANDS, 1, orjson.dumps(sent), b"w-7", [("traceparent", b"00-trace")])
        await answered(log, 1)
    record = log.kafka.records(TOPICS.events, 1)[0]
    assert record.key == b"w-7"
    assert dict(record.headers) == {
        "ce_specversion": b"1.0",
        "ce_type": b"sagalog.step-completed.v1",
        "ce_source": b"agent/worker",
        "ce_id": b"w-7/worker/1/execute/result",
        "content-type": b"application/json",
        "traceparent": b"00-trace",
    }
    event = event_of(record)
    assert isinstance(event, StepCompleted)
    assert (event.output, event.token, event.agent) == ({"a": 1}, "token", NAME)


async def test_commands_end_out_of_order_and_the_rest_of_a_commit_is_skipped_by_the_next_host(log: HostedLog) -> None:
    gate = asyncio.Event()
    runs: list[int] = []

    async def work(value: int) -> int:
        runs.append(value)
        if value in (0, 3):
            await gate.wait()
        return value

    async with host(log, echo(work), grace_ms=0):
        for value in range(6):
            log.send(COMMANDS, 0, command(NAME, value, workflow_id=f"w-{value}"))
        assert [event.output for event in await answered(log, 4) if isinstance(event, StepCompleted)] == [1, 2, 4, 5]
        await until(log, lambda: committed(log) == (0, "1;1;1;1,2,1,2"))
    assert committed(log) == (0, "1;0;0;1,2,1,2"), "a clean hand-over blames nobody"
    gate.set()
    async with host(log, echo(work)):
        await answered(log, 6)
        await until(log, lambda: (committed(log) or (0,))[0] == 6)
    assert sorted(runs) == [0, 0, 1, 2, 3, 3, 4, 5]


async def test_a_command_that_comes_again_is_not_run_again(log: HostedLog) -> None:
    gate = asyncio.Event()
    runs: list[Any] = []

    async def work(value: Any) -> Any:
        runs.append(value)
        await gate.wait()
        return len(runs)

    async with host(log, echo(work)):
        sent = command(NAME, "x")
        log.send(COMMANDS, 0, sent)
        await until(log, lambda: runs)
        log.send(COMMANDS, 0, sent)
        marker = command(NAME, "y", workflow_id="w-2")
        log.send(COMMANDS, 0, marker)
        await until(log, lambda: len(runs) == 2)
        gate.set()
        await answered(log, 2)
        await until(log, lambda: (committed(log) or (0,))[0] == 3)
        log.send(COMMANDS, 0, sent)
        found = await answered(log, 3)
    first = [record for record in log.records(TOPICS.events) if record.key == b"w-1"]
    assert runs == ["x", "y"]
    assert len(found) == 3
    assert (first[0].value, first[0].headers) == (first[1].value, first[1].headers), "the same answer is sent again"


async def test_a_failure_that_is_asked_for_again_is_sent_again_as_it_was(log: HostedLog) -> None:
    async def work(value: Any) -> Any:
        raise Terminal("no", {"why": value})

    async with host(log, echo(work)):
        sent = orjson.dumps(command(NAME, "x"))
        log.put(COMMANDS, 0, sent, b"w-1", [("traceparent", b"00-first")])
        await answered(log, 1)
        await until(log, lambda: (committed(log) or (0,))[0] == 1)
        log.put(COMMANDS, 0, sent, b"w-1")
        await answered(log, 2)
    first, again = log.records(TOPICS.events)
    assert header(first.headers, "traceparent") == b"00-first"
    assert (first.key, first.value, first.headers) == (again.key, again.value, again.headers)


async def test_an_execute_after_its_own_compensate_is_refused(log: HostedLog) -> None:
    runs: list[Any] = []

    async def work(value: Any) -> None:
        runs.append(value)

    async with host(log, echo(work)):
        log.send(COMMANDS, 0, command(NAME, "undo", direction=Direction.COMPENSATE))
        log.send(COMMANDS, 0, command(NAME, "do"))
        found = await answered(log, 2)
    refused = next(event for event in found if event.direction is Direction.EXECUTE)
    assert isinstance(refused, StepFailed)
    assert refused.kind is FailureKind.CANCELLED
    assert runs == ["undo"]


async def test_a_compensate_stops_its_running_execute_and_waits_for_its_end(log: HostedLog) -> None:
    order: list[str] = []

    async def work(value: str) -> None:
        order.append(f"{value} starts")
        try:
            if value == "do":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)
            raise
        finally:
            order.append(f"{value} ends")

    async with host(log, echo(work)):
        log.send(COMMANDS, 0, command(NAME, "do"))
        await until(log, lambda: order)
        log.send(COMMANDS, 0, command(NAME, "undo", direction=Direction.COMPENSATE))
        found = await answered(log, 2)
    assert order == ["do starts", "do ends", "undo starts", "undo ends"]
    assert [(event.direction, getattr(event, "kind", None)) for event in found] == [
        (Direction.EXECUTE, FailureKind.CANCELLED),
        (Direction.COMPENSATE, None),
    ]


def test_a_command_that_kills_its_host_is_found_and_given_up_after_five_deliveries() -> None:
    killer, count = 2, 5
    runs: list[int] = []

    async def work(value: int) -> int:
        runs.append(value)
        if value == killer:
            process = current_process()
            assert process is not None
            await process.die()
        return value

    async def live(loop: SimulationLoop, log: HostedLog, life: int) -> bool:
        """Until all is committed, or the host is dead."""
        process, stop = loop.process(f"host-{life}"), asyncio.Event()
        living = AgentHost(
            [echo(work)], log.kafka.log(process.name), TOPICS, clock=SimulatedClock(loop), rng=SimulatedRng(life)
        )
        running = process.spawn(living.run(stop))
        while not process.dead and (committed(log) or (0,))[0] < count:  # noqa: ASYNC110 - simulated time
            await asyncio.sleep(0.05)
        stop.set()
        if not process.dead:
            await running
        return process.dead

    async def lives(loop: SimulationLoop, log: HostedLog) -> list[StepCompleted | StepFailed]:
        await provision(log, TOPICS, [EVENTS, commands(NAME)], partitions=PARTITIONS, replication=1)
        for value in range(count):
            log.send(COMMANDS, 0, command(NAME, value, workflow_id=f"w-{value}"))
        life = 1
        while await live(loop, log, life):
            life += 1
            assert life < 10
        return answers(log)

    loop = SimulationLoop()
    asyncio.set_event_loop(loop)
    try:
        found = loop.run_until_complete(lives(loop, HostedLog(SimulatedClock(loop))))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    failures = [event for event in found if isinstance(event, StepFailed)]
    assert [(event.kind, event.error_type) for event in failures] == [(FailureKind.UNKNOWN, "DeliveredTooOften")]
    assert failures[0].message.startswith("delivered 5 times without an answer")
    # In its first life it ran beside the others, so that start counted for the head alone.
    assert runs.count(killer) == 6
    assert {event.output for event in found if isinstance(event, StepCompleted)} == {0, 1, 3, 4}


async def test_poison_goes_to_quarantine_and_the_partition_goes_on(log: HostedLog) -> None:
    async with host(log, echo()):
        log.put(COMMANDS, 0, b"\xff not json", b"w-1")
        log.put(COMMANDS, 0, orjson.dumps(command(NAME, 1, workflow_id="w-2")), None)
        log.put(COMMANDS, 0, orjson.dumps(command("other", 1, workflow_id="w-3")), b"w-3")
        log.put(COMMANDS, 0, None, b"w-4")
        log.send(COMMANDS, 0, command(NAME, 1, workflow_id="w-5"))
        await answered(log, 1)
        await until(log, lambda: (committed(log) or (0,))[0] == 5)
    found = [orjson.loads(record.value or b"") for record in log.records(TOPICS.quarantine)]
    assert [record["origin"] for record in found] == [f"{COMMANDS}/0/{offset}" for offset in range(4)]
    assert base64.b64decode(found[0]["value"]) == b"\xff not json"
    assert [record["reason"].split(":")[0] for record in found] == ["value", "key", "agent", "value"]
    assert header(log.records(TOPICS.quarantine)[0].headers, "ce_type") == b"sagalog.quarantine.v1"


async def test_a_broken_producer_is_replaced_and_nothing_is_lost(log: HostedLog) -> None:
    runs: list[int] = []

    async def work(value: int) -> int:
        runs.append(value)
        if value % 10 == 3:
            log.break_producers()
        return value

    async with host(log, echo(work)):
        for value in range(50):
            log.send(COMMANDS, value % PARTITIONS, command(NAME, value, workflow_id=f"w-{value}"))
        await until(
            log, lambda: len({event.output for event in answers(log) if isinstance(event, StepCompleted)}) == 50
        )
        await until(log, lambda: [(committed(log, p) or (0,))[0] for p in range(PARTITIONS)] == [25, 25])
    assert sorted(runs) == list(range(50)), "answers were kept, not made again"


async def test_while_the_log_is_down_answers_are_kept(log: HostedLog) -> None:
    async def work(value: int) -> int:
        log.down = True
        return value

    async with host(log, echo(work)):
        log.send(COMMANDS, 0, command(NAME, 1))
        await until(log, lambda: log.down)
        await asyncio.sleep(0.05)
        assert answers(log) == []
        log.down = False
        found = await answered(log, 1)
    assert [event.output for event in found if isinstance(event, StepCompleted)] == [1]


async def test_a_shutdown_lets_handlers_end_within_the_grace_period(log: HostedLog) -> None:
    started = asyncio.Event()

    async def work(value: str) -> str:
        started.set()
        await asyncio.sleep(0.05 if value == "quick" else 3600)
        return value

    running = host(log, echo(work), grace_ms=300)
    async with running:
        log.send(COMMANDS, 0, command(NAME, "quick"))
        log.send(COMMANDS, 0, command(NAME, "endless", workflow_id="w-2"))
        await started.wait()
    assert [event.output for event in answers(log) if isinstance(event, StepCompleted)] == ["quick"]
    assert committed(log) == (1, "1;0;0;")


async def test_a_host_that_is_full_stops_taking_and_goes_on_later(log: HostedLog) -> None:
    gate = asyncio.Event()
    count = OPEN_COMMANDS_MIN + 500

    async def work(value: int) -> int:
        await gate.wait()
        return value

    async with host(log, echo(work)):
        for value in range(count):
            log.send(COMMANDS, 0, command(NAME, value, workflow_id=f"w-{value}"))
        (consumer,) = log.consumers
        at = TopicPartition(COMMANDS, 0)
        await until(log, lambda: consumer._state(at).paused)
        assert await consumer.position(at) == OPEN_COMMANDS_MIN
        gate.set()
        await answered(log, count)


async def test_partitions_that_move_are_worked_on_by_their_new_owner(log: HostedLog) -> None:
    gate = asyncio.Event()
    runs: list[str] = []

    async def work(value: str) -> str:
        runs.append(value)
        await gate.wait()
        return value

    async with host(log, echo(work)):
        for partition in range(PARTITIONS):
            log.send(COMMANDS, partition, command(NAME, f"p{partition}", workflow_id=f"w-{partition}"))
        await until(log, lambda: len(runs) == PARTITIONS)
        async with host(log, echo(work)):
            await until(log, lambda: len(runs) == PARTITIONS + 1)
            gate.set()
            await answered(log, PARTITIONS + 1)
            await until(log, lambda: [(committed(log, p) or (0,))[0] for p in range(PARTITIONS)] == [1, 1])
    # Both have answered what moved, and what the first was given back it may have answered again. That harms nobody.
    assert PARTITIONS + 1 <= len(answers(log)) <= 2 * PARTITIONS
    assert sorted(runs) in (["p0", "p0", "p1"], ["p0", "p1", "p1"])
    assert {event.output for event in answers(log) if isinstance(event, StepCompleted)} == {"p0", "p1"}
    assert not any(isinstance(event, StepFailed) for event in answers(log))


async def test_commands_that_wait_are_left_to_the_new_owner_of_their_partition(log: HostedLog) -> None:
    gate = asyncio.Event()
    runs: list[str] = []

    async def work(value: str) -> None:
        runs.append(value)
        await gate.wait()

    async with host(log, echo(work)):
        for partition in range(PARTITIONS):
            for number in range(4):
                value = f"p{partition}-{number}"
                log.send(COMMANDS, partition, command(NAME, value, workflow_id=value))
            await until(log, lambda: len(runs) == 4)
        async with host(log, echo(work)):
            await until(log, lambda: len(runs) == 8)
            gate.set()
            await until(log, lambda: [(committed(log, p) or (0,))[0] for p in range(PARTITIONS)] == [4, 4])
    assert sorted(runs) == sorted(f"p{partition}-{number}" for partition in range(PARTITIONS) for number in range(4))
    assert len({header(record.headers, "ce_id") for record in log.records(TOPICS.events)}) == 8
    assert len(answers(log)) <= 12, "what stays with the first host is given to it again, and may be answered again"


async def test_long_attempts_send_heartbeats_at_a_bounded_rate(log: HostedLog) -> None:
    sent: list[int] = []

    @agent(NAME)
    async def work(ctx: Context) -> None:
        for number in range(1_000):
            ctx.heartbeat({"number": number})
        await until(log, lambda: log.kafka.records(TOPICS.heartbeats, 1))
        sent.append(len(log.kafka.records(TOPICS.heartbeats, 1)))
        # From here on the host beats by itself, every third of the timeout.
        await until(log, lambda: len(log.kafka.records(TOPICS.heartbeats, 1)) >= 3)

    async with host(log, work):
        log.send(COMMANDS, 1, command(NAME, heartbeat_timeout_ms=600))
        await answered(log, 1)
    beats = log.kafka.records(TOPICS.heartbeats, 1)
    assert sent == [1]
    assert {record.key for record in beats} == {b"w-1/worker/1/execute"}
    found = [parse_heartbeat(record.value) for record in beats]
    assert [beat.progress for beat in found[:3]] == [{"number": 999}] * 3, "the newest progress goes out"


async def test_threads_may_send_heartbeats(log: HostedLog) -> None:
    @agent(NAME)
    def work(ctx: Context) -> None:
        ctx.heartbeat({"from": "thread"})

    async with host(log, work):
        log.send(COMMANDS, 0, command(NAME))
        await answered(log, 1)
    assert [parse_heartbeat(record.value).progress for record in log.records(TOPICS.heartbeats)] == [{"from": "thread"}]


async def test_a_host_without_events_says_who_makes_them() -> None:
    with pytest.raises(AgentError, match=r"topic unit\.events does not exist after 10 ms: start the engine"):
        await host(HostedLog(), echo(), events_wait_ms=10).run(asyncio.Event())


async def test_a_command_topic_with_other_partitions_is_refused(log: HostedLog) -> None:
    await provision(log, TOPICS, [commands(NAME)], partitions=PARTITIONS + 1, replication=1)
    with pytest.raises(TopicMismatch, match="has 3 partitions where 2 are expected"):
        async with host(log, echo()):
            pass


def test_agents_of_one_name_are_refused(log: HostedLog) -> None:
    with pytest.raises(AgentError, match="given twice"):
        host(log, echo(), echo())


class CountingLog(HostedLog):
    """Notes how many answers were handed over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def producer(self, client_id: str) -> Producer:
        producer = await super().producer(client_id)
        append = producer.append

        def counted(topic: str, partition: int, records: Sequence[Out]) -> asyncio.Future[None]:
            self.sizes.append(len(records))
            return append(topic, partition, records)

        producer.append = counted  # type: ignore[method-assign]
        return producer


class StoppedClock(SystemClock):
    """No limit of time is ever reached."""

    def monotonic_ms(self) -> int:
        return 0


class LeapingClock(SystemClock):
    """A millisecond goes by at every look."""

    def __init__(self) -> None:
        self._ms = 0

    def monotonic_ms(self) -> int:
        self._ms += 1
        return self._ms


async def counting_log(count: int) -> CountingLog:
    log = CountingLog()
    await provision(log, TOPICS, [EVENTS, commands(NAME)], partitions=PARTITIONS, replication=1)
    for value in range(count):
        log.send(COMMANDS, 0, command(NAME, value, workflow_id=f"w-{value}"))
    return log


async def test_answers_of_quick_handlers_are_sent_together_but_not_without_end() -> None:
    count = OPEN_COMMANDS_MIN
    log = await counting_log(count)
    async with host(log, echo()):
        await answered(log, count)
    assert sum(log.sizes) == count
    # Up to `concurrency` of them end in the turn in which the limit is reached.
    assert GATHER_ANSWERS // 2 < max(log.sizes) < GATHER_ANSWERS + 4


async def test_answers_that_gather_do_not_wait_longer_than_their_limit() -> None:
    count = 200
    log = await counting_log(count)
    async with AgentHost([echo()], log, TOPICS, clock=LeapingClock(), rng=SystemRng()):
        await answered(log, count)
    assert sum(log.sizes) == count
    assert max(log.sizes) <= GATHER_MS


async def test_an_answer_does_not_wait_for_handlers_that_take_their_time() -> None:
    gate = asyncio.Event()

    async def work(value: int) -> int:
        if value:
            await gate.wait()
        return value

    log = await counting_log(2)
    async with AgentHost([echo(work)], log, TOPICS, clock=StoppedClock(), rng=SystemRng()):
        await answered(log, 1)
        gate.set()
        await answered(log, 2)


def alive() -> list[object]:
    return [found for found in gc.get_objects() if isinstance(found, Job | Context)]


@pytest.mark.parametrize("kind", ["returns", "raises", "in a thread", "times out"])
async def test_a_command_that_is_over_leaves_nothing_to_the_garbage_collector(log: HostedLog, kind: str) -> None:
    async def handle(value: int, ctx: Context) -> int:
        if kind == "raises":
            raise Terminal("no")  # others are logged, and pytest keeps what is logged
        if kind == "times out":
            await asyncio.Event().wait()
        return value

    def handle_in_thread(value: int, ctx: Context) -> int:
        return value

    work = agent(NAME)(handle_in_thread) if kind == "in a thread" else agent(NAME)(handle)
    gc.collect()
    others = alive()  # of tests before: what they raised is kept for their reports
    gc.disable()
    try:
        async with host(log, work):
            for value in range(20):
                log.send(COMMANDS, 0, command(NAME, value, workflow_id=f"w-{value}", timeout_ms=50))
            await answered(log, 20)
            await until(log, lambda: (committed(log) or (0,))[0] == 20)
            left = [found for found in alive() if not any(found is other for other in others)]
    finally:
        gc.enable()
    assert left == []


async def test_a_command_whose_successor_comes_in_the_same_poll_gives_its_slot_and_its_key_back(log: HostedLog) -> None:
    """Cancelled before its task ran a step, it never entered the body that gives them back (found by the simulation)."""
    runs: list[int] = []

    async def work(value: int) -> int:
        runs.append(value)
        return value

    await provision(log, TOPICS, [commands(NAME)], partitions=PARTITIONS, replication=1)
    # All lie there before the host comes, three of a key: they are started in one turn of the loop.
    for key in range(3):
        for attempt in (1, 2, 3):
            log.send(COMMANDS, 0, command(NAME, attempt, workflow_id=f"w-{key}", attempt=attempt))
    async with host(log, echo(work)):
        first = await answered(log, 9)
        log.send(COMMANDS, 0, command(NAME, 4, workflow_id="w-0", attempt=4))
        last = (await answered(log, 10))[-1]

    kinds = [event.kind.value if isinstance(event, StepFailed) else "done" for event in first]
    assert sorted(kinds) == ["cancelled"] * 6 + ["done"] * 3
    assert isinstance(last, StepCompleted) and last.output == 4
    assert sorted(runs) == [3] * 3 + [4]
