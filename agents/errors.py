"""What a handler raises to say how an attempt failed, and what the SDK raises when an agent is declared or loaded wrongly.

Any other exception of a handler counts as `Retryable`, with the exception's class as the error type.
"""

from __future__ import annotations

from typing import Any

from sagalog.schemas.errors import SagalogError


class AgentError(SagalogError):
    """An agent that cannot be used as it is declared. The message says what to change."""


class Retryable(Exception):
    """This attempt failed, another one may succeed. `retry_after_ms`: not before that long, when the world says so."""

    def __init__(self, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms


class Terminal(Exception):
    """No attempt will succeed: a business refusal, or something that has to be mended first. It is not tried again."""

    def __init__(self, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class Refused(Exception):
    """The agent, or the model behind it, declines. Asking it again changes nothing; a fallback may do it."""

    def __init__(self, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class NeedsReview(Exception):
    """A person has to decide. `details` is what they need to see."""

    def __init__(self, reason: str, details: Any = None) -> None:
        super().__init__(reason)
        self.message = reason
        self.details = details
