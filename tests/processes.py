"""The project's own processes as children, to be killed: engines, agent hosts, projectors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from sagalog.topics.specs import Topics

from .conftest import PARTITIONS, SESSION_TIMEOUT_MS

STOP_TIMEOUT_S = 20.0


def environment_of(bootstrap: str, topics: Topics, partitions: int = PARTITIONS, **more: str) -> dict[str, str]:
    """The settings of a test's processes."""
    return {
        "SAGALOG_BOOTSTRAP": bootstrap,
        "SAGALOG_PREFIX": topics.prefix,
        "SAGALOG_PARTITIONS": str(partitions),
        "SAGALOG_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
        **more,
    }


class Process:
    """One `sagalog …` process. Its output goes to a file that is shown when it fails."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], directory: Path) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = environment
        self._file = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.running
        self.starts += 1
        with self._file.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sagalog.engine.cli", *self._arguments],
                env={**_clean_environment(), **self._environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL: no time for a last word."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(STOP_TIMEOUT_S)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self._signal(signal.SIGTERM)
        assert self._process is not None
        return self._process.wait(STOP_TIMEOUT_S)

    def output(self) -> str:
        return self._file.read_text(errors="replace") if self._file.exists() else ""

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, number)


class Processes:
    """Starts processes with one environment and ends them all."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment
        self.all: list[Process] = []

    def make(self, name: str, *arguments: str) -> Process:
        process = Process(name, list(arguments), self.environment, self.directory)
        self.all.append(process)
        process.start()
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.all:
            if process.running:
                process.resume()
                process.kill()
        if error is not None:
            for process in self.all:
                tail = "\n".join(process.output().splitlines()[-25:])
                print(f"--- {process.name} (started {process.starts} times)\n{tail}")


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SAGALOG_")}
