"""The commands topics: what the engine asks of an agent, and the heartbeats that a long attempt sends meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from .codec import decode_object
from .errors import InvalidRecord
from .ids import Direction

TYPE_EXECUTE: Final = "sagalog.execute.v1"
TYPE_COMPENSATE: Final = "sagalog.compensate.v1"
TYPE_HEARTBEAT: Final = "sagalog.heartbeat.v1"
TYPE_OF_DIRECTION: Final = {Direction.EXECUTE: TYPE_EXECUTE, Direction.COMPENSATE: TYPE_COMPENSATE}


@dataclass(frozen=True, slots=True)
class Withheld:
    """Why and for how long a command was not sent: `reason` is `circuit_open`, `in_flight_limit` or `ramp`."""

    reason: str
    since_ms: int
    ms: int
    service: str | None = None


@dataclass(slots=True)
class Command:
    """One attempt, as its agent gets it. Sent again with the same id, it must do nothing twice."""

    command_id: str
    workflow_id: str
    definition: str
    step: str
    agent: str
    attempt: int
    direction: Direction
    token: str
    idempotency_key: str
    input: Any
    timeout_ms: int
    heartbeat_timeout_ms: int | None = None
    deadline_ms: int | None = None
    """The workflow's deadline, in milliseconds since the epoch."""
    service: str | None = None
    withheld: Withheld | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent when a long attempt starts, and while it runs. Keyed by the command's id."""

    workflow_id: str
    step: str
    attempt: int
    direction: Direction
    agent: str
    progress: Any = None


T = TypeVar("T")

_COMMAND: Final = TypeAdapter(Command)
_HEARTBEAT: Final = TypeAdapter(Heartbeat)


def encode_command(command: Command) -> bytes:
    """The JSON value of a command, without fields that are None."""
    # Written out: once per attempt, a loop over the slots costs more than encoding the result.
    document = {
        "command_id": command.command_id,
        "workflow_id": command.workflow_id,
        "definition": command.definition,
        "step": command.step,
        "agent": command.agent,
        "attempt": command.attempt,
        "direction": command.direction,
        "token": command.token,
        "idempotency_key": command.idempotency_key,
        "timeout_ms": command.timeout_ms,
    }
    if command.input is not None:
        document["input"] = command.input
    if command.heartbeat_timeout_ms is not None:
        document["heartbeat_timeout_ms"] = command.heartbeat_timeout_ms
    if command.deadline_ms is not None:
        document["deadline_ms"] = command.deadline_ms
    if command.service is not None:
        document["service"] = command.service
    if command.withheld is not None:
        document["withheld"] = command.withheld
    return orjson.dumps(document)


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    return orjson.dumps(heartbeat)


def parse_command(value: bytes | None) -> Command:
    """The command in a record's value. Raises InvalidRecord with the field."""
    return _parse(_COMMAND, value)


def parse_heartbeat(value: bytes | None) -> Heartbeat:
    return _parse(_HEARTBEAT, value)


def _parse(adapter: TypeAdapter[T], value: bytes | None) -> T:
    document = decode_object(value)
    document.setdefault("input", None)
    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidRecord(".".join(map(str, first["loc"])) or "value", first["msg"]) from None
