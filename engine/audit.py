"""Folding the log again, to check what was made of it (`verify`) and to show how one workflow came about (`replay`).

`verify` proves for every partition, from the events alone, that the checkpoints, the results and the rows are what the fold
makes of the log. It reads only; it can run beside a working engine, because it compares at the offset that each record names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from sagalog.engine.client import TopicsMissing
from sagalog.engine.kernel.effects import (
    DeadLettered,
    Dispatch,
    Effect,
    Finished,
    Ignored,
    Migrated,
    Moved,
    Prioritized,
    Quarantine,
    ReviewClosed,
    ReviewNeeded,
    StartAnswered,
)
from sagalog.engine.kernel.partition import Partition
from sagalog.engine.kernel.record import Record
from sagalog.engine.kernel.schedules import dump_schedule
from sagalog.engine.kernel.state import dump
from sagalog.engine.runtime.digest import Digest
from sagalog.engine.runtime.outputs import result, to_record
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.definitions import Definition
from sagalog.schemas.errors import InvalidRecord, SagalogError
from sagalog.schemas.events import TYPE_OF, MigrationRequested, WorkflowStarted, encode_event, parse_event
from sagalog.schemas.records import DEFINITION_KEY, MARKER_KEY, TYPE_START_ANSWERED
from sagalog.topics.log import Consumer, Log, Message, TopicPartition, header
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

READ_RECORDS_MAX: Final = 5_000
DIFFERENCES_SHOWN_MAX: Final = 20
PROGRESS_RECORDS: Final = 20_000
_ANSWERED: Final = TYPE_START_ANSWERED.encode()
OFFSET_MAX: Final = 2**63 - 2

Progress = Callable[[str, int, int], None]
"""(what, done, of)"""


class Rows(Protocol):
    """The projection, as `verify` reads it."""

    async def differences(self, expected: Mapping[str, Mapping[str, Any]], partition: int) -> RowDifferences:
        """Compares rows with the records (checkpoints of open, results of finished workflows) that they should show."""


@dataclass(slots=True)
class RowDifferences:
    """What the rows of one partition came to."""

    compared: int = 0
    newer: int = 0
    """Rows that show a later offset than the fold went to: the workflow moved on meanwhile."""
    behind: int = 0
    """Rows that show an earlier offset: the projection has not caught up."""
    differences: list[str] = field(default_factory=list)


@dataclass(slots=True)
class PartitionReport:
    """What `verify` found in one partition."""

    partition: int
    events: int = 0
    marker_offset: int = -1
    workflows: int = 0
    checkpoints: int = 0
    results: int = 0
    rows: int = 0
    rows_newer: int = 0
    rows_behind: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.differences and not self.rows_behind


class LogTruncated(SagalogError):
    """The log does not begin at its beginning any more, so it cannot be folded from nothing."""


async def verify(
    log: Log, topics: Topics, *, rows: Rows | None = None, progress: Progress | None = None
) -> list[PartitionReport]:
    """Folds every partition again and compares. Raises LogError, LogTruncated."""
    partitions = await log.partitions(topics.events)
    if partitions is None:
        raise TopicsMissing(f"topic {topics.events} does not exist; make the topics with: sagalog topics create")
    return [await _verify_partition(log, topics, number, rows, progress) for number in range(partitions)]


async def _verify_partition(
    log: Log, topics: Topics, number: int, rows: Rows | None, progress: Progress | None
) -> PartitionReport:
    report = PartitionReport(number)
    checkpoints, marker, definitions = await _read_checkpoints(log, topics, number)
    if marker is None:
        if await _has_events(log, TopicPartition(topics.events, number)):
            report.differences.append("there are events, but no marker: no engine has taken a snapshot yet")
        return report
    report.marker_offset = marker["at_offset"]
    fold = Partition()
    results: dict[str, dict[str, Any]] = {}
    effects: list[Effect] = []
    async for message in _read(log, TopicPartition(topics.events, number), report.marker_offset, progress):
        fold.apply(to_record(message), effects)
        report.events += 1
        for effect in effects:
            if isinstance(effect, Finished):
                results[effect.result["workflow_id"]] = decode_object(result(effect).value)
        effects.clear()
    _compare_checkpoints(report, fold, checkpoints, marker, definitions)
    await _compare_results(log, topics, report, results)
    if rows is not None:
        expected = _expected_rows(fold, results)
        found = await rows.differences(expected, number)
        report.rows, report.rows_newer, report.rows_behind = found.compared, found.newer, found.behind
        report.differences += found.differences
    return report


async def _read_checkpoints(
    log: Log, topics: Topics, number: int
) -> tuple[dict[str, bytes], dict[str, Any] | None, dict[str, bytes]]:
    """Checkpoints by workflow, without annotations; the marker; definitions by hash."""
    checkpoints: dict[str, bytes] = {}
    definitions: dict[str, bytes] = {}
    marker: dict[str, Any] | None = None
    async for message in _read(log, TopicPartition(topics.checkpoints, number), None, None, committed=True):
        key = (message.key or b"").decode(errors="replace")
        if message.value is None:
            checkpoints.pop(key, None)
        elif key == MARKER_KEY:
            marker = decode_object(message.value)
        elif key.startswith(DEFINITION_KEY):
            definitions[key.removeprefix(DEFINITION_KEY)] = message.value
        else:
            checkpoints[key] = _without_annotation(message.value)
    return checkpoints, marker, definitions


def _without_annotation(value: bytes) -> bytes:
    if b'"withheld":' not in value:
        return value
    try:
        document = decode_object(value)
    except InvalidRecord:
        return value  # it is reported as what it is when it is compared
    document.pop("withheld", None)
    return encode(document)


def _compare_checkpoints(
    report: PartitionReport,
    fold: Partition,
    checkpoints: dict[str, bytes],
    marker: dict[str, Any],
    definitions: dict[str, bytes],
) -> None:
    digest = Digest()
    differ = report.differences
    for workflow_id in fold.ids():
        state = fold.get(workflow_id)
        assert state is not None
        raw = encode(dump(state, fold.plan_of(state)))
        digest.put(workflow_id, raw)
        found = checkpoints.pop(workflow_id, None)
        if found is None:
            _note(differ, f"workflow {workflow_id}: no checkpoint; the fold says {state.status}")
        elif found != raw:
            _note(differ, f"workflow {workflow_id}: its checkpoint {_difference(found, raw)}")
        else:
            report.checkpoints += 1
    for key, schedule in fold.schedules.items():
        raw = encode(dump_schedule(schedule))
        digest.put(key, raw)
        found = checkpoints.pop(key, None)
        if found is None:
            _note(differ, f"schedule {schedule.name}: no checkpoint; the fold says {schedule.status}")
        elif found != raw:
            _note(differ, f"schedule {schedule.name}: its checkpoint {_difference(found, raw)}")
        else:
            report.checkpoints += 1
    report.workflows = len(digest)
    for workflow_id in checkpoints:
        _note(differ, f"workflow {workflow_id}: a checkpoint that the log knows nothing of")
    if digest.hex() != marker["digest"]:
        _note(differ, f"the marker's digest is {marker['digest']}, the fold's {digest.hex()}")
    if list(fold.plans) != marker["definitions"]:
        _note(differ, f"the marker names the definitions {marker['definitions']}, the fold knows {list(fold.plans)}")
    for hash_, plan in fold.plans.items():
        if definitions.get(hash_) != plan.definition.encoded:
            _note(differ, f"definition {hash_} is not beside the checkpoints as it was registered")


async def _compare_results(
    log: Log, topics: Topics, report: PartitionReport, expected: dict[str, dict[str, Any]]
) -> None:
    found: dict[str, dict[str, Any]] = {}
    async for message in _read(log, TopicPartition(topics.results, report.partition), None, None):
        if header(message.headers, "ce_type") == _ANSWERED:
            continue
        if message.key is not None and message.value is not None:
            try:
                document = decode_object(message.value)
            except InvalidRecord as error:
                name = message.key.decode(errors="replace")
                _note(
                    report.differences,
                    f"workflow {name}: its result at offset {message.offset} cannot be read: {error}",
                )
                continue
            key = message.key.decode(errors="replace")
            if document.get("at_offset", 0) <= report.marker_offset and _is_newer(document, found.get(key)):
                found[key] = document
    for workflow_id, record in expected.items():
        other = found.pop(workflow_id, None)
        if other is None:
            _note(report.differences, f"workflow {workflow_id}: no result; the fold says {record['status']}")
        elif other != record:
            _note(report.differences, f"workflow {workflow_id}: its result differs in {_paths(other, record)}")
        else:
            report.results += 1
    for workflow_id in found:
        _note(report.differences, f"workflow {workflow_id}: a result that the log knows nothing of")


def _is_newer(result: dict[str, Any], before: dict[str, Any] | None) -> bool:
    """Whether a result is of a later run than another of the same id, or the same once more."""
    if before is None:
        return True
    one, other = ((record.get("at_offset", 0), record.get("started_ms", 0)) for record in (result, before))
    return one >= other


def _expected_rows(fold: Partition, results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    expected = dict(results)
    for workflow_id in fold.ids():
        state = fold.get(workflow_id)
        assert state is not None
        if not state.terminal:
            expected[workflow_id] = decode_object(encode(dump(state, fold.plan_of(state))))
    for key, schedule in fold.schedules.items():
        expected[key] = decode_object(encode(dump_schedule(schedule)))
    return expected


def _note(differences: list[str], line: str) -> None:
    if len(differences) < DIFFERENCES_SHOWN_MAX:
        differences.append(line)
    elif len(differences) == DIFFERENCES_SHOWN_MAX:
        differences.append("and more; only the first are listed")


def _difference(found: bytes, expected: bytes) -> str:
    try:
        document = decode_object(found)
    except InvalidRecord as error:
        return f"cannot be read: {error}"
    return f"differs in {_paths(document, decode_object(expected))}"


def _paths(found: Any, expected: Any, path: str = "") -> str:
    """The first path at which two documents differ, with both values."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            if found.get(key) != expected.get(key):
                return _paths(found.get(key), expected.get(key), f"{path}.{key}" if path else key)
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            if one != other:
                return _paths(one, other, f"{path}[{index}]")
    return f"{path}: {str(found)[:80]} where the fold says {str(expected)[:80]}"


# --- replay


@dataclass(frozen=True, slots=True)
class Step:
    """One event of a workflow and what it led to."""

    offset: int
    at_ms: int
    event: str
    data: Any
    moves: list[str]
    effects: list[str]


async def replay(
    log: Log, topics: Topics, workflow_id: str, *, against: Definition | None = None
) -> tuple[list[Step], dict[str, Any] | None]:
    """Every event of the workflow, folded again, and the state at the end (None: the log knows no such workflow).

    `against` is a changed definition: the same events are folded as if the workflow had been started with it. What no longer
    fits (a result of a step that is not asked for any more) is ignored, as it would be; moves to other definitions are left out.
    """
    partitions = await log.partitions(topics.events)
    if partitions is None:
        raise TopicsMissing(f"topic {topics.events} does not exist; make the topics with: sagalog topics create")
    key = workflow_id.encode()
    fold = Partition()
    if against is not None:
        fold.load_definition(against.encoded)
    steps: list[Step] = []
    last_result: dict[str, Any] | None = None
    effects: list[Effect] = []
    async for message in _read(log, TopicPartition(topics.events, partition_of(key, partitions)), None, None):
        # The engine's own records (definitions, owners) matter to every workflow of the partition.
        if message.key != key and not (message.key or b"").startswith(b"@"):
            continue
        own = message.key == key
        record = to_record(message)
        if own and against is not None and record.ce_type == TYPE_OF[MigrationRequested].encode():
            continue
        fold.apply(record if against is None or not own else _started_with(record, against), effects)
        mine = [effect for effect in effects if _concerns(effect, workflow_id, own)]
        effects.clear()
        if not own and not mine:
            continue
        for effect in mine:
            if isinstance(effect, Finished):
                last_result = dict(effect.result)
        steps.append(_step(message, mine))
    state = fold.get(workflow_id)
    if state is None:
        return steps, last_result
    if not state.terminal:
        return steps, dict(dump(state, fold.plan_of(state)))  # another run may have ended under the id before
    return steps, last_result or dict(dump(state, fold.plan_of(state)))


def _started_with(record: Record, definition: Definition) -> Record:
    """The record; a start names the other definition."""
    if record.ce_type != TYPE_OF[WorkflowStarted].encode():
        return record
    try:
        event = parse_event(record.ce_type, record.value)
    except InvalidRecord:
        return record
    assert isinstance(event, WorkflowStarted)
    value = encode_event(replace(event, definition=f"{definition.name}@{definition.hash}"))
    return replace(record, value=value)


def told(steps: Sequence[Step]) -> list[str]:
    """The steps as lines, for people and for comparing two replays."""
    return [line for step in steps for line in (f"{step.offset} {step.event}", *step.moves, *step.effects)]


def _concerns(effect: Effect, workflow_id: str, own: bool) -> bool:
    """Whether an effect is the workflow's. One that names no workflow is, when its event was the workflow's `own`."""
    match effect:
        case Moved():
            return effect.workflow_id == workflow_id
        case Dispatch():
            return effect.command.workflow_id == workflow_id
        case Finished():
            return effect.result["workflow_id"] == workflow_id
        case StartAnswered() | DeadLettered():
            return effect.record["workflow_id"] == workflow_id
        case ReviewNeeded() | ReviewClosed():
            return effect.record["workflow_id"] == workflow_id
        case Prioritized() | Quarantine():
            return effect.workflow_id == workflow_id
        case _:
            return own


def _step(message: Message, effects: list[Effect]) -> Step:
    record = to_record(message)
    try:
        data: Any = decode_object(message.value)
    except SagalogError as error:
        data = {"unreadable": str(error)}
    moves, others = [], []
    for effect in effects:
        match effect:
            case Moved():
                what = "workflow" if effect.step is None else f"{'undo ' if effect.undo else ''}{effect.step}"
                attempt = f" (attempt {effect.attempt})" if effect.attempt > 1 else ""
                moves.append(f"{what}: {effect.before or 'new'} -> {effect.after}{attempt}")
            case Migrated():
                moves.append(f"definition: {effect.before} -> {effect.after}")
            case Dispatch():
                others.append(f"command {effect.command.command_id} to {effect.command.agent}")
            case Finished():
                others.append(f"result {effect.result['status']}")
            case StartAnswered():
                said = effect.record
                others.append("start accepted" if said["accepted"] else f"start refused: {said.get('reason')}")
            case Prioritized():
                others.append(f"priority {effect.priority}")
            case DeadLettered():
                others.append(f"dead letter {effect.record['id']}")
            case ReviewNeeded():
                others.append(f"review: {effect.record['reason']}")
            case ReviewClosed():
                others.append(f"review decided: {effect.record.get('decided', {}).get('decision')}")
            case Quarantine():
                others.append(f"quarantine: {effect.reason}")
            case Ignored():
                others.append(f"ignored: {effect.reason}")
            case _:
                continue
    ce_type = (record.ce_type or b"?").decode(errors="replace").removeprefix("sagalog.").removesuffix(".v1")
    return Step(message.offset, message.timestamp, ce_type, data, moves, others)


# --- reading


async def records_of(
    log: Log, topics: Topics, number: int, key: bytes | None, progress: Progress | None = None
) -> AsyncIterator[Record]:
    """What the fold takes of a partition: all of it, or what concerns the workflow of that key.

    Raises LogTruncated when all is asked for and some is gone.
    """
    whole = None if key is not None else OFFSET_MAX
    async for message in _read(log, TopicPartition(topics.events, number), whole, progress):
        if key is None or message.key == key or (message.key or b"").startswith(b"@"):
            yield to_record(message)


async def _has_events(log: Log, partition: TopicPartition) -> bool:
    reader = await log.read({partition: None}, committed=False, client_id="audit")
    try:
        return (await reader.end_offsets([partition]))[partition] > 0
    finally:
        await reader.close()


async def _read(
    log: Log,
    partition: TopicPartition,
    last: int | None,
    progress: Progress | None,
    *,
    committed: bool = False,
) -> AsyncIterator[Message]:
    """A partition's records from its beginning to `last` (or to its present end)."""
    reader: Consumer = await log.read({partition: None}, committed=committed, client_id="audit")
    try:
        begin = (await reader.beginning_offsets([partition]))[partition]
        end = (await reader.end_offsets([partition]))[partition]
        if last is not None:
            if begin > 0:
                raise LogTruncated(
                    f"{partition.topic}/{partition.partition} begins at offset {begin}: what was before is deleted by retention, "
                    "so the log cannot be folded from nothing"
                )
            end = min(end, last + 1)
        while (position := await reader.position(partition)) < end:
            for messages in (await reader.poll(1_000, READ_RECORDS_MAX)).values():
                for message in messages:
                    if message.offset < end:
                        yield message
            if progress is not None:
                progress(f"{partition.topic}/{partition.partition}", min(position, end), end)
            await asyncio.sleep(0)
    finally:
        await reader.close()
