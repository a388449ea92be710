"""Whatever the bytes, the fold does not raise: a record that cannot be read or folded is quarantined, and the partition goes on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.engine.kernel import Partition, attempts
from sagalog.engine.kernel.effects import Effect, Ignored, Quarantine
from sagalog.schemas.codec import encode
from sagalog.schemas.definitions import parse_definition
from sagalog.schemas.events import (
    KINDS,
    TYPE_OF,
    Action,
    DefinitionRegistered,
    Owned,
    StepCompleted,
    WorkflowStarted,
)
from sagalog.schemas.limits import EVENT_DEPTH_MAX

from .driver import WORKFLOW, Driver, chain, commands, ignored, result, reviews, saga, shown, step

KEY = WORKFLOW.encode()
STARTED = TYPE_OF[WorkflowStarted].encode()
COMPLETED = TYPE_OF[StepCompleted].encode()


def nested(depth: int) -> bytes:
    return b'{"definition":"saga","input":' + b"[" * depth + b"]" * depth + b"}"


UNREADABLE: dict[str, tuple[bytes | None, bytes | None, bytes | None, str]] = {
    "no_type": (KEY, b"{}", None, "ce_type: is missing"),
    "unknown_type": (KEY, b"{}", b"sagalog.nothing.v1", "ce_type: b'sagalog.nothing.v1' is unknown"),
    "type_of_bytes": (KEY, b"{}", b"\xff\x00" * 500, "ce_type: "),
    "no_value": (KEY, None, STARTED, "value: is empty"),
    "empty_value": (KEY, b"", STARTED, "value: is not JSON"),
    "not_json": (KEY, b"{nope", STARTED, "value: is not JSON"),
    "not_utf8": (KEY, b'{"definition":"\xff"}', STARTED, "value: is not JSON"),
    "half_a_surrogate": (KEY, b'{"definition":"\\ud800"}', STARTED, "value: is not JSON"),
    "cut_off": (KEY, b'{"definition":"saga"', STARTED, "value: is not JSON"),
    "not_an_object": (KEY, b"[1]", STARTED, "value: is a JSON list"),
    "null": (KEY, b"null", STARTED, "value: is a JSON NoneType"),
    "too_deep": (KEY, nested(EVENT_DEPTH_MAX), STARTED, "value: is nested deeper than 70"),
    "much_too_deep": (KEY, nested(10_000), STARTED, "value: is nested deeper than 70"),
    "wide_integer": (KEY, b'{"definition":"saga","input":' + b"9" * 30 + b"}", STARTED, "value: holds the integer 999"),
    "infinity": (KEY, b'{"definition":"saga","input":1e999}', STARTED, "value: is not JSON"),
    "field_missing": (KEY, b"{}", STARTED, "definition: "),
    "field_of_a_wrong_type": (KEY, b'{"definition":7}', STARTED, "definition: "),
    "attempt_is_text": (
        KEY,
        b'{"step":"a","attempt":"x","direction":"execute","token":"t"}',
        COMPLETED,
        "attempt: ",
    ),
    "unknown_direction": (KEY, b'{"step":"a","attempt":1,"direction":"up","token":"t"}', COMPLETED, "direction: "),
    "key_missing": (None, b'{"definition":"saga"}', STARTED, "key: is missing"),
    "key_not_utf8": (b"\xff\xfe", b'{"definition":"saga"}', STARTED, "key: is not UTF-8"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_record_that_cannot_be_read_is_quarantined_and_changes_nothing(case: str) -> None:
    key, value, ce_type, reason = UNREADABLE[case]
    driver = Driver(chain("a"))
    driver.start("saga")
    before = driver.everything()

    (effect,) = driver.append_raw(key, value, ce_type)

    assert isinstance(effect, Quarantine)
    assert (effect.stage, effect.workflow_id) == ("decode", WORKFLOW if key == KEY else None)
    assert effect.reason.startswith(reason)
    assert driver.everything() == before
    assert driver.partition.offset == len(driver.log) - 1


def test_the_deepest_event_is_read_and_its_checkpoint_can_be_written_and_read() -> None:
    driver = Driver(chain("a"), round_trip=True)

    # One level is the event's own object.
    effects = driver.append_raw(KEY, nested(EVENT_DEPTH_MAX - 1), STARTED)

    assert shown(effects)[-1] == "send a/1/execute"
    assert driver.state.status == "running"


@pytest.mark.parametrize("attempt", [b'"1"', b"1.0", b"true"])
def test_a_number_is_a_number(attempt: bytes) -> None:
    driver = Driver(chain("a"))
    driver.start("saga")

    value = b'{"step":"a","attempt":' + attempt + b',"direction":"execute","token":"t"}'

    assert shown(driver.append_raw(KEY, value, COMPLETED)) == ["quarantine decode"]


@pytest.mark.parametrize(
    "definition", [{}, {"name": "x", "steps": []}, {"name": "X", "steps": [{"name": "a", "agent": "a"}]}]
)
def test_a_definition_that_cannot_run_is_quarantined(definition: dict[str, Any]) -> None:
    driver = Driver()
    before = driver.everything()

    (effect,) = driver.append(DefinitionRegistered(definition), key=b"@definition")

    assert isinstance(effect, Quarantine)
    assert effect.reason.startswith("definition: ")
    assert driver.everything() == before


def test_a_definition_that_is_accepted_can_be_registered() -> None:
    value: Any = 1
    for _ in range(60):
        value = [value]
    document = {"name": "x", "steps": [{"name": "a", "agent": "a", "input": {"value": value}}]}
    parse_definition(document)

    assert shown(Driver().append(DefinitionRegistered(document), key=b"@definition")) == ["definition known"]


# --- a quarantined event stops its workflow


@pytest.mark.parametrize("stage", ["waiting", "running", "compensating"])
def test_a_quarantined_event_stops_its_workflow_and_asks_for_a_person(stage: str) -> None:
    driver = Driver() if stage == "waiting" else Driver(chain("a", "b", retry={"attempts": 1}))
    driver.start("saga", "in")
    if stage == "compensating":
        driver.done("a")
        driver.fail("b")

    effects = driver.stop()

    assert shown(effects) == [f"workflow {stage} -> quarantined by record_quarantined", "review -/quarantined"]
    (case,) = reviews(effects)
    assert (case["kind"], case["reason"], case["input"], "step" in case) == ("quarantined", "not JSON", "in", False)
    assert driver.state.stopped == "not JSON"
    assert driver.partition.waiting == set()
    assert driver.wait(10**12) == []


def test_a_stopped_workflow_does_not_start_when_its_definition_arrives() -> None:
    driver = Driver()
    driver.start("saga")
    driver.stop()

    assert shown(driver.register(chain("a"))) == ["definition known"]


def test_the_checkpoint_of_a_stopped_start_does_not_change_when_its_definition_arrives() -> None:
    definition = chain("a")
    driver = Driver()
    driver.start(f"saga@{definition.hash}")
    driver.stop()
    before = driver.dumps()

    driver.register(definition)

    assert driver.dumps() == before


# --- a record that breaks the fold


def test_a_record_that_breaks_the_fold_stops_its_workflow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    driver.start("saga", workflow_id="wf-2")
    others = driver.dumps()["wf-2"]

    def breaks(state: Any, plan: Any, step: Any, *rest: Any) -> None:
        step.output = "half done"
        raise ZeroDivisionError("by nothing")

    with monkeypatch.context() as patch:
        patch.setattr(attempts, "end_step", breaks)
        effects = driver.done("a", "out")
        after = driver.done("a")

    # What was about to follow is rolled back; the state may be half done, so nothing more follows from it.
    assert shown(effects) == [
        "quarantine fold",
        "workflow running -> quarantined by record_quarantined",
        "review -/quarantined",
    ]
    assert isinstance(effects[0], Quarantine)
    assert effects[0].workflow_id == WORKFLOW
    assert effects[0].reason == "StepCompleted broke the fold: ZeroDivisionError: by nothing"
    assert driver.state.stopped == effects[0].reason
    assert WORKFLOW in driver.partition.touched
    assert ignored(after) == "stopped"
    # The rest of the partition goes on.
    assert driver.dumps()["wf-2"] == others
    assert shown(driver.done("a", workflow_id="wf-2"))[-1] == "send wf-2/b/1/execute"


def test_effects_of_earlier_records_are_not_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(chain("a"))
    driver.start("saga")
    effects: list[Effect] = [Ignored("earlier", "x")]  # type: ignore[arg-type]
    record = driver.log[-1]

    def breaks(*_: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(attempts, "failed", breaks)
    driver.fail("a")
    failed = driver.log[-1]
    again = Driver(chain("a"))
    again.start("saga")
    again.partition.apply(failed, effects)

    assert shown(effects)[0] == "ignored earlier"
    assert shown(effects)[1] == "quarantine fold"
    assert record.offset < failed.offset


def test_a_start_that_breaks_the_fold_leaves_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(chain("a"))

    def breaks(*_: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr("sagalog.engine.kernel.starts.begin", breaks)

    assert shown(driver.start("saga")) == ["quarantine fold"]
    assert driver.dumps() == {}


def test_a_start_that_breaks_when_its_definition_arrives_does_not_touch_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sagalog.engine.kernel import starts

    driver = Driver()
    driver.start("saga", workflow_id="good")
    driver.start("saga", workflow_id="poor")
    arrived = starts.definition_arrived

    def breaks(state: Any, *rest: Any) -> None:
        if state.workflow_id == "poor":
            raise ValueError("no")
        arrived(state, *rest)

    monkeypatch.setattr(starts, "definition_arrived", breaks)
    effects = driver.register(chain("a"))

    good = driver.partition.get("good")
    assert good is not None
    assert (good.status == "running") == ("send good/a/1/execute" in shown(effects))


# --- bytes of every kind

TYPES = st.sampled_from([name.encode() for name in KINDS])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({name for kind in KINDS.values() for name in kind.__slots__})
WORDS = st.sampled_from(
    ["a", "b", "saga", "execute", "compensate", "retry", "deadline", "forget", "terminal", "lost", "", "z"]
)


def _dumped(document: Any) -> bytes:
    try:
        return encode(document)
    except TypeError:  # an integer that no JSON of ours can hold
        return repr(document).encode(errors="replace")


VALUES = (
    st.none()
    | st.binary(max_size=60)
    | JSON.map(_dumped)
    | st.dictionaries(st.sampled_from(FIELDS), JSON | WORDS | st.integers(0, 3), max_size=9).map(_dumped)
)
KEYS = (
    st.none() | st.binary(max_size=20) | st.sampled_from([KEY, b"wf-2", b"@owner", b"@definition", b"@schedule/a", b""])
)
RAW = st.tuples(KEYS, VALUES, TYPES | st.none() | st.binary(max_size=30))


@given(st.lists(RAW, min_size=1, max_size=12))
def test_no_bytes_make_the_fold_raise(records: list[tuple[bytes | None, bytes | None, bytes | None]]) -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")

    for key, value, ce_type in records:
        effects = driver.append_raw(key, value, ce_type)
        assert not [effect for effect in effects if isinstance(effect, Quarantine) and effect.stage == "fold"]

    # Whatever came: the checkpoints can be written, and folding the log again gives the same.
    again = Driver()
    again.partition = Partition()
    for record in driver.log:
        again.apply(record)
    assert again.everything() == driver.everything()


@given(
    st.dictionaries(
        st.sampled_from(["name", "steps", "input_schema", "services", "deadline_ms", "output"]), JSON, max_size=6
    )
)
def test_no_definition_makes_the_fold_raise(definition: dict[str, Any]) -> None:
    driver = Driver()
    document = {"name": "x", "steps": [{"name": "a", "agent": "a"}], **definition}
    value = _dumped({"definition": document})

    effects = driver.append_raw(b"@definition", value, TYPE_OF[DefinitionRegistered].encode())

    assert shown(effects) in (["quarantine decode"], ["definition known"])


def test_a_claim_in_the_middle_of_rubbish_counts() -> None:
    driver = Driver(saga(step("a")))
    driver.append_raw(None, b"\x00", None)

    assert shown(driver.append(Owned(2, "next"), key=b"@owner")) == ["owner 2 next"]


def test_a_workflow_that_broke_while_steps_were_begun_goes_on_once_it_is_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What holds within one event only must not be left behind: nothing would begin any more, or nothing of the map."""
    each = {"map": {"over": {"value": [1, 2]}, "concurrency": 1}}
    driver = Driver(saga(step("a"), step("b", "a"), step("each", "a", **each)))
    driver.start("saga")

    def breaks(*_: Any) -> None:
        raise ZeroDivisionError("by nothing")

    with monkeypatch.context() as patch:
        patch.setattr("sagalog.engine.kernel.progress.execute_dispatch", breaks)
        driver.done("a", "out")
    assert driver.state.status == "quarantined"

    resumed = driver.act(Action.RESUME)

    # What was about to be sent when it broke is sent again; whatever had not begun begins.
    sent = commands(resumed)
    assert set(sent) >= {"b/1/execute"} and any(one.startswith("each[0]") for one in sent)
    for done in ("b", "each[0]"):
        driver.done(done)
    assert result(driver.done("each[1]"))["status"] == "completed"
