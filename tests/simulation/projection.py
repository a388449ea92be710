"""What must hold of the rows at the end of a run with projectors, beside what `verify` compares (workflows, steps, compensations).

Rule: what a row should show is folded from the log, or read from the topic that another checker has compared with the fold. Nothing
here asks the projector's batches or the merging SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from sagalog.engine.projection import rows
from sagalog.engine.projection.compare import canonical
from sagalog.engine.projection.projector import projected
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.records import MARKER_KEY
from sagalog.topics.log import Message, TopicPartition, header

if TYPE_CHECKING:
    from .checkers import Evidence

Tables = dict[str, list[dict[str, Any]]]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)
_JSON: Final = frozenset({"input", "details", "failures", "candidates", "policy", "definitions"})


def rows_are_what_the_log_says(evidence: Evidence) -> list[str]:
    """The rows of everything but workflows, which `verify` has compared; of workflows, that none is missing and none too many."""
    tables = evidence.tables
    if tables is None:
        return []
    problems = _workflows(evidence, tables)
    partitions = range(evidence.plan.partitions)
    letters = [
        rows.dead_letter_row(_written(record), partition)
        for partition, refold in enumerate(evidence.refolds)
        for record in refold.letters.values()
    ]
    reviews = [
        row for partition, refold in enumerate(evidence.refolds) for row in _reviews(refold.review_effects, partition)
    ]
    problems += _compare("dead_letter", letters, tables, "id")
    problems += _compare("review", reviews, tables, "id")
    problems += _compare("circuit", _circuits(evidence, partitions), tables, "service")
    problems += _compare("marker", _markers(evidence, partitions), tables, "topic", "partition")
    problems += _compare("agent_health", _health(evidence), tables, "agent")
    found = {row["hash"]: canonical(row["document"]) for row in tables["definition"]}
    wanted = {hash_: canonical(orjson.loads(known.encoded)) for hash_, known in evidence.definitions.items()}
    problems += [
        f"definition {hash_} is not as it was registered" for hash_ in wanted if found.get(hash_) != wanted[hash_]
    ]
    problems += [f"definition {hash_}: nobody registered it" for hash_ in found.keys() - wanted.keys()]
    return problems


def positions_are_at_the_end(evidence: Evidence) -> list[str]:
    """Every projected partition has been read to its end, and no further."""
    if evidence.tables is None:
        return []
    problems = []
    positions = {(row["topic"], row["partition"]): row["next_offset"] for row in evidence.tables["position"]}
    for topic in projected(evidence.topics):
        partition = 0
        while (log := evidence.kafka.partition(TopicPartition(topic, partition))) is not None:
            records = evidence.kafka.records(topic, partition)
            position = positions.get((topic, partition), -1)
            if not (records[-1].offset + 1 if records else 0) <= position <= log.end:
                problems.append(f"{topic}/{partition}: its position is {position}, the log ends at {log.end}")
            partition += 1
    return problems


def no_row_steps_back(evidence: Evidence) -> list[str]:
    """Of all the changes that were committed in the whole run, none put an older record in the place of a newer one."""
    return [row["what"] for row in (evidence.tables or {}).get("stepped_back", [])]


def what_cannot_be_projected_is_in_quarantine(evidence: Evidence) -> list[str]:
    if evidence.tables is None:
        return []
    there = {_key(message) for message in evidence.kafka.records(evidence.topics.quarantine, 0)}
    origins = [
        f"{message.topic}/{message.partition}/{message.offset}"
        for message in evidence.kafka.records(evidence.topics.health, 0)
        if _is_garbage(message)
    ]
    return [f"{origin} could not be projected, and is not in quarantine" for origin in origins if origin not in there]


# --- what the rows should be


def _workflows(evidence: Evidence, tables: Tables) -> list[str]:
    problems = []
    for report in evidence.reports:
        if report.rows_behind or report.rows_newer:
            problems.append(
                f"partition {report.partition}: {report.rows_behind} workflows are behind the log or have no row, "
                f"{report.rows_newer} are ahead of it"
            )
    known = {workflow_id for refold in evidence.refolds for workflow_id in refold.workflows}
    there = {row["workflow_id"] for row in tables["workflow"]}
    problems += [
        f"workflow {workflow_id}: a row that the log knows nothing of" for workflow_id in sorted(there - known)
    ]
    for table in ("step", "compensation"):
        orphans = {row["workflow_id"] for row in tables[table]} - there
        problems += [f"{table}: rows of {workflow_id}, which has none itself" for workflow_id in sorted(orphans)]
    return problems


def _reviews(effects: Iterable[tuple[bool, Mapping[str, Any]]], partition: int) -> list[rows.ReviewRow]:
    """(whether it opens, record) in the log's order: the last says how it stands, the last that opens what is asked."""
    asked: dict[str, Mapping[str, Any]] = {}
    last: dict[str, Mapping[str, Any]] = {}
    for opens, record in effects:
        if opens:
            asked[record["id"]] = record
        last[record["id"]] = record
    found = []
    for review_id, record in last.items():
        row = rows.review_row(_written(record), partition)
        opened = rows.review_row(_written(asked[review_id]), partition)
        found.append(
            opened._replace(
                at_offset=row.at_offset,
                rank=row.rank,
                decided_ms=row.decided_ms,
                decision=row.decision,
                decided_by=row.decided_by,
                decided_reason=row.decided_reason,
            )
        )
    return found


def _circuits(evidence: Evidence, partitions: Iterable[int]) -> list[rows.CircuitRow]:
    found: dict[str, rows.CircuitRow] = {}
    for partition in partitions:
        for message in _of(evidence, evidence.topics.circuits, partition):
            if not _key(message).startswith("@"):
                found[_key(message)] = rows.circuit_row(decode_object(message.value), partition)
    return list(found.values())


def _markers(evidence: Evidence, partitions: Iterable[int]) -> list[rows.MarkerRow]:
    found: dict[tuple[str, int], rows.MarkerRow] = {}
    for topic in (evidence.topics.checkpoints, evidence.topics.circuits):
        for partition in partitions:
            for message in _of(evidence, topic, partition):
                if _key(message) == MARKER_KEY:
                    found[topic, partition] = rows.marker_row(topic, partition, decode_object(message.value))
    return list(found.values())


def _health(evidence: Evidence) -> list[rows.HealthRow]:
    found: dict[str, rows.HealthRow] = {}
    for message in evidence.kafka.records(evidence.topics.health, 0):
        agent = rows.without_nul(_key(message))
        if message.value is None:
            found.pop(agent, None)
        elif not _is_garbage(message):
            found[agent] = rows.health_row(rows.without_nul(decode_object(message.value)))
    return list(found.values())


def _written(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the fold as its reader has it."""
    return decode_object(encode(record))


def _of(evidence: Evidence, topic: str, partition: int) -> Iterable[Message]:
    there = evidence.kafka.partition(TopicPartition(topic, partition)) is not None
    return evidence.kafka.records(topic, partition) if there else ()


# --- comparing


def _compare(table: str, wanted: Iterable[NamedTuple], tables: Tables, *key: str) -> list[str]:
    expected = {tuple(getattr(row, name) for name in key): _plain(row._asdict()) for row in wanted}
    found = {tuple(row[name] for name in key): row for row in tables[table]}
    problems = [f"{table} {'/'.join(map(str, missing))} has no row" for missing in expected.keys() - found.keys()]
    problems += [f"{table} {'/'.join(map(str, more))}: nobody asked for it" for more in found.keys() - expected.keys()]
    for name, row in expected.items():
        have = found.get(name, row)
        for column, value in row.items() if have is not row else ():
            stored = _stored(have, column)
            if stored != value:
                problems.append(
                    f"{table} {'/'.join(map(str, name))}.{column}: is {str(stored)[:200]} where {str(value)[:200]} is expected"
                )
    return sorted(problems)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: canonical(orjson.loads(value) if name in _JSON and value is not None else value)
        for name, value in row.items()
    }


def _stored(row: Mapping[str, Any], column: str) -> Any:
    """A column of a row as the database has it; times are milliseconds in what is expected."""
    base = column.removesuffix("_ms")
    if column in row or base == column:
        return canonical(row[column])
    value = row[base if base in row else f"{base}_at"]
    return None if value is None else (value - _EPOCH + _MS / 2) // _MS


def _key(message: Message) -> str:
    return (message.key or b"").decode(errors="replace")


def _is_garbage(message: Message) -> bool:
    return (header(message.headers, "ce_id") or b"").startswith(b"garbage-")
