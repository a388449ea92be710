"""Commands as the host reads them, answers as it writes and remembers them: the quick ways give what the general ones give."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from prometheus_client import CollectorRegistry, Histogram
from pydantic import TypeAdapter, ValidationError

from sagalog.agents import answers
from sagalog.agents.memory import Answers
from sagalog.agents.metrics import Durations
from sagalog.agents.testing import command
from sagalog.schemas import commands
from sagalog.schemas.commands import Command, Withheld, encode_command, parse_command
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import FailureKind, StepCompleted, encode_event
from sagalog.schemas.ids import Direction

FULL: dict[str, Any] = orjson.loads(encode_command(command("worker", {"a": [1, None]}))) | {
    "heartbeat_timeout_ms": 5_000,
    "deadline_ms": 1_700_000_000_000,
    "service": "bank",
}
WITHHELD = {"reason": "ramp", "since_ms": 1, "ms": 2, "service": None}
ODD: tuple[Any, ...] = (None, True, 0, -1, 2**62, 1.0, 1.5, "", "1", "x", "execute", "compensate", [], {}, WITHHELD)

VALIDATOR = TypeAdapter(Command)


def validated(document: dict[str, Any]) -> Command | str:
    """What the validator alone says."""
    try:
        return VALIDATOR.validate_python({"input": None} | document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def parsed(document: dict[str, Any]) -> Command | str:
    try:
        return parse_command(orjson.dumps(document))
    except InvalidRecord as error:
        return str(error)


@pytest.mark.parametrize("field", [*FULL, "withheld", "unknown"])
def test_a_command_is_accepted_and_refused_as_by_the_validator(field: str) -> None:
    without = {name: value for name, value in FULL.items() if name != field}
    documents = [without, *({**without, field: value} for value in ODD)]
    assert [parsed(document) for document in documents] == [validated(document) for document in documents]


def test_commands_as_the_engine_writes_them_need_no_validator(monkeypatch: pytest.MonkeyPatch) -> None:
    written = [
        command("worker"),
        command("worker", {"a": 1}, direction=Direction.COMPENSATE, heartbeat_timeout_ms=1),
        parse_command(orjson.dumps(FULL)),
    ]

    def refuse(*_: Any) -> None:
        raise AssertionError("the validator was asked")

    monkeypatch.setattr(commands, "_validated", refuse)
    assert [parse_command(encode_command(one)) for one in written] == written


def test_a_command_that_was_withheld_keeps_why() -> None:
    found = parse_command(orjson.dumps({**FULL, "withheld": WITHHELD}))
    assert found.withheld == Withheld("ramp", 1, 2)


@pytest.mark.parametrize("output", [None, orjson.Fragment(b'{"a":1}')])
@pytest.mark.parametrize("direction", list(Direction))
def test_a_completed_answer_is_the_event_of_the_contract(output: Any, direction: Direction) -> None:
    done = command("worker", direction=direction, attempt=3)
    event = StepCompleted(done.step, done.attempt, done.direction, done.token, output, done.agent, 7)
    assert answers.completed(done, b"agent/worker", None, output, 7).value == encode_event(event)


@pytest.mark.parametrize("trace", [None, b"00-trace"])
def test_an_answer_that_was_kept_is_the_same_again(trace: bytes | None) -> None:
    done, source = command("worker"), b"agent/worker"
    for out in (
        answers.completed(done, source, trace, orjson.Fragment(b"1"), 7),
        answers.failed(done, source, trace, FailureKind.TERMINAL, "no"),
    ):
        assert answers.again(answers.kept(out, trace), done, source) == out


def test_answers_are_remembered_up_to_a_number_and_a_size_the_oldest_forgotten_first() -> None:
    remembered = Answers(count_max=2, bytes_max=10)

    def known() -> list[str]:
        return [name for name in "abcd" if remembered.get(name) is not None]

    for name, size, left in (
        ("a", 6, ["a"]),
        ("b", 2, ["a", "b"]),
        ("a", 5, ["a", "b"]),
        ("c", 1, ["a", "c"]),
        ("d", 9, ["c", "d"]),
        ("a", 10, ["a"]),
    ):
        remembered.add(name, (b"x" * size, False, None))
        assert known() == left
    assert remembered.get("a") == (b"x" * 10, False, None)


def test_many_equal_observations_count_as_if_made_one_by_one() -> None:
    registries = CollectorRegistry(), CollectorRegistry()
    buckets = (0.001, 0.005, 0.02)
    at_once = Durations("took_seconds", "x", ["agent"], buckets=buckets, registry=registries[0]).labels("a")
    singly = Histogram("took_seconds", "x", ["agent"], buckets=buckets, registry=registries[1]).labels("a")
    for amount, times in ((0.0, 3), (0.001, 1), (0.002, 4), (0.02, 2), (5.0, 1)):
        at_once.observe_times(amount, times)
        for _ in range(times):
            singly.observe(amount)
    found, wanted = (
        {
            (sample.name, sample.labels.get("le")): sample.value
            for metric in registry.collect()
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }
        for registry in registries
    )
    assert found == pytest.approx(wanted)
