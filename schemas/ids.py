"""Ids: which are legal, and how those of effects are derived.

Rule: every effect's id is a function of (workflow, run, step, attempt, direction), so that an effect sent twice is recognised.
"""

import re
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import blake2b
from typing import Final

from .errors import InvalidRecord
from .limits import NAME_CHARS_MAX, WORKFLOW_ID_BYTES_MAX

NAME_PATTERN: Final = rf"^[a-z][a-z0-9_-]{{0,{NAME_CHARS_MAX - 1}}}$"
_NAME: Final = re.compile(NAME_PATTERN)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Direction(StrEnum):
    """What a command asks of its agent."""

    EXECUTE = "execute"
    COMPENSATE = "compensate"
    RECONCILE = "reconcile"
    """To say whether an attempt whose outcome nobody knows happened. Its commands count the questions, not the attempts."""


def check_name(name: str, field: str) -> str:
    """A definition, step, agent or service name: lower case, digits, `-` and `_`, at most 63 characters."""
    if not _NAME.fullmatch(name):
        raise InvalidRecord(
            field,
            f"{name!r} is no name: use lower-case letters, digits, '-' and '_', a letter first, at most {NAME_CHARS_MAX}",
        )
    return name


def check_workflow_id(workflow_id: str, field: str = "workflow_id") -> str:
    """Any text of 1 to 255 bytes of UTF-8 without control characters that does not start with '@' (the engine's own keys)."""
    try:
        size = len(workflow_id.encode())
    except UnicodeEncodeError:
        raise InvalidRecord(field, "holds half of a surrogate pair; it must be valid Unicode") from None
    if not 1 <= size <= WORKFLOW_ID_BYTES_MAX:
        raise InvalidRecord(field, f"is {size} bytes; 1 to {WORKFLOW_ID_BYTES_MAX} are allowed")
    if workflow_id[0] == "@":
        raise InvalidRecord(
            field, f"{workflow_id[:40]!r} starts with '@', which marks the engine's own keys; choose another id"
        )
    if _CONTROL.search(workflow_id):
        raise InvalidRecord(field, "holds control characters; remove them")
    return workflow_id


def item_name(step: str, item: int) -> str:
    """What the `item`-th of a step that maps is called: in commands, events and rows. No step's own name looks like that."""
    return f"{step}[{item}]"


def split_item(name: str) -> tuple[str, int]:
    """The step and the item in a name; -1 for a step's own."""
    step, bracket, rest = name.partition("[")
    digits = rest.removesuffix("]")
    if not bracket or digits == rest or not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        return name, -1
    item = int(digits)
    return (step, item) if item_name(step, item) == name else (name, -1)


FIRST_RUN: Final = 1
"""The run of every workflow whose start does not replace. Of one that does, the run is the offset of its start in the log (plus
2, so that it is no other's): nothing that ever happened under the id, remembered or forgotten, had the same."""


def of_run(name: str, run: int) -> str:
    """A name that may be told from that of another run of the same workflow id. No step, and no number, holds an '@'."""
    return name if run == FIRST_RUN else f"{name}@{run}"


def command_id(workflow_id: str, step: str, attempt: int, direction: Direction, run: int = FIRST_RUN) -> str:
    """The id of one attempt's command: the same for every time it is sent."""
    return f"{workflow_id}/{step}/{of_run(str(attempt), run)}/{direction}"


def child_id(workflow_id: str, step: str, attempt: int, run: int = FIRST_RUN) -> str:
    """The id of the workflow that does a step: the same for every time it is started."""
    found = f"{workflow_id}/{step}.{of_run(str(attempt), run)}"
    if len(found.encode()) <= WORKFLOW_ID_BYTES_MAX:
        return found
    digest = blake2b(found.encode(), digest_size=16).hexdigest()
    kept = workflow_id.encode()[: WORKFLOW_ID_BYTES_MAX - len(digest) - 1].decode(errors="ignore")
    return f"{kept}~{digest}"


def run_id(schedule: str, due_ms: int) -> str:
    """The id of the workflow that a schedule starts for a due time: the same for every time it is started."""
    at = datetime.fromtimestamp(due_ms // 1000, UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    millis = due_ms % 1000
    return f"{schedule}/{at}{f'.{millis:03}' if millis else ''}Z"


def idempotency_key(workflow_id: str, step: str, run: int = FIRST_RUN, round: int = 0) -> str:
    """What an agent de-duplicates its effect on the world by: the same for all attempts, and for the compensation.

    A step that was undone by a rewinding is done anew under the key of its next round: the effect of the one before is gone.
    """
    found = f"{workflow_id}/{of_run(step, run)}"
    return f"{found}#{round}" if round else found


def start_id(seed: str) -> str:
    """By what a start is known to others than its starter: nothing leads from it back to the seed."""
    return blake2b(seed.encode(), digest_size=8, person=b"start").hexdigest()


def token(seed: str, command: str) -> str:
    """What a result must return to be believed. `seed` is known to the engine and the starter only."""
    return blake2b(command.encode(), key=seed.encode()[:64], digest_size=9).hexdigest()


def fraction(seed: str, command: str) -> float:
    """A number in [0, 1) that stands in for chance where the fold needs jitter: the same on every folding."""
    return int.from_bytes(blake2b(command.encode(), key=seed.encode()[:64], digest_size=7).digest()) / (1 << 56)
