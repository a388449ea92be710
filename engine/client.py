"""The client: registers definitions, starts and cancels workflows, waits for results. It talks to the log alone.

    async with Client(log, topics) as client:
        await client.register(definition)
        workflow_id = await client.start("invoice", {"file": "a.png"})
        result = await client.wait(workflow_id, timeout_s=60)

Rule: what the fold would reject is refused here first, with the field named, before anything is written.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from types import TracebackType
from typing import Any, Final, Self

from sagalog.engine import schedules
from sagalog.infra.clock import Clock, Rng, SystemClock, SystemRng
from sagalog.schemas import records
from sagalog.schemas.codec import check_json, decode_object
from sagalog.schemas.definitions import Definition, parse_definition
from sagalog.schemas.errors import InvalidRecord, SagalogError
from sagalog.schemas.events import (
    TYPE_OF,
    Action,
    ActionRequested,
    CancelRequested,
    Decision,
    DefinitionRegistered,
    Event,
    Forked,
    MigrationRequested,
    OnDuplicate,
    Overlap,
    RewindRequested,
    ScheduleAction,
    SignalReceived,
    StepDecided,
    WorkflowStarted,
    encode_event,
)
from sagalog.schemas.identity import check_identity, check_priority
from sagalog.schemas.ids import Direction, check_name, check_workflow_id, run_id, split_item, start_id
from sagalog.schemas.limits import (
    CATCH_UP_MS_DEFAULT,
    CORRELATION_ID_CHARS_MAX,
    DEADLINE_MS_MAX,
    PAYLOAD_BYTES_MAX,
    SEED_BYTES_MAX,
    STATE_BYTES_MAX,
)
from sagalog.schemas.records import DEFINITION_KEY, TYPE_START_ANSWERED, ResultRecord, StartAnsweredRecord
from sagalog.topics.log import Consumer, Log, LogUnavailable, Out, Producer, TopicPartition, header
from sagalog.topics.partitioner import partition_of
from sagalog.topics.provision import provision_beside
from sagalog.topics.specs import Topics, commands

from . import originals
from .backlog import START_LAG_RECORDS_MAX, START_WAIT_MS_MAX, Backlog

logger = logging.getLogger(__name__)

RESULTS_KEPT_MAX: Final = 50_000
"""Results that a client keeps for `wait` calls that come after them, the newest; as many answers to starts."""
ACK_TIMEOUT_S: Final = 60.0
"""How long a start, or whatever else is written, may take to be durable: the client tries for as long as no broker answers."""
ANSWER_TIMEOUT_S: Final = 30.0
"""How long a start that must know whether it counted waits for the answer: a take-over may be under way."""

AttributeValue = str | int | float | bool
_ANSWERED: Final = TYPE_START_ANSWERED.encode()


KEEP: Final = object()
"""Of a fork's input: the original's."""


class UnknownDefinition(SagalogError):
    """No definition of that name (or hash) is registered."""


class TopicsMissing(SagalogError):
    """The topics of this prefix do not exist."""


class WaitTimeout(SagalogError):
    """The workflow did not end in time; it goes on."""


class AnswerTimeout(WaitTimeout):
    """A start that must know whether it counted was not told in time. It is durable, and will be decided."""


class DuplicateStart(SagalogError):
    """The start did not count: its workflow id is in use or remembered, or a newer start came before it could begin."""

    def __init__(self, workflow_id: str, answer: StartAnsweredRecord) -> None:
        self.workflow_id = workflow_id
        self.answer = answer
        reason, status = answer.get("reason", "no reason was given"), answer.get("status", "unknown")
        super().__init__(
            f"workflow_id: {workflow_id!r} was not started anew: {reason} (it is {status}); see: sagalog show {workflow_id}"
        )


class Client:
    """A connection to one sagalog (one prefix). Use it as an asynchronous context manager.

    `start_lag_records_max`: by how many records the engine may be behind on a partition before starts into it are refused; 0: they
    never are. `start_wait_ms_max`: the same for how long a record waits for the engine, in milliseconds, told by how far it is
    behind all the time and how fast it is; 0: not limited.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        rng: Rng | None = None,
        source: str = "sagalog/client",
        clock: Clock | None = None,
        start_lag_records_max: int = START_LAG_RECORDS_MAX,
        start_wait_ms_max: int = START_WAIT_MS_MAX,
    ) -> None:
        self._log = log
        self._topics = topics
        self._rng = rng or SystemRng()
        self._source = source
        self._clock = clock or SystemClock()
        self._producer: Producer | None = None
        self._partitions = 0
        self._definitions: dict[str, Definition] = {}
        self._newest: dict[str, str] = {}
        self._definitions_reader: Consumer | None = None
        self._results: _Results | None = None
        self._start_lag_records_max = start_lag_records_max
        self._start_wait_ms_max = start_wait_ms_max
        self._backlog: Backlog | None = None
        self._started: OrderedDict[str, str | None] = OrderedDict()
        """Workflows that this client has started; of a start that replaces, its id (hashed), by which its result is known."""
        self._reading_definitions = asyncio.Lock()
        self._opening_results = asyncio.Lock()
        """Many calls may come before there is a reader; two would both follow, and only one be closed."""

    async def __aenter__(self) -> Self:
        partitions = await self._log.partitions(self._topics.events)
        if partitions is None:
            raise TopicsMissing(
                f"topic {self._topics.events} does not exist; make the topics with: sagalog topics create, or set SAGALOG_PREFIX"
            )
        self._partitions = partitions
        self._producer = await self._log.producer("sagalog-client")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._backlog is not None:
            await self._backlog.close()
        if self._results is not None:
            await self._results.close()
        if self._definitions_reader is not None:
            await self._definitions_reader.close()
        if self._producer is not None:
            await self._producer.close()

    # --- definitions

    async def register(self, definition: Definition) -> str:
        """Makes the definition known to every partition, and its agents' command topics, with as many replicas as `events` has.

        Returns its hash; repeatable. Raises TopicMismatch, TopicsMissing, LogError.
        """
        events = (await self._log.describe([self._topics.events])).get(self._topics.events)
        if events is None:
            raise TopicsMissing(f"topic {self._topics.events} does not exist, or a partition of it has no leader now")
        specs = [commands(agent) for agent in definition.agents]
        await provision_beside(self._log, self._topics, specs, events)
        event = DefinitionRegistered(definition.model_dump(mode="json"))
        key = (DEFINITION_KEY + definition.hash).encode()
        value, headers = (
            encode_event(event),
            self._headers(TYPE_OF[DefinitionRegistered], f"definition/{definition.hash}"),
        )
        producer = self._open()
        broadcast = [
            producer.append(self._topics.events, partition, [Out(key, value, headers)])
            for partition in range(self._partitions)
        ]
        await asyncio.gather(*broadcast)
        # Last, so that a name that can be looked up is known to every partition.
        lookup = Out(
            definition.hash.encode(),
            definition.encoded,
            self._headers(records.TYPE_DEFINITION, f"definition/{definition.hash}"),
        )
        await producer.append(self._topics.definitions, 0, [lookup])
        return definition.hash

    async def definitions(self) -> list[Definition]:
        """All registered definitions, in the order in which they were registered last."""
        async with self._reading_definitions:
            await self._read_definitions()
        return list(self._definitions.values())

    async def definition(self, name: str) -> Definition:
        """By name (the newest) or `name@hash`. Raises UnknownDefinition."""
        found = self._find(name)
        if found is None:
            async with self._reading_definitions:
                found = self._find(name)  # another call may have read it meanwhile
                if found is None:
                    await self._read_definitions()
                    found = self._find(name)
        if found is None:
            known = ", ".join(sorted(self._newest)) or "none"
            raise UnknownDefinition(
                f"definition: {name!r} is not registered (known: {known}); register it with: sagalog definitions register"
            )
        return found

    def _find(self, name: str) -> Definition | None:
        plain, _, hash_ = name.partition("@")
        found = self._definitions.get(hash_ or self._newest.get(plain, ""))
        return found if found is not None and found.name == plain else None

    async def _read_definitions(self) -> None:
        """Up to the end of the topic; one call at a time."""
        partition = TopicPartition(self._topics.definitions, 0)
        if self._definitions_reader is None:
            self._definitions_reader = await self._log.read({partition: None}, committed=True, client_id="definitions")
        reader = self._definitions_reader
        end = (await reader.end_offsets([partition]))[partition]
        while await reader.position(partition) < end:
            for messages in (await reader.poll(500, 500)).values():
                for message in messages:
                    if message.value is not None:
                        self._know(message.value)

    def _know(self, encoded: bytes) -> None:
        try:
            definition = parse_definition(encoded, registered=True)
        except InvalidRecord as error:
            logger.warning("a registered definition cannot be read and is passed over: %s", error)
            return
        self._definitions.pop(definition.hash, None)
        self._definitions[definition.hash] = definition
        self._newest[definition.name] = definition.hash

    # --- workflows

    async def start(
        self,
        definition: str,
        input: Any = None,
        *,
        workflow_id: str | None = None,
        deadline_ms: int | None = None,
        correlation_id: str | None = None,
        traceparent: str | None = None,
        tenant: str | None = None,
        priority: int | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
        on_duplicate: OnDuplicate | str = OnDuplicate.IGNORE,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> str:
        """Starts a workflow and returns its id once the start is durable.

        `on_duplicate` says what becomes of it when the id is in use, or was within 7 days: `ignore` (it changes nothing), `reject`
        (it changes nothing, and this call waits for the answer whether it counted), `replace` (the run that is on is cancelled, or
        waited for, and this one follows).

        Raises InvalidRecord (with the field), UnknownDefinition, LogError, Overloaded (nothing was sent, and it says when to try
        again); with `reject` also DuplicateStart and AnswerTimeout.
        """
        found = await self.definition(definition)
        if workflow_id is None:
            workflow_id = f"{found.name}-{self._rng.hex(16)}"
        policy = check_policy(on_duplicate)
        check_start(found, workflow_id, input, deadline_ms, correlation_id)
        check_identity(tenant, priority, dict(attributes) if attributes is not None else None)
        event = WorkflowStarted(
            f"{found.name}@{found.hash}",
            input,
            deadline_ms,
            correlation_id,
            tenant,
            priority,
            dict(attributes) if attributes else None,
            policy if policy is not OnDuplicate.IGNORE else None,
        )
        results = await self._watch_results()
        await self._admit({partition_of(workflow_id.encode(), self._partitions): 1})
        ce_id = self._rng.hex(32)
        self._note_started(workflow_id, start_id(ce_id) if policy is OnDuplicate.REPLACE else None)
        await self._append(workflow_id, event, ce_id, traceparent)
        if policy is OnDuplicate.REJECT:
            answer = await results.answer(start_id(ce_id), workflow_id, answer_timeout_s)
            if not answer["accepted"]:
                self._started.pop(workflow_id, None)
                raise DuplicateStart(workflow_id, answer)
        return workflow_id

    async def start_many(
        self,
        definition: str,
        inputs: Mapping[str, Any],
        *,
        tenant: str | None = None,
        priority: int | None = None,
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        """Starts one workflow per id, in batches: faster than one by one. Checked like `start`, all before the first is sent.

        Raises like `start`; of what is refused (Overloaded), nothing was sent, for no partition.
        """
        found = await self.definition(definition)
        named = f"{found.name}@{found.hash}"
        found_by = dict(attributes) if attributes else None
        check_identity(tenant, priority, found_by)
        by_partition: dict[int, list[Out]] = {}
        for workflow_id, value in inputs.items():
            check_start(found, workflow_id, value)
            key = workflow_id.encode()
            record = Out(
                key,
                encode_event(WorkflowStarted(named, value, tenant=tenant, priority=priority, attributes=found_by)),
                self._headers(TYPE_OF[WorkflowStarted], self._rng.hex(32)),
            )
            by_partition.setdefault(partition_of(key, self._partitions), []).append(record)
        await self._watch_results()
        await self._admit({partition: len(records) for partition, records in by_partition.items()})
        for workflow_id in inputs:
            self._note_started(workflow_id)
        producer = self._open()
        appended = [producer.append(self._topics.events, partition, found) for partition, found in by_partition.items()]
        await _durable(appended)

    @property
    def starts_refused(self) -> int:
        """Starts that this client was asked for and has not sent, because the engine was too far behind."""
        return self._backlog.refused if self._backlog is not None else 0

    async def _admit(self, starts: Mapping[int, int]) -> None:
        """Raises Overloaded. By partition, how many are to be started."""
        results = await self._watch_results()
        if self._backlog is None:
            self._backlog = Backlog(
                self._log,
                self._topics,
                self._partitions,
                results.ends,
                self._clock,
                self._start_lag_records_max,
                self._start_wait_ms_max,
                lambda: results.applied,
            )
        await self._backlog.admit(starts)

    def _note_started(self, workflow_id: str, replacing: str | None = None) -> None:
        """Its result comes after this client began to follow results, unless the id was used before."""
        self._started[workflow_id] = replacing
        if len(self._started) > RESULTS_KEPT_MAX:
            self._started.popitem(last=False)

    async def cancel(self, workflow_id: str, *, reason: str, who: str) -> None:
        """Asks to stop a workflow and undo what it did; its result tells the outcome."""
        check_workflow_id(workflow_id)
        await self._append(workflow_id, CancelRequested(reason, who), self._rng.hex(32))

    async def prioritize(self, workflow_id: str, priority: int, *, reason: str, who: str) -> None:
        """Changes a workflow's priority, 0 to 9. What its agents have already been sent keeps the one it had."""
        check_workflow_id(workflow_id)
        check_priority(priority)
        event = ActionRequested(Action.PRIORITIZE, reason, who, priority)
        await self._append(workflow_id, event, self._rng.hex(32))

    async def act(self, workflow_id: str, action: Action, *, reason: str, who: str) -> None:
        """Pauses, resumes or terminates a workflow; `history` and `show` tell whether its state allowed it."""
        check_workflow_id(workflow_id)
        if action is Action.PRIORITIZE:
            raise InvalidRecord("action", "needs a priority; call prioritize")
        await self._append(workflow_id, ActionRequested(action, reason, who), self._rng.hex(32))

    async def signal(
        self, workflow_id: str, name: str, payload: Any = None, *, who: str | None = None, signal_id: str | None = None
    ) -> str:
        """Sends a signal to a workflow and returns the signal's id; one sent twice with the same id counts once.

        A workflow that does not wait for it yet keeps it. Raises InvalidRecord.
        """
        check_workflow_id(workflow_id)
        check_name(name, "signal")
        check_json(payload, "payload", PAYLOAD_BYTES_MAX)
        sent = signal_id or self._rng.hex(32)
        if len(sent.encode()) > SEED_BYTES_MAX:
            raise InvalidRecord("signal_id", f"is {len(sent.encode())} bytes, more than {SEED_BYTES_MAX}")
        await self._append(workflow_id, SignalReceived(name, payload, who), sent)
        return sent

    async def decide(
        self,
        workflow_id: str,
        step: str,
        decision: Decision,
        *,
        who: str,
        reason: str = "",
        output: Any = None,
        undo: bool = False,
    ) -> None:
        """Decides about a task, a step that failed for good and is held, or (with `undo`) a held undoing.

        Raises InvalidRecord. An output that does not fit the task's form, or the step's schema, is ignored by the fold.
        """
        check_workflow_id(workflow_id)
        check_name(split_item(step)[0], "step")
        check_json(output, "output", PAYLOAD_BYTES_MAX)
        direction = Direction.COMPENSATE if undo else Direction.EXECUTE
        event = StepDecided(step, decision, who, reason, output, direction)
        await self._append(workflow_id, event, self._rng.hex(32))

    async def migrate(self, workflow_id: str, definition: str, *, who: str, reason: str) -> str:
        """Asks to move a running workflow to another hash of its definition: `name@hash`, or `name` (the newest).

        Returns the request's id. What does not fit is ignored by the fold: `engine.migrating` tells before and afterwards.
        Raises InvalidRecord, UnknownDefinition.
        """
        check_workflow_id(workflow_id)
        await self.definitions()  # the newest may have come since this client looked last
        found = await self.definition(definition)
        sent = self._rng.hex(32)
        await self._append(workflow_id, MigrationRequested(f"{found.name}@{found.hash}", who, reason), sent)
        return sent

    # --- schedules

    async def set_schedule(
        self,
        name: str,
        *,
        definition: str,
        cron: str,
        who: str,
        zone: str = "UTC",
        input: Any = None,
        overlap: Overlap = Overlap.SKIP,
        catch_up_ms: int = CATCH_UP_MS_DEFAULT,
        jitter_ms: int = 0,
        paused: bool = False,
    ) -> int:
        """Makes a schedule, or changes the one of that name; returns its first due time, in milliseconds since the epoch.

        `definition` is a name (the newest at each start) or `name@hash`. One that is paused stays so until it is resumed.
        Raises InvalidRecord (with the field), UnknownDefinition, LogError.
        """
        key, event, next_ms = schedules.setting(
            name,
            definition=definition,
            cron=cron,
            zone=zone,
            who=who,
            now_ms=self._clock.now_ms(),
            input=input,
            overlap=overlap,
            catch_up_ms=catch_up_ms,
            jitter_ms=jitter_ms,
            paused=paused,
        )
        check_start(await self.definition(definition), run_id(name, next_ms), input)
        await self._append(key, event, self._rng.hex(32))
        return next_ms

    async def pause_schedule(self, name: str, *, reason: str, who: str) -> None:
        """Nothing starts at its due times until it is resumed. Raises InvalidRecord, LogError."""
        key, event = schedules.acting(name, ScheduleAction.PAUSE, reason=reason, who=who)
        await self._append(key, event, self._rng.hex(32))

    async def resume_schedule(self, name: str, *, reason: str, who: str) -> None:
        """What was due meanwhile is left out. Raises InvalidRecord, LogError."""
        key, event = schedules.acting(name, ScheduleAction.RESUME, reason=reason, who=who)
        await self._append(key, event, self._rng.hex(32))

    async def trigger_schedule(self, name: str, *, reason: str, who: str) -> None:
        """A run now, beside the due times, as its overlap policy allows. Raises InvalidRecord, LogError."""
        key, event = schedules.acting(name, ScheduleAction.TRIGGER, reason=reason, who=who)
        await self._append(key, event, self._rng.hex(32))

    async def remove_schedule(self, name: str, *, reason: str, who: str) -> None:
        """Ends a schedule; the run that goes on is left alone. Raises InvalidRecord, LogError."""
        key, event = schedules.removing(name, reason=reason, who=who)
        await self._append(key, event, self._rng.hex(32))

    async def rewind(self, workflow_id: str, step: str, *, undo: bool, reason: str, who: str) -> None:
        """Sends a running workflow back to a step: it and all that needs it are done anew, with `undo` once they are undone.

        `history` and `show` tell whether the workflow's state allowed it. Raises InvalidRecord.
        """
        check_workflow_id(workflow_id)
        check_name(step, "step")
        await self._append(workflow_id, RewindRequested(step, who, reason, undo), self._rng.hex(32))

    async def fork(
        self,
        workflow_id: str,
        *,
        before: str | None = None,
        at_offset: int | None = None,
        new_id: str | None = None,
        definition: str | None = None,
        input: Any = KEEP,
        who: str | None = None,
        reason: str | None = None,
    ) -> str:
        """Starts a workflow that begins where another one was, and returns its id.

        It keeps what had ended well `before` a step, or at an offset; the original owns the effects of that. `definition` is a
        name (its newest), or `name@hash`; without one the fork runs by the original's. Reads the original's partition of the log.
        Raises CannotFork, UnknownOriginal, UnknownDefinition, InvalidRecord, LogError.
        """
        check_workflow_id(workflow_id)
        if (before is None) == (at_offset is None):
            raise InvalidRecord("before", "give either the step before which to fork, or an offset (at_offset)")
        original = await self._original(workflow_id, at_offset)
        other = await self.definition(definition) if definition is not None else None
        if other is not None and other.name != original.plan.name:
            raise originals.CannotFork(
                f"definition: {other.name!r} is another one than the original's, {original.plan.name!r}; a fork runs by a "
                "version of the same"
            )
        forked = originals.fork(original, other, before=before)
        forked.who, forked.reason = who, reason
        value = original.now.input if input is KEEP else input
        run_by = other or original.plan.definition
        return await self._start_fork(original, new_id or f"{run_by.name}-{self._rng.hex(16)}", run_by, value, forked)

    async def redrive(self, dead_letter: str, *, who: str, reason: str) -> originals.Redrive:
        """Tries a dead letter again (given its id, or that of its workflow: then its newest one) and says how.

        A workflow that runs with a stand-in for the step goes back to it, without undoing. One that is over is forked: it keeps
        what was done and stands, and does the step and the rest anew. A second call for a dead letter starts nothing new.
        Raises CannotRedrive, CannotFork, UnknownOriginal, InvalidRecord, LogError.
        """
        owner = originals.workflow_of(dead_letter)
        workflow_id = owner if owner is not None else dead_letter
        check_workflow_id(workflow_id)
        original = await self._original(workflow_id)
        how = originals.redrive(original, dead_letter if owner is not None else None)
        if how.forked is None:
            event = RewindRequested(how.step, who, reason, dead_letter=how.dead_letter)
            # One that was sent twice counts once, whoever sent it.
            await self._append(workflow_id, event, blake2b(how.dead_letter.encode(), digest_size=16).hexdigest())
        else:
            how.forked.who, how.forked.reason = who, reason
            definition = original.plan.definition
            await self._start_fork(original, how.workflow_id, definition, original.now.input, how.forked)
        return how

    async def _original(self, workflow_id: str, at_offset: int | None = None) -> originals.Original:
        partition = TopicPartition(self._topics.events, partition_of(workflow_id.encode(), self._partitions))
        return await originals.read_original(self._all(partition), workflow_id, at_offset)

    async def _start_fork(
        self, original: originals.Original, new_id: str, definition: Definition, value: Any, forked: Forked
    ) -> str:
        check_start(definition, new_id, value)
        named = f"{definition.name}@{definition.hash}"
        event = WorkflowStarted(named, value, correlation_id=original.now.correlation_id, forked=forked)
        originals.check_fits(len(encode_event(event)), STATE_BYTES_MAX)
        await self._watch_results()
        self._note_started(new_id)
        await self._append(new_id, event, self._rng.hex(32))
        return new_id

    async def wait(self, workflow_id: str, *, timeout_s: float) -> ResultRecord:
        """The workflow's result, once it has ended. Raises WaitTimeout.

        After a start of this client's that replaces: that start's result, and DuplicateStart when another start took its place.
        For everybody else it is the result of the last run that has ended under the id.
        """
        results = await self._watch_results()
        replacing = self._started.get(workflow_id)
        found = results.get(workflow_id, replacing)
        if found is None and workflow_id not in self._started:
            found = await self._scan_results(workflow_id)
        if found is not None:
            return found
        return await results.wait(workflow_id, timeout_s, replacing)

    async def wait_all(self, workflow_ids: Iterable[str], *, timeout_s: float) -> dict[str, ResultRecord]:
        """The results of workflows that this client started. Raises WaitTimeout."""
        results = await self._watch_results()
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        found = {}
        for workflow_id in workflow_ids:
            left_s = max(0.0, until - loop.time())
            found[workflow_id] = await results.wait(workflow_id, left_s, self._started.get(workflow_id))
        return found

    async def history(self, workflow_id: str) -> list[dict[str, Any]]:
        """Every record of the workflow in the events topic, oldest first, as it stands there."""
        partition = TopicPartition(self._topics.events, partition_of(workflow_id.encode(), self._partitions))
        found = []
        async for message in self._all(partition):
            if message.key == workflow_id.encode():
                headers = {name: value.decode(errors="replace") for name, value in message.headers}
                found.append(
                    {"offset": message.offset, "at_ms": message.timestamp, **headers, "data": _shown(message.value)}
                )
        return found

    async def _scan_results(self, workflow_id: str) -> ResultRecord | None:
        """A result from before this client was there."""
        partition = TopicPartition(self._topics.results, partition_of(workflow_id.encode(), self._partitions))
        found: ResultRecord | None = None
        async for message in self._all(partition):
            if message.key == workflow_id.encode() and message.value is not None and not _is_answer(message):
                found = _newer(found, decode_object(message.value))
        return found

    async def _all(self, partition: TopicPartition) -> Any:
        """Every record of a partition up to its present end."""
        reader = await self._log.read({partition: None}, committed=False, client_id="client-scan")
        try:
            end = (await reader.end_offsets([partition]))[partition]
            while await reader.position(partition) < end:
                for messages in (await reader.poll(500, 2_000)).values():
                    for message in messages:
                        yield message
        finally:
            await reader.close()

    # --- inside

    async def _watch_results(self) -> _Results:
        async with self._opening_results:
            if self._results is None:
                self._results = await _Results.open(self._log, self._topics, self._partitions)
        return self._results

    async def _append(self, workflow_id: str, event: Event, ce_id: str, traceparent: str | None = None) -> None:
        key = workflow_id.encode()
        headers = self._headers(TYPE_OF[type(event)], ce_id)
        if traceparent is not None:
            headers.append(("traceparent", traceparent.encode()))
        record = Out(key, encode_event(event), headers)
        await _durable([self._open().append(self._topics.events, partition_of(key, self._partitions), [record])])

    def _headers(self, ce_type: str, ce_id: str) -> list[tuple[str, bytes]]:
        return [
            ("ce_specversion", b"1.0"),
            ("ce_type", ce_type.encode()),
            ("ce_source", self._source.encode()),
            ("ce_id", ce_id.encode()),
            ("content-type", b"application/json"),
        ]

    def _open(self) -> Producer:
        assert self._producer is not None, "use the client in an `async with` block"
        return self._producer


async def _durable(appended: Sequence[asyncio.Future[None]]) -> None:
    """Raises LogUnavailable when it takes too long, and what came of it is not known."""
    if not appended:
        return
    _, pending = await asyncio.wait(appended, timeout=ACK_TIMEOUT_S)
    if pending:
        for future in pending:
            future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody asks any more
        raise LogUnavailable(
            f"the log has not acknowledged what was written within {ACK_TIMEOUT_S:g} s; it may still be written, or not: "
            "do it again once a broker answers (under the same id, if it is a start: one that is there already counts)"
        )
    for future in appended:
        future.result()


def check_policy(on_duplicate: str) -> OnDuplicate:
    """Raises InvalidRecord for what is no policy."""
    try:
        return OnDuplicate(on_duplicate)
    except ValueError:
        known = ", ".join(OnDuplicate)
        raise InvalidRecord("on_duplicate", f"{on_duplicate!r} is unknown; known are {known}") from None


def check_start(
    definition: Definition,
    workflow_id: str,
    value: Any,
    deadline_ms: int | None = None,
    correlation_id: str | None = None,
) -> None:
    """Raises InvalidRecord for what the fold would reject, with the field named."""
    check_workflow_id(workflow_id)
    check_json(value, "input", PAYLOAD_BYTES_MAX)
    if correlation_id is not None and len(correlation_id) > CORRELATION_ID_CHARS_MAX:
        raise InvalidRecord(
            "correlation_id", f"is {len(correlation_id)} characters, more than {CORRELATION_ID_CHARS_MAX}"
        )
    if deadline_ms is not None and not 10 <= deadline_ms <= DEADLINE_MS_MAX:
        raise InvalidRecord("deadline_ms", f"{deadline_ms} is not within 10 to {DEADLINE_MS_MAX}")
    if definition.input_validator is not None:
        problem = definition.input_validator.problem(value)
        if problem is not None:
            field, _, rest = problem.partition(": ")
            raise InvalidRecord(field, rest)


class _Results:
    """Follows the results topic from the moment it was opened: how workflows ended, and which starts counted."""

    def __init__(self, reader: Consumer) -> None:
        self._reader = reader
        self._found: OrderedDict[str, ResultRecord] = OrderedDict()
        self._by_start: OrderedDict[str, ResultRecord] = OrderedDict()
        """Of runs whose start replaced, by the start's id (hashed)."""
        self._answers: OrderedDict[str, StartAnsweredRecord] = OrderedDict()
        """By the start's id (hashed)."""
        self.applied: dict[int, int] = {}
        """By partition of `events`, the offset after the last event that a result came of: so far the engine is at least."""
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        """By what is waited for: the id of a workflow, or of a start. Woken, a waiter looks for itself."""
        self._task = asyncio.create_task(self._follow())

    @classmethod
    async def open(cls, log: Log, topics: Topics, partitions: int) -> Self:
        numbers = [TopicPartition(topics.results, number) for number in range(partitions)]
        reader = await log.read(dict.fromkeys(numbers, 0), committed=False, client_id="client-results")
        for partition, offset in (await reader.end_offsets(numbers)).items():
            reader.seek(partition, offset)
        return cls(reader)

    async def ends(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where partitions end, also of other topics: one connection fewer than a reader for that alone. Raises LogError."""
        return await self._reader.end_offsets(partitions)

    def get(self, workflow_id: str, replacing: str | None = None) -> ResultRecord | None:
        """`replacing`: the result of the run that this start began, and of no other."""
        return self._found.get(workflow_id) if replacing is None else self._by_start.get(replacing)

    async def wait(self, workflow_id: str, timeout_s: float, replacing: str | None = None) -> ResultRecord:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while True:
            found = self.get(workflow_id, replacing)
            if found is not None:
                return found
            answer = self._answers.get(replacing) if replacing is not None else None
            if answer is not None and not answer["accepted"]:
                raise DuplicateStart(workflow_id, answer)
            if not await self._woken(workflow_id, until_s - loop.time()):
                raise WaitTimeout(
                    f"workflow {workflow_id} has not ended within {timeout_s:g} s; see: sagalog show {workflow_id}"
                )

    async def answer(self, start: str, workflow_id: str, timeout_s: float) -> StartAnsweredRecord:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while (found := self._answers.get(start)) is None:
            if not await self._woken(start, until_s - loop.time()):
                raise AnswerTimeout(
                    f"workflow {workflow_id}: the start is durable, but no engine has said within {timeout_s:g} s whether it "
                    f"counted; it will be decided once the partition is worked on: sagalog replay {workflow_id}"
                )
        return found

    async def _woken(self, what: str, timeout_s: float) -> bool:
        """Waits for news; False when the time is up. Raises what ended the following."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(what, []).append(future)
        either: set[asyncio.Future[Any]] = {future, self._task}
        done, _ = await asyncio.wait(either, timeout=max(0.0, timeout_s), return_when=asyncio.FIRST_COMPLETED)
        if future in done:
            return True
        waiting = self._waiting.get(what, [])
        waiting.remove(future)
        if not waiting:
            self._waiting.pop(what, None)
        if self._task in done:
            self._task.result()
        return False

    async def _follow(self) -> None:
        while True:
            for messages in (await self._reader.poll(500, 2_000)).values():
                self._take(messages)

    def _take(self, messages: Sequence[Any]) -> None:
        for message in messages:
            if message.key is None or message.value is None:
                continue
            try:
                record = decode_object(message.value)
                if _is_answer(message):
                    self._take_answer(record)
                    continue
            except InvalidRecord as error:
                logger.warning("%s/%d/%d: %s", message.topic, message.partition, message.offset, error)
                continue
            self._note_applied(message.partition, record.get("at_offset"))
            workflow_id = message.key.decode(errors="replace")
            found = self._found[workflow_id] = _newer(self._found.get(workflow_id), record)
            if len(self._found) > RESULTS_KEPT_MAX:
                self._found.popitem(last=False)
            if "start_id" in found:
                self._by_start[found["start_id"]] = found
                if len(self._by_start) > RESULTS_KEPT_MAX:
                    self._by_start.popitem(last=False)
            self._wake(workflow_id)

    def _note_applied(self, partition: int, at_offset: Any) -> None:
        """A result is in the partition of the number of its workflow's events."""
        if type(at_offset) is int and at_offset >= self.applied.get(partition, 0):
            self.applied[partition] = at_offset + 1

    def _take_answer(self, record: dict[str, Any]) -> None:
        start, workflow_id = record.get("start_id"), record.get("workflow_id")
        if type(start) is not str or type(workflow_id) is not str or type(record.get("accepted")) is not bool:
            raise InvalidRecord("start_id", "an answer to a start names it, its workflow, and whether it was accepted")
        self._answers[start] = record  # type: ignore[assignment]
        if len(self._answers) > RESULTS_KEPT_MAX:
            self._answers.popitem(last=False)
        self._wake(start)
        self._wake(workflow_id)

    def _wake(self, what: str) -> None:
        for future in self._waiting.pop(what, ()):
            if not future.done():
                future.set_result(None)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._reader.close()


def _is_answer(message: Any) -> bool:
    return header(message.headers, "ce_type") == _ANSWERED


def _newer(before: ResultRecord | None, record: dict[str, Any]) -> ResultRecord:
    """Of two results of one id the one of the later run; of one run the one that came last."""
    found: ResultRecord = record  # type: ignore[assignment]
    if before is None:
        return found
    one, other = ((result.get("at_offset", 0), result.get("started_ms", 0)) for result in (found, before))
    return found if one >= other else before


def _shown(value: bytes | None) -> Any:
    """A record's data, or what can be shown of it."""
    try:
        return decode_object(value)
    except InvalidRecord as error:
        return {"unreadable": str(error), "bytes": len(value or b"")}
