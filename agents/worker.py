"""One agent in one host: takes its commands, has them run, publishes the answers, commits what is durable.

    delivered -> open -> (waiting for a slot) -> running -> answered -> durable -> finished (committed)

Rules:
- An offset is finished when its answer is durable, not before.
- A command that was delivered twice is run once: while it is open the second delivery joins the first; after its answer
  is durable the same answer is sent again, for as long as it is remembered.
- What waits for a slot goes by priority, then in the order of the log, and nothing waits for ever (`infra.queues`). Offsets finish
  out of order anyway; as the oldest has its turn among every few, the head of the log moves on under any stream of urgent work.
- After a crash the commands that were in flight are suspects: each is started alone (`_try`), its start committed before
  it happens, so that a command which kills its host is found, and answered as failed after so many deliveries.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

from sagalog.infra.clock import Clock, Rng
from sagalog.infra.queues import PriorityQueue
from sagalog.schemas.commands import TYPE_HEARTBEAT, Heartbeat, encode_heartbeat, parse_command
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import FailureKind
from sagalog.schemas.ids import Direction
from sagalog.topics.log import Log, LogError, Message, Out, header
from sagalog.topics.specs import Topics

from . import answers, limits
from .agent import AnyAgent
from .job import Job
from .member import Batches, Member
from .memory import Answers, Undone
from .metrics import AgentMetrics
from .offsets import Offsets
from .publisher import Publisher
from .quarantine import quarantined
from .runner import Runner

logger = logging.getLogger(__name__)

_VERSION: Final = ("ce_specversion", b"1.0")
_JSON: Final = ("content-type", b"application/json")
_BEAT: Final = ("ce_type", TYPE_HEARTBEAT.encode())


class Worker:
    """`deliveries_max`: how often a command is delivered without an answer before it is answered as failed."""

    def __init__(
        self,
        agent: AnyAgent,
        log: Log,
        topics: Topics,
        publisher: Publisher,
        *,
        clock: Clock,
        rng: Rng,
        deliveries_max: int,
        grace_ms: int,
    ) -> None:
        self.agent = agent
        self._topics = topics
        self._topic = topics.commands(agent.name)
        self._source = f"agent/{agent.name}".encode()
        self._publisher = publisher
        self._clock = clock
        self._rng = rng
        self._deliveries_max = deliveries_max
        self._grace_ms = grace_ms
        self._metrics = AgentMetrics.of(agent.name)
        self._runner = Runner(
            agent, clock, self._metrics, answered=self._answered, freed=self._start_waiting, beat=self._send_heartbeat
        )
        self._member = Member(
            log,
            topics.agent_group(agent.name),
            self._topic,
            rng,
            trial_records=2 * agent.concurrency,
            revoked=self._drop_lost,
        )
        self._open_max = max(limits.OPEN_COMMANDS_MIN, limits.OPEN_COMMANDS_FACTOR * agent.concurrency)
        self._open: dict[str, Job] = {}
        self._open_bytes = 0
        self._waiting: PriorityQueue[Job] = PriorityQueue()
        self._suspects: deque[Job] = deque()
        self._trying = False
        self._stopping = False
        self._suspect_there = asyncio.Event()
        self._room = asyncio.Event()
        self._slot = asyncio.Event()
        self._commit_wanted = asyncio.Event()
        self._answers: dict[int, list[tuple[Out, Job]]] = {}
        self._gathered = 0
        """Answers that are to be sent."""
        self._gathered_before = 0
        """... and how many of them there were a turn of the loop ago."""
        self._gather_until_ms = 0
        self._remembered = Answers()
        self._undone = Undone()

    @property
    def joined(self) -> asyncio.Event:
        return self._member.joined

    async def run(self, stop: asyncio.Event) -> None:
        """Works until `stop` is set, then lets what runs end. Raises what is not to be mended by trying again."""
        await self._member.join()
        tasks = [
            asyncio.create_task(work(), name=f"{self.agent.name}-{work.__name__.strip('_')}")
            for work in (self._read, self._commit, self._try_suspects)
        ]
        stopped = asyncio.create_task(stop.wait())
        try:
            ended, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                await task
        finally:
            for task in (*tasks, stopped):
                task.cancel()
            await asyncio.gather(*tasks, stopped, return_exceptions=True)
            await self._shut_down()

    async def _shut_down(self) -> None:
        self._stopping = True
        self._waiting.clear()
        self._suspects.clear()
        if not await self._runner.stop(self._grace_ms, limits.CANCEL_TIMEOUT_MS):
            logger.warning("agent %s: %d handlers do not end; left behind", self.agent.name, self._runner.running)
        self._flush()
        if not await self._publisher.flush(limits.FLUSH_TIMEOUT_MS):
            logger.warning("agent %s: some answers are not durable; their commands will come again", self.agent.name)
        await self._member.leave()

    # --- reading

    async def _read(self) -> None:
        delay_ms = limits.BACKOFF_BASE_MS
        silent_since_ms = self._clock.monotonic_ms()
        while True:
            room = await self._await_room()
            try:
                batches = await self._member.poll(room)
            except LogError as error:
                logger.warning("agent %s cannot read its commands, trying again: %s", self.agent.name, error)
                await asyncio.sleep(self._rng.uniform(0.5, 1.0) * delay_ms / 1000)
                delay_ms = min(2 * delay_ms, limits.BACKOFF_CAP_MS)
                continue
            delay_ms = limits.BACKOFF_BASE_MS
            now_ms = self._clock.monotonic_ms()
            if batches:
                silent_since_ms = now_ms
                await self._take_all(batches)
            elif now_ms - silent_since_ms > limits.TOPIC_CHECK_MS:
                silent_since_ms = now_ms
                await self._check_topic()

    async def _await_room(self) -> int:
        """How many more commands may be taken. While it is none, the membership is kept alive with everything paused."""
        timeout_ms = limits.PAUSE_AFTER_MS
        while True:
            room = self._open_max - len(self._open)
            if room > 0 and self._open_bytes < limits.OPEN_BYTES_MAX:
                return room
            self._room.clear()
            try:
                async with asyncio.timeout(timeout_ms / 1000):
                    await self._room.wait()
            except TimeoutError:
                try:
                    await self._member.poll_paused()
                except LogError as error:
                    logger.warning("agent %s cannot keep up its membership: %s", self.agent.name, error)

    async def _check_topic(self) -> None:
        try:
            if not await self._member.topic_exists():
                logger.error(
                    "topic %s is gone: nothing can come from it; make it anew by restarting the host", self._topic
                )
        except LogError as error:
            logger.warning("whether topic %s still exists cannot be asked: %s", self._topic, error)

    async def _take_all(self, batches: Batches) -> None:
        taken: list[Job] = []
        undeclared: list[Offsets] = []
        for offsets, messages in batches:
            jobs = self._take_each(offsets, messages)
            if jobs and not offsets.declared:
                undeclared.append(offsets)
            taken += jobs
        if undeclared:
            # Before the first command of a partition is started, the log must know that somebody is at work there.
            await self._member.declare(undeclared)
        for job in taken:
            offsets, offset = job.places[0]
            if offsets.lost and job.lost:
                self._forget(job)
            elif offset < offsets.trial_end:
                job.settled = asyncio.Event()
                self._suspects.append(job)
            else:
                self._waiting.push(job, job.command.priority)
        if self._suspects:
            self._suspect_there.set()
        self._start_waiting()

    def _take_each(self, offsets: Offsets, messages: Sequence[Message]) -> list[Job]:
        taken = []
        for message in messages:
            if offsets.deliver(message.offset):
                job = self._take(offsets, message)
                if job is not None:
                    taken.append(job)
        return taken

    def _take(self, offsets: Offsets, message: Message) -> Job | None:
        """The command in a message, unless it is known already or none at all."""
        try:
            command = parse_command(message.value)
            if message.key != command.workflow_id.encode():
                raise InvalidRecord("key", f"is {message.key!r}, not the workflow's id {command.workflow_id!r}")
            if command.agent != self.agent.name:
                raise InvalidRecord("agent", f"is {command.agent!r}; this is the topic of {self.agent.name!r}")
        except InvalidRecord as error:
            self._quarantine(offsets, message, str(error))
            return None
        place = (offsets, message.offset)
        known = self._open.get(command.command_id)
        if known is not None:
            known.places.append(place)
            self._metrics.redelivered.inc()
            return None
        size = len(message.value or b"")
        job = Job(command, message.partition, header(message.headers, "traceparent"), size, [place])
        self._open[command.command_id] = job
        self._open_bytes += size
        before = self._remembered.get(command.command_id)
        if before is None and job.question is not None:
            # Its own answer of the attempt says it best; the engine may never have got it in time.
            before = self._remembered.get(job.question.about_id)
            before = before if before is not None and answers.tells(before) else None
        if before is not None:
            self._metrics.redelivered.inc()
            job.answered = True
            self._answered(job, answers.again(before, command, self._source))
            return None
        if command.direction is Direction.COMPENSATE:
            self._undone.add(command.idempotency_key)
        return job

    def _quarantine(self, offsets: Offsets, message: Message, reason: str) -> None:
        logger.error(
            "agent %s: %s/%d/%d is no command and goes to quarantine: %s",
            self.agent.name, message.topic, message.partition, message.offset, reason,
        )  # fmt: skip
        self._metrics.quarantined.inc()
        out = quarantined(message, reason, self._source, self._clock.now_ms())
        self._publisher.publish(self._topics.quarantine, 0, [out], partial(self._done_with, offsets, message.offset))

    def _done_with(self, offsets: Offsets, offset: int) -> None:
        offsets.finish(offset)
        self._commit_wanted.set()

    # --- starting

    def _start_waiting(self) -> None:
        self._slot.set()
        if self._stopping or self._trying or self._suspects:
            return
        waiting, runner = self._waiting, self._runner
        while waiting and runner.free > 0:
            self._start(waiting.pop())
        if not self._answers:
            runner.count()

    def _start(self, job: Job) -> None:
        if job.command.idempotency_key in self._undone and job.is_execute:
            message = "the compensation of this step came before: it is not executed any more"
            self._runner.refuse(job, FailureKind.CANCELLED, message)
        else:
            self._runner.start(job)

    async def _try_suspects(self) -> None:
        while True:
            await self._suspect_there.wait()
            self._suspect_there.clear()
            self._trying = True
            await self._runner.idle(limits.TRIAL_WINDOW_MS)
            while self._suspects:
                await self._try(self._suspects.popleft())
            self._trying = False
            self._start_waiting()

    async def _try(self, job: Job) -> None:
        """Starts one suspect, with the host to itself until it ends or has outlived the window."""
        offsets, offset = job.places[0]
        starts = 0
        if offset == offsets.head:
            if offsets.known_starts() >= self._deliveries_max:
                self._give_up(job, offsets.known_starts())
                return
            starts = offsets.start_head()
        if not await self._member.declare([offsets]):
            self._forget(job)
            return
        while self._runner.free <= 0:
            self._slot.clear()
            await self._slot.wait()
        self._start(job)
        assert job.settled is not None
        # On the last trial nothing may share the blame, however long it takes: the attempt's own timeout bounds it.
        timeout_ms = limits.TRIAL_WINDOW_MS if starts < self._deliveries_max else None
        try:
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms is not None else None):
                await job.settled.wait()
        except TimeoutError:
            logger.info("agent %s: %s outlived its trial", self.agent.name, job.command.command_id)

    def _give_up(self, job: Job, deliveries: int) -> None:
        message = f"delivered {deliveries} times without an answer; the handler probably kills its process"
        logger.error("agent %s: %s was %s", self.agent.name, job.command.command_id, message)
        # Each time it may have done its work before it took the host with it.
        self._runner.refuse(job, FailureKind.UNKNOWN, message, "DeliveredTooOften")

    # --- answers

    def _answered(self, job: Job, out: Out) -> None:
        if not self._gathered:
            self._gathered_before = 0
            self._gather_until_ms = self._clock.monotonic_ms() + limits.GATHER_MS
            asyncio.get_running_loop().call_soon(self._gather)
        self._gathered += 1
        found = self._answers.get(job.partition)
        if found is None:
            self._answers[job.partition] = [(out, job)]
        else:
            found.append((out, job))

    def _gather(self) -> None:
        """Once per turn of the loop, while there are answers to send: sends them unless the next turn will bring more.

        A request costs the host as much processor time as several commands; quick handlers end by the dozen.
        """
        if (
            self._gathered_before < self._gathered < limits.GATHER_ANSWERS
            and self._runner.running
            and self._clock.monotonic_ms() < self._gather_until_ms
        ):
            self._gathered_before = self._gathered
            asyncio.get_running_loop().call_soon(self._gather)
        else:
            self._flush()

    def _flush(self) -> None:
        gathered, self._answers = self._answers, {}
        self._gathered = 0
        self._runner.count()
        for partition, found in gathered.items():
            self._publisher.publish(
                self._topics.events, partition, [out for out, _ in found], partial(self._durable, found)
            )

    def _durable(self, found: list[tuple[Out, Job]]) -> None:
        finished: dict[Offsets, list[int]] = {}
        for out, job in found:
            for offsets, offset in job.places:
                if offsets in finished:
                    finished[offsets].append(offset)
                else:
                    finished[offsets] = [offset]
            self._remembered.add(job.command.command_id, answers.kept(out, job.trace))
            self._forget(job)
        for offsets, places in finished.items():
            offsets.finish_all(places)
        self._commit_wanted.set()

    def _forget(self, job: Job) -> None:
        del self._open[job.command.command_id]
        self._open_bytes -= job.size
        if job.settled is not None:
            job.settled.set()
        self._room.set()

    def _drop_lost(self) -> None:
        """Commands that have not been started and belong to another host by now."""
        for job in [job for job in self._waiting if job.lost]:
            self._waiting.discard(job)
            self._forget(job)
        kept = [job for job in self._suspects if not job.lost]
        for job in self._suspects:
            if job.lost:
                self._forget(job)
        self._suspects.clear()
        self._suspects.extend(kept)

    def _send_heartbeat(self, job: Job) -> None:
        command = job.command
        beat = Heartbeat(
            command.workflow_id, command.step, command.attempt, command.direction, command.agent, job.progress
        )
        ce_id = f"{command.command_id}/heartbeat/{self._clock.now_ms()}"
        headers = [_VERSION, _BEAT, ("ce_source", self._source), ("ce_id", ce_id.encode()), _JSON]
        out = Out(command.command_id.encode(), encode_heartbeat(beat), headers)
        if self._publisher.publish_if_healthy(self._topics.heartbeats, job.partition, [out]):
            self._metrics.heartbeats.inc()

    # --- committing

    async def _commit(self) -> None:
        while True:
            await self._commit_wanted.wait()
            await asyncio.sleep(limits.COMMIT_INTERVAL_MS / 1000)
            self._commit_wanted.clear()
            try:
                await self._member.commit()
            except (LogError, TimeoutError) as error:
                logger.warning("agent %s cannot commit, trying again: %s", self.agent.name, error)
                self._commit_wanted.set()
