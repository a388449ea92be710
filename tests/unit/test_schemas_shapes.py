"""Shapes: what a schema says about paths is certain or nothing, and what need not fit is named with the way to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagalog.schemas.shapes import ANY, Misfit, child, describe, items_of, misfit, shape_of, unreachable

TEXT = {"type": "string"}
INTEGER = {"type": "integer"}
CLOSED = {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "additionalProperties": False}


def fits(source: Any, target: Any) -> Misfit | None:
    return misfit(shape_of(source), shape_of(target))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (INTEGER, {"type": "number"}),
        (TEXT, {"anyOf": [TEXT, {"type": "null"}]}),
        (TEXT, {"type": ["string", "null"]}),
        ({"const": "a"}, TEXT),
        ({"enum": ["a", "b"]}, {"enum": ["b", "a", "c"], "type": "string"}),
        ({"type": "string", "format": "date"}, TEXT),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        (TEXT, {"type": "string", "format": "path"}),
        (TEXT, {"type": "string", "minLength": 5}),
        (CLOSED, {"type": "object", "additionalProperties": INTEGER}),
        (CLOSED, {"type": "object", "properties": {"b": TEXT}}),
        ({"type": "array", "prefixItems": [TEXT]}, {"type": "array", "items": TEXT}),
        ({}, INTEGER),
        (INTEGER, {}),
        ({"allOf": [TEXT]}, INTEGER),
        ({"$ref": "other.json"}, INTEGER),
        ({"$ref": "#anchor"}, INTEGER),
    ],
)
def test_what_fits(source: Any, target: Any) -> None:
    assert fits(source, target) is None


@pytest.mark.parametrize(
    ("source", "target", "path", "problem"),
    [
        ({"type": "number"}, INTEGER, "", "is a number, where an integer is wanted"),
        ({"type": ["string", "null"]}, TEXT, "", "may be null"),
        (TEXT, {"enum": ["a"], "type": "string"}, "", "is a text, where one of 'a' is wanted"),
        ({"enum": ["a", "z"]}, {"enum": ["a"]}, "", "may be 'z', where one of 'a' is wanted"),
        (TEXT, {"type": "string", "format": "uuid"}, "", "is a text, where a text (uuid) is wanted"),
        (
            {"type": "object", "properties": {"a": INTEGER}},
            CLOSED,
            "a",
            "may be left out, and is wanted",
        ),
        ({"type": "object", "properties": {"b": TEXT}}, CLOSED, "", "has no field 'a', which is wanted; it has b"),
        ({"type": "object"}, CLOSED, "", "need not have a field 'a', which is wanted"),
        (
            {"type": "object", "properties": {"a": INTEGER, "b": TEXT}, "required": ["a"]},
            CLOSED,
            "",
            "has a field 'b', which is not allowed there; it has a",
        ),
        (
            {"type": "array", "items": {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}},
            {"type": "array", "items": CLOSED},
            "*.a",
            "is a text, where an integer is wanted",
        ),
        (
            {"type": "object", "additionalProperties": TEXT},
            {"type": "object", "additionalProperties": INTEGER},
            "*",
            "is a text, where an integer is wanted",
        ),
        (
            {"type": "array", "items": TEXT},
            {"type": "array", "prefixItems": [TEXT, TEXT], "minItems": 2, "maxItems": 2},
            "",
            "is a list of another length than the 2 that are wanted",
        ),
    ],
)
def test_what_need_not_fit(source: Any, target: Any, path: str, problem: str) -> None:
    assert fits(source, target) == Misfit(path, problem)


@pytest.mark.parametrize(
    ("schema", "path", "why"),
    [
        ({"properties": {"b": {}}, "additionalProperties": False}, "0", None),  # it may be a list
        ({"type": "array", "prefixItems": [CLOSED], "items": TEXT}, "0.a", None),
        ({"type": "array", "prefixItems": [CLOSED], "items": TEXT}, "1.a", "1 is a text and has no parts"),
        ({"type": "array", "prefixItems": [CLOSED], "items": False}, "1", "it is a list of 1 at most"),
        ({"type": "array", "items": TEXT, "maxItems": 2}, "1", None),
        ({"type": "array", "items": TEXT, "maxItems": 2}, "2", "it is a list of 2 at most"),
        ({"type": "array"}, "a", "it is a list; an index is wanted where 'a' stands"),
        ({"type": "object", "properties": {"a": False}}, "a", "it may not have it"),
        ({"type": "null"}, "a", "it is null"),
        ({"type": ["string", "null"]}, "a", "it is a text and has no parts"),
        (
            {"oneOf": [CLOSED, {"type": "boolean"}]},
            "b",
            "it has no field 'b'; it has a or is true or false and has no parts",
        ),
        ({"not": {}}, "a", None),
    ],
)
def test_what_surely_leads_nowhere(schema: Any, path: str, why: str | None) -> None:
    assert unreachable(schema, path) == why


def test_a_schema_that_holds_itself_comes_to_an_end() -> None:
    tree = {"$ref": "#/$defs/t", "$defs": {"t": {"type": "object", "properties": {"t": {"$ref": "#/$defs/t"}}}}}
    ring = {"$ref": "#/$defs/r", "$defs": {"r": {"$ref": "#/$defs/r"}}}
    twice = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}

    assert fits(tree, tree) is None
    assert fits(ring, CLOSED) is None
    assert fits(twice, twice) is None
    assert unreachable(tree, ".".join("t" * 100)) is None
    assert unreachable(ring, "a.b") is None


def test_what_lies_at_a_key() -> None:
    schema = {
        "anyOf": [
            {"type": "object", "properties": {"a": TEXT, "b": INTEGER}, "required": ["a"]},
            {"type": "object", "properties": {"a": INTEGER}, "required": ["a"]},
        ]
    }
    found = child(shape_of(schema), "a")
    partly = child(shape_of(schema), "b")

    assert not isinstance(found, str) and not isinstance(partly, str)
    assert (describe(found), found.null) == ("a text or an integer", "")
    assert (describe(partly), partly.null) == ("null or an integer", "'b' may be left out, and then it is null")
    assert child(shape_of(schema), "c") == "has no field 'c'; it has a, b or has no field 'c'; it has a"
    assert child(shape_of({}), "c") is ANY


def test_what_an_item_is() -> None:
    assert items_of([shape_of({"type": ["array", "null"], "items": TEXT})]) == [
        shape_of(TEXT).__class__(TEXT, {"type": ["array", "null"], "items": TEXT})
    ]
    assert items_of([shape_of({"type": ["string", "integer"]})]) == "a text or an integer"
    assert items_of([ANY]) == [ANY]


# Schemas of every form that is read, and of some that are not.
SCHEMAS = st.recursive(
    st.sampled_from(
        [
            True,
            False,
            {},
            TEXT,
            INTEGER,
            {"type": "null"},
            {"enum": ["a", None, {"a": 1}]},
            {"$ref": "#/$defs/x"},
            {"not": {}},
        ]
    ),
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "type": st.sampled_from(["object", "array", ["object", "null"]]),
                "properties": st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
                "required": st.lists(st.sampled_from("ab"), unique=True),
                "additionalProperties": st.one_of(st.booleans(), inner),
                "items": inner,
                "prefixItems": st.lists(inner, min_size=1, max_size=2),
                "maxItems": st.integers(0, 2),
            },
        ),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=1, max_size=2)}),
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    st.sampled_from([None, True, 1, "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab0"), inner, max_size=2),
    max_leaves=6,
)


def paths_of(value: Any) -> Iterator[str]:
    """Every path that leads somewhere in a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, found in inner:
        yield str(part)
        yield from (f"{part}.{path}" for path in paths_of(found))


@given(SCHEMAS, st.lists(VALUES, min_size=1, max_size=8), st.sampled_from([True, {}, TEXT, CLOSED]))
@settings(max_examples=300, deadline=None)
def test_a_path_that_a_fitting_value_has_is_never_called_unreachable(schema: Any, values: list[Any], x: Any) -> None:
    root = {**schema, "$defs": {"x": x}} if isinstance(schema, dict) else {"anyOf": [schema]}
    validator = jsonschema_rs.validator_for(root)
    for value in values:
        for path in paths_of(value) if validator.is_valid(value) else ():
            assert unreachable(root, path) is None


@given(SCHEMAS, SCHEMAS)
@settings(max_examples=100, deadline=None)
def test_two_schemas_are_always_compared(one: Any, other: Any) -> None:
    shapes = [shape_of(schema) for schema in (one, other)]

    misfit(*shapes)
    child(shapes[0], "a")
    assert describe(shapes[0])
