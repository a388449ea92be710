"""The peer's side of `subjects.Driven`: answers on stdout, a JSON object a line, until stdin ends.

Requests, a line each: `load N` keeps N workflows in flight from then on; `drain` starts no more and waits for the end of all;
`steps` tells how many steps this process has done; `pace PER_SECOND SECONDS` starts workflows evenly spaced and tells their
latencies in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

STOP_SECONDS_MAX = 10.0
PAYLOAD_FRAME = len('{"data":""}')

One = Callable[[], Awaitable[None]]


class Steps:
    """Counts what this process does."""

    done = 0


def payload(size: int) -> dict[str, str]:
    """A payload of that many bytes as JSON; the same as sagalog's."""
    return {"data": "x" * (size - PAYLOAD_FRAME)}


def say(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **more}), flush=True)


class Clients:
    """Starts workflows by `one`, which returns when its workflow has ended."""

    def __init__(self, one: One) -> None:
        self._one = one
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def load(self, in_flight: int) -> None:
        self._stop.clear()
        self._tasks = [asyncio.create_task(self._again()) for _ in range(in_flight)]

    async def _again(self) -> None:
        while not self._stop.is_set():
            await self._one()

    async def drain(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    def check(self) -> None:
        """Raises what a client failed with."""
        for task in self._tasks:
            if task.done() and not self._stop.is_set():
                task.result()

    async def pace(self, per_second: float, seconds: float) -> list[float]:
        begun = time.monotonic()
        timed = []
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, begun + number / per_second - time.monotonic()))
            timed.append(asyncio.create_task(self._timed()))
        return list(await asyncio.gather(*timed))

    async def _timed(self) -> float:
        begun = time.perf_counter()
        await self._one()
        return 1_000 * (time.perf_counter() - begun)


async def serve(peer: AbstractAsyncContextManager[One | None]) -> None:
    """Starts the peer, says `ready` and answers; ends it when stdin ends. A peer without a client gives None."""
    async with peer as one:
        clients = Clients(one) if one is not None else None
        say("ready")
        async for line in _lines():
            request, *given = line.split()
            if request == "steps":
                if clients is not None:
                    clients.check()
                say(request, steps=Steps.done)
                continue
            assert clients is not None, f"{request}: this process has no client"
            match request:
                case "load":
                    clients.load(int(given[0]))
                    say(request)
                case "drain":
                    await clients.drain()
                    say(request)
                case "pace":
                    say(request, latencies_ms=await clients.pace(float(given[0]), float(given[1])))
                case _:
                    raise ValueError(f"unknown request {request!r}")
        # Whatever an end in order would wait for may be gone as well.
        asyncio.get_running_loop().call_later(STOP_SECONDS_MAX, os._exit, 1)


async def _lines() -> AsyncIterator[str]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        yield line
