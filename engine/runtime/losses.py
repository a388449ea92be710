"""Attempts that are out, and by when they must be answered. Past that they are lost, which becomes an event.

An attempt's host enforces its timeout; this is for what the host cannot say: that it is gone, or that nobody ever took the
command. Heartbeats move the time on. Slots of one second keep it cheap: an answered attempt costs two dictionary operations.
"""

from __future__ import annotations

from dataclasses import dataclass

from .limits import LOSS_TICK_MS


@dataclass(slots=True)
class Watched:
    """One attempt that is out; with `step` None, all attempts of a workflow that was out when it was taken over."""

    workflow_id: str
    step: str | None = None
    attempt: int = 0
    direction: str = ""
    message: str = "no answer in time"
    timeout_ms: int = 0
    heartbeat_ms: int | None = None
    run: int | None = None
    """As events name it."""


class Losses:
    """Deadlines by command id, in slots of a second. Times are of the monotonic clock, once `begin` has said what it shows."""

    def __init__(self) -> None:
        self._watched: dict[str, tuple[Watched, int]] = {}
        self._slots: dict[int, dict[str, None]] = {}
        self._oldest: int | None = None
        self._begun_ms = 0

    def __len__(self) -> int:
        return len(self._watched)

    def get(self, command_id: str) -> Watched | None:
        entry = self._watched.get(command_id)
        return entry[0] if entry is not None else None

    def begin(self, now_ms: int) -> None:
        """Patience counts from now on: what was watched until 5,000 before is watched for 5 seconds more."""
        self._begun_ms = now_ms

    def watch(self, command_id: str, watched: Watched, until_ms: int) -> None:
        """Sets or moves the time by which an answer must be there."""
        slot = (until_ms - self._begun_ms) // LOSS_TICK_MS + 1
        before = self._watched.get(command_id)
        if before is not None:
            if before[1] == slot:
                return
            self._slots[before[1]].pop(command_id, None)
        self._watched[command_id] = (watched, slot)
        self._slots.setdefault(slot, {})[command_id] = None
        if self._oldest is None or slot < self._oldest:
            self._oldest = slot

    def answered(self, command_id: str) -> None:
        entry = self._watched.pop(command_id, None)
        if entry is not None:
            self._slots[entry[1]].pop(command_id, None)

    def pop_lost(self, now_ms: int) -> list[tuple[str, Watched]]:
        """Takes out what is overdue."""
        now = (now_ms - self._begun_ms) // LOSS_TICK_MS
        if self._oldest is None or self._oldest > now:
            return []
        lost: list[tuple[str, Watched]] = []
        for slot in sorted(slot for slot in self._slots if slot <= now):
            for command_id in self._slots.pop(slot):
                lost.append((command_id, self._watched.pop(command_id)[0]))
        self._oldest = min(self._slots, default=None)
        return lost
