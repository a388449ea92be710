"""The other side of `children`: runs one role until stdin ends, and answers on stdout, a JSON object a line.

`python -m benchmarks.child ROLE ARGUMENTS`, where ARGUMENTS is a JSON object; the roles are in ROLES.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop

from benchmarks import raw, system
from benchmarks.latency import Latency
from benchmarks.settings import STOP_SECONDS_MAX
from sagalog.infra.tuning import tune_garbage_collector


def say(event: str, **more: Any) -> None:
    """Tells the bench something. `at` is on the monotonic clock, which all processes of a machine share."""
    print(json.dumps({"event": event, "at": time.monotonic(), **more}), flush=True)


Say = Callable[..., None]
Role = Callable[[dict[str, Any], asyncio.Event, Latency, Say], Awaitable[None]]

ROLES: Final[dict[str, Role]] = {
    "floor-engine": raw.engine,
    "floor-agent": raw.agent,
    "engine": system.engine,
    "agent-raw": system.raw_agent,
    "agent-host": system.host_agent,
    "projector": system.projector,
}


async def run(role: Role, arguments: dict[str, Any]) -> None:
    stop = asyncio.Event()
    latency = Latency()
    asked = asyncio.create_task(_answer(latency, stop))
    try:
        await role(arguments, stop, latency, say)
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def _answer(latency: Latency, stop: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while request := (await reader.readline()).decode().strip():
            match request:
                case "cpu":
                    say("cpu", seconds=time.process_time())
                case "latency-begin":
                    latency.begin()
                    say(request)
                case "latency-end":
                    say(request, **latency.end())
                case _:
                    raise ValueError(f"unknown request {request!r}")
    finally:
        stop.set()
        # The broker may be gone as well, and with it whatever an end in order would wait for.
        asyncio.get_running_loop().call_later(STOP_SECONDS_MAX, os._exit, 1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("sagalog").setLevel(logging.INFO)
    tune_garbage_collector()  # as every process that the command line starts; the floor's, too
    say("up")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(ROLES[sys.argv[1]], json.loads(sys.argv[2])))
