"""The project's own processes as children of the demo: real ones, so that SIGKILL is real.

Rule: a child that ends without being asked ends the demo, with the last lines that it wrote.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from story import tether
from story.settings import LOG_TAIL_LINES, POLL_S, STOP_S_MAX, StoryError


class Child:
    """One `sagalog …` process. Its output goes to a file."""

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], directory: Path) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = environment
        self._directory = directory
        self._log = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def died(self) -> bool:
        """Whether it ended without being asked."""
        return self._wanted and self._process is not None and self._process.poll() is not None

    @property
    def code(self) -> int | None:
        """Its exit code; negative for the signal that ended it."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, tether.__file__, str(os.getpid()), "-m", "sagalog.engine.cli", *self._arguments],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal is for the demo, which then stops its children in order.
                start_new_session=True,
            )
        self._wanted = True

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._send(signal.SIGKILL)
        await self._gone(STOP_S_MAX)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not end."""
        self._send(signal.SIGTERM)
        if not await self._gone(STOP_S_MAX):
            await self.kill()

    def last_lines(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-LOG_TAIL_LINES:]) or "(it wrote nothing)"

    def _send(self, number: signal.Signals) -> None:
        self._wanted = False
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def _gone(self, seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + seconds
        while self._process is not None and self._process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(POLL_S / 10)
        return True


class Children:
    """All of them, with one environment and one directory."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._directory = directory
        # What is set for the user's own system must not reach the demo's.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SAGALOG_")}
        self._environment = {**inherited, **environment}
        self._all: list[Child] = []

    def start(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
        child = Child(name, list(arguments), {**self._environment, **(environment or {})}, self._directory)
        self._all.append(child)
        child.start()
        return child

    async def run(self, *arguments: str, timeout_s: float) -> tuple[int, bytes, bytes]:
        """A `sagalog` command from start to end: its exit code, standard output and standard error."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sagalog.engine.cli",
            *arguments,
            cwd=self._directory,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), timeout_s)
        except TimeoutError:
            raise StoryError(f"`sagalog {' '.join(arguments)}` did not end within {timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out, err

    async def watch(self) -> None:
        """Raises StoryError once a child ends without being asked."""
        while True:
            for child in self._all:
                if child.died:
                    raise StoryError(
                        f"the process {child.name!r} ended by itself; it wrote last:\n{child.last_lines()}"
                    )
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        await asyncio.gather(*(child.stop() for child in self._all))
