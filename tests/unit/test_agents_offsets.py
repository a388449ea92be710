"""What a partition's commit says, and what the next owner makes of it."""

from __future__ import annotations

import random

from sagalog.agents.limits import METADATA_BYTES_MAX
from sagalog.agents.offsets import Offsets


def worked(base: int, delivered: int, finished: list[int]) -> Offsets:
    offsets = Offsets(base)
    for offset in range(base, base + delivered):
        assert offsets.deliver(offset)
    for offset in finished:
        offsets.finish(offset)
    return offsets


def test_only_the_contiguous_prefix_is_committed() -> None:
    offsets = worked(10, 8, [11, 12, 15])
    assert (offsets.head, offsets.encode()) == (10, "1;1;1;1,2,2,1")
    offsets.finish(10)
    assert (offsets.head, offsets.encode()) == (13, "1;1;1;2,1")


def test_the_next_owner_skips_what_is_finished() -> None:
    before = worked(10, 8, [11, 12, 15])
    after = Offsets.resume(before.head, before.encode())
    assert [offset for offset in range(10, 20) if after.deliver(offset)] == [10, 13, 14, 16, 17, 18, 19]
    for offset in (10, 13, 14):
        after.finish(offset)
    assert after.head == 16


def test_random_orders_end_with_everything_committed() -> None:
    rng = random.Random(7)
    for _ in range(50):
        order = list(range(100, 200))
        rng.shuffle(order)
        cut = rng.randrange(100)
        before = worked(100, 100, order[:cut])
        done = set(order[:cut])
        assert before.head == next((offset for offset in range(100, 200) if offset not in done), 200)
        after = Offsets.resume(before.head, before.encode())
        again = [offset for offset in range(before.head, 200) if after.deliver(offset)]
        assert sorted(again) == sorted(order[cut:])
        for offset in again:
            after.finish(offset)
        assert after.head == 200


def test_metadata_is_bounded_and_what_is_left_out_is_done_again() -> None:
    before = worked(0, 10_000, list(range(1, 10_000, 2)))
    metadata = before.encode()
    assert len(metadata) <= METADATA_BYTES_MAX
    after = Offsets.resume(0, metadata)
    again = {offset for offset in range(10_000) if after.deliver(offset)}
    assert set(range(0, 10_000, 2)) < again


def test_offsets_that_are_never_delivered_count_as_finished() -> None:
    offsets = Offsets(0)
    assert offsets.deliver(5)
    assert offsets.head == 5
    assert offsets.deliver(9)
    offsets.finish(9)
    offsets.finish(5)
    assert offsets.head == 10


def test_a_position_that_went_back_starts_over() -> None:
    offsets = worked(100, 5, [100, 101])
    assert offsets.deliver(3)
    offsets.finish(3)
    assert offsets.head == 4


def test_starts_of_the_head_are_counted_until_it_moves() -> None:
    offsets = worked(10, 1, [])
    for expected in (2, 3):
        offsets = Offsets.resume(offsets.head, offsets.encode())
        assert offsets.suspicious
        offsets.deliver(10)
        assert offsets.start_head() == expected
    offsets.finish(10)
    assert (offsets.head, offsets.encode()) == (11, "1;1;0;")


def test_a_clean_hand_over_does_not_count() -> None:
    offsets = Offsets.resume(10, worked(10, 3, [11]).encode(clean=True))
    assert not offsets.suspicious
    assert [offset for offset in (10, 11, 12) if offsets.deliver(offset)] == [10, 12]


def test_metadata_of_somebody_else_counts_as_none() -> None:
    for metadata in ("", "nonsense", "1;x;2;", "2;1;1;", "1;1;1;a,b"):
        offsets = Offsets.resume(7, metadata)
        assert not offsets.suspicious
        assert offsets.deliver(7)
