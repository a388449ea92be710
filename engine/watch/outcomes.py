"""Outcome and result records as the watch reads them: only what it needs, checked by hand.

Rule: whatever bytes come, the answer is a value or InvalidRecord; a record that cannot be read must never stop the watch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sagalog.engine.watch.window import Counts
from sagalog.schemas.codec import decode_object
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.ids import check_name
from sagalog.schemas.limits import NAME_CHARS_MAX
from sagalog.schemas.statuses import TERMINAL

CALLS_MAX: Final = 1_000_000
"""In one record for one agent; more is no count."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Calls per agent that one partition of `events` reported."""

    service: str
    partition: int
    at_offset: int
    agents: dict[str, Counts]


@dataclass(frozen=True, slots=True)
class Finished:
    """A workflow that ended."""

    name: str
    status: str


def parse_outcome(raw: bytes | None) -> Outcome:
    """Raises InvalidRecord."""
    record = decode_object(raw, "outcome")
    agents = record.get("agents", {})
    if type(agents) is not dict:
        raise InvalidRecord("outcome.agents", f"is a {type(agents).__name__}; an object of [ok, failed] is expected")
    return Outcome(
        _text(record, "outcome", "service"),
        _whole(record.get("partition"), "outcome.partition"),
        _whole(record.get("at_offset"), "outcome.at_offset", least=-1),
        {
            check_name(agent, "outcome.agents"): _counts(pair, f"outcome.agents.{agent}")
            for agent, pair in agents.items()
        },
    )


def parse_result(raw: bytes | None) -> Finished:
    """Raises InvalidRecord."""
    record = decode_object(raw, "result")
    status = record.get("status")
    if type(status) is not str or status not in TERMINAL:
        raise InvalidRecord("result.status", f"is {str(status)[:80]!r}; a workflow's last status is expected")
    return Finished(_text(record, "result", "name"), status)


def _counts(pair: Any, what: str) -> Counts:
    if type(pair) is not list or len(pair) != 2:
        raise InvalidRecord(what, f"is {str(pair)[:80]!r}; [ok, failed] is expected")
    ok, failed = (_whole(count, what) for count in pair)
    if ok + failed > CALLS_MAX:
        raise InvalidRecord(what, f"counts {ok + failed:,} calls in one record, more than {CALLS_MAX:,}")
    return Counts(ok, failed)


def _whole(value: Any, what: str, *, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise InvalidRecord(what, f"is {str(value)[:80]!r}; a whole number of at least {least} is expected")
    return value


def _text(record: dict[str, Any], what: str, name: str) -> str:
    value = record.get(name)
    # Names become labels of metrics: '@none' and '-' stand in for names, anything long is none.
    if type(value) is not str or not 1 <= len(value) <= NAME_CHARS_MAX:
        raise InvalidRecord(f"{what}.{name}", f"is {str(value)[:80]!r}; a name is expected")
    return value
