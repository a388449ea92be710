"""Health, end to end: what an engine's process answers while it works, and when a partition cannot be taken over."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sagalog.engine.runtime.engine import Engine
from sagalog.engine.runtime.health import PartitionHealth
from sagalog.engine.runtime.limits import STUCK_MS
from sagalog.engine.runtime.processor import Phase
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Out, TopicPartition
from sagalog.topics.partitioner import partition_of
from sagalog.topics.specs import Topics

from ..commands import Place, until
from ..conftest import PARTITIONS as EVENTS_PARTITIONS
from ..conftest import SESSION_TIMEOUT_MS, Stack
from .system import System, eventually

pytestmark = pytest.mark.stack

PARTITIONS = 2
STUCK_S_MAX = 10.0
START_S_MAX = 30.0
STOP_S_MAX = 15.0

IDLE = {"name": "idle", "steps": [{"name": "one", "agent": "nobody", "start_timeout_ms": 3_600_000}]}


def place_of(stack: Stack, directory: Path, **more: str) -> Place:
    (directory / "idle.json").write_text(json.dumps(IDLE))
    return Place(
        directory,
        {
            "SAGALOG_BOOTSTRAP": stack.bootstrap,
            "SAGALOG_POSTGRES": stack.postgres,
            "SAGALOG_PREFIX": f"t{uuid.uuid4().hex[:10]}",
            "SAGALOG_PARTITIONS": str(PARTITIONS),
            "SAGALOG_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
            "SAGALOG_METRICS_PORT": "0",
            **more,
        },
    )


@contextmanager
def running(place: Place, *arguments: str) -> Iterator[str]:
    """A process, and where it answers."""
    process = place.run(*arguments)
    try:
        found = until(
            lambda: re.search(r"metrics of the .*: (http://127\.0\.0\.1:[0-9]+)", place.said(arguments[0])),
            START_S_MAX,
            lambda: place.said(arguments[0]),
        )
        yield found[1]
        assert process.poll() is None, place.said(arguments[0])
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def get(address: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until_ready(address: str, what: str) -> Any:
    return until(
        lambda: (got := get(f"{address}/readyz"))[0] == 200 and got[1], START_S_MAX, lambda: f"{what} is ready"
    )


def test_an_engine_says_that_it_is_ready_and_which_partition_it_cannot_take_over(stack: Stack, tmp_path: Path) -> None:
    place = place_of(stack, tmp_path)
    with running(place, "engine") as address:
        body = until_ready(address, "the engine")
        assert {f"{place.topics.events}/{number}" for number in range(PARTITIONS)} < {
            found["partition"] for found in body["partitions"]
        }
        assert {found["phase"] for found in body["partitions"]} == {"live"}
        place.done("definitions", "register", "idle.json")
        place.done("start", "idle", "--id", "w1")
        applied = until(lambda: _applied(address, place, "w1"), START_S_MAX, lambda: "the start is applied")
        assert applied["lag_records"] == 0
        assert get(f"{address}/livez") == (200, {"ok": True, "problems": []})
    damaged = f"{place.topics.events}/{partition_of(b'w1', PARTITIONS)}"
    asyncio.run(_lose_a_checkpoint(stack, place, "w1"))

    with running(place, "engine") as address:

        def stuck() -> list[Any]:
            code, body = get(f"{address}/readyz")
            found = [problem for problem in body["problems"] if problem.get("since_s", 0) >= 5]
            return found if code == 503 and "partition" in (found or [{}])[0] else []

        (problem,) = until(stuck, START_S_MAX, lambda: place.said("engine"))
        assert problem["partition"] == damaged
        assert "it failed: " in problem["why"] and "marker" in problem["why"]
        assert get(f"{address}/livez")[0] == 200, "a restart would not help"
        warning = until(
            lambda: re.search(r"WARNING .*: (\S+) is stuck, for ([0-9.]+) s now: (.*)", place.said("engine")),
            START_S_MAX,
            lambda: place.said("engine"),
        )
        assert warning[1] == damaged
        assert float(warning[2]) < STUCK_S_MAX
        others = {found["partition"]: found["phase"] for found in get(f"{address}/readyz")[1]["partitions"]}
        assert {phase for partition, phase in others.items() if partition != damaged} == {"live"}
        with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        topic, _, number = damaged.partition("/")
        still = re.search(
            rf'sagalog_partition_stuck_seconds\{{partition="{number}",topic="{re.escape(topic)}"\}} (\S+)', metrics
        )
        assert still is not None and float(still[1]) >= 5


def _applied(address: str, place: Place, workflow_id: str) -> Any:
    """The workflow's partition, once all that is known of it is applied."""
    name = f"{place.topics.events}/{partition_of(workflow_id.encode(), PARTITIONS)}"
    for found in get(f"{address}/readyz")[1]["partitions"]:
        if found["partition"] == name and found["end_offset"] is not None and found["end_offset"] >= 3:
            return found
    return None


async def test_an_engine_tells_of_what_it_is_to_own_and_not_of_what_it_stands_by_for(
    log: KafkaLog, provisioned: Topics
) -> None:
    async with System(log, provisioned) as system:
        one, two = await system.engine("one"), await system.engine("two")
        everything = {TopicPartition(provisioned.events, number) for number in range(EVENTS_PARTITIONS)}

        def told(engine: Engine) -> set[TopicPartition]:
            return {found.partition for found in engine.health.partitions() if found.partition in everything}

        def settled() -> bool:
            assert one.session is not None and two.session is not None
            followed = sum(
                processor.phase is Phase.STANDBY
                for engine in (one.session, two.session)
                for at, processor in engine.processors.items()
                if at in everything
            )
            shared = bool(told(one) and told(two)) and not told(one) & told(two)
            return shared and followed == EVENTS_PARTITIONS and one.health.ready().ok and two.health.ready().ok

        await eventually(settled, 30, "the engines do not share the partitions")
        assert told(one) | told(two) == everything


async def test_the_markers_of_another_writers_transactions_are_no_lag(log: KafkaLog, provisioned: Topics) -> None:
    """They stand at the end of the log, and are records to nobody."""
    async with System(log, provisioned) as system:
        engine = await system.engine()
        await eventually(engine.health.partitions, 10, "it has not looked yet")
        at = TopicPartition(provisioned.events, 0)
        other = await log.transactional(f"{provisioned.prefix}-other")
        try:
            await other.transact({at: [Out(b"w1", b"not an event")]})
        finally:
            await other.close()

        def found() -> PartitionHealth:
            return next(found for found in engine.health.partitions() if found.partition == at)

        await eventually(lambda: (found().end_offset or 0) > found().applied_offset + 1, 10, "the marker is not seen")
        assert found().lag_records == 0
        await asyncio.sleep(2 * STUCK_MS / 1000)
        assert (found().lag_records, engine.health.ready().ok) == (0, True)


async def _lose_a_checkpoint(stack: Stack, place: Place, workflow_id: str) -> None:
    log = KafkaLog(stack.bootstrap)
    try:
        producer = await log.producer("vandal")
        key = workflow_id.encode()
        await producer.append(place.topics.checkpoints, partition_of(key, PARTITIONS), [Out(key, None)])
        await producer.close()
    finally:
        await log.close()


def test_a_start_is_refused_with_an_exit_code_of_its_own_while_no_engine_works(stack: Stack, tmp_path: Path) -> None:
    place = place_of(stack, tmp_path, SAGALOG_PARTITIONS="1", SAGALOG_START_LAG_RECORDS_MAX="1")
    with running(place, "engine") as address:
        until_ready(address, "the engine")
        place.done("definitions", "register", "idle.json")
        place.done("start", "idle")
    place.done("start", "idle")
    place.done("start", "idle")
    refused = place.sagalog("start", "idle")
    assert refused.code == 6
    assert "2 records behind on partition 0" in refused.one_sentence()

    with running(place, "engine"):
        ended = place.sagalog("start", "idle", "--wait-when-overloaded", "60")
        assert ended.code == 0


def test_an_agent_host_and_a_projector_say_that_they_are_ready(stack: Stack, tmp_path: Path) -> None:
    place = place_of(stack, tmp_path)
    place.done("topics", "create")
    for arguments in (("project",), ("agent", "sagalog.agents.invoices.saga:agents")):
        with running(place, *arguments) as address:
            assert until_ready(address, arguments[0]) == {"ok": True, "problems": []}
            assert get(f"{address}/livez") == (200, {"ok": True, "problems": []})
