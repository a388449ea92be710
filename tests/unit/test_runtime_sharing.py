"""How engines share the partitions out: properties that hold for every group, and the cases that the rules name."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.engine.runtime.sharing import EngineSharing, Note, Place, Says, share_out
from sagalog.topics.log import Joining, TopicPartition

EVENTS = [TopicPartition("t.events", number) for number in range(8)]
OUTCOMES = [TopicPartition("t.outcomes", number) for number in range(4)]
ALL = [*EVENTS, *OUTCOMES]

_some = st.frozensets(st.sampled_from(ALL))
_says = st.builds(Says, st.sampled_from([None, "north", "south"]), _some, _some, st.integers(0, 3))
_groups = st.dictionaries(st.sampled_from("abcde"), _says, min_size=1)


def owners(places: dict[str, Place]) -> dict[TopicPartition, str]:
    return {partition: name for name, place in places.items() for partition in place.owned}


def as_said(places: dict[str, Place], racks: dict[str, str] | None = None) -> dict[str, Says]:
    """The group once everybody is what it was told to be."""
    racks = racks or {}
    return {
        name: Says(racks.get(name), frozenset(place.owned), frozenset(place.standbys)) for name, place in places.items()
    }


@given(_groups, st.randoms(use_true_random=False))
def test_every_partition_has_one_owner_and_standbys_elsewhere(members: dict[str, Says], rng: random.Random) -> None:
    places = share_out(members, ALL)

    assert sorted(partition for place in places.values() for partition in place.owned) == sorted(ALL)
    wanted = min(max(said.standbys for said in members.values()), len(members) - 1)
    standbys = Counter(partition for place in places.values() for partition in place.standbys)
    assert all(standbys[partition] == wanted for partition in ALL)
    assert not any(place.owned & place.standbys for place in places.values())
    shuffled = list(members.items())
    rng.shuffle(shuffled)
    assert share_out(dict(shuffled), reversed(ALL)) == places, "whoever leads comes to the same"


@given(_groups)
def test_who_does_as_told_is_told_the_same_again(members: dict[str, Says]) -> None:
    for _ in range(3):
        members = as_said(share_out(members, ALL))
    settled = share_out(members, ALL)
    assert owners(settled) == owners(share_out(as_said(settled), ALL))
    assert not any(place.handed_over for place in share_out(as_said(settled), ALL).values())


@given(st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_a_new_group_shares_each_topic_evenly(names: set[str]) -> None:
    places = share_out(dict.fromkeys(names, Says()), ALL)
    for topic in (EVENTS, OUTCOMES):
        counts = [len(place.owned & set(topic)) for place in places.values()]
        assert max(counts) - min(counts) <= 1


def test_the_partitions_of_one_that_is_gone_go_to_those_that_stand_by() -> None:
    before = share_out(dict.fromkeys("abc", Says()), ALL)
    followers = {partition: name for name, place in before.items() for partition in place.standbys}
    left = {name: said for name, said in as_said(before).items() if name != "a"}

    after = share_out(left, ALL)

    for partition in before["a"].owned:
        assert owners(after)[partition] == followers[partition]
    for name in "bc":
        assert before[name].owned <= after[name].owned, "nothing else moves"
    assert not any(place.handed_over for place in after.values()), "a dead owner hands nothing over"


def test_a_new_member_gets_its_share_from_owners_that_hand_over() -> None:
    before = share_out(dict.fromkeys("ab", Says()), ALL)

    after = share_out({**as_said(before), "c": Says()}, ALL)

    assert len(after["c"].owned & set(EVENTS)) in (2, 3)
    assert after["c"].handed_over == after["c"].owned
    assert after["a"].owned <= before["a"].owned and after["b"].owned <= before["b"].owned


def test_standbys_avoid_the_rack_of_the_owner() -> None:
    racks = {"a": "north", "b": "north", "c": "south", "d": "south"}
    places = share_out({name: Says(rack) for name, rack in racks.items()}, ALL)
    owned_by = owners(places)
    for name, place in places.items():
        assert all(racks[owned_by[partition]] != racks[name] for partition in place.standbys)


def test_without_standbys_nobody_stands_by() -> None:
    assert not any(place.standbys for place in share_out(dict.fromkeys("ab", Says(standbys=0)), ALL).values())


@given(_says)
def test_what_a_member_says_is_understood(said: Says) -> None:
    assert Says.decode(said.encode()) == said


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"owns":[["a"]],"follows":[],"standbys":1}', b"\xff"])
def test_a_member_that_cannot_be_understood_is_a_new_one(raw: bytes) -> None:
    assert Says.decode(raw) == Says()


def test_the_leader_notes_for_each_member_what_it_is_to_know() -> None:
    sharing = EngineSharing(lambda: Says("north"))
    members = {"me": Joining(("t.events",), sharing.says()), "other": Joining(("t.events",), b"?")}

    shares = sharing.share(members, EVENTS)
    sharing.told(shares["me"].note)

    assert sharing.note == Note(frozenset(shares["other"].partitions), frozenset(), 2)
