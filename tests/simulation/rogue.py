"""What other writers may put into the topics: copies of real records, answers that are not theirs, and rubbish."""

from __future__ import annotations

import random
from typing import Any

from sagalog.schemas.codec import encode
from sagalog.schemas.commands import parse_command
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import TYPE_OF, FailureKind, StepCompleted, StepFailed, Timer, TimerFired, encode_event
from sagalog.topics.log import Out
from sagalog.topics.specs import Topics

from .definitions import ALL_AGENTS

Records = list[tuple[str, int, Out]]
GHOST = "ghost"
"""Workflow ids of records that belong to no workflow start with it."""


def replayed(kafka: Any, topics: Topics, partitions: int, rng: random.Random, count: int) -> Records:
    """Records of the events and outcomes topics, as a client that sends again after a time-out would write them."""
    found: Records = []
    for _ in range(count):
        topic, partition = topics.events, rng.randrange(partitions)
        if rng.random() < 0.1:
            topic, partition = topics.outcomes, rng.randrange(min(2, partitions))
        records = kafka.records(topic, partition)
        if records:
            newest = min(len(records), rng.choice((5, 50, 100_000)))
            record = records[-1 - rng.randrange(newest)]
            found.append((topic, partition, Out(record.key, record.value, record.headers)))
    return found


def forged(kafka: Any, topics: Topics, partitions: int, rng: random.Random, count: int) -> Records:
    """Answers to commands that are out, under the token of another command or of none."""
    found: Records = []
    tokens: list[tuple[str, object]] = [("", None), ("0" * 18, None)]
    for _ in range(count):
        partition = rng.randrange(partitions)
        records = kafka.records(topics.commands(rng.choice(ALL_AGENTS)), partition)
        if not records:
            continue
        record = records[-1 - rng.randrange(min(len(records), 4))]
        try:
            command = parse_command(record.value)
        except InvalidRecord:
            continue
        token, whose = rng.choice(tokens)
        # Of another run under the workflow's id it would be the right one for that.
        own = (command.workflow_id, command.step, command.attempt, command.direction)
        tokens.append((command.token, own))
        if whose == own:
            token = token[::-1] + "x"
        common = (command.step, command.attempt, command.direction, token)
        event: Any = (
            StepCompleted(*common, {"key": "forged", "forged": True})
            if rng.random() < 0.6
            else StepFailed(*common, FailureKind.TERMINAL, "forged")
        )
        headers = [("ce_type", TYPE_OF[type(event)].encode()), ("ce_id", f"{command.command_id}/forged".encode())]
        found.append((topics.events, partition, Out(command.workflow_id.encode(), encode_event(event), headers)))
    return found


def health(kafka: Any, topics: Topics, partitions: int, rng: random.Random, count: int) -> Records:
    """What the watch would report of agents, now and then forgetting one; and what no projector can read."""
    at_ms = kafka.clock.now_ms()
    found: Records = []
    for number in range(count):
        agent = rng.choice(("a0", "a1", "a\0"))
        if rng.random() < 0.15:
            headers = [("ce_id", f"garbage-health-{number}".encode())]
            value = rng.choice((b"{", b"{}", b'{"agent":""}', b'{"agent":"a0","at_ms":-1}', b"\xff"))
            found.append((topics.health, 0, Out(agent.encode(), value, headers)))
        elif rng.random() < 0.3:
            found.append((topics.health, 0, Out(agent.encode(), None, [("ce_id", b"forgotten")])))
        else:
            failed = rng.randrange(5)
            record = {
                "agent": agent,
                "at_ms": at_ms + number,
                "window_ms": 60_000,
                "ok": 5 - failed,
                "failed": failed,
                "error_rate": failed / 5,
                "alert": failed > 2,
                "since_ms": at_ms,
            }
            found.append((topics.health, 0, Out(agent.encode(), encode(record), [("ce_id", b"health")])))
    return found


def garbage(kafka: Any, topics: Topics, partitions: int, rng: random.Random, count: int) -> Records:
    """What cannot be read, or belongs to nobody. It must cost a line in the quarantine or a count, and nothing else."""
    completed = TYPE_OF[StepCompleted].encode()
    choices: list[tuple[bytes | None, bytes | None, bytes | None]] = [
        (None, b"{}", completed),
        (GHOST.encode(), b"\xff\xfe", completed),
        (GHOST.encode(), None, completed),
        (GHOST.encode(), b'{"step":', completed),
        (GHOST.encode(), b"{}", b"no.such.type"),
        (GHOST.encode(), b"{}", None),
        (b"\xff", b"{}", completed),
        (GHOST.encode(), encode_event(TimerFired(1, Timer.DEADLINE)), TYPE_OF[TimerFired].encode()),
    ]
    found: Records = []
    for number in range(count):
        key, value, ce_type = rng.choice(choices)
        headers = [("ce_id", f"garbage-{number}".encode())] + ([("ce_type", ce_type)] if ce_type is not None else [])
        topic = rng.choice((topics.events, topics.events, topics.outcomes, topics.commands(rng.choice(ALL_AGENTS))))
        partition = rng.randrange(min(2, partitions) if topic == topics.outcomes else partitions)
        found.append((topic, partition, Out(key, value, headers)))
    return found
