"""One owner at a time for a directory.

Rule: the lock is the kernel's (flock), so it cannot be stale. It is held by the owner *and* by the supervisors of its
servers (they inherit the descriptor), so it is free only when nobody uses the directory any more. What is written in the
file is for people and messages only.
"""

from __future__ import annotations

import fcntl
import os
import select
import time
from pathlib import Path

from sagalog.infra.embedded.process import END_MARGIN_MS, GRACE_MS
from sagalog.infra.errors import DirectoryOwnedError

LOCK_NAME = "owner.lock"
# A dead owner's servers are being stopped by their supervisors: they are waited for, no longer than that may take.
TAKE_OVER_MS_MAX = GRACE_MS + END_MARGIN_MS
RETRY_MS = 50
PID_BYTES_MAX = 32


class DirectoryLock:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def take(cls, directory: Path) -> DirectoryLock:
        """Locks the directory. Raises DirectoryOwnedError, at once when the owner lives."""
        descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + TAKE_OVER_MS_MAX / 1000
        try:
            while not _try_lock(descriptor):
                owner = _read_pid(descriptor)
                if _is_alive(owner) or time.monotonic() > deadline:
                    raise DirectoryOwnedError.of(directory, owner)
                # flock has no wait with a limit short of a signal, which a library must not install.
                time.sleep(RETRY_MS / 1000)
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        os.close(self.descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(descriptor: int) -> int:
    """The owner's pid, 0 when it has not written it yet."""
    text = os.pread(descriptor, PID_BYTES_MAX, 0).strip()
    return int(text) if text.isdigit() else 0


def _is_alive(pid: int) -> bool:
    """Whether the process still runs; one that has ended but was not waited for by its parent does not."""
    if pid == 0:
        return False
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([descriptor], [], [], 0)[0]
    finally:
        os.close(descriptor)
