"""What a processor needs from a fold: the two folds (workflows, circuits) differ only behind this protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from sagalog.schemas.records import MarkerRecord
from sagalog.topics.log import Message, Out, TopicPartition

Append = Callable[[str, int, Sequence[Out]], None]
"""Queues records for a topic-partition; what fails fails the processor."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The state at an offset, as records: everything whose checkpoint changed since the cut before."""

    offset: int
    records: Sequence[Out]


class Ownership(Protocol):
    """Told by a machine what the log says about the partition's owner."""

    def owner_changed(self, epoch: int, member: str) -> None: ...

    def claim_lost(self, epoch: int, member: str) -> None: ...


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

    def succeed(self, held: Set[str] | None) -> None:
        """The owner before has sent what was caused before the claim, but for the commands of the workflows `held`.

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
        """The changes since the last cut; None when there are none, unless one is wanted `always`. Encoded at once, so that folding
        can go on.

        With `leaving` the marker says that this owner is about to hand over.
        """

    def stats(self) -> Mapping[str, float]: ...
