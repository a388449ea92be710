"""What the simulated cluster does when things go wrong, in simulated time: each fault, and that a seed repeats itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

from sagalog.infra.simulation import SimulatedClock, SimulationLoop
from sagalog.topics.log import (
    Consumer,
    Fenced,
    Log,
    LogError,
    LogUnavailable,
    NotAssigned,
    Out,
    ProducerBroken,
    TopicPartition,
)
from sagalog.topics.simulated import Faults, Request, SimulatedKafka

from .clusters import outs, read_some, read_to_end, values_of

T = TypeVar("T")
Scenario = Callable[[SimulatedKafka], Coroutine[Any, Any, T]]

PARTITION = TopicPartition("topic", 0)
OTHER = TopicPartition("topic", 1)
GROUP = "group"


def simulate(scenario: Scenario[T], faults: Faults | None = None, seed: int = 1) -> T:
    """Runs a scenario on a new cluster with the topic `topic` of two partitions."""
    loop = SimulationLoop()
    try:
        kafka = SimulatedKafka(SimulatedClock(loop), random.Random(seed), faults=faults)

        async def run() -> T:
            await _made(kafka)
            return await scenario(kafka)

        # In a process, so that what still waits at the end is buried with it.
        return loop.run_until_complete(loop.process("test").spawn(run()))  # type: ignore[no-any-return]
    finally:
        loop.close()


async def _made(kafka: SimulatedKafka) -> None:
    await kafka.log().create({"topic": (2, 1, {})})


def now_s() -> float:
    return asyncio.get_running_loop().time()


def stored(kafka: SimulatedKafka, partition: TopicPartition = PARTITION) -> list[bytes | None]:
    return values_of(kafka.records(*partition))


async def nothing(partitions: set[TopicPartition]) -> None:
    """No interest in the callback."""


async def join(log: Log) -> Consumer:
    return await log.join(GROUP, ["topic"], nothing, nothing)


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - simulated time costs nothing
            await asyncio.sleep(0.0005)


# --- a seed repeats itself


def _busy_run(seed: int) -> list[object]:
    """Producers, transactions, a group that changes, and every fault that the client can hide; and all that is seen of it.

    What is noticed late is left out: a transaction would be too old by then, and its owner fenced.
    """
    repeated = [kind for kind in Request if kind is not Request.METADATA]
    faults = Faults(
        lost=dict.fromkeys(repeated, 0.03),
        answer_lost=dict.fromkeys(repeated, 0.03),
        refused={Request.COMMIT: 0.02},
        unknown={Request.COMMIT: 0.02},
        slow=dict.fromkeys(Request, 0.02),
        slow_ms=(50, 400),
        leader_change=0.01,
        rebalance=0.05,
        session_timeout=0.05,
    )
    trace: list[object] = []

    async def scenario(kafka: SimulatedKafka) -> None:
        async with asyncio.timeout(600):
            log = kafka.log()
            reading = [asyncio.create_task(_read_on(log, name, trace)) for name in ("a", "b", "c")]
            await asyncio.gather(_write(log, trace), _transact(log, "one"), _transact(log, "two"))
            faults.calm()
            await asyncio.sleep(30)
            for task in reading:
                task.cancel()
            trace.append([(m.offset, m.timestamp, m.value) for p in (0, 1) for m in kafka.records("topic", p)])

    simulate(scenario, faults, seed)
    return trace


async def _write(log: Log, trace: list[object]) -> None:
    producer = await log.producer("p")
    for number in range(60):
        await producer.append("topic", number % 2, outs(b"%d" % number))
        trace.append((now_s(), "written", number))
    await producer.close()


async def _transact(log: Log, name: str) -> None:
    producer = await log.transactional(name)
    for number in range(20):
        await producer.transact({PARTITION: outs(name.encode() + b"-%d" % number)}, "other", {OTHER: number})
        await asyncio.sleep(0.2)
    await producer.close()


async def _read_on(log: Log, name: str, trace: list[object]) -> None:
    async def assigned(partitions: set[TopicPartition]) -> None:
        trace.append((now_s(), name, "assigned", sorted(partitions)))

    async def revoked(partitions: set[TopicPartition]) -> None:
        trace.append((now_s(), name, "revoked", sorted(partitions)))

    consumer = await log.join(GROUP, ["topic"], assigned, revoked, committed=True)
    while True:
        for partition, messages in (await consumer.poll(500, 7)).items():
            trace.append((now_s(), name, partition, [message.offset for message in messages]))
            try:
                await consumer.commit({partition: (messages[-1].offset + 1, name)})
            except LogError as error:
                trace.append((now_s(), name, str(error)))


def test_the_same_seed_gives_the_same_run() -> None:
    first, again, other = _busy_run(3), _busy_run(3), _busy_run(4)
    assert first == again
    assert first != other
    assert len(first) > 100


@pytest.mark.parametrize("seed", range(10))
def test_under_all_faults_nothing_is_lost_or_doubled_or_reordered(seed: int) -> None:
    records: Any = _busy_run(seed)[-1]
    values = [value for _, _, value in records]
    for names in (
        [b"%d" % number for number in range(0, 60, 2)],
        [b"%d" % number for number in range(1, 60, 2)],
        [b"one-%d" % number for number in range(20)],
        [b"two-%d" % number for number in range(20)],
    ):
        assert [value for value in values if value in names] == names


# --- producing


@pytest.mark.parametrize(
    "faults",
    [
        Faults(lost={Request.PRODUCE: 0.3}),
        Faults(answer_lost={Request.PRODUCE: 0.3}),
        Faults(lost={Request.PRODUCE: 0.1}, answer_lost={Request.PRODUCE: 0.1}, noticed_late=0.1),
        Faults(leader_change=0.2),
        Faults(slow={Request.PRODUCE: 0.3}),
    ],
    ids=["lost", "answer lost", "noticed late", "leader change", "slow"],
)
def test_the_client_repeats_a_produce_without_doubling_it(faults: Faults) -> None:
    async def scenario(kafka: SimulatedKafka) -> float:
        producer = await kafka.log().producer("p")
        for start in range(0, 100, 5):
            await asyncio.gather(*(producer.append(*PARTITION, outs(b"%d" % (start + i))) for i in range(5)))
        assert stored(kafka) == [b"%d" % number for number in range(100)]
        return now_s()

    calm_s = simulate(scenario)
    assert simulate(scenario, faults) > calm_s + 0.1


def test_a_refused_produce_breaks_the_producer_and_is_not_there() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        producer = await kafka.log().producer("p")
        with pytest.raises(ProducerBroken, match="UnknownError"):
            await producer.append(*PARTITION, outs(b"refused"))
        kafka.faults.calm()
        with pytest.raises(ProducerBroken):
            await producer.append(*PARTITION, outs(b"late"))
        assert stored(kafka) == []

    simulate(scenario, Faults(refused={Request.PRODUCE: 1.0}))


def test_a_produce_can_fail_although_it_is_there() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        producer = await kafka.log().producer("p")
        with pytest.raises(ProducerBroken):
            await producer.append(*PARTITION, outs(b"there"))
        assert stored(kafka) == [b"there"]

    simulate(scenario, Faults(unknown={Request.PRODUCE: 1.0}))


def test_a_part_of_a_large_append_can_be_there_when_it_fails() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        producer = await kafka.log().producer("p")
        appended = producer.append(*PARTITION, outs(*[b"v"] * 1_200))
        await until(lambda: len(stored(kafka)) == 500)
        kafka.faults.refused[Request.PRODUCE] = 1.0
        with pytest.raises(ProducerBroken):
            await appended
        assert 500 <= len(stored(kafka)) < 1_200

    simulate(scenario)


def test_closing_a_producer_ends_what_is_on_its_way() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        producer = await kafka.log().producer("p")
        kafka.outage(60_000)
        on_its_way = producer.append(*PARTITION, outs(b"1"))
        await asyncio.sleep(1)
        queued = producer.append(*PARTITION, outs(b"2"))
        await producer.close()
        found = await asyncio.gather(on_its_way, queued, return_exceptions=True)
        assert [type(error) for error in found] == [ProducerBroken] * 2

    simulate(scenario)


# --- commits


@pytest.mark.parametrize("faults", [Faults(lost={Request.COMMIT: 0.5}), Faults(answer_lost={Request.COMMIT: 0.5})])
def test_the_client_repeats_a_commit(faults: Faults) -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        consumer = await join(log)
        for offset in range(20):
            await consumer.commit({PARTITION: (offset, "m")})
            assert await log.committed(GROUP, [PARTITION]) == {PARTITION: (offset, "m")}

    simulate(scenario, faults)


@pytest.mark.parametrize(
    ("faults", "found"),
    [
        (Faults(unknown={Request.COMMIT: 1.0}), {PARTITION: (3, "")}),
        (Faults(refused={Request.COMMIT: 1.0}), {}),
    ],
)
def test_a_commit_can_fail_with_or_without_effect(faults: Faults, found: dict[TopicPartition, tuple[int, str]]) -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        consumer = await join(log)
        with pytest.raises(LogError, match="UnknownError") as raised:
            await consumer.commit({PARTITION: (3, "")})
        assert not isinstance(raised.value, NotAssigned)
        assert await log.committed(GROUP, [PARTITION]) == found

    simulate(scenario, faults)


# --- transactions


@pytest.mark.parametrize("fault", ["lost", "answer_lost"])
@pytest.mark.parametrize("kind", [Request.TRANSACTION, Request.PRODUCE, Request.END_TRANSACTION])
def test_the_client_repeats_every_step_of_a_transaction(fault: str, kind: Request) -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        producer = await log.transactional("tx")
        for number in range(20):
            await producer.transact({PARTITION: outs(b"%d" % number), OTHER: outs(b"x")}, GROUP, {PARTITION: number})
        await asyncio.sleep(1)
        assert stored(kafka) == [b"%d" % number for number in range(20)]
        assert stored(kafka, OTHER) == [b"x"] * 20
        assert await log.committed(GROUP, [PARTITION]) == {PARTITION: (19, "")}

    faults = Faults()
    setattr(faults, fault, {kind: 0.3})
    simulate(scenario, faults)


def test_a_transaction_can_fail_although_it_is_committed() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        producer = await kafka.log().transactional("tx")
        with pytest.raises(LogError, match="UnknownError"):
            await producer.transact({PARTITION: outs(b"there")})
        with pytest.raises(ProducerBroken):
            await producer.transact({PARTITION: outs(b"late")})
        await asyncio.sleep(1)
        assert stored(kafka) == [b"there"]

    simulate(scenario, Faults(unknown={Request.END_TRANSACTION: 1.0}))


def test_a_transaction_whose_end_was_refused_stays_open_until_the_id_is_taken() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        producer = await log.transactional("tx")
        with pytest.raises(LogError):
            await producer.transact({PARTITION: outs(b"open")}, GROUP, {PARTITION: 5})
        await (await log.producer("p")).append(*PARTITION, outs(b"behind"))
        await asyncio.sleep(1)
        assert stored(kafka) == []
        kafka.faults.calm()
        await log.transactional("tx")
        assert stored(kafka) == [b"behind"]
        assert await log.committed(GROUP, [PARTITION]) == {}

    simulate(scenario, Faults(refused={Request.END_TRANSACTION: 1.0}))


def test_a_transaction_is_seen_later_than_it_is_committed_and_not_everywhere_at_once() -> None:
    async def scenario(kafka: SimulatedKafka) -> set[tuple[bool, bool]]:
        producer = await kafka.log().transactional("tx")
        seen = set()
        for _ in range(50):
            before = len(stored(kafka)), len(stored(kafka, OTHER))
            await producer.transact({PARTITION: outs(b"v"), OTHER: outs(b"v")})
            seen.add((len(stored(kafka)) > before[0], len(stored(kafka, OTHER)) > before[1]))
            await asyncio.sleep(0.1)
        return seen

    assert simulate(scenario) == {(False, False), (False, True), (True, False), (True, True)}


# --- outages


def test_during_an_outage_nothing_gets_through_and_afterwards_everything_does() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        producer, reader = await log.producer("p"), await log.read({PARTITION: None}, committed=False)
        await log.partitions("topic")
        kafka.outage(5_000)
        began_s = now_s()
        appended = producer.append(*PARTITION, outs(b"1"))
        assert await reader.poll(1_000, 10) == {}
        with pytest.raises(LogUnavailable):
            await log.producer("q")
        with pytest.raises(LogUnavailable):
            await log.read({PARTITION: None}, committed=False)
        with pytest.raises(LogError, match="metadata failed"):
            await log.partitions("topic")
        assert not appended.done()
        await appended
        assert 5.0 <= now_s() - began_s < 5.5
        assert values_of(await read_some(reader, 1)) == [b"1"]

    simulate(scenario)


def test_an_answer_that_an_outage_cuts_off_took_effect_once() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        producer = await kafka.log().producer("p")
        appended = producer.append(*PARTITION, outs(b"1"))
        await until(lambda: stored(kafka))
        kafka.outage(1_000)
        assert not appended.done()
        await appended
        assert stored(kafka) == [b"1"]

    simulate(scenario)


def test_an_outage_longer_than_its_session_costs_a_member_its_place_and_it_comes_back() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        calls: list[str] = []

        async def assigned(partitions: set[TopicPartition]) -> None:
            calls.append(f"assigned {len(partitions)}")

        async def revoked(partitions: set[TopicPartition]) -> None:
            calls.append(f"revoked {len(partitions)}")

        consumer = await log.join(GROUP, ["topic"], assigned, revoked)
        kafka.outage(15_000)
        await asyncio.sleep(14)
        assert consumer.assignment() == {PARTITION, OTHER}
        assert calls == ["revoked 0", "assigned 2"]
        await until(lambda: len(calls) == 4)
        assert calls[2:] == ["revoked 2", "assigned 2"]
        await consumer.commit({PARTITION: (1, "")})

    simulate(scenario)


# --- groups


def test_a_spurious_session_timeout_shows_as_a_rebalance() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        consumer = await join(kafka.log())
        kafka.expire(GROUP)
        with pytest.raises(NotAssigned):
            await consumer.commit({PARTITION: (1, "")})
        await asyncio.sleep(5)
        await consumer.commit({PARTITION: (1, "")})

    simulate(scenario)


def test_a_forced_rebalance_tells_every_member() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        counts = {"a": 0, "b": 0}

        def counting(name: str) -> Callable[[set[TopicPartition]], Awaitable[None]]:
            async def assigned(partitions: set[TopicPartition]) -> None:
                counts[name] += 1

            return assigned

        for name in counts:
            await log.join(GROUP, ["topic"], counting(name), nothing)
        await asyncio.sleep(10)
        counts.update(a=0, b=0)
        kafka.rebalance(GROUP)
        await asyncio.sleep(10)
        assert counts == {"a": 1, "b": 1}

    simulate(scenario)


# --- processes that are killed or stopped


def _in_process(body: Callable[[SimulatedKafka, SimulationLoop], Coroutine[Any, Any, None]]) -> None:
    loop = SimulationLoop()
    try:
        kafka = SimulatedKafka(SimulatedClock(loop), random.Random(1))

        async def run() -> None:
            await _made(kafka)
            await body(kafka, loop)

        loop.run_until_complete(loop.process("test").spawn(run()))
    finally:
        loop.close()


def test_a_killed_member_is_missed_after_its_session_and_others_get_its_partitions() -> None:
    async def body(kafka: SimulatedKafka, loop: SimulationLoop) -> None:
        one = loop.process("one")
        await one.spawn(join(kafka.log()))
        one.kill()
        killed_s = now_s()
        survivor = await join(kafka.log())
        assert survivor.assignment() == {PARTITION, OTHER}
        assert 9.5 < now_s() - killed_s < 11

    _in_process(body)


def test_a_killed_writers_transaction_is_aborted_when_it_is_too_old() -> None:
    async def body(kafka: SimulatedKafka, loop: SimulationLoop) -> None:
        writer = loop.process("writer")

        async def write() -> None:
            producer = await kafka.log().transactional("tx")
            await producer.transact({PARTITION: outs(b"never"), TopicPartition("missing", 0): outs(b"never")})

        writer.spawn(write())
        reader = await kafka.log().read({PARTITION: None}, committed=True)
        partition = kafka.partition(PARTITION)
        assert partition is not None
        await until(lambda: partition.records)
        writer.kill()
        killed_s = now_s()
        await (await kafka.log().producer("p")).append(*PARTITION, outs(b"after"))
        assert await reader.poll(9_000, 10) == {}
        assert values_of((await reader.poll(5_000, 10))[PARTITION]) == [b"after"]
        assert 9.5 < now_s() - killed_s < 11.5

    _in_process(body)


def test_a_member_that_was_stopped_wakes_up_as_a_zombie() -> None:
    """It thinks that it owns its partitions; the broker refuses its commits; a transaction's offsets only the fence stops."""

    async def body(kafka: SimulatedKafka, loop: SimulationLoop) -> None:
        zombie = loop.process("zombie")
        log = kafka.log()
        consumer = await zombie.spawn(join(log))
        transactions = await zombie.spawn(log.transactional("tx"))
        unfenced = await zombie.spawn(log.transactional("unfenced"))
        zombie.freeze()
        survivor = await join(kafka.log())
        await survivor.commit({PARTITION: (7, "survivor")})
        successor = await kafka.log().transactional("tx")
        zombie.thaw()
        assert consumer.assignment() == {PARTITION, OTHER}

        async def act() -> None:
            with pytest.raises(NotAssigned):
                await consumer.commit({PARTITION: (1, "zombie")})
            with pytest.raises(Fenced):
                await transactions.transact({PARTITION: outs(b"zombie")}, GROUP, {PARTITION: 1})
            await unfenced.transact({}, GROUP, {PARTITION: 2})

        await zombie.spawn(act())
        await asyncio.sleep(1)
        assert await kafka.log().committed(GROUP, [PARTITION]) == {PARTITION: (2, "")}
        await successor.transact({PARTITION: outs(b"successor")})
        await asyncio.sleep(1)
        assert stored(kafka) == [b"successor"]

    _in_process(body)


def test_a_request_of_a_process_that_was_killed_meanwhile_still_arrives() -> None:
    async def body(kafka: SimulatedKafka, loop: SimulationLoop) -> None:
        process = loop.process("p")
        producer = await process.spawn(kafka.log().producer("p"))
        await process.spawn(_appended(producer, b"1"))
        process.run(lambda: producer.append(*PARTITION, outs(b"2")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        process.kill()
        await asyncio.sleep(1)
        assert stored(kafka) == [b"1", b"2"]

    _in_process(body)


async def _appended(producer: Any, value: bytes) -> None:
    await producer.append(*PARTITION, outs(value))


# --- cleanup


def test_compaction_keeps_the_newest_of_each_key_and_readers_pass_over_the_gaps() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        producer = await log.producer("p")
        written = [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"c", b"1"), (b"c", None), (b"b", b"2"), (b"d", None)]
        await producer.append(*PARTITION, [Out(key, value) for key, value in written])
        kafka.compact("topic")
        for committed in (True, False):
            reader = await log.read({PARTITION: None}, committed=committed)
            found = await read_to_end(reader, PARTITION)
            assert [(m.offset, m.key, m.value) for m in found] == [(2, b"a", b"2"), (5, b"b", b"2")]
            assert await reader.position(PARTITION) == 7
            assert await reader.beginning_offsets([PARTITION]) == {PARTITION: 0}
            assert await reader.end_offsets([PARTITION]) == {PARTITION: 7}

    simulate(scenario)


def test_compaction_leaves_what_an_open_transaction_hides() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        plain, transactional = await log.producer("p"), await log.transactional("tx")
        await plain.append(*PARTITION, outs(b"1", b"2"))
        kafka.faults.refused[Request.END_TRANSACTION] = 1.0
        with pytest.raises(LogError):
            await transactional.transact({PARTITION: outs(b"aborted")})
        await plain.append(*PARTITION, outs(b"3"))
        kafka.compact("topic")
        assert stored(kafka) == [b"2"]
        kafka.faults.calm()
        await log.transactional("tx")
        assert stored(kafka) == [b"2", b"3"]
        kafka.compact("topic")
        reader = await log.read({PARTITION: None}, committed=False)
        assert values_of(await read_to_end(reader, PARTITION)) == [b"3"]

    simulate(scenario)


def test_retention_moves_the_beginning() -> None:
    async def scenario(kafka: SimulatedKafka) -> None:
        log = kafka.log()
        await (await log.producer("p")).append(*PARTITION, outs(b"0", b"1", b"2"))
        kafka.delete_records(*PARTITION, 2)
        reader = await log.read({PARTITION: 0}, committed=True)
        assert await reader.beginning_offsets([PARTITION]) == {PARTITION: 2}
        assert values_of(await read_some(reader, 1)) == [b"2"]
        assert stored(kafka) == [b"2"]

    simulate(scenario)


def test_what_the_real_client_never_shows_is_no_fault() -> None:
    with pytest.raises(ValueError, match="unknown is no fault of fetch"):
        Faults(unknown={Request.FETCH: 0.1})
