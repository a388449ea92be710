"""Runs the handlers of one agent: slots, timeouts, heartbeats, and one handler at a time per idempotency key.

Rules:
- A job is answered once. Past its timeout it is answered at once, whether or not its handler ends; its slot is taken until
  the handler really ended, because a thread cannot be stopped.
- Two commands of one idempotency key never run side by side: the newer stops the older and waits for its end. Otherwise a
  compensation could overtake the execution that it undoes. A question whether an attempt happened stops nothing: it waits until
  that attempt has ended, because what is stopped half-way is what nobody can say anything about.
- No timer per command: one sweep at the time that is due first looks at all that run. A command that ends in time costs
  a comparison.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import orjson
from pydantic import ValidationError

from sagalog.infra.clock import Clock
from sagalog.schemas.codec import check_json
from sagalog.schemas.commands import Question
from sagalog.schemas.events import FailureKind, Outcome
from sagalog.schemas.ids import Direction
from sagalog.topics.log import Out

from . import answers
from .agent import AnyAgent, Handler
from .context import Context, cancel, cancellable
from .job import Job
from .limits import HEARTBEAT_DEFAULT_MS, HEARTBEAT_MIN_MS, PROGRESS_BYTES_MAX
from .metrics import COMPLETED, AgentMetrics

Answered = Callable[[Job, Out], None]


class Runner:
    """`answered` gets each job's answer, once; `freed` is called when a slot is free again; `beat` sends a heartbeat."""

    def __init__(
        self,
        agent: AnyAgent,
        clock: Clock,
        metrics: AgentMetrics,
        *,
        answered: Answered,
        freed: Callable[[], None],
        beat: Callable[[Job], None],
    ) -> None:
        self._agent = agent
        self._source = f"agent/{agent.name}".encode()
        self._clock = clock
        self._metrics = metrics
        self._answered = answered
        self._freed = freed
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, Job] = {}
        """By idempotency key."""
        self._slots = agent.concurrency
        self._idle = asyncio.Event()
        self._idle.set()
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at_ms = 0
        self._results: dict[tuple[Direction, str], int] = {}
        self._durations: dict[tuple[Direction, int], int] = {}
        """How many answers took so many milliseconds, since the last count."""
        self._counted_running = 0
        self._threads: ThreadPoolExecutor | None = None

    @property
    def free(self) -> int:
        """How many more may be started."""
        return self._slots

    @property
    def running(self) -> int:
        return self._agent.concurrency - self._slots

    async def idle(self, timeout_ms: int) -> bool:
        """Waits until nothing runs; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def start(self, job: Job) -> None:
        """Starts a job now, or once the running one of its idempotency key has ended. There must be a free slot."""
        before = self._running.get(job.command.idempotency_key)
        if before is None:
            self._run(job)
        else:
            self._queue_behind(before, job)

    def refuse(self, job: Job, kind: FailureKind, message: str, error_type: str | None = None) -> None:
        """Answers a job that is not run."""
        command = job.command
        self._answer(
            job, kind.value, answers.failed(command, self._source, job.trace, kind, message, error_type=error_type)
        )

    async def stop(self, grace_ms: int, cancel_ms: int) -> bool:
        """Lets what runs end within the grace period, then cancels it, unanswered: it will be delivered again.

        False when a handler does not even end then.
        """
        for job in self._running.values():
            job.successor = None
        ended = await self.idle(grace_ms)
        if not ended:
            for job in list(self._running.values()):
                self._cancel(job)
            ended = await self.idle(cancel_ms)
        self.count()
        if self._sweep is not None:
            self._sweep.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        return ended

    # --- one job

    def _run(self, job: Job) -> None:
        command = job.command
        now_ms = self._clock.monotonic_ms()
        deadline_ms = self._clock.now_ms() + command.timeout_ms
        if command.deadline_ms is not None and command.deadline_ms < deadline_ms:
            deadline_ms = command.deadline_ms
        if job.question is not None and not self._agent.reconciles:
            message = (
                f"agent {self._agent.name!r} cannot say whether an attempt happened: give it a function with "
                f"@{self._agent.name}.reconcile, or drop the step's reconcile"
            )
            self.refuse(job, FailureKind.TERMINAL, message)
            return
        handler = self._agent.handler(command.direction)
        context = Context(command, deadline_ms, partial(self._progressed, job))
        job.started_ms = now_ms
        try:
            arguments = handler.arguments(command.input, context if handler.is_async else cancellable(context))
        except ValidationError as error:
            self.refuse(job, FailureKind.INVALID_INPUT, self._invalid_input(command.direction, error))
            return
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise anything
            message = f"input: its validation failed with {type(error).__name__}: {error}"
            self.refuse(job, FailureKind.INVALID_INPUT, message, type(error).__name__)
            return
        every_ms = command.heartbeat_timeout_ms // 3 if command.heartbeat_timeout_ms else HEARTBEAT_DEFAULT_MS
        job.context = context
        job.beat_every_ms = max(every_ms, 1)
        job.beat_due_ms = now_ms + job.beat_every_ms
        job.expires_ms = now_ms + command.timeout_ms
        self._running[command.idempotency_key] = job
        self._slots -= 1
        self._idle.clear()
        self._sweep_by(min(job.expires_ms, job.beat_due_ms))
        job.task = self._loop.create_task(self._execute(job, handler, arguments))

    def _invalid_input(self, direction: Direction, error: ValidationError) -> str:
        said = answers.problems(error, "input")
        if direction is Direction.COMPENSATE and not self._agent.compensates:
            said += (
                f"; agent {self._agent.name!r} has no compensation, so its main handler got the input of a compensation: "
                "declare one, or bind the compensation's input in the definition"
            )
        return said

    async def _execute(self, job: Job, handler: Handler, arguments: dict[str, Any]) -> None:
        job.began = True
        command = job.command
        try:
            if handler.is_async:
                value = await handler.function(**arguments)
            else:
                value = await self._in_thread(job, handler, arguments)
            outcome = None
            if job.question is not None:
                outcome, value = answers.said(value)
            nothing = outcome is Outcome.DID_NOT_HAPPEN
            output = None if nothing else answers.dump_output(handler.output, value)
        except asyncio.CancelledError as error:
            # Not the host's doing: something the handler awaited was cancelled.
            if not job.stopped:
                self._failed(job, error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a handler raises is its answer, exit() included
            self._failed(job, error)
        else:
            duration_ms = self._clock.monotonic_ms() - job.started_ms
            out = answers.completed(command, self._source, job.trace, output, duration_ms, _usage(job), outcome)
            self._answer(job, COMPLETED, out, duration_ms)
        finally:
            if job.thread is None or job.thread.done():
                self._ended(job)
            else:
                job.thread.add_done_callback(lambda _: self._ended(job))

    async def _in_thread(self, job: Job, handler: Handler, arguments: dict[str, Any]) -> Any:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._agent.concurrency, f"agent-{self._agent.name}")
        function = partial(contextvars.copy_context().run, partial(handler.function, **arguments))
        job.thread = self._loop.run_in_executor(self._threads, function)
        # Shielded: a cancelled future would look ended while its thread goes on.
        return await asyncio.shield(job.thread)

    def _failed(self, job: Job, error: BaseException) -> None:
        if job.answered:
            return
        duration_ms = self._clock.monotonic_ms() - job.started_ms
        kind, out = answers.raised(job.command, self._source, job.trace, error, duration_ms, _usage(job))
        if kind is FailureKind.RETRYABLE:
            assert job.context is not None
            job.context.logger.warning("failed: %s: %s", type(error).__name__, error, exc_info=error)
        self._answer(job, kind.value, out, duration_ms)

    def _answer(self, job: Job, result: str, out: Out, duration_ms: int | None = None) -> None:
        if job.answered:
            return
        job.answered = True
        direction = job.command.direction
        ended = (direction, result)
        self._results[ended] = self._results.get(ended, 0) + 1
        if duration_ms is not None:
            took = (direction, duration_ms)
            self._durations[took] = self._durations.get(took, 0) + 1
        self._answered(job, out)

    def count(self) -> None:
        """Brings the metrics up to date. Once per batch: each count takes a lock."""
        results, self._results = self._results, {}
        for key, ended in results.items():
            self._metrics.commands[key].inc(ended)
        durations, self._durations = self._durations, {}
        for (direction, duration_ms), times in durations.items():
            self._metrics.duration[direction].observe_times(duration_ms / 1000, times)
        running = self.running
        if running != self._counted_running:
            self._metrics.running.inc(running - self._counted_running)
            self._counted_running = running

    def _ended(self, job: Job) -> None:
        """The handler is over: its slot goes to whoever waits for it."""
        key = job.command.idempotency_key
        del self._running[key]
        self._slots += 1
        if job.thread is not None and not job.thread.cancelled():
            job.thread.exception()  # looked at: a late error of an answered attempt is nobody's
        # The context knows the job: a cycle, and with it every command would wait for the collector.
        job.context = job.task = None
        successor, job.successor = job.successor, None
        if successor is not None and not successor.answered:
            self._run(successor)
        if self._slots == self._agent.concurrency:
            self._idle.set()
        self._freed()

    # --- one at a time per idempotency key

    def _queue_behind(self, before: Job, job: Job) -> None:
        last = before.successor or before
        if job.question is not None and (before.question is None or last.question is None):
            self._ask_behind(before, job, job.question)
            return
        if last.command.direction is job.command.direction and last.command.attempt > job.command.attempt:
            self.refuse(job, FailureKind.CANCELLED, f"attempt {last.command.attempt} has been started since")
            return
        reason = f"superseded by {job.command.command_id}"
        if before.successor is not None:
            self.refuse(before.successor, FailureKind.CANCELLED, reason)
        self.refuse(before, FailureKind.CANCELLED, reason)
        before.successor = job
        job.expires_ms = self._clock.monotonic_ms() + job.command.timeout_ms
        self._cancel(before)
        self._sweep_by(job.expires_ms)

    def _ask_behind(self, before: Job, job: Job, question: Question) -> None:
        """A question comes while something else of its key runs, or waits."""
        waiting = before.successor
        if not before.is_execute or before.command.attempt > question.about or (waiting and not waiting.question):
            # If the engine has not gone on since, it asks again.
            ahead = waiting or before
            self.refuse(job, FailureKind.RETRYABLE, f"{ahead.command.command_id} is at work")
            return
        if waiting is not None:
            self.refuse(waiting, FailureKind.CANCELLED, f"superseded by {question.command_id}")
        before.successor = job
        job.expires_ms = self._clock.monotonic_ms() + job.command.timeout_ms
        self._sweep_by(job.expires_ms)

    def _cancel(self, job: Job) -> None:
        first, job.stopped = not job.stopped, True
        if job.context is not None:
            cancel(job.context)
        if job.task is not None:
            job.task.cancel()
            if first and not job.began:
                # It never enters its body now, so nothing in there gives its slot and its key back.
                self._loop.call_soon(self._ended, job)

    # --- what is due

    def _sweep_by(self, at_ms: int) -> None:
        if self._sweep is not None:
            if at_ms >= self._sweep_at_ms:
                return
            self._sweep.cancel()
        self._sweep_at_ms = at_ms
        delay_ms = max(at_ms - self._clock.monotonic_ms(), 0)
        # One more: the clock's milliseconds are cut off, and a sweep that comes too early finds nothing due.
        self._sweep = self._loop.call_later((delay_ms + 1) / 1000, self._swept)

    def _swept(self) -> None:
        self._sweep = None
        self.count()
        now_ms = self._clock.monotonic_ms()
        due_ms: int | None = None
        for job in list(self._running.values()):
            due_of_job_ms = self._due(job, now_ms)
            if due_of_job_ms is not None and (due_ms is None or due_of_job_ms < due_ms):
                due_ms = due_of_job_ms
        if due_ms is not None:
            self._sweep_by(due_ms)

    def _due(self, job: Job, now_ms: int) -> int | None:
        """Does what is due for a job, and says when the next is."""
        successor = job.successor
        due_ms = None
        if successor is not None and not successor.answered:
            if now_ms >= successor.expires_ms:
                message = f"waited {successor.command.timeout_ms} ms for {job.command.command_id} to end, in vain"
                self.refuse(successor, FailureKind.TIMEOUT, message)
            else:
                due_ms = successor.expires_ms
        if job.answered:
            return due_ms
        if now_ms >= job.expires_ms:
            self._expire(job, now_ms)
            return due_ms
        if now_ms >= job.beat_due_ms:
            job.beat_due_ms = now_ms + job.beat_every_ms
            self._beat(job)
        return min(job.expires_ms, job.beat_due_ms, due_ms if due_ms is not None else job.expires_ms)

    def _expire(self, job: Job, now_ms: int) -> None:
        command = job.command
        message = f"no answer within {command.timeout_ms} ms"
        duration_ms = now_ms - job.started_ms
        out = answers.failed(
            command, self._source, job.trace, FailureKind.TIMEOUT, message, duration_ms=duration_ms, usage=_usage(job)
        )
        self._answer(job, FailureKind.TIMEOUT.value, out, duration_ms)
        if job.thread is not None and job.context is not None:
            job.context.logger.warning(
                "%s; its thread goes on until it looks at ctx.cancelled, and takes a slot", message
            )
        self._cancel(job)

    def _progressed(self, job: Job, progress: Any) -> None:
        """`Context.heartbeat`, from whatever thread."""
        if progress is not None:
            # Encoded here and now: the handler may change the object afterwards.
            job.progress = orjson.Fragment(check_json(progress, "progress", PROGRESS_BYTES_MAX))
        now_ms = self._clock.monotonic_ms()
        if job.answered or now_ms < job.beat_allowed_ms or self._loop.is_closed():
            return
        job.beat_allowed_ms = now_ms + min(HEARTBEAT_MIN_MS, job.beat_every_ms)
        self._loop.call_soon_threadsafe(self._beat_if_open, job)

    def _beat_if_open(self, job: Job) -> None:
        if not job.answered:
            job.beat_due_ms = self._clock.monotonic_ms() + job.beat_every_ms
            self._beat(job)


def _usage(job: Job) -> answers.Usage:
    context = job.context
    return (context.tokens, context.cost) if context is not None else answers.NO_USAGE
