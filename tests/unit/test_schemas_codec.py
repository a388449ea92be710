"""JSON in and out: whatever is accepted can be written again, and the limits hold at exactly their bound."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.schemas.codec import check_json, decode, decode_object, encode, encode_sorted
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.limits import JSON_DEPTH_MAX, JSON_INTEGER_MAX


def lists(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("raw", [lists(JSON_DEPTH_MAX), b'{"a":' * JSON_DEPTH_MAX + b"1" + b"}" * JSON_DEPTH_MAX])
def test_the_deepest_document_is_read_and_written_again(raw: bytes) -> None:
    assert encode(decode(raw)) == raw


@pytest.mark.parametrize(
    "raw", [lists(JSON_DEPTH_MAX + 1), lists(10_000), b'{"a":' * 65 + b"1" + b"}" * 65, b"[" * 100_000, b'["\\"",' * 65]
)
def test_what_is_deeper_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRecord, match=r"^value: is nested deeper than 64; flatten it$"):
        decode(raw)


@pytest.mark.parametrize("document", [[[]] * 500, "[" * 500, {"{[" * 100: "\\"}, '"[' * 90, ["\\", "[" * 99]])
def test_many_brackets_are_not_depth(document: Any) -> None:
    raw = encode(document)

    assert decode(raw) == document


@pytest.mark.parametrize("number", [JSON_INTEGER_MAX, -JSON_INTEGER_MAX, 0, -1, 10**18])
def test_an_integer_of_64_bits_is_read(number: int) -> None:
    assert decode(str(number).encode()) == number
    assert decode(encode({"n": [number]})) == {"n": [number]}


@pytest.mark.parametrize(
    "raw", [str(JSON_INTEGER_MAX + 1), str(2**64), "1" + "0" * 19, "-" + "9" * 19, "9" * 5_000, "-" + "9" * 30]
)
def test_a_wider_integer_is_refused(raw: str) -> None:
    with pytest.raises(
        InvalidRecord, match=f"^body: holds the integer {raw[:40]}, beyond 64 bits; write it as a string"
    ):
        decode(f'{{"a":[{raw}]}}'.encode(), "body")


@pytest.mark.parametrize(
    "raw",
    [b'"' + b"9" * 40 + b'"', b"1." + b"3" * 30, b"9" * 30 + b".5", b"1" * 25 + b"e3", b'"\\"' + b"9" * 30 + b'"'],
)
def test_digits_of_texts_and_fractions_are_not_integers(raw: bytes) -> None:
    assert decode(raw) == orjson.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nope",
        b"NaN",
        b"Infinity",
        b"1e999",
        b"[1,]",
        b"'a'",
        b"\xff",
        b'"\xff"',
        b'"\\ud800"',
        b"01",
        b"\xef\xbb\xbf{}",
        b"{}{}",
    ],
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRecord, match=r"^value: is not JSON \("):
        decode(raw)


def test_nothing_is_refused() -> None:
    with pytest.raises(InvalidRecord, match=r"^value: is empty; a JSON object is expected$"):
        decode(None)


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"a"', b"null", b"true"])
def test_only_an_object_is_an_object(raw: bytes) -> None:
    with pytest.raises(InvalidRecord, match=r"^value: is a JSON \w+; an object is expected$"):
        decode_object(raw)


def test_equal_documents_have_equal_canonical_bytes() -> None:
    assert encode_sorted({"b": 1, "a": {"d": 2, "c": [3]}}) == b'{"a":{"c":[3],"d":2},"b":1}'


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"a": object()}, "cannot be written as JSON"),
        ({1: 2}, "cannot be written as JSON"),
        ({"a": {1, 2}}, "cannot be written as JSON"),
        ("\ud800", "cannot be written as JSON"),
        (2**70, "cannot be written as JSON"),
        (2**63, "beyond 64 bits"),
        ("x" * 99, "is 101 bytes, more than 100; store it elsewhere and pass a reference"),
    ],
)
def test_a_value_that_is_no_record_is_refused_with_its_place(value: Any, problem: str) -> None:
    with pytest.raises(InvalidRecord) as raised:
        check_json(value, "input.a", 100)

    assert raised.value.field == "input.a"
    assert problem in str(raised.value)


def test_a_value_too_deep_to_be_read_back_is_refused() -> None:
    value: Any = 1
    for _ in range(JSON_DEPTH_MAX + 1):
        value = [value]

    with pytest.raises(InvalidRecord, match="deeper"):
        check_json(value, "input", 1_000)


def test_a_value_that_fits_comes_back_as_its_bytes() -> None:
    assert check_json({"a": "x" * 92}, "input", 100) == b'{"a":"' + b"x" * 92 + b'"}'


def test_the_least_integer_of_64_bits_is_read() -> None:
    assert decode(str(-(2**63)).encode()) == -(2**63)


PIECES = st.sampled_from(
    [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"9" * 19, b"1", b"-", b".", b"e", b"null", b"\xff", b" "]
)


@given(st.lists(PIECES, max_size=40).map(b"".join) | st.binary(max_size=100))
def test_whatever_is_accepted_is_written_again_and_nothing_else_is_raised(raw: bytes) -> None:
    try:
        document = decode(raw)
    except InvalidRecord:
        return
    assert decode(encode(document)) == document


DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-JSON_INTEGER_MAX, JSON_INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(DOCUMENTS)
def test_what_we_write_we_read(document: Any) -> None:
    assert decode(encode(document)) == document
    assert check_json(document, "value", 10**6) == encode(document)


@given(st.integers(0, 40), st.integers(17, 40), st.booleans())
def test_a_long_integer_is_found_wherever_it_stands(before: int, digits: int, negative: bool) -> None:
    number = "-" * negative + "9" * digits
    raw = f'{{"{"x" * before}":{number}}}'.encode()

    if abs(int(number)) < 2**63:
        assert decode(raw) == {"x" * before: int(number)}
    else:
        with pytest.raises(InvalidRecord, match="beyond 64 bits"):
            decode(raw)
