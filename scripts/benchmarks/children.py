"""The measured processes, seen from the bench: started, asked, stopped or killed.

Rules: a child's stdin is its lifeline (it ends when the pipe does, however the bench ended); a child that ends by itself fails
the bench.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.settings import ANSWER_SECONDS_MAX, READY_SECONDS_MAX, STOP_SECONDS_MAX, BenchError

LAST_WORDS_CHARS_MAX: Final = 4_000
ANSWER_BYTES_MAX: Final = 16 * 2**20


class Child:
    """One process of a role (see `child`). Use `running`, which ends it."""

    def __init__(self, role: str, process: asyncio.subprocess.Process) -> None:
        self.role = role
        self._process = process
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self._said.put_nowait(json.loads(line))
        code = await self._process.wait()
        self._said.put_nowait({"event": "ended", "code": code})

    async def next(self, event: str, seconds: float) -> dict[str, Any]:
        """The next thing of that kind which the child says; what it says before is passed over."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    said = await self._said.get()
                    if said["event"] == event:
                        return said
                    if said["event"] == "ended":
                        raise BenchError(f"the process {self.role!r} ended with code {said['code']}")
        except TimeoutError:
            raise BenchError(f"the process {self.role!r} did not say {event!r} within {seconds:g} s") from None

    async def ready(self) -> None:
        await self.next("ready", READY_SECONDS_MAX)

    async def ask(self, request: str, seconds: float = ANSWER_SECONDS_MAX) -> dict[str, Any]:
        """The child's answer to a request, which is named after the request's first word."""
        assert self._process.stdin is not None
        self._process.stdin.write(request.encode() + b"\n")
        return await self.next(request.split()[0], seconds)

    async def cpu_seconds(self) -> float:
        """User and system time of the process so far."""
        return float((await self.ask("cpu"))["seconds"])

    def resident_bytes(self) -> int:
        """Of the process now, as the system counts it: it need not have the time to answer. Linux only; raises OSError."""
        text = Path(f"/proc/{self._process.pid}/statm").read_text()
        return int(text.split()[1]) * resource.getpagesize()

    async def kill(self) -> float:
        """SIGKILL; returns when, on the monotonic clock."""
        at = time.monotonic()
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader
        return at

    async def stop(self) -> None:
        """Lets it end in order, else kills it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS_MAX)
        except TimeoutError:
            print(f"bench: the process {self.role!r} did not end in {STOP_SECONDS_MAX:g} s; killed", file=sys.stderr)
        finally:
            await self.kill()


def last_words(logs: Path, of: str = "") -> str:
    """The ends of the logs of all children whose roles begin so, the newest last."""
    found = sorted(logs.glob(f"{of}*.log"), key=lambda log: log.stat().st_mtime)
    return "\n".join(f"--- {log.stem}\n{_tail(log)}" for log in found)


def _tail(log: Path) -> str:
    text = log.read_text(errors="replace").strip()
    return text[-LAST_WORDS_CHARS_MAX:] or "(no message)"


@asynccontextmanager
async def running(
    role: str, arguments: Mapping[str, Any], logs: Path, program: Sequence[str] | None = None
) -> AsyncIterator[Child]:
    """A child, until the block ends. Its stderr goes to a file in `logs`.

    `program` runs instead of ours, with the same arguments, and must keep to the same rules.
    """
    log = logs / f"{role}-{time.monotonic_ns()}.log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(program or (sys.executable, "-m", "benchmarks.child", role)),
            json.dumps(arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            limit=ANSWER_BYTES_MAX,
            # Ctrl-C at the terminal is for the bench, which then stops its children in order.
            start_new_session=True,
        )
    child = Child(role, process)
    try:
        yield child
    except BaseException:
        # Interrupted or failed: nothing is left to be ended in order.
        await asyncio.shield(child.kill())
        raise
    else:
        await child.stop()
