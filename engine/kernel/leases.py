"""Who may use how much of a limit that holds fleet-wide: the leased part of each, divided among partitions of `events`.

A partition says what it could use (`needs`) and what it holds on to until it has read the answer (`keeps`). The fold takes back
what the partition does not hold on to, and gives out what is free to whoever has least, and of those was served longest ago.

Rules:
- What is given out never adds up to more than there is. So nothing is taken from a partition that has not given it back.
- A share belongs to the partition, not to its owner, and does not expire: attempts of an owner that is gone may still be at work.
  The next owner uses none of it before its own first word is answered, and that word says what is out.
- Of two words of a partition the one with the higher (epoch, seq) is the newer; an older one that comes later is ignored.
- What has been free for as long as it takes to fill (a rate's token) is given out full, else empty. So a lease that nobody holds is
  forgotten only when all of it would be full again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sagalog.schemas.codec import decode_object
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.records import LEASE_KEY, LeasePartRecord, LeaseRecord

from .effects import Effect, Ignored, Reason
from .record import Record


@dataclass(slots=True)
class Part:
    """One partition's."""

    share: int = 0
    needs: int = 0
    epoch: int = 0
    seq: int = 0
    turn: int = 0
    """When it was last given some; the least is served first."""
    full: int = 0
    """How much of all that it was given came full."""


@dataclass(slots=True)
class Lease:
    """The leased part of one limit under one key."""

    bucket: str
    pool: int = 0
    at_offset: int = -1
    turn: int = 0
    fill_ms: int = 0
    """How long what was used up takes to be full again; 0: it is no rate."""
    full_ms: int = 0
    """From when on all that is free is full."""
    parts: dict[int, Part] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return LEASE_KEY + self.bucket

    @property
    def wanted(self) -> int:
        """How much is lacking."""
        return sum(max(0, part.needs - part.share) for part in self.parts.values())

    @property
    def takers(self) -> int:
        """Among how many it is to be divided."""
        return sum(part.needs > 0 for part in self.parts.values())


class Leases:
    """Those of one partition of the outcomes topic."""

    def __init__(self) -> None:
        self.by_key: dict[str, Lease] = {}
        self._resting: list[tuple[int, str]] = []
        """A heap of (when all of it is full, key) of what nobody holds; some of them are held again."""

    def put(self, lease: Lease) -> None:
        """One that a checkpoint holds."""
        self.by_key[lease.key] = lease
        self._rest(lease)

    def demand(self, record: Record, effects: list[Effect]) -> list[str]:
        """Folds a partition's word; the keys of leases that have changed. Raises InvalidRecord."""
        said = _parse(record.value)
        key = LEASE_KEY + said["bucket"]
        changed = self._forget(record.time_ms)
        lease = self.by_key.get(key) or Lease(said["bucket"])
        part = lease.parts.get(said["partition"]) or Part()
        if (said["epoch"], said["seq"]) <= (part.epoch, part.seq):
            effects.append(Ignored(Reason.DUPLICATE, "Demand"))
            return changed
        self.by_key[key], lease.parts[said["partition"]] = lease, part
        part.epoch, part.seq = said["epoch"], said["seq"]
        lease.pool, lease.fill_ms, lease.at_offset = said["pool"], said["fill_ms"], record.offset
        if part.share > said["keeps"]:
            part.share = said["keeps"]
            lease.full_ms = max(lease.full_ms, record.time_ms + lease.fill_ms)
        part.needs = said["needs"]
        _give_out(lease, record.time_ms)
        lease.parts = {number: part for number, part in lease.parts.items() if part.share or part.needs}
        self._rest(lease)
        return [*changed, key]

    def _rest(self, lease: Lease) -> None:
        if not lease.parts:
            heappush(self._resting, (lease.full_ms, lease.key))

    def _forget(self, now_ms: int) -> list[str]:
        """What nobody holds, and is full again."""
        forgotten = []
        while self._resting and self._resting[0][0] <= now_ms:
            full_ms, key = heappop(self._resting)
            lease = self.by_key.get(key)
            if lease is not None and not lease.parts and lease.full_ms == full_ms:
                del self.by_key[key]
                forgotten.append(key)
        return forgotten


_Count = Annotated[int, Field(ge=0)]


class _Demand(TypedDict):
    bucket: str
    pool: _Count
    partition: _Count
    epoch: _Count
    seq: _Count
    needs: _Count
    keeps: _Count
    fill_ms: _Count


_DEMAND: Final = TypeAdapter(_Demand)


def _parse(value: bytes | None) -> _Demand:
    try:
        return _DEMAND.validate_python(decode_object(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidRecord(".".join(map(str, first["loc"])) or "value", first["msg"]) from None


def _give_out(lease: Lease, now_ms: int) -> None:
    free = lease.pool - sum(part.share for part in lease.parts.values())
    while free > 0:
        waiting = [part for _, part in sorted(lease.parts.items()) if part.share < part.needs]
        if not waiting:
            return
        part = min(waiting, key=lambda part: (part.share, part.turn))
        given = min(part.needs - part.share, max(1, free // len(waiting)))
        part.share += given
        if lease.fill_ms and now_ms >= lease.full_ms:
            part.full += given
        free -= given
        lease.turn += 1
        part.turn = lease.turn


def dump_lease(lease: Lease) -> LeaseRecord:
    """The record in `circuits`."""
    parts: dict[str, LeasePartRecord] = {
        str(number): {
            "share": part.share,
            "needs": part.needs,
            "epoch": part.epoch,
            "seq": part.seq,
            "turn": part.turn,
            "full": part.full,
        }
        for number, part in sorted(lease.parts.items())
    }
    return {
        "v": 1,
        "bucket": lease.bucket,
        "at_offset": lease.at_offset,
        "pool": lease.pool,
        "turn": lease.turn,
        "wanted": lease.wanted,
        "takers": lease.takers,
        "fill_ms": lease.fill_ms,
        "full_ms": lease.full_ms,
        "parts": parts,
    }


def restore_lease(raw: bytes) -> Lease:
    """The lease in a record of `circuits`."""
    record: dict[str, Any] = orjson.loads(raw)
    parts = {int(number): Part(**part) for number, part in record["parts"].items()}
    return Lease(
        bucket=record["bucket"],
        pool=record["pool"],
        at_offset=record["at_offset"],
        turn=record["turn"],
        fill_ms=record["fill_ms"],
        full_ms=record["full_ms"],
        parts=parts,
    )
