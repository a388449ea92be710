"""The log port, fact by fact: writing and reading. Each holds for the simulated cluster and for a real Kafka."""

from __future__ import annotations

import asyncio
import time

import pytest

from sagalog.topics.log import (
    LogError,
    Message,
    NotAssigned,
    Out,
    ProducerBroken,
    Reader,
    RecordTooLarge,
    TopicPartition,
)

from .clusters import (
    PATIENCE_S,
    Bench,
    offsets_of,
    outs,
    read_to_end,
    values_of,
)

# --- topics


async def test_a_topic_that_exists_is_left_alone(bench: Bench) -> None:
    name = (await bench.topic(partitions=3)).topic
    await bench.log.create({name: (5, 1, {})})
    assert await bench.log.partitions(name) == 3


async def test_a_topic_is_described_with_its_configuration_and_the_brokers_defaults(bench: Bench) -> None:
    name = (await bench.topic(partitions=2, cleanup_policy="compact")).topic
    found = await bench.log.describe([name, f"{name}.none"])
    assert list(found) == [name]
    assert (found[name].partitions, found[name].replication) == (2, 1)
    assert found[name].config["cleanup.policy"] == "compact"
    assert found[name].config["message.timestamp.type"] == "CreateTime"
    assert found[name].config["max.message.bytes"] == "1048588"
    assert found[name].config["retention.ms"] == "604800000"


async def test_a_topic_that_does_not_exist_has_no_partitions(bench: Bench) -> None:
    assert await bench.log.partitions(f"{bench.prefix}.none") is None


# --- writing


async def test_a_record_comes_back_as_it_was_written(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    producer = await bench.producer()
    await producer.append(topic, 1, [Out(b"k", b"v", [("a", b"1"), ("b", b"")]), Out(None, b"", ()), Out(b"k", None)])
    reader = await bench.reader(TopicPartition(topic, 1))
    first, second, third = await read_to_end(reader, TopicPartition(topic, 1))
    assert (first.topic, first.partition, first.offset, first.key, first.value) == (topic, 1, 0, b"k", b"v")
    assert tuple(first.headers) == (("a", b"1"), ("b", b""))
    assert (second.offset, second.key, second.value, tuple(second.headers)) == (1, None, b"", ())
    assert (third.offset, third.key, third.value) == (2, b"k", None)


async def test_appends_keep_their_order(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.producer()
    wanted = [b"%d" % number for number in range(3_000)]
    appended = [producer.append(*partition, outs(*wanted[at : at + 7])) for at in range(0, len(wanted), 7)]
    await asyncio.gather(*appended)
    found = await read_to_end(await bench.reader(partition), partition)
    assert values_of(found) == wanted
    assert offsets_of(found) == list(range(3_000))


async def test_a_reader_with_much_at_hand_gives_others_a_turn_before_each_poll(bench: Bench) -> None:
    """Whoever works off a backlog would otherwise keep what it causes from being sent, for seconds."""
    partition = await bench.topic()
    producer = await bench.producer()
    await producer.append(*partition, outs(*[b"x"] * 1_000))
    reader = await bench.reader(partition)
    assert await reader.poll(int(PATIENCE_S * 1_000), 10)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    found = [await reader.poll(1_000, 10) for _ in range(50)]
    beside.cancel()
    assert [len(batches[partition]) for batches in found] == [10] * 50
    assert turns >= 50


async def test_a_large_append_is_durable_when_its_future_ends(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.producer()
    await producer.append(*partition, outs(*[b"x" * 1_000] * 2_000))
    reader = await bench.reader(partition)
    assert await reader.end_offsets([partition]) == {partition: 2_000}


async def test_appending_nothing_ends_at_once(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.producer()
    assert producer.append(*partition, []).done()
    assert producer.pending == 0


async def test_pending_counts_what_is_not_durable(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.producer()
    appended = [producer.append(*partition, outs(b"1", b"2")), producer.append(*partition, outs(b"3"))]
    assert producer.pending == 3
    await producer.below(0)
    assert producer.pending == 0
    await asyncio.gather(*appended)


async def test_an_oversized_record_is_refused_and_the_producer_stays_usable(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.producer()
    with pytest.raises(RecordTooLarge, match=r"1,500,\d+ bytes, more than 1,000,000"):
        await producer.append(*partition, [Out(b"k", b"small"), Out(b"k", b"x" * 1_500_000)])
    assert producer.pending == 0
    await producer.append(*partition, outs(b"fits"))
    assert await bench.values(partition) == [b"fits"]


async def test_what_the_broker_refuses_breaks_the_producer_for_good(bench: Bench) -> None:
    small = await bench.topic("small", max_message_bytes="1000")
    good = await bench.topic("good")
    producer = await bench.producer()
    with pytest.raises(ProducerBroken, match="MessageSizeTooLarge"):
        await producer.append(*small, outs(b"x" * 5_000))
    with pytest.raises(ProducerBroken, match="make a new producer"):
        await producer.append(*good, outs(b"fits"))
    await producer.below(0)
    assert producer.pending == 0
    assert await bench.values(good) == []


async def test_a_producer_that_breaks_fails_what_is_queued_behind(bench: Bench) -> None:
    small = await bench.topic("small", max_message_bytes="1000")
    producer = await bench.producer()
    bad = producer.append(*small, outs(b"x" * 5_000))
    with pytest.raises(ProducerBroken):
        await bad
    behind = [producer.append(*small, outs(b"1")) for _ in range(3)]
    assert [type(found) for found in await asyncio.gather(*behind, return_exceptions=True)] == [ProducerBroken] * 3


async def test_appending_to_a_topic_that_does_not_exist_breaks_the_producer_after_the_request_timeout(
    bench: Bench,
) -> None:
    timeout_s = bench.cluster.request_timeout_ms / 1000
    producer = await bench.producer()
    started = time.monotonic()
    with pytest.raises(ProducerBroken, match="UnknownTopicOrPartition"):
        await producer.append(f"{bench.prefix}.none", 0, outs(b"v"))
    assert timeout_s - 0.2 < time.monotonic() - started < timeout_s + 2


async def test_a_closed_producer_writes_nothing_more(bench: Bench) -> None:
    partition = await bench.topic()
    producer = await bench.producer()
    last = producer.append(*partition, outs(b"last"))
    await producer.close()
    await last
    with pytest.raises(ProducerBroken):
        await producer.append(*partition, outs(b"late"))
    assert await bench.values(partition) == [b"last"]


async def test_a_topic_can_have_the_brokers_time(bench: Bench) -> None:
    partition = await bench.topic(message_timestamp_type="LogAppendTime")
    before_ms = time.time_ns() // 1_000_000
    await bench.append(partition, b"1")
    await bench.append(partition, b"2")
    after_ms = time.time_ns() // 1_000_000
    stamps = [message.timestamp for message in await read_to_end(await bench.reader(partition), partition)]
    assert before_ms <= stamps[0] <= stamps[1] <= after_ms


# --- reading


async def test_a_reader_starts_at_the_beginning_or_at_an_offset(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0", b"1", b"2")
    assert values_of(await read_to_end(await bench.reader(partition), partition)) == [b"0", b"1", b"2"]
    assert values_of(await read_to_end(await bench.reader(partition, offset=2), partition)) == [b"2"]
    assert await (await bench.reader(partition, offset=3)).position(partition) == 3


async def test_a_poll_that_finds_nothing_ends_with_its_timeout(bench: Bench) -> None:
    partition = await bench.topic()
    reader = await bench.reader(partition)
    started = time.monotonic()
    assert await reader.poll(300, 10) == {}
    assert 0.28 < time.monotonic() - started < 1.0


async def test_a_poll_ends_as_soon_as_there_is_something(bench: Bench) -> None:
    partition = await bench.topic()
    reader = await bench.reader(partition)
    polling = asyncio.create_task(reader.poll(10_000, 10))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await bench.append(partition, b"1")
    assert values_of((await polling)[partition]) == [b"1"]
    assert time.monotonic() - started < 2


async def test_a_poll_without_a_timeout_does_not_wait(bench: Bench) -> None:
    partition = await bench.topic()
    reader = await bench.reader(partition)
    started = time.monotonic()
    assert await reader.poll(0, 10) == {}
    assert time.monotonic() - started < 0.05


async def test_a_poll_takes_no_more_than_it_was_asked_for(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, *[b"%d" % number for number in range(10)])
    reader = await bench.reader(partition)
    assert values_of((await reader.poll(5_000, 4))[partition]) == [b"0", b"1", b"2", b"3"]
    assert await reader.position(partition) == 4
    assert values_of((await reader.poll(5_000, 100))[partition]) == [b"4", b"5", b"6", b"7", b"8", b"9"]
    assert await reader.position(partition) == 10


async def test_a_poll_takes_at_least_one(bench: Bench) -> None:
    reader = await bench.reader(await bench.topic())
    with pytest.raises(ValueError):
        await reader.poll(100, 0)


async def test_a_poll_counts_the_records_of_all_partitions(bench: Bench) -> None:
    topic = (await bench.topic(partitions=3)).topic
    partitions = [TopicPartition(topic, number) for number in range(3)]
    for partition in partitions:
        await bench.append(partition, b"1", b"2")
    reader = await bench.reader(*partitions)
    counts: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        while sum(counts) < 6:
            counts.append(sum(map(len, (await reader.poll(5_000, 2)).values())))
    assert counts == [2, 2, 2]


async def test_what_was_fetched_before_a_seek_is_not_returned_after_it(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, *[b"%d" % number for number in range(10)])
    reader = await bench.reader(partition)
    await reader.poll(5_000, 1)
    reader.seek(partition, 7)
    assert await reader.position(partition) == 7
    assert values_of((await reader.poll(5_000, 1))[partition]) == [b"7"]
    reader.seek(partition, 2)
    assert values_of((await reader.poll(5_000, 2))[partition]) == [b"2", b"3"]


async def test_what_is_being_fetched_during_a_seek_is_not_returned_after_it(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, *[b"%d" % number for number in range(10)])
    reader = await bench.reader(partition, offset=0)
    reader.seek(partition, 7)
    assert values_of((await reader.poll(5_000, 1))[partition]) == [b"7"]


async def test_a_poll_under_way_follows_a_seek(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0", b"1", b"2")
    reader = await bench.reader(partition, offset=3)
    polling = asyncio.create_task(reader.poll(5_000, 10))
    await asyncio.sleep(0.05)
    reader.seek(partition, 1)
    assert values_of((await polling)[partition]) == [b"1", b"2"]


async def test_a_paused_partition_gives_nothing_and_loses_nothing(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    paused, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    await bench.append(paused, b"0", b"1")
    reader = await bench.reader(paused, other)
    assert values_of((await reader.poll(5_000, 1))[paused]) == [b"0"]
    reader.pause(paused)
    await bench.append(other, b"other")
    assert list(await reader.poll(2_000, 10)) == [other]
    assert await reader.poll(200, 10) == {}
    assert await reader.position(paused) == 1
    reader.resume(paused)
    assert values_of((await reader.poll(5_000, 10))[paused]) == [b"1"]


async def test_a_poll_under_way_follows_a_resume(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0")
    reader = await bench.reader(partition)
    reader.pause(partition)
    polling = asyncio.create_task(reader.poll(5_000, 10))
    await asyncio.sleep(0.3)
    assert not polling.done()
    reader.resume(partition)
    assert values_of((await polling)[partition]) == [b"0"]


async def test_a_reader_is_given_other_partitions(bench: Bench) -> None:
    topic = (await bench.topic(partitions=3)).topic
    first, second, third = (TopicPartition(topic, number) for number in range(3))
    for partition in (first, second, third):
        await bench.append(partition, b"0", b"1")
    reader = await bench.reader()
    assert reader.assignment() == set()
    assert await reader.poll(50, 10) == {}

    reader.assign({first: 0, second: 1})
    assert {at: values_of(found) for at, found in (await _polled(reader, 3)).items()} == {
        first: [b"0", b"1"],
        second: [b"1"],
    }
    reader.assign({second: 0, third: 1})
    assert reader.assignment() == {second, third}
    assert {at: values_of(found) for at, found in (await _polled(reader, 3)).items()} == {
        second: [b"0", b"1"],
        third: [b"1"],
    }
    reader.assign({})
    await bench.append(second, b"2")
    assert await reader.poll(300, 10) == {}


async def test_what_was_fetched_of_partitions_before_is_not_returned_of_those_after(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    await bench.append(first, *[b"%d" % number for number in range(10)])
    await bench.append(second, b"0")
    reader = await bench.reader(first)
    await reader.poll(5_000, 1)
    reader.assign({first: 7, second: 0})
    found = await _polled(reader, 4)
    assert values_of(found[first]) == [b"7", b"8", b"9"] and values_of(found[second]) == [b"0"]


async def test_a_poll_under_way_follows_other_partitions(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0", b"1")
    reader = await bench.reader()
    polling = asyncio.create_task(reader.poll(5_000, 10))
    await asyncio.sleep(0.05)
    reader.assign({partition: 1})
    assert values_of((await polling)[partition]) == [b"1"]


async def _polled(reader: Reader, count: int) -> dict[TopicPartition, list[Message]]:
    """So many records, in whatever polls they come."""
    found: dict[TopicPartition, list[Message]] = {}
    while sum(map(len, found.values())) < count:
        for partition, messages in (await reader.poll(5_000, 10)).items():
            found.setdefault(TopicPartition(*partition), []).extend(messages)
    return found


async def test_a_partition_that_is_not_assigned_cannot_be_steered(bench: Bench) -> None:
    partition = await bench.topic()
    other = TopicPartition(partition.topic, 1)
    reader = await bench.reader(partition)
    assert reader.assignment() == {partition}
    with pytest.raises(NotAssigned):
        reader.seek(other, 0)
    with pytest.raises(NotAssigned):
        reader.pause(other)
    with pytest.raises(NotAssigned):
        reader.resume(other)
    with pytest.raises(LogError, match="reading a position failed: IllegalStateError"):
        await reader.position(other)


async def test_a_position_behind_the_end_starts_over_at_the_beginning(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0", b"1")
    reader = await bench.reader(partition, offset=5)
    assert values_of((await reader.poll(5_000, 10))[partition]) == [b"0", b"1"]


async def test_a_position_in_deleted_records_moves_to_the_new_beginning(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0", b"1", b"2", b"3")
    reader = await bench.reader(partition, offset=0)
    await bench.cluster.delete_records(partition, 2)
    fresh = await bench.reader(partition)
    assert await fresh.position(partition) == 2
    assert await fresh.beginning_offsets([partition]) == {partition: 2}
    assert await fresh.end_offsets([partition]) == {partition: 4}
    assert values_of(await read_to_end(fresh, partition)) == [b"2", b"3"]
    late = await bench.reader(partition, offset=1)
    assert values_of((await late.poll(5_000, 10))[partition]) == [b"2", b"3"]
    assert reader.assignment() == {partition}


async def test_offsets_can_be_asked_for_partitions_that_are_not_assigned(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    one, two = TopicPartition(topic, 0), TopicPartition(topic, 1)
    await bench.append(two, b"0", b"1")
    reader = await bench.reader(one)
    assert await reader.end_offsets([one, two]) == {one: 0, two: 2}
    assert await reader.beginning_offsets([one, two]) == {one: 0, two: 0}


async def test_offsets_of_a_topic_that_does_not_exist_are_an_error(bench: Bench) -> None:
    reader = await bench.reader(await bench.topic())
    with pytest.raises(LogError, match="reading offsets failed"):
        await reader.end_offsets([TopicPartition(f"{bench.prefix}.none", 0)])


async def test_a_deleted_topic_gives_empty_polls(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0")
    reader = await bench.reader(partition)
    assert values_of((await reader.poll(5_000, 10))[partition]) == [b"0"]
    await bench.cluster.delete_topic(partition.topic)
    for _ in range(3):
        assert await reader.poll(200, 10) == {}
    assert await bench.log.partitions(partition.topic) is None
    assert reader.assignment() == {partition}


async def test_a_reader_of_fixed_partitions_commits_nothing(bench: Bench) -> None:
    partition = await bench.topic()
    reader = await bench.reader(partition)
    with pytest.raises(Exception, match="group"):
        await reader.commit({partition: (1, "")})
