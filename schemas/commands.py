"""The commands topics: what the engine asks of an agent, and the heartbeats that a long attempt sends meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from .codec import decode_object
from .errors import InvalidRecord
from .ids import Direction
from .limits import PRIORITY_DEFAULT

TYPE_EXECUTE: Final = "sagalog.execute.v1"
TYPE_COMPENSATE: Final = "sagalog.compensate.v1"
TYPE_RECONCILE: Final = "sagalog.reconcile.v1"
TYPE_HEARTBEAT: Final = "sagalog.heartbeat.v1"
TYPE_OF_DIRECTION: Final = {
    Direction.EXECUTE: TYPE_EXECUTE,
    Direction.COMPENSATE: TYPE_COMPENSATE,
    Direction.RECONCILE: TYPE_RECONCILE,
}


@dataclass(frozen=True, slots=True)
class Withheld:
    """Why and for how long a command was not sent.

    `reason` is the last of `circuit_open`, `ramp`, `concurrency_limit`, `rate_limit`, `limit_keys_full`, `in_flight_limit`.
    """

    reason: str
    since_ms: int
    ms: int
    service: str | None = None
    limit: str | None = None
    """The limit's name, and below the key, of one that held it."""
    key: str | None = None


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
    priority: int = PRIORITY_DEFAULT
    """The workflow's, as it was when the command was sent: 0 to 9, the higher first."""


@dataclass(slots=True, kw_only=True)
class Question(Command):
    """Asks whether an attempt happened. Its `attempt` is the number of the question, its `input` what the attempt got."""

    about: Annotated[int, Field(ge=1)]
    """The attempt at executing that it asks about."""

    @property
    def about_id(self) -> str:
        """The id of that attempt's command."""
        # Of the same run under the workflow's id: this question's own id says which.
        _, marked, run = self.command_id.rsplit("/", 2)[1].partition("@")
        return f"{self.workflow_id}/{self.step}/{self.about}{marked}{run}/{Direction.EXECUTE}"


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
_QUESTION: Final = TypeAdapter(Question)
_HEARTBEAT: Final = TypeAdapter(Heartbeat)

_REQUIRED: Final = itemgetter(
    "command_id", "workflow_id", "definition", "step", "agent", "attempt",
    "direction", "token", "idempotency_key", "timeout_ms",
)  # fmt: skip
_REQUIRED_TYPES: Final = (str, str, str, str, str, int, str, str, str, int)
_DIRECTIONS: Final = {direction.value: direction for direction in Direction}


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
    if command.priority != PRIORITY_DEFAULT:
        document["priority"] = command.priority
    if isinstance(command, Question):
        document["about"] = command.about
    return orjson.dumps(document)


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    return orjson.dumps(heartbeat)


def parse_command(value: bytes | None) -> Command:
    """The command in a record's value. Raises InvalidRecord with the field."""
    document = decode_object(value)
    if document.get("direction") == Direction.RECONCILE:
        return _validated(_QUESTION, document)
    return _plain(document) or _validated(_COMMAND, document)


def parse_heartbeat(value: bytes | None) -> Heartbeat:
    return _validated(_HEARTBEAT, decode_object(value))


def _plain(document: dict[str, Any]) -> Command | None:
    """The command, if every field is of its very type, as the engine writes them; None leaves the verdict to the validator.

    It takes 0.8 us, the validator 1.3.
    """
    try:
        required = _REQUIRED(document)
    except KeyError:
        return None
    if tuple(map(type, required)) != _REQUIRED_TYPES:
        return None
    command_id, workflow_id, definition, step, agent, attempt, direction, token, idempotency_key, timeout_ms = required
    get = document.get
    heartbeat_timeout_ms, deadline_ms, service = get("heartbeat_timeout_ms"), get("deadline_ms"), get("service")
    priority = get("priority", PRIORITY_DEFAULT)
    if (
        direction not in _DIRECTIONS
        or not (heartbeat_timeout_ms is None or type(heartbeat_timeout_ms) is int)
        or not (deadline_ms is None or type(deadline_ms) is int)
        or not (service is None or type(service) is str)
        or get("withheld") is not None
        or type(priority) is not int
    ):
        return None
    return Command(
        command_id, workflow_id, definition, step, agent, attempt, _DIRECTIONS[direction], token, idempotency_key,
        get("input"), timeout_ms, heartbeat_timeout_ms, deadline_ms, service, None, priority,
    )  # fmt: skip


def _validated(adapter: TypeAdapter[T], document: dict[str, Any]) -> T:
    document.setdefault("input", None)
    try:
        return adapter.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidRecord(".".join(map(str, first["loc"])) or "value", first["msg"]) from None
