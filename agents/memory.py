"""What a host remembers of commands that are over: their answers, and which steps are being undone.

Both are bounded and live as long as the process. After a restart a command that comes again is done again: handlers
de-duplicate their effects by the idempotency key.
"""

from __future__ import annotations

from collections import OrderedDict

from .answers import Kept
from .limits import REMEMBERED_BYTES_MAX, REMEMBERED_COMMANDS_MAX, REMEMBERED_UNDONE_MAX


class Answers:
    """Answers by command id, the oldest forgotten first.

    What is kept of one is flat, so that garbage collections do not look through ten thousand records with their headers.
    """

    def __init__(self, count_max: int = REMEMBERED_COMMANDS_MAX, bytes_max: int = REMEMBERED_BYTES_MAX) -> None:
        self._answers: OrderedDict[str, Kept] = OrderedDict()
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._bytes = 0

    def add(self, command_id: str, answer: Kept) -> None:
        answers = self._answers
        before = answers.pop(command_id, None)
        if before is not None:
            self._bytes -= len(before[0])
        answers[command_id] = answer
        self._bytes += len(answer[0])
        while len(answers) > self._count_max or self._bytes > self._bytes_max:
            _, oldest = answers.popitem(last=False)
            self._bytes -= len(oldest[0])

    def get(self, command_id: str) -> Kept | None:
        return self._answers.get(command_id)


class Undone:
    """Idempotency keys whose compensation has come."""

    def __init__(self, count_max: int = REMEMBERED_UNDONE_MAX) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()
        self._count_max = count_max

    def add(self, key: str) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > self._count_max:
            self._keys.popitem(last=False)

    def __contains__(self, key: str) -> bool:
        return key in self._keys
