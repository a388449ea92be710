"""JSON in and out, within limits.

Rule: whatever `decode` accepts, `encode` can write again. orjson loads nesting of 1,024 but dumps only 254, and loads
integers that no other reader keeps, so depth and integers are limited on the way in.
"""

import re
from typing import Any, Final

import orjson

from .errors import InvalidRecord
from .limits import JSON_DEPTH_MAX, JSON_INTEGER_MAX, JSON_INTEGER_MIN, RECORD_DEPTH_MAX

# 19 digits in a row are the first that may exceed 64 bits. Folding all digits to one and searching for a run of it costs
# 0.8 us for 500 bytes; a regular expression takes 5.8 us.
_SAME_DIGIT: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_DIGITS: Final = b"0" * 19


def decode(raw: bytes | None, what: str = "value", depth_max: int = JSON_DEPTH_MAX) -> Any:
    """The JSON document in `raw`. Raises InvalidRecord: not JSON, nested too deep, integers beyond 64 bits."""
    if raw is None:
        raise InvalidRecord(what, "is empty; a JSON object is expected")
    # An upper bound that costs a memchr: only documents that could be too deep are walked.
    brackets = raw.count(b"{") + raw.count(b"[")
    if brackets > depth_max:
        _check_depth(raw, what, depth_max)
    if _LONG_DIGITS in raw.translate(_SAME_DIGIT):
        _check_integers(raw, what)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRecord(what, f"is not JSON ({error})") from None


def decode_object(raw: bytes | None, what: str = "value", depth_max: int = RECORD_DEPTH_MAX) -> dict[str, Any]:
    """The JSON object in `raw`, by default one of the engine's own records; InvalidRecord when it is anything else."""
    document = decode(raw, what, depth_max)
    if type(document) is not dict:
        raise InvalidRecord(what, f"is a JSON {type(document).__name__}; an object is expected")
    return document


encode = orjson.dumps


def encode_sorted(document: Any) -> bytes:
    """Canonical bytes: sorted keys, no spaces. Equal documents give equal bytes, so they can be hashed and compared."""
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def check_json(value: Any, what: str, bytes_max: int) -> bytes:
    """The encoded form of a value that a caller handed in. Raises InvalidRecord with the path of what does not fit."""
    try:
        raw = orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError) as error:
        raise InvalidRecord(what, f"cannot be written as JSON ({error})") from None
    check_raw(raw, what, bytes_max)
    return raw


def check_raw(raw: bytes, what: str, bytes_max: int) -> None:
    """The limits of a payload that was encoded here: size, depth, integers. Raises InvalidRecord; nothing is decoded."""
    if len(raw) > bytes_max:
        raise InvalidRecord(
            what, f"is {len(raw):,} bytes, more than {bytes_max:,}; store it elsewhere and pass a reference"
        )
    if raw.count(b"{") + raw.count(b"[") > JSON_DEPTH_MAX:
        _check_depth(raw, what, JSON_DEPTH_MAX)
    if _LONG_DIGITS in raw.translate(_SAME_DIGIT):
        _check_integers(raw, what)


def _check_depth(raw: bytes, what: str, depth_max: int) -> None:
    depth = 0
    in_string = escaped = False
    for byte in raw:
        if in_string:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in b"{[":
            depth += 1
            if depth > depth_max:
                raise InvalidRecord(what, f"is nested deeper than {depth_max}; flatten it")
        elif byte in b"}]":
            depth -= 1


# A number token outside of strings; strings are matched first so that digits inside them are passed over.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?')


def _check_integers(raw: bytes, what: str) -> None:
    for token in _TOKEN.finditer(raw):
        text = token.group()
        if text[:1] == b'"' or not text.lstrip(b"-").isdigit():
            continue
        if len(text) > 20 or not JSON_INTEGER_MIN <= int(text) <= JSON_INTEGER_MAX:
            raise InvalidRecord(what, f"holds the integer {text[:40].decode()}, beyond 64 bits; write it as a string")
