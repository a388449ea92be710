"""The saga on Faust: four agents, each of which takes a message from its topic and sends it on to the next one's."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import faust
import uvloop
from yarl import URL

from benchmarks.peers.inside.serving import Steps, serve

READY_SECONDS_MAX = 40.0


def pipeline(arguments: dict[str, Any], data: Path) -> faust.App:
    """Everything that decides about speed or durability is as Faust has it: acks of all replicas, at least once."""
    app = faust.App(
        arguments["group"],
        broker=URL(f"kafka://{arguments['bootstrap']}"),
        # Settings come from here alone, not from whatever variables are set.
        env={},
        datadir=data,
        store="memory://",
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        reply_create_topic=False,
        topic_partitions=arguments["partitions"],
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
        # The messages are passed on as bytes: no decoding is measured.
        key_serializer="raw",
        value_serializer="raw",
    )
    topics = [app.topic(name, key_type=bytes, value_type=bytes) for name in arguments["topics"]]
    for number, (source, to) in enumerate(pairwise(topics)):

        async def step(stream: Any, to: Any = to) -> None:
            async for key, value in stream.items():
                Steps.done += 1
                await to.send(key=key, value=value)

        app.agent(source, name=f"step-{number}")(step)
    return app


@asynccontextmanager
async def peer(arguments: dict[str, Any]) -> AsyncIterator[None]:
    with tempfile.TemporaryDirectory(prefix="sagalog-peer-") as data:
        app = pipeline(arguments, Path(data))
        async with asyncio.timeout(READY_SECONDS_MAX):
            await asyncio.create_task(app.start())
            while not app.consumer.assignment():  # noqa: ASYNC110 - there is no event of it
                await asyncio.sleep(0.05)
        try:
            yield None
        finally:
            await asyncio.wait_for(app.stop(), 8)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    uvloop.run(serve(peer(json.loads(sys.argv[1]))))
