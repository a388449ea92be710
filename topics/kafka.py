"""The log port on a real Kafka, by aiokafka. Nothing else in the project imports the client.

What the client does that one would not expect, and what is done about it here:
- A send that fails without being awaited does not stop a commit: `transact` awaits every send first.
- After an error, a timeout or a cancellation in a transaction the producer's state is not to be trusted: it is closed for good.
- `stop()` in the middle of a transaction leaves it open until it times out, and read-committed readers wait: abort first.
- One oversized record kills an idempotent producer for its partition: sizes are checked before.
- A deserialiser that raises is called with the same record for ever: bytes only.
- `committed()` of a consumer returns no metadata: the admin client's offsets do.
- The admin client asks a broker at random, also one that has just died, and gives up when that one does not answer: `_ask`.
- What ends a group member's coordination is wrapped, and a send to a deleted topic does not name it: `_why`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaTopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from sagalog.schemas.limits import RECORD_BYTES_MAX

from .log import (
    Consumer,
    Fenced,
    Headers,
    Joining,
    LogError,
    LogUnavailable,
    Message,
    NotAssigned,
    OnAssigned,
    OnRevoked,
    Out,
    Producer,
    ProducerBroken,
    Reader,
    RecordTooLarge,
    Sharing,
    TopicDescription,
    TopicPartition,
    TransactionalProducer,
)

logger = logging.getLogger(__name__)

BATCH_BYTES_MAX: Final = 262_144
REQUEST_BYTES_MAX: Final = 1_048_576
FETCH_PARTITION_BYTES_MAX: Final = 4 * 1_048_576
READER_WAIT_MS: Final = 20
"""How long a fetch of fixed partitions waits for records: after `assign` the broker answers the fetch before first."""
RECORDS_PER_TURN: Final = 250
"""Of a transaction, between two turns of the loop: below a millisecond of them."""
CREATE_TIMEOUT_S: Final = 30.0
CREATE_POLL_S: Final = 0.05
TRANSACTION_TIMEOUT_MS: Final = 10_000
"""How long read-committed readers may have to wait for a writer that died in a transaction and was not fenced."""
CLOSE_TIMEOUT_S: Final = 10.0
ASK_TRIES_MAX: Final = 10
ASK_AGAIN_S: Final = 0.2
"""With one of three brokers down, ten tries in a row pick that one once in 59,049 times."""
RECORD_OVERHEAD_BYTES: Final = 64
SMALL_RECORD_BYTES: Final = 500_000
FEW_HEADERS: Final = 12

_FENCED = (
    kafka_errors.ProducerFenced,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.OutOfOrderSequenceNumber,
    kafka_errors.DuplicateSequenceNumber,
)


_UNREACHABLE = (
    kafka_errors.KafkaConnectionError,
    kafka_errors.NoBrokersAvailable,
    kafka_errors.NodeNotReadyError,
    kafka_errors.RequestTimedOutError,
)
_HIDDEN: Final = kafka_errors.TopicAuthorizationFailedError.errno
ACCESS: Final = "docs/operations.md, Access"


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """How to reach a secured cluster; the defaults are plain text."""

    protocol: str = "PLAINTEXT"
    mechanism: str = "PLAIN"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    cafile: str | None = None

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.protocol in ("SSL", "SASL_SSL"):
            options["ssl_context"] = ssl.create_default_context(cafile=self.cafile)
        if self.protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
            }
        return options


def heartbeat_interval_ms(session_timeout_ms: int) -> int:
    """How often a group's member shows that it lives, and so how soon it learns that the group shares out anew."""
    return min(500, max(100, session_timeout_ms // 4))


class KafkaLog:
    """A Kafka cluster. `session_timeout_ms` is how long a silent group member keeps its partitions."""

    def __init__(
        self,
        bootstrap: str,
        *,
        security: KafkaSecurity | None = None,
        session_timeout_ms: int = 6_000,
        request_timeout_ms: int = 30_000,
    ) -> None:
        self.bootstrap = bootstrap
        self._options = {
            "bootstrap_servers": bootstrap,
            "request_timeout_ms": request_timeout_ms,
            **(security or KafkaSecurity()).options(),
        }
        self._session_timeout_ms = session_timeout_ms
        self._admin: AIOKafkaAdminClient | None = None
        self._admin_lock = asyncio.Lock()

    # --- readers

    async def join(
        self,
        group: str,
        topics: Sequence[str],
        on_assigned: OnAssigned,
        on_revoked: OnRevoked,
        *,
        start_at_end: bool = False,
        committed: bool = False,
        sharing: Sharing | None = None,
    ) -> Consumer:
        consumer = AIOKafkaConsumer(
            **self._options,
            group_id=group,
            client_id=group,
            enable_auto_commit=False,
            auto_offset_reset="latest" if start_at_end else "earliest",
            isolation_level="read_committed" if committed else "read_uncommitted",
            session_timeout_ms=self._session_timeout_ms,
            heartbeat_interval_ms=heartbeat_interval_ms(self._session_timeout_ms),
            max_poll_interval_ms=300_000,
            max_partition_fetch_bytes=FETCH_PARTITION_BYTES_MAX,
            fetch_max_wait_ms=100,
            check_crcs=True,
            **({} if sharing is None else {"partition_assignment_strategy": (_Assignor(sharing),)}),
        )
        consumer.subscribe(topics=list(topics), listener=_Listener(on_assigned, on_revoked))
        return await self._started(consumer, f"joining {group} for {', '.join(topics)}")

    async def read(
        self, positions: Mapping[TopicPartition, int | None], *, committed: bool, client_id: str = "reader"
    ) -> Reader:
        consumer = AIOKafkaConsumer(
            **self._options,
            client_id=client_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed" if committed else "read_uncommitted",
            max_partition_fetch_bytes=FETCH_PARTITION_BYTES_MAX,
            fetch_max_wait_ms=READER_WAIT_MS,
        )
        wrapped = await self._started(consumer, "connecting a reader")
        try:
            consumer.assign([KafkaTopicPartition(*partition) for partition in positions])
            unset = [KafkaTopicPartition(*partition) for partition, offset in positions.items() if offset is None]
            if unset:
                await _translated(consumer.seek_to_beginning(*unset), "finding the beginning")
            wrapped.seek_all({partition: offset for partition, offset in positions.items() if offset is not None})
        except BaseException:
            await wrapped.close()  # nobody else has it
            raise
        return wrapped

    async def _started(self, consumer: AIOKafkaConsumer, doing: str) -> _KafkaConsumer:
        try:
            await consumer.start()
        except BaseException as error:
            await consumer.stop()
            if isinstance(error, kafka_errors.KafkaError):
                raise self._refused(error, doing) from error
            raise
        return _KafkaConsumer(consumer)

    # --- writers

    async def producer(self, client_id: str) -> Producer:
        producer = AIOKafkaProducer(
            **self._options,
            client_id=client_id,
            enable_idempotence=True,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=REQUEST_BYTES_MAX,
        )
        await self._start(producer)
        return _KafkaProducer(producer)

    async def transactional(self, transactional_id: str) -> TransactionalProducer:
        producer = AIOKafkaProducer(
            **self._options,
            client_id=transactional_id,
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=REQUEST_BYTES_MAX,
        )
        await self._start(producer)
        return _KafkaTransactionalProducer(producer, transactional_id)

    async def _start(self, producer: AIOKafkaProducer) -> None:
        try:
            await producer.start()
        except BaseException as error:
            await producer.stop()
            if isinstance(error, kafka_errors.KafkaError):
                raise self._refused(error, "making a producer") from error
            raise

    # --- the cluster

    async def committed(
        self, group: str, partitions: Iterable[TopicPartition]
    ) -> dict[TopicPartition, tuple[int, str]]:
        wanted = [KafkaTopicPartition(*partition) for partition in partitions]
        offsets = await self._ask(
            lambda admin: admin.list_consumer_group_offsets(group, partitions=wanted), "reading group offsets"
        )
        return {
            TopicPartition(partition.topic, partition.partition): (found.offset, found.metadata or "")
            for partition, found in offsets.items()
            if found.offset >= 0
        }

    async def partitions(self, topic: str) -> int | None:
        # A topic whose leader has just died is there all the same.
        for found in await self._describe([topic]):
            return len(found["partitions"])
        return None

    async def describe_names(self, topics: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Partitions and replication of the topics that exist and are served."""
        return {
            topic["topic"]: (len(topic["partitions"]), len(topic["partitions"][0]["replicas"]))
            for topic in await self._describe(topics)
            if all(partition["leader"] >= 0 and not partition["error_code"] for partition in topic["partitions"])
        }

    async def _describe(self, topics: Sequence[str]) -> list[dict[str, Any]]:
        """The metadata of those that exist."""
        described = await self._ask(lambda admin: admin.describe_topics(list(topics)), "reading the cluster's metadata")
        if hidden := [topic["topic"] for topic in described if topic["error_code"] == _HIDDEN]:
            # Or what is there would be taken for missing.
            raise LogError(f"this user may not see topic {', '.join(hidden)}; grant it Describe there ({ACCESS})")
        return [topic for topic in described if topic["error_code"] == 0 and topic["partitions"]]

    async def describe(self, topics: Sequence[str]) -> dict[str, TopicDescription]:
        names = await self.describe_names(topics)
        if not names:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        answers = await self._ask(lambda admin: admin.describe_configs(resources), "reading topic configurations")
        found: dict[str, TopicDescription] = {}
        for answer in answers:
            for error_code, message, _, name, entries in answer.resources:
                if error_code:
                    raise LogError(f"the configuration of topic {name} cannot be read: {message or error_code}")
                config = {entry[0]: entry[1] for entry in entries}
                found[name] = TopicDescription(name, *names[name], config)
        return found

    async def create(self, topics: Mapping[str, tuple[int, int, Mapping[str, str]]]) -> None:
        new = [
            NewTopic(name, partitions, replication, topic_configs=dict(config))
            for name, (partitions, replication, config) in topics.items()
        ]
        answer = await self._ask(lambda admin: admin.create_topics(new), "creating topics")
        for name, code, message in (
            (error[0], error[1], error[2] if len(error) > 2 else "") for error in answer.topic_errors
        ):
            if code not in (0, kafka_errors.TopicAlreadyExistsError.errno):
                raise LogError(f"topic {name} cannot be created: {message or kafka_errors.for_code(code).__name__}")
        await self._wait_for(topics)

    async def _wait_for(self, topics: Iterable[str]) -> None:
        """The controller says yes before every broker knows: a client that comes too early is told that there is no such topic."""
        missing = set(topics)
        try:
            async with asyncio.timeout(CREATE_TIMEOUT_S):
                while missing := missing - (await self.describe_names(sorted(missing))).keys():  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(CREATE_POLL_S)
        except TimeoutError:
            raise LogError(
                f"topics {', '.join(sorted(missing))} were created, but no broker serves them after {CREATE_TIMEOUT_S:g} s"
            ) from None

    async def close(self) -> None:
        if self._admin is not None:
            await self._admin.close()
            self._admin = None

    async def _ask(self, question: Callable[[AIOKafkaAdminClient], Awaitable[Any]], doing: str) -> Any:
        """The answer to a question that may be asked twice; asked again, of another broker perhaps, when none came."""
        admin = await self._administrator()
        for tries_left in reversed(range(ASK_TRIES_MAX)):
            try:
                return await question(admin)
            except (kafka_errors.KafkaError, TimeoutError) as error:
                if not tries_left or not getattr(error, "retriable", False):
                    raise self._refused(error, doing) from error
            await asyncio.sleep(ASK_AGAIN_S)
        raise AssertionError("the last try returns or raises")

    async def _administrator(self) -> AIOKafkaAdminClient:
        async with self._admin_lock:
            if self._admin is None:
                admin = AIOKafkaAdminClient(**self._options, client_id="sagalog-admin")
                try:
                    await admin.start()
                except BaseException as error:
                    await admin.close()
                    if isinstance(error, kafka_errors.KafkaError):
                        raise self._refused(error, "asking the cluster") from error
                    raise
                self._admin = admin
            return self._admin

    def _refused(self, error: Exception, doing: str) -> LogError:
        """Nobody there is one thing, a no is another."""
        if isinstance(_cause(error), _UNREACHABLE):
            return LogUnavailable(
                f"no Kafka broker answers at {self.bootstrap} ({error}); start one, or correct SAGALOG_BOOTSTRAP"
            )
        return LogError(f"{doing} failed: {_why(error)}")


async def _translated(awaitable: Any, doing: str) -> Any:
    try:
        return await awaitable
    except (kafka_errors.KafkaError, TimeoutError) as error:
        raise LogError(f"{doing} failed: {_why(error)}") from error


def _cause(error: BaseException) -> BaseException:
    """What the client wraps says what is wrong."""
    while isinstance(error.__cause__, kafka_errors.KafkaError):
        error = error.__cause__
    return error


def _why(error: BaseException, *, writes: str | None = None) -> str:
    """The cause with its remedy, of what the client says about a request; `writes` is the topic that was written to, if one was."""
    cause = _cause(error)
    match cause:
        case kafka_errors.TopicAuthorizationFailedError():
            doing, right = ("write to", "Write") if writes is not None else ("read", "Read")
            topics = writes or _named(cause)
            return f"this user may not {doing} topic {topics}; grant it {right} and Describe there ({ACCESS})"
        case kafka_errors.GroupAuthorizationFailedError():
            return f"this user may not use the group {_named(cause)}; grant it Read on it ({ACCESS})"
        case kafka_errors.TransactionalIdAuthorizationFailed():
            return f"this user may not use the transactional id {_named(cause)}; grant it Write and Describe ({ACCESS})"
        case kafka_errors.UnknownTopicOrPartitionError() | kafka_errors.NotLeaderForPartitionError() if writes:
            agent = writes.partition(".commands.")[2]
            remedy = f"sagalog topics create{f' --agent {agent}' if agent else ''}"
            return f"topic {writes} does not exist or has no leader ({type(cause).__name__}); make it with: {remedy}"
        case kafka_errors.UnknownTopicOrPartitionError():
            return "a topic does not exist (any more); make it with: sagalog topics create"
        case kafka_errors.InconsistentGroupProtocolError():
            return (
                "a member of the group shares out by another protocol: a process of another version is in it; "
                "stop that one, or run the same version everywhere"
            )
        case kafka_errors.InvalidSessionTimeoutError():
            return (
                "the broker does not allow this session timeout; set SAGALOG_SESSION_TIMEOUT_MS within its "
                "group.min.session.timeout.ms and group.max.session.timeout.ms"
            )
    return f"{type(cause).__name__}: {cause}"


def _named(error: BaseException) -> str:
    """What an authorization error is about: the client gives a name, a partition, or several of either."""
    (about,) = error.args or ("?",)
    several = about if isinstance(about, (set, frozenset, list)) else [about]
    return ", ".join(sorted({one[0] if isinstance(one, tuple) else str(one) for one in several}))


@contextmanager
def _assigned() -> Iterator[None]:
    try:
        yield
    except kafka_errors.IllegalStateError as error:
        raise NotAssigned(f"the group has moved on: {error}") from error


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, on_assigned: OnAssigned, on_revoked: OnRevoked) -> None:
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked

    async def on_partitions_assigned(self, assigned: Iterable[KafkaTopicPartition]) -> None:
        await self._on_assigned({TopicPartition(*partition) for partition in assigned})

    async def on_partitions_revoked(self, revoked: Iterable[KafkaTopicPartition]) -> None:
        await self._on_revoked({TopicPartition(*partition) for partition in revoked})


class _Assignor:
    """A `Sharing` as the client wants its assignors: it only ever calls these four."""

    def __init__(self, sharing: Sharing) -> None:
        self.name = sharing.name
        self._sharing = sharing

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(0, sorted(topics), self._sharing.says())

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        topics = sorted({topic for member in members.values() for topic in member.subscription})
        partitions = [
            TopicPartition(topic, number)
            for topic in topics
            for number in sorted(cluster.partitions_for_topic(topic) or ())
        ]
        joining = {name: Joining(tuple(found.subscription), found.user_data) for name, found in members.items()}
        shares = self._sharing.share(joining, partitions)
        found = {}
        for name, share in shares.items():
            numbers: dict[str, list[int]] = {}
            for topic, number in share.partitions:
                numbers.setdefault(topic, []).append(number)
            found[name] = ConsumerProtocolMemberAssignment(0, sorted(numbers.items()), share.note)
        return found

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        self._sharing.told(assignment.user_data)


class _KafkaConsumer:
    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def poll(self, timeout_ms: int, max_records: int) -> Mapping[TopicPartition, Sequence[Message]]:
        # While it has records at hand the client gives them without a turn of the loop, for seconds: nobody else would get any.
        # Before they are taken, so that whoever cancels a poll loses none.
        await asyncio.sleep(0)
        try:
            # aiokafka's TopicPartition is a named tuple of the same fields: equal to ours, and hashed alike.
            batches: Mapping[Any, Sequence[Message]] = await self._consumer.getmany(
                timeout_ms=timeout_ms, max_records=max_records
            )
        except (kafka_errors.KafkaError, kafka_errors.ConsumerStoppedError) as error:
            raise LogError(f"reading failed: {_why(error)}") from error
        return batches

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._consumer.assign([KafkaTopicPartition(*partition) for partition in positions])
        self.seek_all(positions)

    def seek_all(self, positions: Mapping[TopicPartition, int]) -> None:
        for partition, offset in positions.items():
            self.seek(partition, offset)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        with _assigned():
            self._consumer.seek(KafkaTopicPartition(*partition), offset)

    def pause(self, *partitions: TopicPartition) -> None:
        with _assigned():
            self._consumer.pause(*(KafkaTopicPartition(*partition) for partition in partitions))

    def resume(self, *partitions: TopicPartition) -> None:
        with _assigned():
            self._consumer.resume(*(KafkaTopicPartition(*partition) for partition in partitions))

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition(*partition) for partition in self._consumer.assignment()}

    async def position(self, partition: TopicPartition) -> int:
        found = await _translated(self._consumer.position(KafkaTopicPartition(*partition)), "reading a position")
        return int(found)

    async def commit(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        try:
            await self._consumer.commit({KafkaTopicPartition(*tp): offset for tp, offset in offsets.items()})
        except (kafka_errors.CommitFailedError, kafka_errors.IllegalStateError) as error:
            raise NotAssigned(f"the group has moved on: {error}") from error
        except (kafka_errors.KafkaError, kafka_errors.IllegalOperation) as error:
            raise LogError(f"committing offsets failed: {_why(error)}") from error

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        wanted = [KafkaTopicPartition(*partition) for partition in partitions]
        found = await _translated(self._consumer.beginning_offsets(wanted), "reading offsets")
        return {TopicPartition(*partition): offset for partition, offset in found.items()}

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        wanted = [KafkaTopicPartition(*partition) for partition in partitions]
        found = await _translated(self._consumer.end_offsets(wanted), "reading offsets")
        return {TopicPartition(*partition): offset for partition, offset in found.items()}

    async def close(self) -> None:
        await _bounded(self._consumer.stop(), "consumer")


def check_size(topic: str, record: Out) -> None:
    """Raises RecordTooLarge."""
    value, key = record.value, record.key
    # Nearly every record is small: adding up its headers would cost more than all the rest of sending it.
    if (len(value) if value else 0) + (len(key) if key else 0) < SMALL_RECORD_BYTES and len(
        record.headers
    ) <= FEW_HEADERS:
        return
    size = record_bytes(record)
    if size > RECORD_BYTES_MAX:
        key = (record.key or b"")[:80]
        raise RecordTooLarge(
            f"a record for {topic} with key {key!r} is {size:,} bytes, more than {RECORD_BYTES_MAX:,}; make its payload smaller"
        )


def _add(batch: Any, record: Out) -> bool:
    """Adds a record to a batch; False when the batch is full. The client insists on a list of headers."""
    headers = record.headers if type(record.headers) is list else list(record.headers)
    return batch.append(timestamp=None, key=record.key, value=record.value, headers=headers) is not None


def record_bytes(record: Out) -> int:
    """What a record takes in a batch, a little rounded up."""
    size = RECORD_OVERHEAD_BYTES + len(record.key or b"") + len(record.value or b"")
    for name, value in record.headers:
        size += len(name) + len(value) + 8
    return size


@dataclass(slots=True)
class _Queued:
    records: Sequence[Out]
    done: asyncio.Future[None]
    next: int = 0
    """The first record that is not in a batch yet."""


class _KafkaProducer:
    """Batches what is appended while the batch before is on its way: latency when idle, throughput under load."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._queues: dict[TopicPartition, deque[_Queued]] = {}
        self._drains: dict[TopicPartition, asyncio.Task[None]] = {}
        self._pending = 0
        self._broken: Exception | None = None
        self._progress: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def pending(self) -> int:
        return self._pending

    async def below(self, pending: int) -> None:
        while self._pending > pending and self._broken is None:
            self._progress = self._loop.create_future()
            await self._progress

    def _progressed(self) -> None:
        if self._progress is not None and not self._progress.done():
            self._progress.set_result(None)

    def append(self, topic: str, partition: int, records: Sequence[Out]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._loop.create_future()
        if self._broken is not None:
            done.set_exception(ProducerBroken(f"an earlier send failed ({self._broken}); make a new producer"))
            return done
        try:
            for record in records:
                check_size(topic, record)
        except RecordTooLarge as error:
            done.set_exception(error)
            return done
        if not records:
            done.set_result(None)
            return done
        self._pending += len(records)
        key = TopicPartition(topic, partition)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        queue.append(_Queued(records, done))
        if key not in self._drains:
            self._drains[key] = self._loop.create_task(self._drain(key, queue))
        return done

    async def _drain(self, key: TopicPartition, queue: deque[_Queued]) -> None:
        """Sends one batch at a time, each as large as what has gathered meanwhile."""
        ended: list[_Queued] = []
        try:
            while queue:
                batch, ended, count = self._fill(queue)
                future = await self._producer.send_batch(batch, key.topic, partition=key.partition)
                await future
                self._pending -= count
                self._progressed()
                for queued in ended:
                    if not queued.done.done():
                        queued.done.set_result(None)
        except Exception as error:  # noqa: BLE001 - it reaches whoever waits, through the futures
            # Whatever it is, nobody must wait for ever for what is queued or on its way.
            queue.extendleft(reversed(ended))
            self._break(error, key.topic)
        except asyncio.CancelledError:
            # Closed while a batch is on its way (the broker is gone): whether it arrived, nobody will know.
            queue.extendleft(reversed(ended))
            self._break(kafka_errors.ProducerClosed(), key.topic)
            raise
        finally:
            del self._drains[key]
            del self._queues[key]

    def _fill(self, queue: deque[_Queued]) -> tuple[Any, list[_Queued], int]:
        batch = self._producer.create_batch()
        ended: list[_Queued] = []
        count = 0
        while queue:
            queued = queue[0]
            for record in queued.records[queued.next :]:
                if not _add(batch, record):
                    batch.close()
                    return batch, ended, count
                queued.next += 1
                count += 1
            ended.append(queue.popleft())
        batch.close()
        return batch, ended, count

    def _break(self, error: Exception, topic: str | None = None) -> None:
        self._broken = error
        failure = ProducerBroken(f"sending to {topic or 'the log'} failed: {_why(error, writes=topic)}")
        for queue in list(self._queues.values()):
            for queued in queue:
                if not queued.done.done():
                    queued.done.set_exception(failure)
            queue.clear()
        self._pending = 0
        self._progressed()

    async def close(self) -> None:
        drains = list(self._drains.values())
        if drains and self._broken is None:
            await asyncio.wait(drains, timeout=CLOSE_TIMEOUT_S)
        self._break(kafka_errors.ProducerClosed())
        for drain in drains:
            drain.cancel()
        await asyncio.gather(*drains, return_exceptions=True)
        await _bounded(self._producer.stop(), "producer")


class _KafkaTransactionalProducer:
    def __init__(self, producer: AIOKafkaProducer, transactional_id: str) -> None:
        self._producer = producer
        self._id = transactional_id
        self._usable = True

    async def transact(
        self,
        writes: Mapping[TopicPartition, Sequence[Out]],
        group: str | None = None,
        offsets: Mapping[TopicPartition, int] | None = None,
    ) -> None:
        for partition, records in writes.items():
            for at in range(0, len(records), RECORDS_PER_TURN):
                for record in records[at : at + RECORDS_PER_TURN]:
                    check_size(partition.topic, record)
                await asyncio.sleep(0)
        if not self._usable:
            raise ProducerBroken(f"an earlier transaction of {self._id} failed; make a new producer")
        self._usable = False
        try:
            await self._producer.begin_transaction()
            await self._send_all(writes)
            if group is not None and offsets:
                positions = {KafkaTopicPartition(*partition): offset for partition, offset in offsets.items()}
                await self._producer.send_offsets_to_transaction(positions, group)
            await self._producer.commit_transaction()
        except _FENCED as error:
            raise Fenced(f"{self._id} belongs to another process now ({type(error).__name__})") from error
        except Exception as error:
            await self._abort()
            topics = ", ".join(sorted({partition.topic for partition in writes}))
            raise LogError(f"a transaction of {self._id} failed: {_why(error, writes=topics)}") from error
        except asyncio.CancelledError:
            await self._abort()
            raise
        self._usable = True

    async def _send_all(self, writes: Mapping[TopicPartition, Sequence[Out]]) -> None:
        """A batch may be thousands of small records: others get their turn within it, too."""
        futures = []
        for partition, records in writes.items():
            batch = self._producer.create_batch()
            for number, record in enumerate(records, 1):
                if number % RECORDS_PER_TURN == 0:
                    await asyncio.sleep(0)
                if not _add(batch, record):
                    batch.close()
                    futures.append(
                        await self._producer.send_batch(batch, partition.topic, partition=partition.partition)
                    )
                    batch = self._producer.create_batch()
                    added = _add(batch, record)
                    assert added, "a checked record fits an empty batch"
            if batch.record_count():
                batch.close()
                futures.append(await self._producer.send_batch(batch, partition.topic, partition=partition.partition))
        for future in futures:
            await future

    async def _abort(self) -> None:
        """Best effort: readers wait for an open transaction. Whoever takes the id next aborts it for certain.

        After a refusal the client calls it aborted and tells nobody: what it wrote before stays open until then.
        """
        waiter = self._producer._txn_manager.wait_for_transaction_end()
        if waiter.done() and not waiter.cancelled():
            waiter.exception()  # known by now; the client drops it, and asyncio would log it as nobody's
        try:
            await asyncio.wait_for(self._producer.abort_transaction(), CLOSE_TIMEOUT_S)
        except (kafka_errors.KafkaError, TimeoutError, AssertionError) as error:
            logger.warning("the transaction of %s could not be aborted: %s: %s", self._id, type(error).__name__, error)

    async def close(self) -> None:
        self._usable = False
        await _bounded(self._producer.stop(), "transactional producer")


async def _bounded(awaitable: Any, what: str) -> None:
    """Closes within a limit: a client whose broker is gone may otherwise wait for it."""
    try:
        await asyncio.wait_for(awaitable, CLOSE_TIMEOUT_S)
    except TimeoutError:
        logger.warning("a %s did not close within %s s; it is left to the process's end", what, CLOSE_TIMEOUT_S)
    except kafka_errors.KafkaError as error:
        logger.warning("closing a %s failed: %s: %s", what, type(error).__name__, error)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # The client awaits a fetch that it has cancelled itself while that waits to try again: it is not we who were cancelled.
        logger.warning("closing a %s was cut short by the client itself; no broker answers", what)


__all__ = ["Headers", "KafkaLog", "KafkaSecurity"]
