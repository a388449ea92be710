"""A person who reads the reviews and decides: tasks, steps and undoings that are held, workflows that stay paused.

What a person decides is chance; that every held step is decided in the end is not.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from sagalog.engine.client import Client
from sagalog.infra.clock import Rng
from sagalog.schemas.codec import decode_object
from sagalog.schemas.events import Action, Decision
from sagalog.topics.log import Log, LogError, TopicPartition
from sagalog.topics.specs import Topics

RETRIES_MAX: Final = 2
RESUME_S: Final = 20.0
PAUSE_S: Final = 0.3


class Desk:
    """What lies on the person's desk, by when they get to it. It outlives a lost connection."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.due: list[tuple[float, int, dict[str, Any], Decision, Any]] = []
        self.positions: dict[TopicPartition, int] = {}
        self.resumed_s = 0.0
        self._retries: Counter[str] = Counter()
        self._number = 0

    def put(self, review: dict[str, Any], now_s: float) -> None:
        if review["kind"] not in ("task", "step_failed", "undo_failed") or "decided" in review:
            return
        if review["kind"] == "task" and self.rng.random() < 0.3:
            return  # nobody gets to it: it times out
        self._number += 1
        heapq.heappush(self.due, (now_s + self.rng.uniform(0.05, 2.0), self._number, review, *self._decide(review)))

    def look_again(self, review: dict[str, Any], now_s: float) -> None:
        """Nothing is undone anew while its workflow is paused, so that the decision may have been ignored."""
        self._number += 1
        heapq.heappush(self.due, (now_s + 2 * RESUME_S, self._number, review, Decision.SKIP, None))

    def _decide(self, review: dict[str, Any]) -> tuple[Decision, Any]:
        """The decision and the output that goes with it."""
        output = {"by": "hand", "key": f"{review['workflow_id']}/{review['step']}"}
        if review["kind"] == "task":
            return self.rng.choice(((Decision.APPROVE, None), (Decision.APPROVE, output), (Decision.REJECT, None)))
        choices: list[tuple[Decision, Any]] = [(Decision.SKIP, None), (Decision.FAIL, None)]
        if review["kind"] == "step_failed":
            choices.append((Decision.COMPLETE, output))
        if self._retries[review["id"]] < RETRIES_MAX:
            self._retries[review["id"]] += 1
            choices += [(Decision.RETRY, None)] * 2
        return self.rng.choice(choices)


async def operate(
    log: Log,
    topics: Topics,
    chance: Callable[[str], Rng],
    rng: random.Random,
    stop: asyncio.Event,
    resumable: Callable[[], list[str]],
) -> None:
    """Until `stop` is set."""
    desk = Desk(random.Random(rng.random()))
    tries = 0
    while not stop.is_set():
        tries += 1
        try:
            async with Client(log, topics, rng=chance(f"operator/{tries}")) as client:
                await _work(log, topics, client, desk, stop, resumable)
        except LogError:
            await asyncio.sleep(PAUSE_S)


async def _work(
    log: Log, topics: Topics, client: Client, desk: Desk, stop: asyncio.Event, resumable: Callable[[], list[str]]
) -> None:
    partitions = await log.partitions(topics.reviews)
    assert partitions is not None
    numbers = [TopicPartition(topics.reviews, number) for number in range(partitions)]
    reader = await log.read({number: desk.positions.get(number) for number in numbers}, committed=False)
    loop = asyncio.get_running_loop()
    try:
        while not stop.is_set():
            for number, messages in (await reader.poll(200, 500)).items():
                for message in messages:
                    desk.put(decode_object(message.value), loop.time())
                    desk.positions[TopicPartition(*number)] = message.offset + 1
            while desk.due and desk.due[0][0] <= loop.time():
                _, _, review, decision, output = desk.due[0]
                undo = review["kind"] == "undo_failed"
                workflow_id, step = review["workflow_id"], review["step"]
                await client.decide(workflow_id, step, decision, who="person", output=output, undo=undo)
                heapq.heappop(desk.due)
                if undo and decision is Decision.RETRY:
                    desk.look_again(review, loop.time())
            if loop.time() - desk.resumed_s > RESUME_S:
                for workflow_id in resumable():
                    await client.act(workflow_id, Action.RESUME, reason="by plan", who="person")
                desk.resumed_s = loop.time()
    finally:
        await reader.close()
