"""What a handler gets to know about its attempt, and how it reports progress.

Rule: everything in here may be used from the event loop and from a handler's thread alike.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from sagalog.schemas.commands import Command, Question
from sagalog.schemas.ids import Direction

Log = logging.LoggerAdapter[logging.Logger]

_logger = logging.getLogger("sagalog.agent")


class Context:
    """One attempt of one step. Handed to the parameter that is annotated `Context`."""

    __slots__ = ("_beat", "_cancelled", "_command", "_deadline_ms", "_logger", "cost", "tokens")

    def __init__(self, command: Command, deadline_ms: int | None, beat: Callable[[Any], None]) -> None:
        self._command = command
        self._deadline_ms = deadline_ms
        self._beat = beat
        self._cancelled: threading.Event | None = None
        self._logger: Log | None = None
        self.tokens = 0
        """What `used` was told so far; the answer carries it to the budgets."""
        self.cost = 0

    @property
    def idempotency_key(self) -> str:
        """What to de-duplicate the effect on the world by: the same for all attempts of the step, and for its compensation."""
        return self._command.idempotency_key

    @property
    def workflow_id(self) -> str:
        return self._command.workflow_id

    @property
    def definition(self) -> str:
        """The hash of the definition that the workflow runs."""
        return self._command.definition

    @property
    def step(self) -> str:
        return self._command.step

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return self._command.attempt

    @property
    def about(self) -> int | None:
        """Of a question whether an attempt happened: which one. `attempt` is then the number of the question."""
        return self._command.about if isinstance(self._command, Question) else None

    @property
    def direction(self) -> Direction:
        """Whether the step is to be done or undone, or an attempt asked about."""
        return self._command.direction

    @property
    def command_id(self) -> str:
        """The attempt's own id."""
        return self._command.command_id

    @property
    def deadline(self) -> datetime | None:
        """When an answer comes too late: the earlier of the attempt's timeout and the workflow's deadline."""
        if self._deadline_ms is None:
            return None
        return datetime.fromtimestamp(self._deadline_ms / 1000, UTC)

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more. Coroutines are cancelled; a handler in a thread has to look here."""
        return self._cancelled is not None and self._cancelled.is_set()

    @property
    def logger(self) -> Log:
        """Logs with the ids of the attempt: in the message, and as fields of the record."""
        if self._logger is None:
            command = self._command
            self._logger = _AttemptLogger(
                _logger.getChild(command.agent),
                {
                    "workflow_id": command.workflow_id,
                    "step": command.step,
                    "attempt": command.attempt,
                    "direction": command.direction.value,
                    "command_id": command.command_id,
                },
            )
        return self._logger

    def used(self, *, tokens: int = 0, cost: int = 0) -> None:
        """Adds to what the attempt has used: tokens, and cost in the unit of the definition's budgets. Call it after each use.

        It counts however the attempt ends, as long as it is answered. Raises ValueError for what is no whole number from 0 on.
        """
        for name, amount in (("tokens", tokens), ("cost", cost)):
            if type(amount) is not int or amount < 0:
                raise ValueError(
                    f"{name}: {amount!r} is no whole number from 0 on; round it, in a smaller unit if need be"
                )
        self.tokens += tokens
        self.cost += cost

    def heartbeat(self, progress: Any = None) -> None:
        """Says that the attempt is alive, and how far it is. Call it as often as you like: it is sent at a bounded rate.

        Raises InvalidRecord when `progress` is no JSON or exceeds 16 KiB.
        """
        self._beat(progress)


class _AttemptLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        assert self.extra is not None
        kwargs["extra"] = {**self.extra, **kwargs.get("extra", {})}
        return f"[{self.extra['command_id']}] {msg}", kwargs


def cancel(context: Context) -> None:
    """Sets `context.cancelled`. For the host."""
    if context._cancelled is not None:
        context._cancelled.set()


def cancellable(context: Context) -> Context:
    """Prepares the flag before a thread can see the context. A lock per attempt is too dear for coroutines, which need none."""
    context._cancelled = threading.Event()
    return context
