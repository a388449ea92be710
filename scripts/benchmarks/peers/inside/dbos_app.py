"""The saga on DBOS: a durable workflow of four steps, started in the process that runs it, as its documentation begins."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from dbos import DBOS

from benchmarks.peers.inside.serving import One, Steps, payload, serve

Payload = dict[str, str]


@DBOS.step()
async def step_0(given: Payload) -> Payload:
    Steps.done += 1
    return given


@DBOS.step()
async def step_1(given: Payload) -> Payload:
    Steps.done += 1
    return given


@DBOS.step()
async def step_2(given: Payload) -> Payload:
    Steps.done += 1
    return given


@DBOS.step()
async def step_3(given: Payload) -> Payload:
    Steps.done += 1
    return given


@DBOS.workflow()
async def saga(given: Payload) -> Payload:
    return await step_3(await step_2(await step_1(await step_0(given))))


@asynccontextmanager
async def peer(arguments: dict[str, Any]) -> AsyncIterator[One]:
    DBOS(
        config={
            "name": "bench-peer",
            "system_database_url": arguments["postgres"],
            "executor_id": arguments["executor"],
            "application_version": "1",
            "log_level": "WARNING",
        }
    )
    DBOS.launch()
    given = payload(arguments["payload_bytes"])

    async def one() -> None:
        handle = await DBOS.start_workflow_async(saga, given)
        if await handle.get_result() != given:
            raise RuntimeError("a workflow gave something else than it was given")

    try:
        yield one
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    uvloop.run(serve(peer(json.loads(sys.argv[1]))))
