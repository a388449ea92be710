"""DBOS: a library in the application's own processes, durable by PostgreSQL. Two processes, one for each of the two cores.

Its pool of 20 connections a process and its threads are the documented defaults; 60 of each did no more steps here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.install import Progress, python_packages
from benchmarks.peers.place import Place
from benchmarks.peers.subjects import Driven, Subject

VERSION = "3.4.0"
SERVED_BY = "PostgreSQL (fsync on, synchronous_commit on)"
PROCESSES = 2


def prepare(progress: Progress) -> None:
    """Installs it. Raises Unavailable."""
    python_packages("dbos", progress)


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Subject]:
    """Until the block ends."""
    python = python_packages("dbos", lambda line: None)
    url = await asyncio.to_thread(place.new_database, place.name)
    try:
        async with AsyncExitStack() as stack:
            children = []
            for number in range(PROCESSES):
                arguments = {"postgres": url, "executor": f"executor-{number}"}
                child = await stack.enter_async_context(place.child("dbos_app", arguments, python))
                await child.ready()  # one after the other: the first makes the tables
                children.append(child)
            yield Driven(clients=children, workers=children)
    finally:
        await asyncio.to_thread(place.drop_database, place.name)
