"""Testing agents without a broker: one call through the whole validation.

    answer = await ask(post, {"number": "R-1", "total": "12.50"})
    assert answer.output == {"posting": 7}

Whole sagas, with hosts that crash and answers that come late: `sagalog.engine.testing`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from sagalog.infra.clock import SystemClock
from sagalog.schemas.commands import Command, Question
from sagalog.schemas.events import StepCompleted, StepFailed, parse_event
from sagalog.schemas.ids import Direction, command_id, idempotency_key
from sagalog.topics.log import Out, header

from .agent import AnyAgent
from .job import Job
from .metrics import AgentMetrics
from .runner import Runner


def command(
    agent: str,
    input: Any = None,
    *,
    workflow_id: str = "w-1",
    step: str | None = None,
    attempt: int = 1,
    direction: Direction = Direction.EXECUTE,
    timeout_ms: int = 30_000,
    heartbeat_timeout_ms: int | None = None,
    about: int = 1,
) -> Command:
    """A command as the engine would send it; the step is called as the agent unless it is named.

    With the direction `reconcile` it is a question about the attempt `about`.
    """
    step = step or agent
    kind = partial(Question, about=about) if direction is Direction.RECONCILE else Command
    return kind(
        command_id=command_id(workflow_id, step, attempt, direction),
        workflow_id=workflow_id,
        definition="0000000000000000",
        step=step,
        agent=agent,
        attempt=attempt,
        direction=direction,
        token="token",  # noqa: S106 - not a secret
        idempotency_key=idempotency_key(workflow_id, step),
        input=input,
        timeout_ms=timeout_ms,
        heartbeat_timeout_ms=heartbeat_timeout_ms,
    )


async def ask(agent: AnyAgent, input: Any = None, **options: Any) -> StepCompleted | StepFailed:
    """What the agent answers to an input, as the engine would read it. The options are those of `command`."""
    answered: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
    runner = Runner(
        agent,
        SystemClock(),
        AgentMetrics.of(agent.name),
        answered=lambda _, out: answered.set_result(out),
        freed=lambda: None,
        beat=lambda _: None,
    )
    runner.start(Job(command(agent.name, input, **options), 0, None, 0, []))
    out = await answered
    await runner.stop(0, 1_000)
    event = parse_event(header(out.headers, "ce_type"), out.value)
    assert isinstance(event, StepCompleted | StepFailed)
    return event
