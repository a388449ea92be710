"""Bad input at every door: refused at the client with the field named; written to the topic anyway, it is rejected or
quarantined, and the partition goes on. Every case is counted."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sagalog.engine.client import UnknownDefinition
from sagalog.engine.runtime.engine import Engine
from sagalog.schemas.definitions import Definition, Step
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import FailureKind
from sagalog.schemas.limits import PAYLOAD_BYTES_MAX
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

from ..conftest import PARTITIONS
from .system import Failure, System, eventually

STARTED = b"sagalog.workflow-started.v1"
COMPLETED = b"sagalog.step-completed.v1"

FORM = Definition(
    name="form",
    steps=(Step(name="only", agent="worker"),),
    input_schema={
        "type": "object",
        "properties": {"amount": {"type": "integer"}},
        "required": ["amount"],
    },
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"definition": "nothing"}, UnknownDefinition, r"definition: 'nothing' is not registered \(known: form\)"),
        ({"input": {"amount": "much"}}, InvalidRecord, r"^input\.amount: "),
        ({"input": {}}, InvalidRecord, r'^input: "amount" is a required property'),
        ({"workflow_id": "x" * 256}, InvalidRecord, r"^workflow_id: is 256 bytes; 1 to 255"),
        ({"workflow_id": ""}, InvalidRecord, r"^workflow_id: is 0 bytes"),
        ({"workflow_id": "@mine"}, InvalidRecord, r"^workflow_id: '@mine' starts with '@'"),
        (
            {"input": {"amount": 1, "more": "x" * PAYLOAD_BYTES_MAX}},
            InvalidRecord,
            r"^input: is 262,\d+ bytes, more than",
        ),
        ({"input": {"amount": 10**30}}, InvalidRecord, r"^input: cannot be written as JSON"),
        ({"deadline_ms": 1}, InvalidRecord, r"^deadline_ms: 1 is not within"),
        ({"correlation_id": "x" * 256}, InvalidRecord, r"^correlation_id: is 256 characters"),
    ],
)
async def test_the_client_refuses_what_cannot_run(
    log: KafkaLog, provisioned: Topics, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(FORM)
        call = {"definition": "form", "input": {"amount": 1}, **arguments}
        with pytest.raises(error, match=message):
            await system.client.start(call.pop("definition"), call.pop("input"), **call)
        ends = await system.read(provisioned.events, PARTITIONS)
        assert STARTED not in {dict(record.headers).get("ce_type") for record in ends}


async def test_starts_that_another_client_wrote_are_rejected_with_the_reason(
    log: KafkaLog, provisioned: Topics
) -> None:
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "unknown": ({"definition": "nothing", "input": {}}, "definition: 'nothing' is not registered"),
        "misfit": ({"definition": "form", "input": {"amount": "much"}}, "input.amount: "),
        "large": ({"definition": "form", "input": {"amount": 1, "x": "x" * 300_000}}, "input: the start is 300,"),
        "i" * 300: ({"definition": "form", "input": {"amount": 1}}, "workflow_id: is 300 bytes"),
    }
    async with System(log, provisioned) as system:
        await system.client.register(FORM)
        await system.engine()
        for workflow_id, (value, _) in cases.items():
            key = workflow_id.encode()
            await system.write(key, json.dumps(value).encode(), STARTED, partition_of(key, PARTITIONS))
        for workflow_id, (_, reason) in cases.items():
            result = await system.client.wait(workflow_id, timeout_s=30)
            assert result["status"] == "rejected"
            assert result["failure"]["message"].startswith(reason)


POISON: dict[str, tuple[bytes | None, bytes | None, bytes | None]] = {
    "not JSON": (b"victim", b"\xff{", COMPLETED),
    "unknown type": (b"victim", b"{}", b"sagalog.no-such-thing.v1"),
    "no type": (b"victim", b"{}", None),
    "type is garbage": (b"victim", b"{}", b"\xff\x00\xfe"),
    "too deep": (b"victim", b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", COMPLETED),
    "integer of 30 digits": (b"victim", b'{"a":' + b"9" * 30 + b"}", COMPLETED),
    "fields of the wrong type": (b"victim", b'{"step":1,"attempt":"x","direction":"up","token":[]}', COMPLETED),
    "no value": (b"victim", None, COMPLETED),
    "no key": (None, b'{"definition":"form","input":{"amount":1}}', STARTED),
    "key is not UTF-8": (b"\xff\xfe", b'{"definition":"form","input":{"amount":1}}', STARTED),
}


async def test_records_that_cannot_be_read_are_quarantined_with_their_origin_and_the_partition_goes_on(
    log: KafkaLog, provisioned: Topics
) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(FORM)
        engine = await system.engine()
        await system.agent("worker", lambda command: {"ok": True})
        for key, value, ce_type in POISON.values():
            if key is None and value is None:
                continue
            await system.write(key, value, ce_type, partition=0)
        await eventually(lambda: _quarantined(system, len(POISON)), 20, "not all are quarantined")
        found = [json.loads(record.value) for record in await system.read(provisioned.quarantine)]
        assert {record["origin"].rsplit("/", 1)[0] for record in found} == {f"{provisioned.events}/0"}
        assert all(record["stage"] == "decode" and record["reason"] for record in found)
        values = [base64.b64decode(record["value"]) if record["value"] is not None else None for record in found]
        assert values == [value[:65_536] if value is not None else None for _, value, _ in POISON.values()]
        assert engine.metrics.quarantined.labels("decode")._value.get() == len(POISON)
        beside = [f"f{n}" for n in range(100) if partition_of(f"f{n}".encode(), PARTITIONS) == 0][:5]
        started = [await system.client.start("form", {"amount": 1}, workflow_id=found) for found in beside]
        results = await system.client.wait_all(started, timeout_s=20)
        assert {result["status"] for result in results.values()} == {"completed"}


async def _quarantined(system: System, count: int) -> bool:
    return len(await system.read(system.topics.quarantine)) >= count


async def test_a_workflow_with_an_unreadable_record_stops_and_asks_for_a_person(
    log: KafkaLog, provisioned: Topics
) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(FORM)
        engine = await system.engine()
        key = b"victim"
        await system.client.start("form", {"amount": 1}, workflow_id="victim")
        await system.write(key, b"garbage", COMPLETED, partition_of(key, PARTITIONS))
        await eventually(lambda: _reviewed(system), 20, "no review")
        (review,) = [json.loads(record.value) for record in await system.read(provisioned.reviews, PARTITIONS)]
        assert (review["workflow_id"], review["kind"]) == ("victim", "quarantined")
        assert "is not JSON" in review["reason"]
        await eventually(lambda: _status(engine, "victim") == "quarantined", 10, "not stopped")


async def _reviewed(system: System) -> bool:
    return len(await system.read(system.topics.reviews, PARTITIONS)) == 1


def _status(engine: Engine, workflow_id: str) -> str | None:
    assert engine.session is not None
    for processor in engine.session.processors.values():
        fold = getattr(processor.machine, "fold_state", None)
        state = fold.get(workflow_id) if fold is not None else None
        if state is not None:
            return str(state.status)
    return None


async def test_a_result_with_a_forged_token_is_not_believed(log: KafkaLog, provisioned: Topics) -> None:
    def answer(command: Any) -> Any:
        if command.attempt == 1:
            command.token = "0" * 18
            return {"forged": True}
        return {"forged": False}

    quick = Definition(name="quick", steps=(Step(name="only", agent="worker", timeout_ms=100, start_timeout_ms=100),))
    async with System(log, provisioned) as system:
        await system.client.register(quick)
        engine = await system.engine()
        await system.agent("worker", answer)
        started = await system.client.start("quick", {})
        result = await system.client.wait(started, timeout_s=30)
        assert result["output"] == {"only": {"forged": False}}
        assert [failure["kind"] for failure in result["steps"][0]["failures"]] == ["lost"]
        ignored = engine.metrics.registry.get_sample_value("sagalog_events_ignored_total", {"reason": "wrong_token"})
        assert ignored == 1


async def test_a_failure_with_a_reason_reaches_the_person_who_decides(log: KafkaLog, provisioned: Topics) -> None:
    async with System(log, provisioned) as system:
        await system.client.register(FORM)
        await system.engine()
        await system.agent(
            "worker", lambda command: Failure(FailureKind.REVIEW_NEEDED, "the total differs", details={"total": 3})
        )
        started = await system.client.start("form", {"amount": 1})
        result = await system.client.wait(started, timeout_s=20)
        assert result["status"] == "review"
        (review,) = [json.loads(record.value) for record in await system.read(provisioned.reviews, PARTITIONS)]
        assert (review["reason"], review["details"], review["input"]) == (
            "the total differs",
            {"total": 3},
            {"amount": 1},
        )
