"""A `Log` that hands everything on to the simulated Kafka and notes who appended what: who sent a command is not in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sagalog.schemas.codec import decode_object
from sagalog.topics.log import Out, Producer, header

_WITHHELD = b'"withheld":{'


@dataclass(frozen=True, slots=True)
class Sent:
    """One record that a process handed to its producer."""

    process: str
    topic: str
    partition: int
    ce_id: str
    at_s: float
    withheld: tuple[str, str] | None = None
    """(reason, service) for which a command waited."""


class SpyLog:
    """Wraps a `Log`; `note` gets every record that a plain producer is given."""

    def __init__(self, log: Any, process: str, note: Callable[[Sent], None], time: Callable[[], float]) -> None:
        self._log = log
        self._process = process
        self._note = note
        self._time = time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def producer(self, client_id: str) -> Producer:
        producer: Producer = _SpyProducer(await self._log.producer(client_id), self._sent)
        return producer

    def _sent(self, topic: str, partition: int, records: Sequence[Out]) -> None:
        at_s = self._time()
        for record in records:
            ce_id = (header(record.headers, "ce_id") or b"").decode(errors="replace")
            self._note(Sent(self._process, topic, partition, ce_id, at_s, _withheld(record.value or b"")))


class _SpyProducer:
    def __init__(self, producer: Producer, sent: Callable[[str, int, Sequence[Out]], None]) -> None:
        self._producer = producer
        self._sent = sent

    def append(self, topic: str, partition: int, records: Sequence[Out]) -> asyncio.Future[None]:
        self._sent(topic, partition, records)
        return self._producer.append(topic, partition, records)

    @property
    def pending(self) -> int:
        return self._producer.pending

    async def below(self, pending: int) -> None:
        await self._producer.below(pending)

    async def close(self) -> None:
        await self._producer.close()


def _withheld(value: bytes) -> tuple[str, str] | None:
    if _WITHHELD not in value:
        return None
    found = decode_object(value).get("withheld")
    return (found["reason"], found.get("service") or "") if found is not None else None
