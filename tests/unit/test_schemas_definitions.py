"""Definitions: what cannot run is refused with its place and its remedy, and a content's hash never changes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sagalog.engine.testing import SagaTest
from sagalog.schemas import limits
from sagalog.schemas.codec import encode
from sagalog.schemas.conditions import Key
from sagalog.schemas.definitions import (
    CircuitPolicy,
    Compensation,
    Definition,
    Fallback,
    FromInput,
    FromStep,
    Limit,
    Rate,
    Retry,
    SchemaValidator,
    Sleep,
    Step,
    Value,
    WhenOpen,
    fields,
    from_input,
    from_step,
    parse_definition,
)
from sagalog.schemas.errors import InvalidDefinition, InvalidRecord


def document(*steps: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "saga", "steps": [{"agent": step["name"], **step} for step in steps], **more}


A = {"name": "a"}
B = {"name": "b", "needs": ["a"]}
CLOSED = {
    "type": "object",
    "properties": {"b": {"$ref": "#/$defs/b"}},
    "additionalProperties": False,
    "$defs": {"b": {"type": "object", "properties": {"c": {}}, "additionalProperties": False}},
}
FLAT = {"type": "object", "properties": {"b": {}}, "additionalProperties": False}
REMOTE = {"$ref": "http://example.org/schema.json"}

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    # the graph
    "two_steps_of_one_name": (document(A, A), "steps.a", "twice; give each step its own name"),
    "a_need_that_is_no_step": (
        document({"name": "a", "needs": ["z"]}),
        "steps.a.needs",
        "names 'z', which is no step; the steps are ['a']",
    ),
    "a_cycle": (
        document(
            {"name": "a", "needs": ["c"]}, {"name": "b", "needs": ["a"]}, {"name": "c", "needs": ["b"]}, {"name": "d"}
        ),
        "steps",
        "cycle: ['a', 'b', 'c']; remove one of the needs",
    ),
    "a_step_that_needs_itself": (document({"name": "a", "needs": ["a"]}), "steps", "cycle: ['a']"),
    # bindings
    "an_input_of_a_step_that_is_not_needed": (
        document(A, {"name": "b", "input": {"step": "a"}}),
        "steps.b.input",
        "takes the output of 'a', which need not have ended by then; add it to needs",
    ),
    "an_input_of_the_step_itself": (document({"name": "a", "input": {"step": "a"}}), "steps.a.input", "'a'"),
    "an_input_of_a_later_step": (document({"name": "a", "input": {"step": "b"}}, B), "steps.a.input", "'b'"),
    "an_input_of_no_step": (document({"name": "a", "input": {"step": "z"}}), "steps.a.input", "'z'"),
    "a_field_of_a_field": (
        document(A, {"name": "b", "input": {"fields": {"x": {"fields": {"y": {"step": "a"}}}}}}),
        "steps.b.input.x.y",
        "add it to needs",
    ),
    "a_compensations_input": (
        document(A, {"name": "b", "compensate": {"input": {"fields": {"x": {"step": "a"}}}}}),
        "steps.b.compensate.input.x",
        "add it to needs",
    ),
    "an_output_of_no_step": (document(A, output={"fields": {"x": {"step": "z"}}}), "output.x", "'z'"),
    # policies
    "fail_without_a_service": (
        document({"name": "a", "when_open": "fail"}),
        "steps.a.when_open",
        "is fail, but the step names no service; add one",
    ),
    "fall_back_without_a_service": (
        document({"name": "a", "when_open": "fall_back", "fallback": {"value": 1}}),
        "steps.a.when_open",
        "names no service",
    ),
    "fall_back_without_a_fallback": (
        document({"name": "a", "when_open": "fall_back", "service": "bank"}),
        "steps.a.when_open",
        "is fall_back, but the step has no fallback for that; add one",
    ),
    "a_default_of_a_critical_step": (
        document({"name": "a", "default": 0}),
        "steps.a.default",
        "never used by a critical step; set critical to false or drop it",
    ),
    "a_service_that_no_step_uses": (
        document(A, services={"bank": {}}),
        "services.bank",
        "used by no step; name it in a step's service or drop it",
    ),
    # schemas
    "an_input_schema_that_is_none": (document(A, input_schema={"type": 5}), "input_schema", "is not a JSON Schema"),
    "an_output_schema_that_is_none": (
        document({"name": "a", "output_schema": {"pattern": "("}}),
        "steps.a.output_schema",
        "is not a JSON Schema",
    ),
    "a_schema_from_elsewhere": (
        document(A, input_schema=REMOTE),
        "input_schema",
        "only references inside the schema are allowed",
    ),
    "a_schema_that_points_nowhere": (
        document(A, input_schema={"$ref": "#/$defs/x"}),
        "input_schema",
        "is not a JSON Schema",
    ),
    # bindings that cannot fit the schemas
    "a_path_that_the_input_does_not_have": (
        document({"name": "a", "input": {"fields": {"x": {"input": "b.z"}}}}, input_schema=CLOSED),
        "steps.a.input.x",
        "takes 'b.z' of the input, and by its schema b has no field 'z'; it has c; correct the path, or the schema",
    ),
    "a_path_into_a_text": (
        document({"name": "a", "output_schema": {"type": "string"}}, output={"step": "a", "path": "number"}),
        "output",
        "takes 'number' of the output of 'a', and by its schema it is a text and has no parts",
    ),
    "a_path_that_a_form_does_not_have": (
        document(
            {"name": "a", "agent": None, "task": {"title": "?", "timeout_ms": 10, "form": CLOSED}},
            {"name": "b", "needs": ["a"], "compensate": {"input": {"step": "a", "path": "z"}}},
        ),
        "steps.b.compensate.input",
        "has no field 'z'; it has b",
    ),
    "a_path_that_a_signal_does_not_have": (
        document(
            {"name": "a", "agent": None, "wait_for": {"signal": "s", "timeout_ms": 10, "payload_schema": CLOSED}},
            {"name": "b", "agent": None, "needs": ["a"], "sleep": {"until": {"step": "a", "path": "z"}}},
        ),
        "steps.b.sleep.until",
        "has no field 'z'; it has b",
    ),
    "a_path_that_an_item_does_not_have": (
        document(
            {"name": "a", "map": {"over": {"input": "list"}}, "input": {"item": "z"}},
            input_schema={"properties": {"list": {"type": "array", "items": FLAT}}},
        ),
        "steps.a.input",
        "takes 'z' of the item, and by its schema it has no field 'z'; it has b",
    ),
    "a_map_over_what_is_no_list": (
        document({"name": "a", "map": {"over": {"input": "b"}}}, input_schema=CLOSED),
        "steps.a.map.over",
        "takes an object, and only a list has items; bind a list",
    ),
    "what_a_round_does_not_have": (
        document({"name": "a", "repeat": {"until": "steps.a", "rounds_max": 2}, "input": {"item": "rounds"}}),
        "steps.a.input",
        "takes 'rounds' of the item, and by its schema it has no field 'rounds'; it has round, previous",
    ),
    # shapes
    "no_name": ({"steps": [{"name": "a", "agent": "a"}]}, "name", "required"),
    "no_steps": ({"name": "saga"}, "steps", "required"),
    "an_empty_list_of_steps": (document(), "steps", "at least 1"),
    "too_many_steps": (document(*({"name": f"s{n}"} for n in range(limits.STEPS_MAX + 1))), "steps", "at most 100"),
    "too_many_needs": (document({"name": "a", "needs": ["b"] * 51}), "steps.0.needs", "at most 50"),
    "a_name_in_capitals": (document({"name": "A"}), "steps.0.name", "match pattern"),
    "a_name_with_a_newline": (document({"name": "a\n"}), "steps.0.name", "match pattern"),
    "an_agent_that_is_no_name": (document({"name": "a", "agent": "my agent"}), "steps.0.agent", "match pattern"),
    "an_unknown_field": (document({"name": "a", "retires": 3}), "steps.0.retires", "not permitted"),
    "no_attempts": (
        document({"name": "a", "retry": {"attempts": 0}}),
        "steps.0.retry.attempts",
        "greater than or equal to 1",
    ),
    "too_many_attempts": (
        document({"name": "a", "retry": {"attempts": 101}}),
        "steps.0.retry.attempts",
        "less than or equal to 100",
    ),
    "a_shrinking_back_off": (
        document({"name": "a", "retry": {"factor": 0.5}}),
        "steps.0.retry.factor",
        "greater than or equal to 1",
    ),
    "an_endless_timeout": (
        document({"name": "a", "timeout_ms": limits.TIMEOUT_MS_MAX + 1}),
        "steps.0.timeout_ms",
        "less than or equal to",
    ),
    "a_timeout_of_nothing": (
        document({"name": "a", "timeout_ms": 0}),
        "steps.0.timeout_ms",
        "greater than or equal to 10",
    ),
    "a_deadline_of_nothing": (document(A, deadline_ms=0), "deadline_ms", "greater than or equal to 10"),
    "a_ratio_of_nothing": (
        document({"name": "a", "service": "s"}, services={"s": {"failure_ratio": 0}}),
        "services.s.failure_ratio",
        "greater than 0",
    ),
    "an_unknown_policy": (
        document({"name": "a", "when_open": "hope"}),
        "steps.0.when_open",
        "'park', 'fail' or 'fall_back'",
    ),
    # size
    "too_large": (document(A, description="x" * limits.DEFINITION_BYTES_MAX), "definition", "store it elsewhere"),
    "too_deep": (
        document({"name": "a", "input": {"value": eval("[" * 70 + "]" * 70)}}),
        "definition",
        "nested deeper than 64",
    ),
    "no_json": (document({"name": "a", "input": {"value": {1, 2}}}), "definition", "cannot be written as JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_is_refused_with_its_place_and_the_remedy(case: str) -> None:
    broken, field, problem = REFUSED[case]

    with pytest.raises(InvalidRecord) as raised:
        parse_definition(broken)

    assert raised.value.field == field
    assert problem in raised.value.problem


def test_a_binding_of_no_kind_is_refused() -> None:
    with pytest.raises(InvalidDefinition) as raised:
        parse_definition(document({"name": "a", "input": {"from": "x"}}))

    assert raised.value.field.startswith("steps.0.input")


@pytest.mark.parametrize(("raw", "problem"), [(b"{", "is not JSON"), (b"[]", "an object is expected")])
def test_bytes_that_are_no_definition_are_refused(raw: bytes, problem: str) -> None:
    with pytest.raises(InvalidRecord) as raised:
        parse_definition(raw)

    assert raised.value.field == "definition"
    assert problem in raised.value.problem


def test_bytes_that_are_no_json_are_no_definition() -> None:
    with pytest.raises(InvalidDefinition):
        parse_definition(b"{")


def test_the_builder_refuses_the_same() -> None:
    with pytest.raises(InvalidDefinition, match="names 'z', which is no step") as raised:
        Definition(name="saga", steps=(Step(name="a", agent="a", needs=("z",)),))

    assert raised.value.field == "steps.a.needs"


def test_the_builder_names_the_place_of_a_wrong_shape() -> None:
    with pytest.raises(InvalidDefinition, match="at most 2000") as raised:
        Definition(name="saga", description="x" * 2_001, steps=SMALL.steps)

    assert raised.value.field == "description"


def test_the_builder_refuses_a_constant_that_is_no_json() -> None:
    with pytest.raises(InvalidDefinition, match="cannot be written as JSON"):
        Definition(name="saga", steps=(Step(name="a", agent="a", input=Value(value=2**70)),))


def test_a_definition_cannot_be_changed() -> None:
    definition = parse_definition(document(A))

    with pytest.raises(ValidationError):
        definition.name = "other"


# --- the hash

FULL = Definition(
    name="order",
    description="Pay, then ship.",
    steps=(
        Step(
            name="pay",
            agent="bank",
            input=fields(sum=from_input("order.sum"), currency="EUR"),
            retry=Retry(attempts=5, base_ms=100, factor=1.5, cap_ms=9_000, terminal=("CardDeclined",)),
            timeout_ms=5_000,
            start_timeout_ms=60_000,
            heartbeat_timeout_ms=1_000,
            compensate=Compensation(agent="refund", input=from_step("pay", "receipt"), timeout_ms=7_000, retry=Retry()),
            service="visa",
            when_open=WhenOpen.FALL_BACK,
            fallback=Fallback(agent="bank2"),
            output_schema={"type": "object"},
        ),
        Step(name="score", agent="scorer", critical=False, default={"score": 0}),
        Step(
            name="ship", agent="carrier", needs=("pay", "score"), input=from_step("pay"), fallback=Fallback(value=None)
        ),
    ),
    deadline_ms=86_400_000,
    input_schema={"type": "object", "required": ["order"]},
    output=fields(tracking=from_step("ship", "id")),
    services={"visa": CircuitPolicy(failure_ratio=0.3, calls_min=9, window_ms=60_000, recovery_ms=5_000)},
)
SMALL = Definition(name="small", steps=(Step(name="only", agent="worker"),))


@pytest.mark.parametrize(
    ("definition", "golden"), [(SMALL, "91645a86993a0b65"), (FULL, "47635f4b9ef14d5d")], ids=["small", "full"]
)
def test_the_hash_of_a_content_never_changes(definition: Definition, golden: str) -> None:
    # A running workflow finds its definition by this hash, in every later version.
    assert definition.hash == golden


def test_the_canonical_form_leaves_defaults_out() -> None:
    assert SMALL.encoded == b'{"name":"small","steps":[{"agent":"worker","name":"only"}]}'


def test_a_default_that_is_spelled_out_does_not_change_the_hash() -> None:
    spelled = document(
        {
            "name": "a",
            "needs": [],
            "input": {"input": ""},
            "retry": {"attempts": 3, "base_ms": 500, "factor": 2, "cap_ms": 30_000, "terminal": []},
            "timeout_ms": 30_000,
            "start_timeout_ms": 600_000,
            "heartbeat_timeout_ms": None,
            "critical": True,
            "default": None,
            "compensate": None,
            "service": None,
            "when_open": "park",
            "fallback": None,
            "output_schema": None,
        },
        description="",
        deadline_ms=None,
        input_schema=None,
        output=None,
        services={},
    )

    assert parse_definition(spelled).hash == parse_definition(document(A)).hash


def test_the_order_of_fields_does_not_change_the_hash() -> None:
    turned = dict(reversed(document({"agent": "a", "name": "a"}).items()))

    assert parse_definition(turned).hash == parse_definition(document(A)).hash


@pytest.mark.parametrize(
    "change",
    [
        {"name": "b"},
        {"agent": "b"},
        {"retry": {"attempts": 4}},
        {"critical": False},
        {"critical": False, "default": 0},
        {"critical": False, "default": False},
        {"compensate": {}},
        {"compensate": {"retry": {}}},
        {"service": "s"},
        {"fallback": {}},
        {"output_schema": {}},
        {"input": {"value": None}},
    ],
)
def test_any_change_of_content_changes_the_hash(change: dict[str, Any]) -> None:
    others: list[dict[str, Any]] = [{}, {"critical": False}, {"compensate": {}}, {"critical": False, "default": 0}]
    hashes = {parse_definition(document({**A, **other})).hash for other in others if other != change}

    assert parse_definition(document({**A, **change})).hash not in hashes


@pytest.mark.parametrize("definition", [SMALL, FULL], ids=["small", "full"])
def test_a_definition_is_read_back_as_it_was_written(definition: Definition) -> None:
    for read in (
        parse_definition(definition.encoded),
        parse_definition(definition.model_dump(mode="json")),
        parse_definition(encode(definition.model_dump(mode="json"))),
    ):
        assert read == definition
        assert (read.hash, read.encoded) == (definition.hash, definition.encoded)


def test_a_compensations_own_retry_is_not_mistaken_for_its_default() -> None:
    # A compensation's default has 10 attempts, a retry's default 3: `{}` inside must stay there.
    step = FULL.steps[0]
    assert step.compensate is not None
    assert parse_definition(FULL.encoded).steps[0].compensate == step.compensate
    assert (step.compensate.retry.attempts, Compensation().retry.attempts) == (3, 10)


def test_a_changed_copy_has_its_own_hash() -> None:
    definition = Definition(name="saga", steps=SMALL.steps)
    before = definition.hash

    copy = definition.model_copy(update={"description": "other"})

    assert (copy.description, copy.steps) == ("other", definition.steps)
    assert copy.hash != before
    assert copy.hash == Definition(name="saga", description="other", steps=SMALL.steps).hash
    assert (definition.hash, definition.description) == (before, "")


def test_an_unchanged_copy_is_equal_and_has_the_same_hash() -> None:
    # Whether or not what is computed once was computed before.
    assert FULL.hash == FULL.model_copy().hash == Definition(**dict(FULL.model_copy())).hash
    assert FULL.model_copy() == FULL.model_copy(deep=True) == FULL


def test_a_copy_is_checked_like_any_other_definition() -> None:
    with pytest.raises(InvalidDefinition, match="names 'z', which is no step"):
        SMALL.model_copy(update={"steps": (Step(name="a", agent="a", needs=("z",)),)})
    with pytest.raises(InvalidDefinition, match="nothing: Extra inputs are not permitted"):
        SMALL.model_copy(update={"nothing": 1})


# --- builders and schemas


def test_builders_make_bindings() -> None:
    assert from_input() == FromInput(input="")
    assert from_step("a", "x.y") == FromStep(step="a", path="x.y")
    assert fields(a=from_input("x"), b=None, c={"k": 1}).fields == {
        "a": FromInput(input="x"),
        "b": Value(value=None),
        "c": Value(value={"k": 1}),
    }


def test_a_service_without_a_policy_has_the_default_one() -> None:
    assert FULL.circuit_policy("visa").calls_min == 9
    assert FULL.circuit_policy("other") == CircuitPolicy()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": [1, "x"]}, 'input.a.1: "x" is not of type "integer"'),
        ({}, 'input: "a" is a required property'),
        (5, 'input: 5 is not of type "object"'),
        ({"a": [1]}, None),
    ],
)
def test_a_schema_says_what_does_not_fit_and_where(value: Any, problem: str | None) -> None:
    schema = {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
        "$defs": {"n": {"type": "integer"}},
    }

    assert SchemaValidator(schema, "input").problem(value) == problem


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}, {"pattern": "^(?=a)(a+)+b$"}])
def test_a_schema_that_would_run_forever_ends(schema: dict[str, Any]) -> None:
    SchemaValidator(schema, "input").problem("a" * 3_000)


def test_a_problem_is_short_whatever_the_document() -> None:
    problem = SchemaValidator({"type": "string"}, "input").problem(["x" * 5_000])

    assert problem is not None
    assert len(problem) <= len("input: ") + 300


# --- warnings


def warned(*steps: dict[str, Any], **more: Any) -> list[str]:
    return [line.split(":")[0] for line in Definition(name="d", steps=steps, **more).warnings]  # type: ignore[arg-type]


PAY = {"name": "pay", "agent": "bank"}
SHIP = {"name": "ship", "agent": "carrier", "needs": ("pay",)}


@pytest.mark.parametrize(
    ("steps", "places"),
    [
        ((PAY, SHIP), ["steps.pay.compensate"]),
        (({**PAY, "compensate": {}}, SHIP), []),
        (({**PAY, "irreversible": True}, SHIP), []),
        (({**PAY, "pivot": True}, SHIP), []),
        (({**PAY, "critical": False}, SHIP), []),
        ((PAY, {**SHIP, "critical": False}), []),
        ((PAY, {**SHIP, "needs": ()}), ["steps.pay.compensate", "steps.ship.compensate"]),
        ((PAY,), []),
    ],
)
def test_a_step_that_nothing_undoes_is_warned_of(steps: tuple[dict[str, Any], ...], places: list[str]) -> None:
    assert warned(*steps) == places


def test_attempts_that_do_not_fit_the_deadline_are_warned_of() -> None:
    slow = {**PAY, "timeout_ms": 1_000, "retry": {"attempts": 3}}

    assert warned(slow, deadline_ms=2_999) == ["steps.pay.retry"]
    assert warned(slow, deadline_ms=3_000) == []


def test_irreversible_beside_a_compensation_is_refused() -> None:
    with pytest.raises(InvalidDefinition, match=r"steps\.pay\.irreversible: stands beside a compensation"):
        Definition(name="d", steps=({**PAY, "irreversible": True, "compensate": {}},))  # type: ignore[arg-type]


# --- bindings and schemas


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"b": {}}},
        {"additionalProperties": False, "patternProperties": {"^z": {}}},
        {"additionalProperties": {"type": "object"}},
        {"anyOf": [FLAT, {"type": "null"}, {}]},
        {"anyOf": [FLAT, {"type": "object", "properties": {"z": {}}, "additionalProperties": False}]},
        {"type": ["object", "string"]},
        {"allOf": [FLAT]},
        {"$ref": "#/$defs/open", "$defs": {"open": {"type": "object"}}},
        {"$ref": "#/$defs/ring", "$defs": {"ring": {"$ref": "#/$defs/ring"}}},
        {"if": {}, "additionalProperties": False},
        {"enum": [{"z": 1}]},
    ],
)
def test_a_path_that_may_exist_is_let_through(schema: dict[str, Any]) -> None:
    parse_definition(document(A, input_schema=schema, output={"fields": {"x": {"input": "z"}, "all": {"input": ""}}}))


@pytest.mark.parametrize(
    "stand_in",
    [{"critical": False, "default": {"z": 1}}, {"fallback": {"value": {"z": 1}}}],
)
def test_a_path_into_a_constant_that_stands_in_is_let_through(stand_in: dict[str, Any]) -> None:
    parse_definition(document({"name": "a", "output_schema": CLOSED, **stand_in}, output={"step": "a", "path": "z"}))


def test_a_path_into_the_outputs_of_items_is_let_through() -> None:
    undo = {"input": {"step": "a", "path": "z"}}
    mapped = {"name": "a", "map": {"over": {"input": "x"}}, "output_schema": CLOSED, "compensate": undo}
    parse_definition(document(mapped, output={"step": "a", "path": "0.z"}))


def test_a_definition_that_stands_in_a_log_is_read_as_it_is() -> None:
    written = document(A, input_schema=CLOSED, output={"input": "z"})

    with pytest.raises(InvalidDefinition, match="has no field 'z'"):
        parse_definition(written)
    with pytest.raises(InvalidDefinition, match="has no field 'z'"):
        Definition.model_validate(written)
    assert parse_definition(written, registered=True).output == from_input("z")
    with pytest.raises(InvalidDefinition, match="need not have ended"):
        parse_definition(document(A, {"name": "b", "input": {"step": "a"}}), registered=True)


def test_a_client_finds_a_definition_that_stands_in_a_log() -> None:
    definition = parse_definition(document(A, input_schema=FLAT, output={"input": "z"}), registered=True)

    t = SagaTest([definition])
    t.stub("a", "done")
    with t:
        assert t.run("saga", {"b": 1}).status == "completed"


# --- limits


def limited(**limits: Any) -> Definition:
    return Definition(name="saga", steps=(Step(name="a", agent="x", limits=tuple(limits)),), limits=limits)


@pytest.mark.parametrize(
    ("make", "path", "problem"),
    [
        (lambda: limited(few=Limit()), "limits.few", "limits nothing"),
        (lambda: limited(few=Limit(concurrency=1, key="input.")), "limits.few.key", "no CEL"),
        (lambda: limited(few=Limit(concurrency=1, key="steps.a")), "limits.few.key", "'steps', which is unknown"),
        (
            lambda: Definition(name="s", steps=(Step(name="a", agent="x"),), limits={"few": Limit(concurrency=1)}),
            "limits.few",
            "used by no step",
        ),
        (
            lambda: Definition(name="s", steps=(Step(name="a", agent="x", limits=("no",)),)),
            "steps.a.limits",
            "no limit",
        ),
        (
            lambda: Definition(
                name="s",
                steps=(Step(name="a", agent="x", limits=("few", "few")),),
                limits={"few": Limit(concurrency=1)},
            ),
            "steps.a.limits",
            "twice",
        ),
        (
            lambda: Definition(
                name="s",
                steps=(Step(name="a", sleep=Sleep(ms=10), limits=("few",)),),
                limits={"few": Limit(concurrency=1)},
            ),
            "steps.a.limits",
            "is of agents' attempts",
        ),
    ],
)
def test_limits_that_cannot_hold_are_refused(make: Any, path: str, problem: str) -> None:
    with pytest.raises(InvalidDefinition, match=problem) as refused:
        make()
    assert refused.value.field == path


def test_limits_survive_json_and_without_them_the_hash_is_as_it_was() -> None:
    definition = limited(few=Limit(key="tenant", concurrency=2), slow=Limit(rate=Rate(per_second=0.5), shared=True))
    assert parse_definition(definition.encoded).hash == definition.hash
    assert b"limits" not in Definition(name="saga", steps=(Step(name="a", agent="x"),)).encoded


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("tenant", "acme"),
        ("service", "(none)"),
        ("input.number", "7"),
        ("input.gone", "(none)"),
        ("input.number > 5", "true"),
        ("tenant + '/' + string(input.number)", "acme/7"),
        ("input", '{"number":7}'),
    ],
)
def test_a_key_is_text_whatever_the_expression_gives(source: str, key: str) -> None:
    assert Key(source, "key").of({"number": 7}, "acme", None) == key


def test_a_long_key_is_hashed() -> None:
    keys = {Key("input", "key").of(found * 200, None, None) for found in ("a", "b")}
    assert len(keys) == 2 and all(len(key) == 32 for key in keys)
