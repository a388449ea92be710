"""What a processor needs from a fold: the two folds (workflows, circuits) differ only behind this protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from typing import Protocol, Self

from sagalog.schemas.records import MarkerRecord
from sagalog.topics.log import Message, Out, TopicPartition

Append = Callable[[str, int, Sequence[Out]], None]
"""Queues records for a topic-partition; what fails fails the processor."""


class Cut:
    """The state at an offset, as records: everything whose checkpoint changed since the cut before.

    They are encoded some at a time, so that folding can go on meanwhile: what is about to change is encoded first, as it is.
    """

    def __init__(
        self,
        offset: int,
        records: list[Out],
        changed: Iterable[str],
        encode: Callable[[str], Out],
        last: Callable[[], Out],
    ) -> None:
        self.offset = offset
        self.records = records
        """Complete once `advance` has said so."""
        self._left = dict.fromkeys(changed)
        self._encode = encode
        self._last: Callable[[], Out] | None = last

    def before(self, key: str) -> None:
        """The state of `key` is about to change."""
        if key in self._left:
            del self._left[key]
            self.records.append(self._encode(key))

    def advance(self, count: int) -> bool:
        """Encodes so many, and at the end the marker. True when there is no more."""
        for key in list(islice(self._left, count)):
            self.before(key)
        if self._left or self._last is None:
            return not self._left
        self.records.append(self._last())
        self._last = None
        return True

    def finish(self) -> Self:
        """Encodes what is left, at once."""
        self.advance(len(self._left))
        return self


class Ownership(Protocol):
    """Told by a machine what the log says about the partition's owner."""

    def owner_changed(self, epoch: int, member: str) -> None: ...

    def claim_lost(self, epoch: int, member: str) -> None: ...


LastWord = Mapping[str, Set[str]]
"""Of an owner that hands over: of each workflow that changed since its marker, the ids of commands that it has not sent."""


class Machine(Protocol):
    """One partition's fold with what belongs to it at run time."""

    input: TopicPartition
    checkpoints: TopicPartition

    @property
    def offset(self) -> int:
        """The last applied offset."""

    @property
    def epoch(self) -> int: ...

    def load(self, message: Message) -> None:
        """One record of the checkpoints topic, in the order of the log. Possibly for days, before it is `loaded`."""

    def loaded(self, now_ms: int) -> MarkerRecord | None:
        """All checkpoints are there; patience with what is out counts from now on.

        Raises CheckpointsDamaged when they are not what the marker says.
        """

    def fold(self, messages: Sequence[Message], ownership: Ownership) -> None:
        """Folds records. While not live, effects gather in the outbox; once live, they go out at once."""

    def go_live(self, now_ms: int, *, succession: bool = False) -> None:
        """The record that is being folded is this owner's claim: sends what the outbox holds.

        In a `succession` what was caused before the claim is the business of the owner before, until `succeed` is called.
        """

    def succeed(self, word: LastWord | None) -> None:
        """The owner before has sent what was caused before the claim, but for what it says in its last word.

        None: it has not said so, and all of it is sent (again).
        """

    def stop(self) -> None:
        """The partition is another's from this record on: what those before it caused is sent, and then nothing more."""

    def tick(self, now_ms: int, monotonic_ms: int) -> None:
        """Timers, losses, what the gate releases; only while live."""

    def next_due_ms(self) -> int:
        """When `tick` has something to do, as far as it is known; milliseconds since the epoch."""

    def flush(self, now_ms: int) -> None:
        """Sends what is aggregated (outcomes), so that a cut covers it."""

    def cut(self, *, leaving: bool = False, always: bool = False) -> Cut | None:
        """The changes since the last cut; None when there are none, unless one is wanted `always`. One before must be complete.

        With `leaving` the marker says that this owner is about to hand over.
        """

    def stats(self) -> Mapping[str, float]: ...
