"""A command on its way through the host, from its delivery to its durable answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from sagalog.schemas.commands import Command, Question
from sagalog.schemas.ids import Direction

from .context import Context
from .offsets import Offsets

Place = tuple[Offsets, int]


@dataclass(slots=True, eq=False)
class Job:
    """One command. `places` are the offsets that it was delivered at: several, when it came again before it was answered."""

    command: Command
    partition: int
    trace: bytes | None
    size: int
    places: list[Place]
    context: Context | None = None
    task: asyncio.Task[None] | None = None
    thread: asyncio.Future[Any] | None = None
    started_ms: int = 0
    """Times in here are of the monotonic clock."""
    expires_ms: int = 0
    beat_every_ms: int = 0
    beat_due_ms: int = 0
    beat_allowed_ms: int = 0
    progress: Any = None
    answered: bool = False
    began: bool = False
    """Its task has run; one that is cancelled before never enters its body."""
    stopped: bool = False
    """The host cancelled it."""
    successor: Job | None = field(default=None, repr=False)
    """The next command of the same idempotency key, which waits until this one has ended."""
    settled: asyncio.Event | None = None
    """Set when the answer is durable, or when the command was given up; only where somebody waits for it."""

    @property
    def is_execute(self) -> bool:
        return self.command.direction is Direction.EXECUTE

    @property
    def question(self) -> Question | None:
        """The command, if it asks whether an attempt happened."""
        return self.command if isinstance(self.command, Question) else None

    @property
    def lost(self) -> bool:
        """Whether it belongs to another host by now."""
        return all(offsets.lost for offsets, _ in self.places)
