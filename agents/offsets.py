"""How far the work in one partition is: which offsets are finished, and what of it a commit tells the next owner.

A commit holds the first unfinished offset (the head) and, in its metadata, the finished ones beyond, as lengths of runs,
whether the owner was at work ("dirty"), and how often the head has been started:

    1;<dirty>;<starts>;<unfinished>,<finished>,<unfinished>,<finished>...

The dirty mark is what a file system's is: found set, the owner before was killed, and one of its commands may have done it.
It is set by a commit before the first command of a partition is started, and cleared by a clean hand-over.

Rules:
- Losing metadata is safe: what it would have told to skip is done again.
- An offset that is never delivered (a transaction's marker, a compacted record) counts as finished.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Self

from .limits import METADATA_BYTES_MAX

_FORMAT: Final = "1"
_SHRINK_BYTES: Final = 65_536
"""Finished flags are dropped in blocks: a deletion at the front moves all that is behind."""


class Offsets:
    """One partition's progress. Offsets are marked in a byte each, so that the search for the head is one `find`."""

    __slots__ = (
        "_base",
        "_flags",
        "_head",
        "_next",
        "_starts",
        "_starts_before",
        "_starts_of",
        "declared",
        "dirty",
        "lost",
        "trial_end",
    )

    def __init__(self, base: int) -> None:
        self._base = base
        self._flags = bytearray()
        self._head = base
        self._next = base
        self._starts_of = base
        self._starts = 0
        self._starts_before = 0
        self.dirty = False
        """The owner before was killed at work."""
        self.declared = False
        """This owner's dirty mark is committed."""
        self.trial_end = base
        """Commands below this offset are started one at a time."""
        self.lost = False
        """The partition was revoked; what is still running for it ends, but is not committed."""

    @classmethod
    def resume(cls, base: int, metadata: str) -> Self:
        """From a commit. Metadata that cannot be read counts as none."""
        offsets = cls(base)
        parts = metadata.split(";")
        if len(parts) != 4 or parts[0] != _FORMAT:
            return offsets
        try:
            dirty, starts = bool(int(parts[1])), int(parts[2])
            runs = [int(run) for run in parts[3].split(",")] if parts[3] else []
        except ValueError:
            return offsets
        for place, run in enumerate(runs):
            offsets._flags += (b"\1" if place % 2 else b"\0") * run
        offsets.dirty = dirty
        offsets._starts = offsets._starts_before = starts
        return offsets

    @property
    def head(self) -> int:
        """The first offset that is not finished; what is committed."""
        return self._head

    @property
    def suspicious(self) -> bool:
        """Whether a command from the head on may have killed its host."""
        return self.dirty or self._starts_before > 0

    @property
    def span(self) -> int:
        """How far the last delivered offset is ahead of the head."""
        return self._next - self._head

    @property
    def starts(self) -> int:
        """How often the head has been started, as far as it is known; 0 when it has not been delivered yet."""
        if self._starts_of == self._head and self._starts:
            return self._starts
        return 1 if self._head < self._next else 0

    def start_head(self) -> int:
        """Counts a start of the head; to be committed before it happens."""
        if self._starts_of != self._head:
            self._starts_of, self._starts, self._starts_before = self._head, 0, 0
        self._starts += 1
        return self._starts

    def known_starts(self) -> int:
        """Starts of the head that were counted, without one that may be under way."""
        return self._starts if self._starts_of == self._head else 0

    def deliver(self, offset: int) -> bool:
        """Notes that the record at `offset` was read; whether it is still to be worked on."""
        if offset < self._head:
            # The position went back: the topic was made anew, or an operator reset the group. What was known says nothing.
            self._restart(offset)
        elif offset > self._next:
            self._pass_over(offset)
        index = offset - self._base
        if index >= len(self._flags):
            self._flags += bytes(index + 1 - len(self._flags))
        if offset >= self._next:
            self._next = offset + 1
        if self._flags[index]:
            self._advance()
            return False
        return True

    def finish(self, offset: int) -> None:
        """Marks the record at `offset` as done with."""
        self.finish_all((offset,))

    def finish_all(self, offsets: Iterable[int]) -> None:
        """Marks the records at `offsets` as done with; the head moves once."""
        flags, base = self._flags, self._base
        end = len(flags)
        for offset in offsets:
            index = offset - base
            if 0 <= index < end:
                flags[index] = 1
        head = self._head - base
        if head < end and flags[head]:
            self._advance()

    def encode(self, *, clean: bool = False) -> str:
        """The commit's metadata. `clean`: a hand-over with nothing amiss, whose running commands do not count as started."""
        starts = self.starts
        if clean:
            starts = self._starts_before if self._starts_of == self._head else 0
        prefix = f"{_FORMAT};{0 if clean else 1};{starts};"
        return prefix + self._runs(METADATA_BYTES_MAX - len(prefix))

    def _runs(self, bytes_max: int) -> str:
        runs: list[str] = []
        size = 0
        start = self._head - self._base
        while True:
            finished = self._flags.find(1, start)
            if finished < 0:
                break
            unfinished = self._flags.find(0, finished)
            if unfinished < 0:
                unfinished = len(self._flags)
            pair = f"{finished - start},{unfinished - finished}"
            size += len(pair) + 1
            if size > bytes_max:
                break
            runs.append(pair)
            start = unfinished
        return ",".join(runs)

    def _advance(self) -> None:
        found = self._flags.find(0, self._head - self._base)
        if found < 0:
            found = len(self._flags)
        # Beyond what was delivered nothing is finished in this owner's eyes, though the commit before may have said so.
        self._head = min(self._base + found, self._next)
        done = self._head - self._base
        if done > _SHRINK_BYTES:
            del self._flags[:done]
            self._base = self._head

    def _pass_over(self, offset: int) -> None:
        """Marks what lies between the last delivered offset and this one as finished."""
        if self._next == self._head:
            # Nothing is open: a gap of any size costs nothing.
            del self._flags[: offset - self._base]
            self._base = self._head = self._next = offset
            return
        first, end = self._next - self._base, offset - self._base
        self._flags[first:end] = b"\1" * (end - first)

    def _restart(self, offset: int) -> None:
        self._base = self._head = self._next = offset
        self._flags.clear()
        self._starts_of, self._starts, self._starts_before = offset, 0, 0
