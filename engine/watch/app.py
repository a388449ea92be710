"""The watch: a Faust app over `outcomes` and `results` that keeps every agent's error rate and raises alerts.

    await run_watch("127.0.0.1:9092", "sagalog", stop)      # until `stop` is set

It writes a HealthRecord per agent to `health`, says in the log when an alert is raised (WARNING) and cleared (INFO), and
counts in its metrics how workflows end.

Rules:
- One member of the group `<prefix>-watch` watches; further ones stand by and take over. An agent's calls lie in several
  partitions, so a share of the partitions would give a share of the truth.
- The window is in the log: `outcomes` is read again from before the window after each start and take-over, and nothing is
  written before that is done. No offsets are committed for `outcomes`, and there is no table and no changelog that could
  disagree with the log. Whether an alert was raised is read from `health`.
- The metric of finished workflows goes on from the group's committed offsets, at first from the end of `results`.
- Faust makes no topics: it may not declare any, elects no leader by a topic of its own, and has no tables.
- A record that cannot be read is counted, logged and passed over; whether it is quarantined is the engine's to decide.
- Clocks: calls are timed by the broker, the window ends at the watch's own time. They should agree within a bucket.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faust
from aiokafka import errors as kafka_errors
from faust.exceptions import FaustError
from faust.types import StreamT

from sagalog.engine.watch import limits
from sagalog.engine.watch.agents import Agents, TooManyAgents
from sagalog.engine.watch.compat import WatchApp, WatchConsumer, quieten, stopped
from sagalog.engine.watch.metrics import WatchMetrics
from sagalog.engine.watch.outcomes import parse_outcome, parse_result
from sagalog.engine.watch.settings import app_settings
from sagalog.engine.watch.window import AlertRule
from sagalog.infra.clock import Clock, SystemClock, SystemRng, utc, wait_for_stop
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.ids import check_name
from sagalog.schemas.records import TYPE_HEALTH, TYPE_OUTCOME, TYPE_RESULT, HealthRecord
from sagalog.topics.kafka import KafkaLog, KafkaSecurity
from sagalog.topics.log import LogError, TopicPartition, header
from sagalog.topics.specs import Topics

logger = logging.getLogger(__name__)

_HEADERS = (
    ("ce_specversion", b"1.0"),
    ("ce_type", TYPE_HEALTH.encode()),
    ("ce_source", b"sagalog/watch"),
    ("content-type", b"application/json"),
)


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What `run_watch` was asked for."""

    bootstrap: str
    topics: Topics
    window_ms: int
    bucket_ms: int
    publish_ms: int
    rule: AlertRule
    data_dir: Path
    security: KafkaSecurity

    @property
    def group(self) -> str:
        return f"{self.topics.prefix}-watch"


async def run_watch(
    bootstrap: str,
    prefix: str,
    stop: asyncio.Event,
    *,
    window_ms: int = 60_000,
    publish_ms: int = 1_000,
    threshold: float = 0.05,
    calls_min: int = 20,
    data_dir: Path | None = None,
    security: KafkaSecurity | None = None,
    metrics: WatchMetrics | None = None,
    clock: Clock | None = None,
) -> None:
    """Watches until `stop` is set. A lost broker and missing topics are waited for, with back-off; other errors end it.

    `threshold` is the error rate above which an alert is raised, `calls_min` how many calls it takes. `data_dir` is Faust's,
    nothing is kept in it; none means a temporary one. Raises ValueError for options that make no sense.
    """
    if publish_ms < 1:
        raise ValueError(f"publish_ms: {publish_ms} is below 1; it is the time between two looks at the agents")
    if window_ms < limits.BUCKETS:
        raise ValueError(f"window_ms: {window_ms} is below {limits.BUCKETS}; make it at least a second")
    bucket_ms = window_ms // limits.BUCKETS
    rule = AlertRule(threshold, calls_min, window_ms // limits.HOLD_RATIO)
    quieten()
    with contextlib.ExitStack() as scope:
        options = WatchOptions(
            bootstrap,
            Topics(prefix),
            bucket_ms * limits.BUCKETS,
            bucket_ms,
            publish_ms,
            rule,
            data_dir or Path(scope.enter_context(tempfile.TemporaryDirectory(prefix="sagalog-watch-"))),
            security or KafkaSecurity(),
        )
        await _sessions(options, metrics or WatchMetrics(), clock or SystemClock(), stop)


async def _sessions(options: WatchOptions, metrics: WatchMetrics, clock: Clock, stop: asyncio.Event) -> None:
    failures, since_ms, rng = 0, 0, SystemRng()
    while not stop.is_set():
        metrics.sessions.inc()
        log = KafkaLog(options.bootstrap, security=options.security)
        session = Session(options, log, metrics, clock)
        try:
            await session.run(stop)
        except (LogError, kafka_errors.KafkaError, FaustError) as error:
            failures = 0 if session.was_live else failures + 1
            since_ms = since_ms if failures > 1 else clock.now_ms()
            first_ms, longest_ms = limits.SESSION_BACKOFF_MS
            wait_s = rng.uniform(0.5, 1.0) * min(longest_ms, first_ms << min(failures, 16)) / 1000
            logger.error(
                "watch: %s: %s (since %s); trying again in %.1f s", type(error).__name__, error, utc(since_ms), wait_s
            )
            await wait_for_stop(stop, wait_s)
        finally:
            await log.close()


class Session:
    """One Faust app, from its connection to the loss of it."""

    def __init__(self, options: WatchOptions, log: KafkaLog, metrics: WatchMetrics, clock: Clock) -> None:
        self.was_live = False
        self._options = options
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._agents = self._no_agents()
        self._generation: int | None = None
        self._next: dict[TopicPartition, int] = {}
        """Per partition of `outcomes` that is ours, the offset that is read next."""
        self._behind: dict[TopicPartition, int] = {}
        """Per partition that is being read again, the offset up to which."""
        self._rebuild_started_ms = 0
        self._unreadable_logged_ms: dict[str, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. Raises LogError when Kafka is lost."""
        await self._require_topics()
        app = self._app()
        try:
            # A stop waits for the start: cut short, Faust is left in a state from which its own stop does not come back.
            async with asyncio.timeout(limits.START_TIMEOUT_S):
                await asyncio.create_task(app.start())  # in a task of its own, as Faust's worker runs it
            self.was_live = not stop.is_set()
            # Not `wait_until_stopped`: cancelled, it leaves a task behind.
            await app.wait(stop.wait())
            if not stop.is_set():
                raise LogError(f"the Faust app ended by itself ({app.crash_reason!r})")
        except TimeoutError:
            raise LogError(f"the Faust app was not ready within {limits.START_TIMEOUT_S:.0f} s") from None
        finally:
            self._stand_by()
            await stopped(app)

    def _no_agents(self) -> Agents:
        return Agents(self._options.window_ms, self._options.bucket_ms, self._options.rule)

    async def _require_topics(self) -> None:
        topics = self._options.topics
        wanted = (topics.outcomes, topics.results, topics.health)
        found = await self._log.describe(wanted)
        missing = [name for name in wanted if name not in found]
        if missing:
            raise LogError(f"topics are missing: {', '.join(missing)}; start an engine first, which makes them")

    def _app(self) -> WatchApp:
        topics = self._options.topics
        options = self._options
        app = WatchApp(
            options.group, **app_settings(options.bootstrap, options.group, options.data_dir, options.security)
        )
        app.positions = self._positions
        outcomes = _raw_topic(app, topics.outcomes, acks=False)
        results = _raw_topic(app, topics.results, acks=True)
        health = _raw_topic(app, topics.health, acks=False)

        @app.agent(outcomes, name=f"{options.group}-outcomes")
        async def read_outcomes(stream: StreamT[bytes]) -> None:
            async for event in stream.events():
                self._outcome(event.message)

        @app.agent(results, name=f"{options.group}-results")
        async def read_results(stream: StreamT[bytes]) -> None:
            async for event in stream.events():
                self._result(event.message)

        @app.timer(interval=options.publish_ms / 1000)  # type: ignore[untyped-decorator]
        async def look() -> None:
            await self._look(health)

        return app

    # --- where to start

    async def _positions(self, consumer: WatchConsumer) -> None:
        """Called by Faust after an assignment, before anything is read."""
        assigned = {TopicPartition(*partition) for partition in consumer.assignment()}
        ours = {partition for partition in assigned if partition.topic == self._options.topics.outcomes}
        generation = consumer.app.consumer_generation_id
        if not ours:
            self._generation = generation
            self._stand_by()
        elif generation == self._generation and ours == self._next.keys():
            # Asked a second time in one generation: what was read stays read.
            await consumer.start_at(dict(self._next))
        else:
            self._generation = generation
            await self._rebuild(consumer, ours)

    def _stand_by(self) -> None:
        self._agents = self._no_agents()
        self._next, self._behind = {}, {}
        self._metrics.watching.set(0)
        self._metrics.forget_all()

    async def _rebuild(self, consumer: WatchConsumer, ours: set[TopicPartition]) -> None:
        now_ms = self._clock.now_ms()
        from_ms = now_ms - self._options.window_ms - limits.REREAD_MARGIN_MS
        agents = self._no_agents()
        # Side by side: Faust's consumer asks on a connection that an empty fetch holds for up to 1.5 s.
        newest, starts, ends = await asyncio.gather(
            self._health_tail(), consumer.offsets_from(dict.fromkeys(ours, from_ms)), consumer.ends(ours)
        )
        agents.restore(newest)
        # First what we know, then where we read: nothing that is read again may be taken for read.
        self._agents = agents
        self._next = dict(starts)
        self._behind = {partition: ends[partition] for partition in ours if starts[partition] < ends[partition]}
        self._rebuild_started_ms = self._clock.monotonic_ms()
        await consumer.start_at(starts)
        self._metrics.watching.set(1)
        logger.info(
            "watch: watching; %d outcome records are read again",
            sum(end - starts[partition] for partition, end in self._behind.items()),
        )

    async def _health_tail(self) -> list[HealthRecord]:
        """The newest health record of each agent, as far as the tail of the topic has it."""
        partition = TopicPartition(self._options.topics.health, 0)
        reader = await self._log.read({partition: None}, committed=False, client_id=f"{self._options.group}-health")
        newest: dict[str, HealthRecord] = {}
        try:
            end = (await reader.end_offsets([partition]))[partition]
            first = (await reader.beginning_offsets([partition]))[partition]
            reader.seek(partition, max(first, end - limits.HEALTH_TAIL_RECORDS))
            async with asyncio.timeout(limits.READ_TIMEOUT_S):
                while await reader.position(partition) < end:
                    for messages in (await reader.poll(limits.POLL_MS, limits.READ_BATCH_RECORDS)).values():
                        for message in messages:
                            record = _health(message.value)
                            if record is not None:
                                newest[record["agent"]] = record
        except TimeoutError:
            logger.warning("watch: %s was not read within %.0f s", partition.topic, limits.READ_TIMEOUT_S)
        finally:
            await reader.close()
        return list(newest.values())

    # --- records

    def _outcome(self, message: Any) -> None:
        partition = TopicPartition(message.topic, message.partition)
        if message.offset < self._next.get(partition, message.offset + 1):
            return  # not ours any more, or read before
        self._next[partition] = message.offset + 1
        try:
            self._metrics.records.labels("outcomes", self._count(message)).inc()
        except InvalidRecord as error:
            self._unreadable("outcomes", message, error)
        except TooManyAgents as error:
            self._metrics.records.labels("outcomes", "uncounted").inc()
            self._complain("uncounted", f"{error}; name fewer agents, or split them over several prefixes")
        if message.offset + 1 >= self._behind.get(partition, message.offset + 2):
            del self._behind[partition]

    def _count(self, message: Any) -> str:
        # The circuits' own events lie in the same topic.
        if _other_type(message, TYPE_OUTCOME):
            return "other"
        outcome = parse_outcome(message.value)
        at_ms = round(message.timestamp * 1000)
        return "counted" if self._agents.count(outcome, at_ms, self._clock.now_ms()) else "repeated"

    def _result(self, message: Any) -> None:
        try:
            if _other_type(message, TYPE_RESULT):
                self._metrics.records.labels("results", "other").inc()
                return
            self._metrics.finished(parse_result(message.value))
            self._metrics.records.labels("results", "counted").inc()
        except InvalidRecord as error:
            self._unreadable("results", message, error)

    def _unreadable(self, topic: str, message: Any, error: InvalidRecord) -> None:
        self._metrics.records.labels(topic, "unreadable").inc()
        self._complain(
            topic, f"{message.topic}/{message.partition}/{message.offset} cannot be read and is passed over: {error}"
        )

    def _complain(self, what: str, sentence: str) -> None:
        now_ms = self._clock.monotonic_ms()
        last_ms = self._unreadable_logged_ms.get(what)
        if last_ms is None or now_ms - last_ms >= limits.UNREADABLE_LOG_MS:
            self._unreadable_logged_ms[what] = now_ms
            logger.warning("watch: %s", sentence)

    # --- what comes of it

    async def _look(self, health: faust.TopicT) -> None:
        if not self._next or not self._is_rebuilt():
            return
        agents = self._agents
        look = agents.look(self._clock.now_ms())
        for record in look.changed:
            _log_alert(record, self._options.rule)
        self._metrics.show(look.now.values())
        self._metrics.forget(look.forgotten)
        for record in look.health:
            if await self._write(health, record):
                agents.written(record)

    def _is_rebuilt(self) -> bool:
        if self._behind and self._clock.monotonic_ms() - self._rebuild_started_ms > limits.REBUILD_TIMEOUT_MS:
            logger.warning(
                "watch: %s could not be read again within %d s; rates are low until the window has passed",
                ", ".join(f"{partition.topic}/{partition.partition}" for partition in self._behind),
                limits.REBUILD_TIMEOUT_MS // 1000,
            )
            self._behind = {}
        return not self._behind

    async def _write(self, health: faust.TopicT, record: HealthRecord) -> bool:
        ce_id = f"{record['agent']}/{record['at_ms']}"
        try:
            async with asyncio.timeout(limits.WRITE_TIMEOUT_S):
                sent = await health.send(
                    key=record["agent"].encode(),
                    value=encode(record),
                    partition=0,
                    headers=[*_HEADERS, ("ce_id", ce_id.encode())],
                )
                await sent
        except (TimeoutError, kafka_errors.KafkaError, FaustError) as error:
            self._metrics.written.labels("failed").inc()
            self._complain("health", f"the health of {record['agent']} cannot be written and is tried again: {error!r}")
            return False
        self._metrics.written.labels("ok").inc()
        return True


def _raw_topic(app: faust.App, name: str, *, acks: bool) -> faust.TopicT:
    """Bytes in, bytes out: what Faust cannot decode it would drop or raise on, out of our sight."""
    return app.topic(
        name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", acks=acks, internal=False
    )


def _other_type(message: Any, wanted: str) -> bool:
    found = header(message.headers or (), "ce_type")
    return found is not None and found != wanted.encode()


def _health(raw: bytes | None) -> HealthRecord | None:
    """None for what is no health record of ours: it is nobody's state, and the next one replaces it."""
    try:
        record = decode_object(raw, "health")
        if any(type(record.get(name)) is not kind for name, kind in _HEALTH_FIELDS.items()):
            return None
        check_name(record["agent"], "health.agent")
    except InvalidRecord:
        return None
    return record  # type: ignore[return-value]


_HEALTH_FIELDS = {
    "agent": str,
    "at_ms": int,
    "window_ms": int,
    "ok": int,
    "failed": int,
    "alert": bool,
    "since_ms": int,
}


def _log_alert(record: HealthRecord, rule: AlertRule) -> None:
    level, what = (logging.WARNING, "raised") if record["alert"] else (logging.INFO, "cleared")
    logger.log(
        level,
        "watch: alert %s for agent %s: error rate %.1f %% (%d of %d calls failed in the last %g s; raised above %g %%, "
        "cleared at %g %%)",
        what,
        record["agent"],
        100 * record["error_rate"],
        record["failed"],
        record["ok"] + record["failed"],
        record["window_ms"] / 1000,
        100 * rule.threshold,
        100 * rule.clear_at,
    )
