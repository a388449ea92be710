"""The log port, fact by fact: consumer groups. Each holds for the simulated cluster and for a real Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import pytest

from sagalog.topics.log import Joining, LogError, NotAssigned, Share, TopicPartition

from .clusters import Bench, Member, eventually, outs, read_some, values_of


def _all_of(topic: str, partitions: int) -> set[TopicPartition]:
    return {TopicPartition(topic, number) for number in range(partitions)}


async def _joined(*members: Member, partitions: set[TopicPartition]) -> None:
    """Waits until the members share the partitions, each partition once."""

    def shared() -> bool:
        assigned = [found.consumer.assignment() for found in members]
        return set().union(*assigned) == partitions and sum(map(len, assigned)) == len(partitions)

    await eventually(shared)


# --- who is told what


async def test_the_first_join_revokes_nothing_and_assigns_everything(bench: Bench) -> None:
    topic = (await bench.topic(partitions=3)).topic
    member = await bench.join(topic)
    assert bench.trace.calls == [("a", "revoked", set()), ("a", "assigned", {0, 1, 2})]
    assert member.consumer.assignment() == _all_of(topic, 3)


async def test_a_second_member_makes_all_give_up_everything_before_anybody_gets_anything(bench: Bench) -> None:
    topic = (await bench.topic(partitions=4)).topic
    one = await bench.join(topic, name="a")
    bench.trace.calls.clear()
    two = await bench.join(topic, name="b")
    await _joined(one, two, partitions=_all_of(topic, 4))
    await eventually(lambda: len(bench.trace.calls) == 4)
    calls = bench.trace.calls
    assert sorted(calls[:2]) == [("a", "revoked", {0, 1, 2, 3}), ("b", "revoked", set())]
    shares = {name: partitions for name, what, partitions in calls[2:] if what == "assigned"}
    assert [len(shares[name]) for name in ("a", "b")] == [2, 2]
    assert shares["a"] | shares["b"] == {0, 1, 2, 3}
    assert shares["a"] in ({0, 2}, {1, 3})


async def test_whoever_leaves_is_told_nothing_and_the_others_get_its_partitions(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    one = await bench.join(topic, name="a")
    two = await bench.join(topic, name="b")
    await _joined(one, two, partitions=_all_of(topic, 2))
    await eventually(lambda: len(bench.trace.calls) == 6)
    bench.trace.calls.clear()
    await one.consumer.close()
    started = time.monotonic()
    await eventually(lambda: two.consumer.assignment() == _all_of(topic, 2))
    assert time.monotonic() - started < bench.cluster.session_timeout_ms / 1000 * 0.7
    await eventually(lambda: len(bench.trace.calls) == 2)
    assert [(name, what) for name, what, _ in bench.trace.calls] == [("b", "revoked"), ("b", "assigned")]


async def test_while_it_is_told_of_the_revocation_a_member_still_has_its_partitions(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    seen: list[set[TopicPartition]] = []

    async def commit() -> None:
        if one._consumer is not None:
            seen.append(one.consumer.assignment())
            await one.consumer.commit({TopicPartition(topic, 0): (5, "last")})

    one = Member("a", bench.trace, during_revoke=commit)
    one._consumer = await bench.log.join(bench.group, [topic], one.on_assigned, one.on_revoked)
    bench._open.append(one.consumer)
    await bench.join(topic, name="b")
    assert seen == [_all_of(topic, 2)]
    assert await bench.log.committed(bench.group, [TopicPartition(topic, 0)]) == {TopicPartition(topic, 0): (5, "last")}


async def test_a_callback_that_raises_does_not_stop_the_member(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0")

    def fail() -> None:
        raise RuntimeError("the user's mistake")

    member = await bench.join(partition.topic, during_assign=fail, during_revoke=fail)
    assert values_of(await read_some(member.consumer, 1)) == [b"0"]


async def test_a_member_gets_only_topics_that_it_asked_for(bench: Bench) -> None:
    one, two = await bench.topic("one", partitions=2), await bench.topic("two", partitions=2)
    first = await bench.join(one.topic, name="a")
    second = await bench.join(two.topic, one.topic, name="b")
    wanted = _all_of(one.topic, 2) | _all_of(two.topic, 2)
    await _joined(first, second, partitions=wanted)
    assert {found.topic for found in first.consumer.assignment()} == {one.topic}
    assert _all_of(two.topic, 2) <= second.consumer.assignment()


class ToTheNewest:
    """Everything goes to the member that says the greatest number; each is told who got it."""

    name = "to-the-newest"

    def __init__(self, number: int) -> None:
        self.number = number
        self.notes: list[bytes] = []

    def says(self) -> bytes:
        return b"%d" % self.number

    def share(self, members: Mapping[str, Joining], partitions: Sequence[TopicPartition]) -> dict[str, Share]:
        newest = max(members, key=lambda name: int(members[name].says))
        note = b"said %s, topics %s" % (members[newest].says, ",".join(members[newest].topics).encode())
        return {name: Share(partitions if name == newest else [], note) for name in members}

    def told(self, note: bytes) -> None:
        self.notes.append(note)


async def test_a_group_shares_out_as_its_members_say(bench: Bench) -> None:
    topic = (await bench.topic(partitions=3)).topic
    sharings = [ToTheNewest(1), ToTheNewest(2)]
    one = await bench.join(topic, name="a", sharing=sharings[0])
    assert one.assigned == _all_of(topic, 3)
    two = await bench.join(topic, name="b", sharing=sharings[1])
    await eventually(lambda: (one.assigned, two.assigned) == (set(), _all_of(topic, 3)))
    assert sharings[0].notes == [f"said 1, topics {topic}".encode(), f"said 2, topics {topic}".encode()]
    assert sharings[1].notes == [f"said 2, topics {topic}".encode()]
    await two.consumer.close()
    await eventually(lambda: one.assigned == _all_of(topic, 3))


async def test_joining_for_a_topic_that_does_not_exist_fails_after_the_request_timeout(bench: Bench) -> None:
    with pytest.raises(LogError):
        await bench.join(f"{bench.prefix}.none")


# --- positions and commits


async def test_without_a_commit_a_member_starts_at_the_beginning(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0", b"1")
    member = await bench.join(partition.topic)
    assert values_of(await read_some(member.consumer, 2)) == [b"0", b"1"]


async def test_or_at_the_end_if_it_wants_to(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0", b"1")
    member = await bench.join(partition.topic, start_at_end=True)
    assert await member.consumer.position(partition) == 2
    await bench.append(partition, b"2")
    assert values_of(await read_some(member.consumer, 1)) == [b"2"]


async def test_with_a_commit_a_member_starts_there_wherever_it_wanted_to(bench: Bench) -> None:
    partition = await bench.topic()
    await bench.append(partition, b"0", b"1", b"2")
    first = await bench.join(partition.topic)
    await first.consumer.commit({partition: (1, "")})
    await first.consumer.close()
    second = await bench.join(partition.topic, start_at_end=True)
    assert values_of(await read_some(second.consumer, 2)) == [b"1", b"2"]


async def test_a_member_may_read_committed_records_only(bench: Bench) -> None:
    partition = await bench.topic()
    async with bench.open_transaction(partition, b"aborted"):
        await bench.append(partition, b"kept")
        member = await bench.join(partition.topic, committed=True)
        assert await member.consumer.poll(300, 10) == {}
    assert values_of(await read_some(member.consumer, 1)) == [b"kept"]


async def test_commits_keep_their_metadata(bench: Bench) -> None:
    topic = (await bench.topic(partitions=3)).topic
    one, two, three = (TopicPartition(topic, number) for number in range(3))
    member = await bench.join(topic)
    await member.consumer.commit({one: (4, "what is done: 7-9 é"), two: (1, "")})
    found = await bench.log.committed(bench.group, [one, two, three])
    assert found == {one: (4, "what is done: 7-9 é"), two: (1, "")}


async def test_a_group_that_nobody_knows_has_committed_nothing(bench: Bench) -> None:
    assert await bench.log.committed(f"{bench.prefix}-none", [await bench.topic()]) == {}


async def test_a_deleted_topics_commits_are_gone(bench: Bench) -> None:
    partition = await bench.topic()
    member = await bench.join(partition.topic)
    await member.consumer.commit({partition: (1, "")})
    await member.consumer.close()
    await bench.cluster.delete_topic(partition.topic)

    async def gone() -> bool:
        return await bench.log.committed(bench.group, [partition]) == {}

    await eventually(gone)


async def test_metadata_has_a_limit_and_the_member_survives_it(bench: Bench) -> None:
    partition = await bench.topic()
    member = await bench.join(partition.topic)
    await member.consumer.commit({partition: (1, "x" * 4_096)})
    with pytest.raises(LogError, match="OffsetMetadataTooLarge") as raised:
        await member.consumer.commit({partition: (2, "x" * 4_097)})
    assert not isinstance(raised.value, NotAssigned)
    assert (await bench.log.committed(bench.group, [partition]))[partition][0] == 1
    await member.consumer.commit({partition: (3, "")})
    assert (await bench.log.committed(bench.group, [partition]))[partition] == (3, "")


async def test_what_is_not_assigned_is_not_committed(bench: Bench) -> None:
    partition = await bench.topic()
    member = await bench.join(partition.topic)
    with pytest.raises(NotAssigned):
        await member.consumer.commit({TopicPartition(partition.topic, 1): (1, "")})


# --- rebalances


async def test_after_a_rebalance_a_member_starts_at_its_commits_again_even_where_it_kept_the_partition(
    bench: Bench,
) -> None:
    topic = (await bench.topic(partitions=2)).topic
    for partition in _all_of(topic, 2):
        await bench.append(partition, b"0", b"1", b"2")
    one = await bench.join(topic, name="a")
    await one.consumer.poll(5_000, 1)  # what was fetched beside it is not returned after the rebalance
    await one.consumer.commit(dict.fromkeys(_all_of(topic, 2), (2, "")))
    two = await bench.join(topic, name="b")
    await _joined(one, two, partitions=_all_of(topic, 2))
    for member in (one, two):
        assert values_of(await read_some(member.consumer, 1)) == [b"2"]


async def test_a_rebalance_forgets_pauses_and_seeks(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    for partition in _all_of(topic, 2):
        await bench.append(partition, b"0", b"1")
    one = await bench.join(topic, name="a")
    one.consumer.pause(*_all_of(topic, 2))
    for partition in _all_of(topic, 2):
        one.consumer.seek(partition, 1)
    two = await bench.join(topic, name="b")
    await _joined(one, two, partitions=_all_of(topic, 2))
    assert values_of(await read_some(one.consumer, 2)) == [b"0", b"1"]


async def test_a_partition_that_went_to_another_cannot_be_steered_or_committed(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    one = await bench.join(topic, name="a")
    two = await bench.join(topic, name="b")
    await _joined(one, two, partitions=_all_of(topic, 2))
    (gone,) = two.consumer.assignment()
    with pytest.raises(NotAssigned):
        one.consumer.seek(gone, 0)
    with pytest.raises(NotAssigned):
        one.consumer.pause(gone)
    with pytest.raises(NotAssigned):
        await one.consumer.commit({gone: (1, "")})
    with pytest.raises(LogError):
        await one.consumer.position(gone)


async def test_a_poll_during_a_rebalance_waits_for_its_end(bench: Bench) -> None:
    partition = await bench.topic()
    release = asyncio.Event()
    one = await bench.join(partition.topic, name="a")
    one.during_revoke = release.wait
    joining = asyncio.create_task(bench.join(partition.topic, name="b"))
    await eventually(
        lambda: bench.trace.calls[-1][:2] in (("a", "revoked"), ("b", "revoked")) and len(bench.trace.calls) == 4
    )
    polling = asyncio.create_task(one.consumer.poll(100, 10))
    await asyncio.sleep(0.4)
    assert not polling.done()
    release.set()
    assert await polling == {}
    await joining


async def test_a_member_that_rejoins_too_late_is_out_and_its_commit_says_so(bench: Bench) -> None:
    partition = await bench.topic()
    late: list[BaseException] = []

    async def dawdle() -> None:
        await asyncio.sleep(bench.cluster.session_timeout_ms / 1000 + 1)  # longer than the group waits for anybody
        try:
            await one.consumer.commit({partition: (5, "")})
        except LogError as error:
            late.append(error)

    one = await bench.join(partition.topic, name="a")
    one.during_revoke = dawdle
    two = await bench.join(partition.topic, name="b")
    assert two.consumer.assignment() == {partition}
    await two.consumer.commit({partition: (1, "mine")})
    await eventually(lambda: late)
    assert isinstance(late[0], NotAssigned)
    one.during_revoke = None
    assert await bench.log.committed(bench.group, [partition]) == {partition: (1, "mine")}
    # It joins again by itself.
    await _joined(one, two, partitions=_all_of(partition.topic, 1))
    await eventually(lambda: ("a", "assigned") in [call[:2] for call in bench.trace.calls[2:]])


async def test_a_commit_while_the_others_join_comes_too_late(bench: Bench) -> None:
    """Once a member has asked to join anew, its old generation's commits wait for the answer, and are of yesterday then."""
    partition = await bench.topic()
    release = asyncio.Event()
    one = await bench.join(partition.topic, name="a")
    two = await bench.join(partition.topic, name="b")
    await _joined(one, two, partitions={partition})
    await eventually(lambda: len(bench.trace.calls) == 6)
    owner, other = (one, two) if one.consumer.assignment() else (two, one)
    other.during_revoke = release.wait
    third = asyncio.create_task(bench.join(partition.topic, name="c"))
    await eventually(lambda: [call[1] for call in bench.trace.calls].count("revoked") == 6)
    await asyncio.sleep(0.2)  # the owner has joined by now, and waits for the other
    committing = asyncio.create_task(owner.consumer.commit({partition: (5, "")}))
    await asyncio.sleep(0.2)
    assert not committing.done()
    release.set()
    with pytest.raises(NotAssigned):
        await committing
    await third
    assert await bench.log.committed(bench.group, [partition]) == {}


async def test_a_member_that_is_not_heard_of_loses_its_partitions(bench: Bench) -> None:
    """There are no heartbeats while a member is told of its assignment: who takes longer than the session, is given up."""
    partition = await bench.topic()
    release = asyncio.Event()
    one = await bench.join(partition.topic, name="a", during_assign=release.wait)
    started = time.monotonic()
    two = await bench.join(partition.topic, name="b")
    assert two.consumer.assignment() == {partition}
    assert time.monotonic() - started < bench.cluster.session_timeout_ms / 1000 + 1
    assert one.consumer.assignment() == {partition}
    with pytest.raises(NotAssigned):
        await one.consumer.commit({partition: (1, "")})
    release.set()
    await eventually(lambda: one.generations == 2)


async def test_a_deleted_topic_is_taken_from_the_group(bench: Bench) -> None:
    partition = await bench.topic()
    member = await bench.join(partition.topic)
    await bench.append(partition, b"0")
    await read_some(member.consumer, 1)
    await bench.cluster.delete_topic(partition.topic)
    await eventually(lambda: member.consumer.assignment() == set())
    assert await member.consumer.poll(200, 10) == {}
    assert bench.trace.calls[2:] == [("a", "revoked", {0}), ("a", "assigned", set())]


async def test_records_of_a_partition_are_read_by_one_member_at_a_time(bench: Bench) -> None:
    topic = (await bench.topic(partitions=2)).topic
    one = await bench.join(topic, name="a")
    two = await bench.join(topic, name="b")
    await _joined(one, two, partitions=_all_of(topic, 2))
    producer = await bench.producer()
    for number in range(2):
        await producer.append(topic, number, outs(b"%d" % number))
    found = values_of(await read_some(one.consumer, 1)) + values_of(await read_some(two.consumer, 1))
    assert sorted(found) == [b"0", b"1"]  # type: ignore[type-var]
