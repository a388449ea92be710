"""Planted bugs of the projector, as those of `planted`. They are looked for in seeds with projectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagalog.engine.projection import postgres, projector
from sagalog.engine.projection.batch import Batch
from sagalog.engine.projection.projector import PositionMoved, Projector
from sagalog.engine.projection.rows import merge_reviews
from sagalog.engine.projection.sql import SqlConflict, queries

from .patch import Patch
from .planted import BUGS as BUGS
from .planted import bug


def projector_bug(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    return bug(plant, "projected")


def _query(patch: Patch, name: str, part: str, instead: str) -> None:
    """Replaces a part of a query's text."""
    text = queries()[name]
    assert part in text, f"{name} has no {part!r} any more"
    changed = text.replace(part, instead)
    patch.set(postgres, "_text", lambda query: changed if query == name else queries()[query])


@projector_bug
def positions_committed_first(patch: Patch) -> None:
    """Positions are committed, and then the rows, in a transaction of their own."""

    async def commit(self: Any, found: Any, producer: Any) -> None:
        await self._quarantine(found.rejected, producer)
        written: dict[str, int] = {}
        async with self._sql.transaction() as transaction:
            await self._advance(transaction, found.next)
        self._positions.update(found.next)
        async with self._sql.transaction() as transaction:
            await projector._merge(transaction, found, written)
        self._failures = 0
        self._count(found, written, 0)

    patch.set(Projector, "_commit", commit)


@projector_bug
def older_record_wins_when_it_comes_later(patch: Patch) -> None:
    """A workflow's row is what came last, not what is newest."""
    _query(
        patch,
        "workflow_merge",
        "WHERE (excluded.at_offset, excluded.started_at, excluded.rank) >= (w.at_offset, w.started_at, w.rank)",
        "WHERE true",
    )


@projector_bug
def last_in_the_batch_wins(patch: Patch) -> None:
    """Of two records of one workflow in one batch the later counts, whatever its offset and rank."""
    original = Batch._workflow

    def workflow(self: Any, workflow_id: str, record: Any, partition: int) -> None:
        self._workflows.pop(workflow_id, None)
        original(self, workflow_id, record, partition)

    patch.set(Batch, "_workflow", workflow)


@projector_bug
def steps_of_refused_workflows_merged(patch: Patch) -> None:
    """A record that is too old for its workflow's row still changes the rows of the steps."""
    _query(patch, "workflow_merge", "WHERE NOT EXISTS", "WHERE false AND NOT EXISTS")


@projector_bug
def failed_batch_skipped(patch: Patch) -> None:
    """A batch whose transaction the server gave up is passed over, so that the projection goes on."""
    original = Projector._commit

    async def commit(self: Any, found: Any, producer: Any) -> None:
        try:
            await original(self, found, producer)
        except SqlConflict:
            async with self._sql.transaction() as transaction:
                await self._advance(transaction, found.next)
            self._positions.update(found.next)

    patch.set(Projector, "_commit", commit)


@projector_bug
def tombstones_forgotten(patch: Patch) -> None:
    """An agent whose health was deleted keeps its row."""
    original = Batch._agent_health

    def agent_health(self: Any, message: Any) -> None:
        if message.value is not None:
            original(self, message)

    patch.set(Batch, "_agent_health", agent_health)


@projector_bug
def goes_on_where_it_stands(patch: Patch) -> None:
    """After a rebalance it reads on where the group's consumer stands, not where the database says."""
    original = Projector._position

    class Standing:
        def __init__(self, consumer: Any) -> None:
            self._consumer = consumer

        def __getattr__(self, name: str) -> Any:
            return getattr(self._consumer, name)

        def seek(self, partition: Any, offset: int) -> None:
            return

    async def position(self: Any, consumer: Any) -> None:
        await original(self, Standing(consumer))

    patch.set(Projector, "_position", position)


@projector_bug
def position_from_the_group(patch: Patch) -> None:
    """It commits the group's offsets after each batch, and a new owner goes on there without asking the database."""
    turn = Projector._turn

    async def turn_and_commit(self: Any, consumer: Any, producer: Any) -> None:
        await turn(self, consumer, producer)
        mine = consumer.assignment()
        await consumer.commit({p: (await consumer.position(p), "") for p in sorted(self._positions) if p in mine})

    patch.set(Projector, "_turn", turn_and_commit)
    goes_on_where_it_stands(patch)


@projector_bug
def closing_takes_the_question_away(patch: Patch) -> None:
    """The newest record of a review counts whole, and one that closes it does not repeat what was asked."""
    original = merge_reviews

    def newest(one: Any, other: Any) -> Any:
        return max(other, one, key=lambda row: (row.at_offset, row.rank))

    patch.everywhere(original, newest)


@projector_bug
def lag_looked_at_before_the_batch(patch: Patch) -> None:
    """Positions pass over transaction markers before the records that were read with them are applied."""
    original = Projector._chunks

    async def turn(self: Any, consumer: Any, producer: Any) -> None:
        polled = await consumer.poll(self._limits.poll_ms, self._limits.batch_records_max)
        if self._positioned != self._assignments:
            await self._position(consumer)
            return
        try:
            if self._clock.monotonic_ms() >= self._lag_due_ms:
                await self._look_at_lag(consumer)
            for messages in original(self, polled):
                await self._apply(messages, producer)
        except PositionMoved:
            self._positioned = -1

    patch.set(Projector, "_turn", turn)
