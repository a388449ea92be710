"""Restate's client: a request to its ingress, which answers when the workflow has ended."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import uvloop

from benchmarks.peers.inside.serving import One, payload, serve

REQUEST_SECONDS_MAX = 120


@asynccontextmanager
async def peer(arguments: dict[str, Any]) -> AsyncIterator[One]:
    given = payload(arguments["payload_bytes"])
    body = json.dumps(given, separators=(",", ":")).encode()
    url = f"{arguments['ingress']}/Saga/run"
    headers = {"content-type": "application/json"}

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX),
    ) as session:

        async def one() -> None:
            async with session.post(url, data=body, headers=headers) as response:
                found = await response.read()
                if response.status != 200 or json.loads(found) != given:
                    raise RuntimeError(f"the ingress answered {response.status}: {found[:200]!r}")

        yield one


if __name__ == "__main__":
    uvloop.run(serve(peer(json.loads(sys.argv[1]))))
