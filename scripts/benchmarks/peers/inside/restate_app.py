"""The saga on Restate: a handler of four durable steps, served by Hypercorn over HTTP/2, as its documentation has it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import hypercorn
import hypercorn.asyncio
import restate
import uvloop

from benchmarks.peers.inside.serving import Steps, serve

NO_LIMIT = 2_147_483_647
Payload = dict[str, str]
saga = restate.Service("Saga")


async def step_0(given: Payload) -> Payload:
    Steps.done += 1
    return given


async def step_1(given: Payload) -> Payload:
    Steps.done += 1
    return given


async def step_2(given: Payload) -> Payload:
    Steps.done += 1
    return given


async def step_3(given: Payload) -> Payload:
    Steps.done += 1
    return given


@saga.handler()
async def run(ctx: restate.Context, given: dict) -> dict:  # type: ignore[type-arg]
    for step in (step_0, step_1, step_2, step_3):
        given = await ctx.run_typed(step.__name__, step, restate.RunOptions(type_hint=dict), given=given)
    return given


@asynccontextmanager
async def peer(arguments: dict[str, Any]) -> AsyncIterator[None]:
    config = hypercorn.Config()
    config.bind = [f"127.0.0.1:{arguments['port']}"]
    # The three limits that the production configuration in Restate's documentation lifts.
    config.h2_max_concurrent_streams = NO_LIMIT
    config.keep_alive_max_requests = NO_LIMIT
    config.keep_alive_timeout = NO_LIMIT
    stop = asyncio.Event()
    app = restate.app(services=[saga])
    serving = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
    try:
        yield None
    finally:
        stop.set()
        await asyncio.wait({serving}, timeout=5)


if __name__ == "__main__":
    uvloop.run(serve(peer(json.loads(sys.argv[1]))))
