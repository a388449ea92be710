"""What may go wrong between a client and the simulated broker, as probabilities that a harness changes while it runs.

Rule: every fault is one that the real client can show its user. A request or an answer that is lost is tried again by the client
itself where the real one does so; it is an error only where the real one gives up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Request(StrEnum):
    """The kinds of requests, as far as faults tell them apart."""

    PRODUCE = "produce"
    FETCH = "fetch"
    COMMIT = "commit"
    """Offsets of a consumer group, outside a transaction."""
    HEARTBEAT = "heartbeat"
    GROUP = "group"
    """Join, sync and leave."""
    TRANSACTION = "transaction"
    """Everything of a transaction but its end."""
    END_TRANSACTION = "end-transaction"
    METADATA = "metadata"
    """Connecting, topics, offsets, committed offsets. Lost, connecting is LogUnavailable and a question about topics LogError."""


RETRYABLE: frozenset[Request] = frozenset(Request)
FAILING: frozenset[Request] = frozenset({Request.PRODUCE, Request.COMMIT, Request.END_TRANSACTION})
"""Those whose unknown errors the real client hands to its user as an error of that very call."""


@dataclass(slots=True)
class Faults:
    """All probabilities are per request, from 0 to 1; a kind that is not named does not fail. Times are (from, to)."""

    lost: dict[Request, float] = field(default_factory=dict)
    """The request never arrives: nothing happened. The client notices and tries again."""
    answer_lost: dict[Request, float] = field(default_factory=dict)
    """The request takes effect, its answer never arrives. The client tries again; the broker recognises what it did already."""
    refused: dict[Request, float] = field(default_factory=dict)
    """An unknown server error without effect, which the client does not try again: LogError, ProducerBroken."""
    unknown: dict[Request, float] = field(default_factory=dict)
    """An unknown server error although it took effect: the user sees a failure, and the log has the record."""
    noticed_late: float = 0.0
    """Of what is lost, the share that is noticed by the request's time-out only, not by a broken connection."""
    slow: dict[Request, float] = field(default_factory=dict)
    """The answer comes late, by `slow_ms`."""
    slow_ms: tuple[int, int] = (100, 3_000)
    leader_change: float = 0.0
    """Per batch written: its partition has no leader for `leader_change_ms`, and the batch is to be sent again."""
    leader_change_ms: tuple[int, int] = (50, 2_000)
    rebalance: float = 0.0
    """Per heartbeat: the group is told to join anew."""
    session_timeout: float = 0.0
    """Per heartbeat: the broker has given the member up, as if its heartbeats before had not come through."""

    def __post_init__(self) -> None:
        _check("refused", self.refused, FAILING)
        _check("unknown", self.unknown, FAILING)
        _check("answer_lost", self.answer_lost, RETRYABLE)

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        for probabilities in (self.lost, self.answer_lost, self.refused, self.unknown, self.slow):
            probabilities.clear()
        self.leader_change = self.rebalance = self.session_timeout = self.noticed_late = 0.0


def _check(name: str, probabilities: Mapping[Request, float], allowed: Iterable[Request]) -> None:
    wrong = [kind.value for kind in probabilities if kind not in allowed]
    if wrong:
        raise ValueError(f"{name} is no fault of {', '.join(wrong)}; it is one of {', '.join(sorted(allowed))}")
