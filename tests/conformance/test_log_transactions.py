"""The log port, fact by fact: transactions and what their readers see. Each holds for the simulated cluster and a real Kafka."""

from __future__ import annotations

import asyncio

import pytest

from sagalog.topics.log import Fenced, LogError, Out, ProducerBroken, RecordTooLarge, TopicPartition

from .clusters import Bench, eventually, offsets_of, outs, read_some, read_to_end, values_of


async def _committed_end(bench: Bench, partition: TopicPartition, wanted: int) -> None:
    """Waits for the markers: a transaction is durable when `transact` returns, and seen a moment later."""
    reader = await bench.reader(partition, committed=True)

    async def reached() -> bool:
        return (await reader.end_offsets([partition]))[partition] == wanted

    await eventually(reached)


async def test_a_committed_transaction_is_read_in_every_partition(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    one, two = TopicPartition(topic, 0), TopicPartition(topic, 1)
    producer = await bench.transactional()
    await producer.transact({one: outs(b"1", b"2"), two: outs(b"3")})
    reader = await bench.reader(one, two, committed=True)
    found = await read_some(reader, 3)
    assert sorted(values_of(found)) == [b"1", b"2", b"3"]  # type: ignore[type-var]


async def test_a_marker_takes_an_offset_and_is_never_read(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.transactional()
    await producer.transact({partition: outs(b"0", b"1")})
    await producer.transact({partition: outs(b"3")})
    await _committed_end(bench, partition, 5)
    for committed in (True, False):
        reader = await bench.reader(partition, committed=committed)
        found = await read_to_end(reader, partition)
        assert (offsets_of(found), values_of(found)) == ([0, 1, 3], [b"0", b"1", b"3"])
        assert await reader.position(partition) == 5


async def test_a_position_passes_over_a_marker_in_the_poll_that_finds_nothing(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.transactional()
    await producer.transact({partition: outs(b"0")})
    await _committed_end(bench, partition, 2)
    reader = await bench.reader(partition, committed=True)
    assert values_of((await reader.poll(5_000, 1))[partition]) == [b"0"]
    assert await reader.position(partition) == 1
    assert await reader.poll(200, 1) == {}
    assert await reader.position(partition) == 2


async def test_an_empty_transaction_leaves_no_trace(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.transactional()
    await producer.transact({})
    await producer.transact({partition: []})
    await bench.append(partition, b"0")
    assert offsets_of(await read_to_end(await bench.reader(partition), partition)) == [0]


async def test_a_large_transaction_is_read_whole(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.transactional()
    await producer.transact({partition: outs(*[b"x" * 1_000] * 1_500)})
    await _committed_end(bench, partition, 1_501)
    assert len(await read_to_end(await bench.reader(partition, committed=True), partition)) == 1_500


async def test_an_open_transaction_hides_itself_and_what_follows_from_committed_readers(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"before")
    async with bench.open_transaction(partition, b"open"):
        await bench.append(partition, b"after")
        committed = await bench.reader(partition, committed=True)
        anything = await bench.reader(partition)
        assert await committed.end_offsets([partition]) == {partition: 1}
        assert await anything.end_offsets([partition]) == {partition: 3}
        assert values_of(await read_some(committed, 1)) == [b"before"]
        assert await committed.poll(300, 10) == {}
        assert values_of(await read_some(anything, 3)) == [b"before", b"open", b"after"]


async def test_a_failed_transaction_is_aborted_and_its_records_are_passed_over(bench: Bench) -> None:
    partition = await bench.topic()
    committed = await bench.reader(partition, committed=True)
    async with bench.open_transaction(partition, b"aborted", b"aborted"):
        await bench.append(partition, b"after")
    await _committed_end(bench, partition, 4)
    found = await read_some(committed, 1)
    assert (offsets_of(found), values_of(found)) == ([2], [b"after"])
    assert await bench.values(partition) == [b"aborted", b"aborted", b"after"]


async def test_a_reader_passes_over_what_was_only_aborted(bench: Bench) -> None:
    partition = await bench.topic()
    async with bench.open_transaction(partition, b"aborted"):
        pass
    await _committed_end(bench, partition, 2)
    reader = await bench.reader(partition, committed=True)
    assert await read_to_end(reader, partition) == []
    assert await reader.position(partition) == 2


async def test_a_transaction_that_was_refused_in_part_commits_nothing(bench: Bench) -> None:
    good = await bench.topic("good")
    small = await bench.topic("small", max_message_bytes="1000")
    producer = await bench.transactional()
    with pytest.raises(LogError, match="MessageSizeTooLarge"):
        await producer.transact({good: outs(b"v"), small: outs(b"x" * 5_000)}, bench.group, {good: 1})
    await _committed_end(bench, good, 2)
    assert await bench.values(good, committed=True) == []
    assert await bench.log.committed(bench.group, [good]) == {}


async def test_after_a_failure_the_producer_is_useless_and_a_new_one_goes_on(bench: Bench) -> None:
    good = await bench.topic("good")
    small = await bench.topic("small", max_message_bytes="1000")
    producer = await bench.transactional()
    with pytest.raises(LogError):
        await producer.transact({small: outs(b"x" * 5_000)})
    with pytest.raises(ProducerBroken, match="make a new producer"):
        await producer.transact({good: outs(b"lost")})
    again = await bench.transactional()
    await again.transact({good: outs(b"kept")})
    await _committed_end(bench, good, 2)
    assert await bench.values(good) == [b"kept"]


async def test_an_oversized_record_is_refused_before_the_transaction_begins(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.transactional()
    with pytest.raises(RecordTooLarge):
        await producer.transact({partition: [Out(b"k", b"small"), Out(b"k", b"x" * 1_500_000)]})
    await producer.transact({partition: outs(b"fits")})
    await _committed_end(bench, partition, 2)
    assert await bench.values(partition) == [b"fits"]


# --- fencing


async def test_whoever_takes_an_id_fences_the_owner_before(bench: Bench) -> None:
    partition = await bench.topic()
    old = await bench.transactional()
    await old.transact({partition: outs(b"old")})
    new = await bench.transactional()
    with pytest.raises(Fenced, match="belongs to another process"):
        await old.transact({partition: outs(b"zombie")})
    with pytest.raises(ProducerBroken):
        await old.transact({partition: outs(b"zombie")})
    await new.transact({partition: outs(b"new")})
    await _committed_end(bench, partition, 4)
    assert await bench.values(partition) == [b"old", b"new"]


async def test_a_fenced_owner_cannot_commit_offsets_either(bench: Bench) -> None:
    partition = await bench.topic()
    old = await bench.transactional()
    await bench.transactional()
    with pytest.raises(Fenced):
        await old.transact({}, bench.group, {partition: 1})
    assert await bench.log.committed(bench.group, [partition]) == {}


async def test_other_ids_are_not_fenced(bench: Bench) -> None:
    partition = await bench.topic()
    one, two = await bench.transactional("one"), await bench.transactional("two")
    await one.transact({partition: outs(b"1")})
    await two.transact({partition: outs(b"2")})
    await one.transact({partition: outs(b"3")})
    await _committed_end(bench, partition, 6)
    assert await bench.values(partition, committed=True) == [b"1", b"2", b"3"]


async def test_taking_an_id_aborts_its_open_transaction_before_it_returns(bench: Bench) -> None:
    partition = await bench.topic()
    async with bench.open_transaction(partition, b"aborted", name="tx") as writing:
        new = await bench.transactional("tx")
        assert not writing.done()
        reader = await bench.reader(partition, committed=True)
        assert await reader.end_offsets([partition]) == {partition: 2}
        await new.transact({partition: outs(b"kept")})
        await _committed_end(bench, partition, 4)
        assert await bench.values(partition, committed=True) == [b"kept"]


async def test_two_open_transactions_hide_what_follows_the_older(bench: Bench) -> None:
    partition = await bench.topic()
    async with bench.open_transaction(partition, b"older", name="older"):
        newer = await bench.transactional("newer")
        await newer.transact({partition: outs(b"newer")})
        reader = await bench.reader(partition, committed=True)
        assert await reader.end_offsets([partition]) == {partition: 0}
    await _committed_end(bench, partition, 4)
    assert await bench.values(partition, committed=True) == [b"newer"]


async def test_a_transaction_that_is_too_old_is_aborted_by_the_broker_and_its_owner_fenced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sagalog.topics.kafka", "sagalog.topics.simulated.producers"):
        monkeypatch.setattr(f"{module}.TRANSACTION_TIMEOUT_MS", 400)
    bench.cluster.request_timeout_ms = 5_000
    bench.log = bench.other_log()
    partition = await bench.topic()
    missing = TopicPartition(f"{bench.prefix}.missing", 0)
    producer = await bench.transactional()
    writing = asyncio.create_task(producer.transact({partition: outs(b"too old"), missing: outs(b"late")}))
    await read_some(await bench.reader(partition), 1)
    await _committed_end(bench, partition, 2)
    assert not writing.done()
    await bench.log.create({missing.topic: (1, 1, {})})
    with pytest.raises(Fenced):
        await writing
    assert await bench.values(partition, committed=True) == []
    assert await bench.values(missing) == []


async def test_a_cancelled_transaction_is_aborted(bench: Bench) -> None:
    partition = await bench.topic()
    missing = TopicPartition(f"{bench.prefix}.missing", 0)
    producer = await bench.transactional()
    writing = asyncio.create_task(producer.transact({partition: outs(b"cancelled"), missing: outs(b"never")}))
    await read_some(await bench.reader(partition), 1)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await _committed_end(bench, partition, 2)
    assert await bench.values(partition, committed=True) == []
    with pytest.raises(ProducerBroken):
        await producer.transact({partition: outs(b"late")})


# --- offsets in transactions


async def test_offsets_are_committed_with_the_transaction(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.transactional()
    await producer.transact({partition: outs(b"v")}, bench.group, {partition: 7})

    async def committed() -> bool:
        return await bench.log.committed(bench.group, [partition]) == {partition: (7, "")}

    await eventually(committed)


async def test_offsets_can_be_all_that_a_transaction_has(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.transactional()
    await producer.transact({}, bench.group, {partition: 3})

    async def committed() -> bool:
        return await bench.log.committed(bench.group, [partition]) == {partition: (3, "")}

    await eventually(committed)
    assert await (await bench.reader(partition)).end_offsets([partition]) == {partition: 0}


async def test_a_transaction_commits_offsets_of_a_group_that_others_are_in(bench: Bench) -> None:
    """It names no generation: who has lost its partitions, or never had them, may still do it, unless it is fenced."""
    partition = await bench.topic()
    member = await bench.join(partition.topic)
    assert member.assigned == {partition}
    stranger = await bench.transactional()
    await stranger.transact({}, bench.group, {partition: 9})

    async def committed() -> bool:
        return await bench.log.committed(bench.group, [partition]) == {partition: (9, "")}

    await eventually(committed)
