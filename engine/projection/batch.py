"""A batch: what the records of a poll amount to, one row per key, ready to be merged into the tables.

Rules:
- Records of one key are folded here by the same rule as in SQL (`workflow_merge`, `review_merge`): the newer offset wins, at
  one offset the later run of the id, then the higher rank. PostgreSQL refuses two rows of one key in one statement.
- A tombstone of a checkpoint changes nothing: the engine forgets a finished workflow's id after a week, people do not. Its
  row came from `results` and goes when an operator deletes it, or with a rebuild after its result has expired.
- A finished workflow's stub has no steps. It never takes away what a checkpoint or the result brought.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sagalog.schemas.codec import decode_object
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.records import DEFINITION_KEY, LEASE_KEY, MARKER_KEY, SCHEDULE_KEY, TYPE_START_ANSWERED
from sagalog.topics.log import Message, TopicPartition, header
from sagalog.topics.specs import Topics

from . import rows
from .rows import CompensationRow, Rank, StepRow, WorkflowRow

_ANSWERED: Final = TYPE_START_ANSWERED.encode()


class Table(NamedTuple):
    """A table, its columns in staging, and the queries that merge them."""

    name: str
    columns: Sequence[str]
    merges: Sequence[str]


WORKFLOW: Final = Table(
    "workflow",
    WorkflowRow._fields,
    ("workflow_lock_earlier_run", "workflow_forget_earlier_run", "workflow_merge"),
)
STEP: Final = Table("step", StepRow._fields, ("step_forget_removed", "step_merge"))
COMPENSATION: Final = Table("compensation", CompensationRow._fields, ("compensation_merge",))
CIRCUIT: Final = Table("circuit", rows.CircuitRow._fields, ("circuit_merge",))
REVIEW: Final = Table("review", rows.ReviewRow._fields, ("review_merge",))
DEAD_LETTER: Final = Table("dead_letter", rows.DeadLetterRow._fields, ("dead_letter_merge",))
DEFINITION: Final = Table("definition", rows.DefinitionRow._fields, ("definition_merge",))
AGENT_HEALTH: Final = Table("agent_health", rows.HealthRow._fields, ("agent_health_merge",))
SCHEDULE: Final = Table("schedule", rows.ScheduleRow._fields, ("schedule_merge",))
MARKER: Final = Table("marker", rows.MarkerRow._fields, ("marker_merge",))


@dataclass(slots=True)
class Rejected:
    """A record that cannot be projected."""

    message: Message
    reason: str


class _Workflow(NamedTuple):
    row: WorkflowRow
    steps: list[StepRow]
    compensations: list[CompensationRow]


@dataclass(slots=True)
class Batch:
    """Made for one transaction. `next` is where each partition is read on afterwards."""

    topics: Topics
    next: dict[TopicPartition, int] = field(default_factory=dict)
    records: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    altered: list[Message] = field(default_factory=list)
    """Records with NULs, which are U+FFFD now."""
    unknown_keys: int = 0
    forgotten_circuits: set[str] = field(default_factory=set)
    forgotten_health: set[str] = field(default_factory=set)
    forgotten_schedules: set[str] = field(default_factory=set)
    _workflows: dict[str, _Workflow] = field(default_factory=dict)
    _circuits: dict[str, rows.CircuitRow] = field(default_factory=dict)
    _reviews: dict[str, rows.ReviewRow] = field(default_factory=dict)
    _dead_letters: dict[str, rows.DeadLetterRow] = field(default_factory=dict)
    _definitions: dict[str, rows.DefinitionRow] = field(default_factory=dict)
    _health: dict[str, rows.HealthRow] = field(default_factory=dict)
    _schedules: dict[str, rows.ScheduleRow] = field(default_factory=dict)
    _markers: dict[tuple[str, int], rows.MarkerRow] = field(default_factory=dict)

    def add(self, message: Message) -> None:
        """Takes a record in; one that does not fit is in `rejected` afterwards."""
        self.next[TopicPartition(message.topic, message.partition)] = message.offset + 1
        self.records += 1
        try:
            self._add(message)
        except InvalidRecord as error:
            self.rejected.append(Rejected(message, str(error)))

    def skip(self, message: Message, reason: str) -> None:
        """Leaves a record out that the database refused; the position passes it all the same."""
        self.next[TopicPartition(message.topic, message.partition)] = message.offset + 1
        self.records += 1
        self.rejected.append(Rejected(message, reason))

    def staged(self) -> Iterable[tuple[Table, Sequence[Sequence[object]]]]:
        """The rows per table, in the order in which they must be merged; tables without rows are left out."""
        workflows = self._workflows.values()
        found: list[tuple[Table, Sequence[Sequence[object]]]] = [
            (WORKFLOW, [workflow.row for workflow in workflows]),
            (STEP, [row for workflow in workflows for row in workflow.steps]),
            (COMPENSATION, [row for workflow in workflows for row in workflow.compensations]),
            (CIRCUIT, list(self._circuits.values())),
            (REVIEW, list(self._reviews.values())),
            (DEAD_LETTER, list(self._dead_letters.values())),
            (DEFINITION, list(self._definitions.values())),
            (AGENT_HEALTH, list(self._health.values())),
            (SCHEDULE, list(self._schedules.values())),
            (MARKER, list(self._markers.values())),
        ]
        return [(table, staged) for table, staged in found if staged]

    # --- topics

    def _add(self, message: Message) -> None:
        topic, partition, topics = message.topic, message.partition, self.topics
        if topic == topics.checkpoints:
            self._checkpoint(message)
        elif topic == topics.results:
            if header(message.headers, "ce_type") == _ANSWERED:
                return  # whether a start counted is its starter's business
            record = self._decoded(message)
            self._workflow(rows.result_id(record), record, partition)
        elif topic == topics.circuits:
            self._circuit(message)
        elif topic == topics.reviews:
            review = rows.review_row(self._decoded(message), partition)
            before = self._reviews.get(review.id)
            self._reviews[review.id] = review if before is None else rows.merge_reviews(before, review)
        elif topic == topics.dead_letters:
            letter = rows.dead_letter_row(self._decoded(message), partition)
            _keep_newer(self._dead_letters, letter.id, letter, letter.at_offset)
        elif topic == topics.health:
            self._agent_health(message)
        elif topic == topics.definitions:
            self._definition(message, self._key(message))
        else:
            raise AssertionError(f"{topic} is not projected")

    def _checkpoint(self, message: Message) -> None:
        key = self._key(message)
        if key[0] == "@":
            self._engine_key(message, key)
        elif message.value is not None:
            self._workflow(key, self._decoded(message), message.partition)

    def _engine_key(self, message: Message, key: str) -> None:
        if key == MARKER_KEY:
            row = rows.marker_row(message.topic, message.partition, self._decoded(message))
            _keep_newer(self._markers, (row.topic, row.partition), row, row.at_offset)
        elif key.startswith(DEFINITION_KEY):
            self._definition(message, key.removeprefix(DEFINITION_KEY))
        elif key.startswith(SCHEDULE_KEY):
            self._schedule(message, key.removeprefix(SCHEDULE_KEY))
        elif not key.startswith(LEASE_KEY):
            # A newer engine's own; it is no workflow in any case.
            self.unknown_keys += 1

    def _definition(self, message: Message, hash_: str) -> None:
        # A definition that was taken back is still that of the workflows that run on it.
        if message.value is not None and hash_ not in self._definitions:
            self._definitions[hash_] = rows.definition_row(hash_, self._decoded(message))

    def _schedule(self, message: Message, name: str) -> None:
        if message.value is None:
            self._schedules.pop(name, None)
            self.forgotten_schedules.add(name)
        else:
            row = rows.schedule_row(self._decoded(message), message.partition)
            self.forgotten_schedules.discard(row.name)
            _keep_newer(self._schedules, row.name, row, row.at_offset)

    def _circuit(self, message: Message) -> None:
        key = self._key(message)
        if key[0] == "@":
            self._engine_key(message, key)
        elif message.value is None:
            self._circuits.pop(key, None)
            self.forgotten_circuits.add(key)
        else:
            row = rows.circuit_row(self._decoded(message), message.partition)
            self.forgotten_circuits.discard(row.service)
            _keep_newer(self._circuits, row.service, row, row.at_offset)

    def _agent_health(self, message: Message) -> None:
        if message.value is None:
            agent = self._key(message)
            self._health.pop(agent, None)
            self.forgotten_health.add(agent)
        else:
            row = rows.health_row(self._decoded(message))
            self.forgotten_health.discard(row.agent)
            before = self._health.get(row.agent)
            if before is None or row.at_ms >= before.at_ms:
                self._health[row.agent] = row

    def _workflow(self, workflow_id: str, record: Mapping[str, Any], partition: int) -> None:
        row = rows.workflow_row(workflow_id, record, partition)
        before = self._workflows.get(workflow_id)
        if before is not None and _order(row) < _order(before.row):
            return
        if row.rank == Rank.STUB and before is not None and before.row.started_ms == row.started_ms:
            self._workflows[workflow_id] = before._replace(row=_fill(row, before.row))
        else:
            self._workflows[workflow_id] = _Workflow(
                row, rows.step_rows(workflow_id, record), rows.compensation_rows(workflow_id, record)
            )

    # --- keys and values

    def _key(self, message: Message) -> str:
        if not message.key:
            raise InvalidRecord("key", "is missing; every record of this topic has one")
        try:
            key = message.key.decode()
        except UnicodeDecodeError as error:
            raise InvalidRecord("key", f"is not UTF-8 ({error.reason} at byte {error.start})") from None
        return key.replace("\0", rows.REPLACEMENT)

    def _decoded(self, message: Message) -> dict[str, Any]:
        document = decode_object(message.value)
        if message.value is not None and rows.holds_nul(message.value):
            cleaned: dict[str, Any] = rows.without_nul(document)
            if cleaned != document:
                self.altered.append(message)
            return cleaned
        return document


def _order(row: WorkflowRow) -> tuple[int, int, int]:
    """Which of two rows of one id counts: the higher. In one event one run may end and the next begin, always later."""
    return row.at_offset, row.started_ms, row.rank


def _fill(stub: WorkflowRow, before: WorkflowRow) -> WorkflowRow:
    """A stub with what the record before it in the batch said: what `workflow_merge` does with the row in the table."""
    return stub._replace(
        rank=int(Rank.STUB if before.rank == Rank.STUB else Rank.FILLED_STUB),
        deadline_ms=before.deadline_ms,
        completeness=before.completeness,
        stopped=before.stopped,
        input=before.input,
        output=before.output,
        missing=before.missing,
        failure=before.failure,
        usage=before.usage,
        tenant=before.tenant,
        priority=before.priority,
        attributes=before.attributes,
        migrated=before.migrated,
        forked_from=before.forked_from,
        rewinds=before.rewinds,
    )


def _keep_newer(kept: dict[Any, Any], key: Any, row: Any, at_offset: int) -> None:
    before = kept.get(key)
    if before is None or at_offset >= before.at_offset:
        kept[key] = row
