"""Ids, events, commands and heartbeats: what is legal, and that what is written is read back the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from sagalog.schemas import ids
from sagalog.schemas.codec import encode
from sagalog.schemas.commands import (
    Command,
    Heartbeat,
    Withheld,
    encode_command,
    encode_heartbeat,
    parse_command,
    parse_heartbeat,
)
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import (
    KINDS,
    TYPE_OF,
    Action,
    ActionRequested,
    AttemptLost,
    AttemptRefused,
    CancelRequested,
    ChildEnded,
    Decision,
    DefinitionRegistered,
    Event,
    FailureKind,
    Forked,
    Gap,
    MigrationRequested,
    OnDuplicate,
    Overlap,
    Owned,
    Parent,
    ParentEnded,
    Quarantined,
    RewindRequested,
    ScheduleActed,
    ScheduleAction,
    ScheduleDue,
    ScheduleRemoved,
    ScheduleSet,
    SignalReceived,
    StepCompleted,
    StepDecided,
    StepFailed,
    Timer,
    TimerFired,
    UndoRequested,
    WorkflowStarted,
    encode_event,
    parse_event,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.statuses import TERMINAL, WorkflowStatus

EXECUTE, COMPENSATE = Direction.EXECUTE, Direction.COMPENSATE

# --- ids


@pytest.mark.parametrize("name", ["a", "a" * 63, "a-b_c9"])
def test_a_name_is_returned(name: str) -> None:
    assert ids.check_name(name, "agent") == name


@pytest.mark.parametrize("name", ["", "A", "1a", "-a", "_a", "a" * 64, "a b", "a.b", "ä", "a/b", "a@b"])
def test_what_is_no_name_is_refused_with_its_field(name: str) -> None:
    with pytest.raises(InvalidRecord) as raised:
        ids.check_name(name, "agent")

    assert raised.value.field == "agent"
    assert repr(name) in str(raised.value)


def test_a_name_does_not_end_in_a_newline() -> None:
    with pytest.raises(InvalidRecord):
        ids.check_name("a\n", "agent")


@pytest.mark.parametrize("workflow_id", ["x", "x" * 255, "ü" * 127, "a@b/c d", "订单", "é\u2028"])
def test_a_workflow_id_is_returned(workflow_id: str) -> None:
    assert ids.check_workflow_id(workflow_id) == workflow_id


@pytest.mark.parametrize(
    ("workflow_id", "problem"),
    [
        ("", "is 0 bytes"),
        ("x" * 256, "is 256 bytes"),
        ("ü" * 128, "is 256 bytes"),
        ("@x", "starts with '@'"),
        ("a\x00", "control characters"),
        ("a\n", "control characters"),
        ("a\x7f", "control characters"),
        ("a\ud800", "surrogate"),
    ],
)
def test_what_is_no_workflow_id_is_refused_with_the_reason(workflow_id: str, problem: str) -> None:
    with pytest.raises(InvalidRecord) as raised:
        ids.check_workflow_id(workflow_id, "id")

    assert raised.value.field == "id"
    assert problem in raised.value.problem


def test_ids_of_effects_are_made_of_what_they_belong_to() -> None:
    assert ids.command_id("w/1", "pay", 3, COMPENSATE) == "w/1/pay/3/compensate"
    assert ids.idempotency_key("w/1", "pay") == "w/1/pay"
    assert ids.command_id("w/1", "pay[2]", 3, COMPENSATE, 17) == "w/1/pay[2]/3@17/compensate"
    assert ids.idempotency_key("w/1", "pay[2]", 17) == "w/1/pay[2]@17"


def test_the_id_of_a_start_does_not_change_and_is_no_token_of_its_seed() -> None:
    assert ids.start_id("seed") == "1369c4bc43080aee"
    assert ids.start_id("seed") not in ids.token("seed", "")


def test_a_token_depends_on_seed_and_command_and_never_changes() -> None:
    # Golden: a running workflow's tokens must survive a new version.
    assert ids.token("seed", "w/pay/1/execute") == "6582e6980c898a810b"
    assert ids.fraction("seed", "w/pay/1/execute") == 0.6563193884515206
    assert len({ids.token(seed, cmd) for seed in ("a", "b", "") for cmd in ("c", "d", "")}) == 9


@given(st.text(max_size=100, alphabet=st.characters(exclude_categories=["Cs"])), st.text(max_size=50))
def test_chance_stays_within_its_bounds(seed: str, command: str) -> None:
    command = command.encode(errors="replace").decode()

    assert 0.0 <= ids.fraction(seed, command) < 1.0
    assert len(ids.token(seed, command)) == 18


# --- events

EVENTS: list[Event] = [
    WorkflowStarted("saga@0123", {"a": [1, None]}, 50, "c"),
    WorkflowStarted("saga"),
    WorkflowStarted("saga", parent=Parent("p", "r", 1, "a", 1, "t", 5, None)),
    ChildEnded("a", 1, EXECUTE, "t", "c", WorkflowStatus.DEGRADED, [1], None, "m", 3, 4),
    ChildEnded("a", 1, COMPENSATE, "t", "c", WorkflowStatus.FAILED, kind=FailureKind.TERMINAL),
    UndoRequested("p", 1, "t", "why"),
    ParentEnded("p"),
    ParentEnded("p", terminate=True),
    WorkflowStarted("saga", 1, None, None, "acme", 0, {"n": 1, "no": False}, OnDuplicate.REPLACE),
    StepCompleted("a", 1, EXECUTE, "t", {"x": None}, "agent", 12),
    StepCompleted("a", 1, COMPENSATE, "t"),
    StepFailed("a", 2, EXECUTE, "t", FailureKind.TIMEOUT, "m", "Type", {"d": 1}, 5, "agent", 7),
    StepFailed("a", 2, COMPENSATE, "t", FailureKind.TERMINAL, ""),
    CancelRequested("why", "who"),
    SignalReceived("paid", {"x": None}, "bank"),
    SignalReceived("paid"),
    ActionRequested(Action.PAUSE, "why", "who"),
    ActionRequested(Action.PRIORITIZE, "why", "who", 0),
    StepDecided("a", Decision.APPROVE, "who", "why", {"x": None}),
    StepDecided("a", Decision.SKIP, "who", "", None, COMPENSATE),
    MigrationRequested("saga@0123", "who", "why"),
    ScheduleSet("saga@0123", "0 9 * * *", "Europe/Berlin", "who", 5, {"x": None}, Overlap.ALLOW, 60_000, 7, True),
    ScheduleSet("saga", "0 9 * * *", "UTC", "who"),
    ScheduleActed(ScheduleAction.TRIGGER, "why", "who"),
    ScheduleRemoved("why", "who"),
    ScheduleDue(3, (5, 6), 7),
    ScheduleDue(3, (5,), problem="zone"),
    WorkflowStarted(
        "saga", forked=Forked("w", 3, {"a": 1}, ["a"], {"a": Gap("why", "lost")}, "w/a/1/execute", "who", "why")
    ),
    RewindRequested("a", "who", "why"),
    RewindRequested("a", "who", "why", True, "w/a/1/execute"),
    TimerFired(1, Timer.RETRY, "a", 2),
    TimerFired(1, Timer.FORGET),
    AttemptLost(3, "a", 1, COMPENSATE, "gone"),
    AttemptRefused(3, "a", 1, "bank"),
    AttemptLost(3, "a", 1, EXECUTE, "gone", run=17),
    AttemptRefused(3, "a", 1, "bank", True, 17),
    TimerFired(1, Timer.WAKE, "a", 1, 17),
    Quarantined(4, "t/0/1", "reason"),
    DefinitionRegistered({"name": "x", "steps": []}),
    Owned(5, "member"),
]


def test_every_kind_has_an_example() -> None:
    assert {type(event) for event in EVENTS} == set(KINDS.values())
    assert {kind: name for name, kind in KINDS.items()} == TYPE_OF


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_is_read_back_as_it_was_written(event: Event) -> None:
    assert parse_event(TYPE_OF[type(event)].encode(), encode_event(event)) == event


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_field_that_is_none_is_left_out(event: Event) -> None:
    assert b"null" not in encode_event(event).replace(b'{"x":null}', b"").replace(b"[1,null]", b"")


def test_an_event_with_a_field_that_this_version_does_not_know_is_read() -> None:
    assert parse_event(b"sagalog.cancel-requested.v1", b'{"reason":"r","who":"w","later":1}') == CancelRequested(
        "r", "w"
    )


@pytest.mark.parametrize(
    ("ce_type", "problem"),
    [
        (
            b"sagalog.step-completed.v2",
            "b'sagalog.step-completed.v2' is newer than version 1, the newest known here: written by a newer sagalog; "
            "upgrade the engine, then resume the workflow",
        ),
        (
            b"sagalog.step-nothing.v1",
            "b'sagalog.step-nothing.v1' is unknown here, as a kind of event that a newer sagalog has would be; "
            "upgrade the engine, then resume the workflow",
        ),
        (b"sagalog.step-completed.v0", "b'sagalog.step-completed.v0' is unknown; known are "),
        (b"sagalog.step-completed.v1.v2", "b'sagalog.step-completed.v1.v2' is unknown; known are "),
        (b"sagalog.step-completed.v9999999", "b'sagalog.step-completed.v9999999' is unknown; known are "),
        (b"other.step-completed.v2", "b'other.step-completed.v2' is unknown; known are "),
        (b"\xff", "b'\\xff' is unknown; known are "),
    ],
)
def test_what_a_newer_version_wrote_is_told_from_garbage(ce_type: bytes, problem: str) -> None:
    with pytest.raises(InvalidRecord) as raised:
        parse_event(ce_type, b"{}")

    assert raised.value.field == "ce_type"
    assert raised.value.problem.startswith(problem)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_missing_field_is_named(event: Event) -> None:
    required = next(iter(type(event).__slots__))

    with pytest.raises(InvalidRecord) as raised:
        parse_event(TYPE_OF[type(event)].encode(), b"{}")
    assert raised.value.field == required


@pytest.mark.parametrize(
    ("ce_type", "field"),
    [(None, "ce_type"), (b"", "ce_type"), (b"sagalog.owned", "ce_type"), (b"sagalog.owned.v1", "epoch")],
)
def test_an_event_without_its_type_is_refused(ce_type: bytes | None, field: str) -> None:
    with pytest.raises(InvalidRecord) as raised:
        parse_event(ce_type, b'{"epoch":"x","member":"m"}')
    assert raised.value.field == field


@given(st.sampled_from([name.encode() for name in KINDS]), st.binary(max_size=80))
def test_no_bytes_raise_anything_but_invalid_record(ce_type: bytes, value: bytes) -> None:
    try:
        parse_event(ce_type, value)
    except InvalidRecord as error:
        assert error.field


# --- commands and heartbeats

COMMANDS = [
    Command("w/a/1/execute", "w", "hash", "a", "agent", 1, EXECUTE, "t", "w/a", {"x": None}, 1_000),
    Command("w/a/1/execute", "w", "hash", "a", "agent", 1, EXECUTE, "t", "w/a", None, 1_000),
    Command(
        command_id="w/a/2/compensate",
        workflow_id="w",
        definition="hash",
        step="a",
        agent="agent",
        attempt=2,
        direction=COMPENSATE,
        token="t",
        idempotency_key="w/a",
        input=[1],
        timeout_ms=10,
        heartbeat_timeout_ms=5,
        deadline_ms=99,
        service="bank",
        withheld=Withheld("circuit_open", 5, 10, "bank"),
    ),
    Command("w/a/1@17/execute", "w", "hash", "a", "agent", 1, EXECUTE, "t", "w/a@17", None, 1_000, priority=0),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_read_back_as_it_was_written(command: Command) -> None:
    assert parse_command(encode_command(command)) == command


@pytest.mark.parametrize("progress", [None, 0.5, {"page": 3}])
def test_a_heartbeat_is_read_back_as_it_was_written(progress: Any) -> None:
    heartbeat = Heartbeat("w", "a", 1, EXECUTE, "agent", progress)

    assert parse_heartbeat(encode_heartbeat(heartbeat)) == heartbeat


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"attempt": "x"}, "attempt"),
        ({"direction": "up"}, "direction"),
        ({"token": None}, "token"),
        ({"withheld": 1}, "withheld"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_a_command_that_does_not_fit_is_refused_with_its_field(change: dict[str, Any], field: str) -> None:
    document = {slot: getattr(COMMANDS[2], slot) for slot in Command.__slots__} | change

    with pytest.raises(InvalidRecord) as raised:
        parse_command(encode(document))
    assert raised.value.field.split(".")[0] == field


def test_a_command_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidRecord, match="value: "):
        parse_command(b"[]")
    with pytest.raises(InvalidRecord, match="value: "):
        parse_command(None)


def test_the_deepest_legal_input_can_be_compensated() -> None:
    value: Any = 1
    for _ in range(63):
        value = [value]
    started = parse_event(b"sagalog.workflow-started.v1", encode_event(WorkflowStarted("saga", value)))
    assert isinstance(started, WorkflowStarted)

    command = Command(
        "w/a/1/compensate", "w", "h", "a", "a", 1, COMPENSATE, "t", "w/a", {"input": started.input, "output": None}, 10
    )

    assert parse_command(encode_command(command)) == command


# --- statuses


def test_a_workflow_is_over_or_it_is_not() -> None:
    assert set(WorkflowStatus) - TERMINAL == {"waiting", "running", "rewinding", "compensating", "quarantined"}


# --- the short way of reading a result

_ODD = st.sampled_from([None, True, 1, 2.0, "execute", "compensate", "x", [], {}])
_FIELDS = ("step", "attempt", "direction", "token", "output", "agent", "duration_ms", "another")
_RESULT: dict[str, Any] = {"step": "ocr", "attempt": 1, "direction": "execute", "token": "t"}


@given(st.dictionaries(st.sampled_from(_FIELDS), _ODD, max_size=3), st.sets(st.sampled_from(_FIELDS), max_size=1))
def test_a_result_is_read_as_the_validator_reads_it(odd: dict[str, Any], missing: set[str]) -> None:
    document = {name: value for name, value in {**_RESULT, **odd}.items() if name not in missing}
    validator: TypeAdapter[StepCompleted] = TypeAdapter(StepCompleted)
    try:
        expected: StepCompleted | None = validator.validate_python(document)
    except ValidationError:
        expected = None

    try:
        found: Event | None = parse_event(TYPE_OF[StepCompleted].encode(), encode(document))
    except InvalidRecord:
        found = None

    assert found == expected
    if isinstance(found, StepCompleted):
        assert type(found.direction) is Direction and type(found.attempt) is int
