"""Leases of limits: never more given out than there is, nothing kept from who can use it, nothing taken that was not given back."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sagalog.engine.kernel.circuits import CircuitPartition
from sagalog.engine.kernel.effects import Effect, Ignored, Quarantine, Reason
from sagalog.engine.kernel.leases import Leases, dump_lease, restore_lease
from sagalog.engine.kernel.record import Record
from sagalog.schemas.codec import encode
from sagalog.schemas.records import TYPE_DEMAND

KEY = "@limit/rate/*/bank/"


class Log:
    """The topic `outcomes`, folded as it is written."""

    def __init__(self) -> None:
        self.fold = CircuitPartition()
        self.offset = 0
        self.effects: list[Effect] = []
        self.seq = 0

    def says(self, partition: int, needs: int, keeps: int = 0, *, at_ms: int = 0, **more: Any) -> dict[int, int]:
        """A word of a partition; what every partition has after it."""
        self.offset += 1
        self.seq += 1
        said = {
            "bucket": KEY.removeprefix("@limit/"), "pool": 4, "partition": partition, "epoch": 1, "seq": self.seq,
            "needs": needs, "keeps": keeps, "fill_ms": 0, **more,
        }  # fmt: skip
        self.effects.clear()
        self.fold.apply(
            Record(self.offset, at_ms, KEY.encode(), encode(said), TYPE_DEMAND.encode(), b"id", 0, None), self.effects
        )
        return self.shares

    @property
    def shares(self) -> dict[int, int]:
        lease = self.fold.leases.by_key.get(KEY)
        return {number: part.share for number, part in lease.parts.items()} if lease is not None else {}


def test_who_asks_gets_what_there_is_and_the_next_waits_until_it_is_given_back() -> None:
    log = Log()
    assert log.says(0, needs=3) == {0: 3}
    assert log.says(1, needs=3) == {0: 3, 1: 1}
    assert log.fold.leases.by_key[KEY].wanted == 2
    assert log.says(0, needs=3, keeps=1) == {0: 2, 1: 2}, "half of it each"
    assert log.says(1, needs=0, keeps=0) == {0: 3}


def test_of_what_is_not_enough_for_all_each_has_its_turn() -> None:
    log, holders = Log(), []
    for partition in (0, 1, 2):
        log.says(partition, needs=1, pool=1)
    for _ in range(6):
        (holder,) = [number for number, share in log.shares.items() if share]
        holders.append(holder)
        log.says(holder, needs=1, pool=1)

    assert holders == [0, 1, 2, 0, 1, 2]


def test_what_is_not_given_back_is_not_taken_whatever_the_limit_becomes() -> None:
    log = Log()
    log.says(0, needs=4)
    assert log.says(1, needs=4, pool=2) == {0: 4, 1: 0}
    assert log.says(0, needs=0, keeps=1, pool=2) == {0: 1, 1: 1}


def test_a_word_of_an_owner_before_or_one_that_came_twice_changes_nothing() -> None:
    log = Log()
    log.says(0, needs=2, epoch=3, seq=7)
    for epoch, seq in ((2, 99), (3, 7), (3, 6)):
        assert log.says(0, needs=0, keeps=0, epoch=epoch, seq=seq) == {0: 2}
        assert log.effects == [Ignored(Reason.DUPLICATE, "Demand")]


def test_what_nobody_holds_is_forgotten_once_it_is_full_again() -> None:
    log = Log()
    log.says(0, needs=4, fill_ms=1_000)
    log.says(0, needs=0, keeps=0, at_ms=500, fill_ms=1_000)
    assert KEY in log.fold.leases.by_key, "its tokens are used up"
    log.says(1, needs=1, at_ms=1_499, bucket="other")
    assert KEY in log.fold.leases.by_key
    log.says(1, needs=1, at_ms=1_500, bucket="other", keeps=1)
    assert KEY not in log.fold.leases.by_key
    assert KEY in log.fold.touched


def test_what_was_free_for_long_enough_comes_full_and_else_empty() -> None:
    log = Log()
    log.says(0, needs=4, fill_ms=1_000)
    assert log.fold.leases.by_key[KEY].parts[0].full == 4
    log.says(0, needs=0, keeps=1, at_ms=100, fill_ms=1_000)
    log.says(1, needs=2, at_ms=600, fill_ms=1_000)
    assert log.fold.leases.by_key[KEY].parts[1].full == 0
    log.says(2, needs=1, at_ms=1_200, fill_ms=1_000)
    assert log.fold.leases.by_key[KEY].parts[2].full == 1


def test_a_word_that_cannot_be_read_is_quarantined() -> None:
    log = Log()
    log.says(0, needs=-1)
    assert [type(effect) for effect in log.effects] == [Quarantine]


words = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 6),
        st.integers(0, 6),
        st.integers(0, 300),
        st.sampled_from((0, 100)),
    ),
    max_size=40,
)


@given(words)
@settings(max_examples=300)
def test_shares_never_add_up_to_more_than_there_is_and_nothing_lies_idle_while_somebody_needs_it(words: Any) -> None:
    log, now_ms = Log(), 0
    for partition, needs, keeps, later_ms, fill_ms in words:
        before = log.shares
        now_ms += later_ms
        after = log.says(partition, needs, keeps, at_ms=now_ms, fill_ms=fill_ms)
        assert sum(after.values()) <= 4
        assert all(after.get(other, 0) >= share for other, share in before.items() if other != partition)
        lease = log.fold.leases.by_key.get(KEY)
        if lease is not None and sum(after.values()) < 4:
            assert lease.wanted == 0
        # A checkpoint after any record leads on to the same.
        restored = Leases()
        for found in log.fold.leases.by_key.values():
            restored.put(restore_lease(encode(dump_lease(found))))
        assert restored.by_key == log.fold.leases.by_key
        log.fold.leases = restored
