"""How the engines of a group share the partitions out: who owns which, and who stands by for which.

Rules:
- Whoever owns a partition keeps it as long as it does not own more than its share: a rebalance moves as little as it can.
- A partition whose owner is gone goes to a member that stands by for it and has caught up, even past that member's share: the
  next rebalance evens that out, and until then its workflows go on.
- A standby is on another member than the owner, on another rack where there is one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.errors import InvalidRecord
from sagalog.topics.log import Joining, Share, TopicPartition

logger = logging.getLogger(__name__)

NAME: Final = "sagalog-1"
"""Of the protocol between the members; engines that share out otherwise must have another."""


@dataclass(frozen=True, slots=True)
class Says:
    """What a member says of itself when it joins."""

    rack: str | None = None
    """Where it runs: a machine, a rack, a zone. Standbys avoid their owner's."""
    owns: frozenset[TopicPartition] = frozenset()
    """Partitions of which it is the live owner."""
    follows: frozenset[TopicPartition] = frozenset()
    """Partitions for which it stands by, and has caught up."""
    standbys: int = 1
    """How many members are to stand by for each partition."""

    def encode(self) -> bytes:
        return encode(
            {
                "rack": self.rack,
                "owns": [list(found) for found in sorted(self.owns)],
                "follows": [list(found) for found in sorted(self.follows)],
                "standbys": self.standbys,
            }
        )

    @classmethod
    def decode(cls, raw: bytes) -> Says:
        """What cannot be read says nothing: a member of another version must not stop the group."""
        try:
            found = decode_object(raw)
            return cls(
                found.get("rack"), _partitions(found["owns"]), _partitions(found["follows"]), int(found["standbys"])
            )
        except (InvalidRecord, KeyError, TypeError, ValueError) as error:
            logger.warning("a member of the group says what cannot be read (%s); it is taken for a new one", error)
            return cls()


@dataclass(frozen=True, slots=True)
class Note:
    """What a member is told beside its partitions."""

    standbys: frozenset[TopicPartition] = frozenset()
    """For which it is to stand by."""
    handed_over: frozenset[TopicPartition] = frozenset()
    """Its new partitions whose owner is alive, and hands them over."""
    members: int = 1

    def encode(self) -> bytes:
        return encode(
            {
                "standbys": [list(found) for found in sorted(self.standbys)],
                "handed_over": [list(found) for found in sorted(self.handed_over)],
                "members": self.members,
            }
        )

    @classmethod
    def decode(cls, raw: bytes) -> Note:
        found = decode_object(raw)
        return cls(_partitions(found["standbys"]), _partitions(found["handed_over"]), int(found["members"]))


class EngineSharing:
    """An engine's `Sharing`. `says` is asked at every rebalance; `note` is the newest that it was told."""

    name = NAME

    def __init__(self, says: Callable[[], Says]) -> None:
        self._says = says
        self.note = Note()

    def says(self) -> bytes:
        return self._says().encode()

    def share(self, members: Mapping[str, Joining], partitions: Sequence[TopicPartition]) -> Mapping[str, Share]:
        said = {name: Says.decode(joining.says) for name, joining in members.items()}
        return {
            name: Share(sorted(place.owned), place.note(len(members)).encode())
            for name, place in share_out(said, partitions).items()
        }

    def told(self, note: bytes) -> None:
        self.note = Note.decode(note)


@dataclass(slots=True)
class Place:
    """What one member gets."""

    owned: set[TopicPartition] = field(default_factory=set)
    standbys: set[TopicPartition] = field(default_factory=set)
    handed_over: set[TopicPartition] = field(default_factory=set)

    def note(self, members: int) -> Note:
        return Note(frozenset(self.standbys), frozenset(self.handed_over), members)


def share_out(members: Mapping[str, Says], partitions: Iterable[TopicPartition]) -> dict[str, Place]:
    """Who owns what, and who stands by for what. The same for the same arguments, in whatever order they come."""
    places = {name: Place() for name in sorted(members)}
    owners = _owners(members)
    by_topic: dict[str, list[TopicPartition]] = {}
    for partition in sorted(partitions):
        by_topic.setdefault(partition.topic, []).append(partition)
    for found in by_topic.values():
        _share_topic(members, places, owners, found)
    for found in by_topic.values():
        _stand_by(members, places, found)
    return places


def _owners(members: Mapping[str, Says]) -> dict[TopicPartition, str]:
    """Who owns what now. Of two that both believe so, the first by name; the log decides between them anyway."""
    owners: dict[TopicPartition, str] = {}
    for name in sorted(members):
        for partition in members[name].owns:
            owners.setdefault(partition, name)
    return owners


def _share_topic(
    members: Mapping[str, Says],
    places: Mapping[str, Place],
    owners: Mapping[TopicPartition, str],
    partitions: Sequence[TopicPartition],
) -> None:
    """Each topic evenly by itself, so that nobody gets all partitions of the one that has the work."""
    fewest, over = divmod(len(partitions), len(places))
    counts: Counter[str] = Counter()

    def has_room(name: str) -> bool:
        more = sum(counts[other] > fewest for other in places)
        return counts[name] < fewest or (counts[name] == fewest and more < over)

    def give(partition: TopicPartition, name: str) -> None:
        places[name].owned.add(partition)
        counts[name] += 1
        if owners.get(partition, name) != name:
            places[name].handed_over.add(partition)

    def weight(name: str) -> tuple[int, int, str]:
        return counts[name], len(places[name].owned), name

    left = []
    for partition in partitions:
        owner = owners.get(partition)
        if owner is not None and has_room(owner):
            give(partition, owner)
        else:
            left.append(partition)
    for partition in left:
        followers = [name for name in places if partition in members[name].follows]
        roomy = [name for name in places if has_room(name)]
        if partition in owners:
            # Its owner serves it until another one has loaded it, so that nobody need be ready at once.
            choice = [name for name in followers if name in roomy] or roomy
        else:
            choice = [name for name in followers if name in roomy] or followers or roomy or list(places)
        give(partition, min(choice, key=weight))


def _stand_by(members: Mapping[str, Says], places: Mapping[str, Place], partitions: Sequence[TopicPartition]) -> None:
    wanted = min(max(said.standbys for said in members.values()), len(places) - 1)
    most = -(-len(partitions) * wanted // len(places))
    counts: Counter[str] = Counter()
    for partition in partitions:
        (owner,) = (name for name, place in places.items() if partition in place.owned)
        racks = {members[owner].rack}
        others = [name for name in places if name != owner]
        for _ in range(wanted):

            def rank(name: str, racks: set[str | None] = racks, at: TopicPartition = partition) -> tuple[object, ...]:
                said = members[name]
                beside = said.rack is not None and said.rack in racks
                new = at not in said.follows | said.owns
                return beside, counts[name] >= most, new, counts[name], len(places[name].standbys), name

            chosen = min(others, key=rank)
            others.remove(chosen)
            racks.add(members[chosen].rack)
            places[chosen].standbys.add(partition)
            counts[chosen] += 1


def _partitions(found: Iterable[Sequence[object]]) -> frozenset[TopicPartition]:
    return frozenset(TopicPartition(str(topic), int(number)) for topic, number in found)  # type: ignore[call-overload]
