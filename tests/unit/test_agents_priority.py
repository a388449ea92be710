"""The host by priority: what waits for a slot is taken by it; the log's head moves on all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from sagalog.agents import agent
from sagalog.agents.testing import command
from sagalog.infra.queues import FAIR_EVERY
from sagalog.topics.provision import provision
from sagalog.topics.specs import EVENTS, commands

from .hosting import HostedLog
from .test_agents_host import COMMANDS, NAME, PARTITIONS, TOPICS, answered, committed, host, until


@pytest.fixture
async def log() -> AsyncIterator[HostedLog]:
    found = HostedLog()
    await provision(found, TOPICS, [EVENTS], partitions=PARTITIONS, replication=1)
    yield found
    await found.close()


def send(log: HostedLog, workflow_id: str, priority: int) -> None:
    log.send(COMMANDS, 0, replace(command(NAME, workflow_id, workflow_id=workflow_id), priority=priority))


async def order_of(log: HostedLog, priorities: dict[str, int]) -> list[Any]:
    """The order in which an agent with one slot does what is there when it begins; all of it is committed in the end."""
    taken: list[Any] = []

    @agent(NAME, concurrency=1)
    async def work(value: Any) -> Any:
        taken.append(value)
        await asyncio.sleep(0)
        return value

    await provision(log, TOPICS, [commands(NAME)], partitions=PARTITIONS, replication=1)
    for workflow_id, priority in priorities.items():
        send(log, workflow_id, priority)
    async with host(log, work):
        await answered(log, len(priorities))
        await until(log, lambda: (committed(log) or (0,))[0] == len(priorities))
    return taken


async def test_what_waits_for_a_slot_goes_by_priority_then_in_the_order_of_the_log(log: HostedLog) -> None:
    assert await order_of(log, {"low": 0, "mid": 5, "high": 9, "mid-2": 5, "high-2": 9}) == [
        "high",
        "high-2",
        "mid",
        "mid-2",
        "low",
    ]


async def test_urgent_work_does_not_stop_the_rest(log: HostedLog) -> None:
    urgent = {f"urgent-{number}": 9 for number in range(2 * FAIR_EVERY)}

    taken = await order_of(log, {"old": 0, **urgent})

    assert taken.index("old") == FAIR_EVERY - 1
    assert [one for one in taken if one != "old"] == list(urgent)
