"""What a start says about its workflow beside its input: whose it is, how urgent, and by what it is found.

Rule: the client and the fold check it by the same function, so that what one lets pass the other does not reject.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

from .codec import encode
from .errors import InvalidRecord
from .ids import check_name
from .limits import (
    ATTRIBUTE_CHARS_MAX,
    ATTRIBUTES_BYTES_MAX,
    ATTRIBUTES_MAX,
    JSON_INTEGER_MAX,
    JSON_INTEGER_MIN,
    PRIORITY_MAX,
    TENANT_CHARS_MAX,
)

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_identity(tenant: str | None, priority: int | None, attributes: Any) -> None:
    """Raises InvalidRecord, with the field, for a tenant, a priority or search attributes that no workflow may have."""
    if tenant is not None:
        _check_text(tenant, "tenant", TENANT_CHARS_MAX)
        if not tenant:
            raise InvalidRecord("tenant", "is empty; name one, or leave it out")
    if priority is not None:
        check_priority(priority)
    if attributes is not None:
        _check_attributes(attributes)


def check_priority(priority: int) -> int:
    """0 to 9."""
    if not 0 <= priority <= PRIORITY_MAX:
        raise InvalidRecord("priority", f"{priority} is not within 0 to {PRIORITY_MAX}")
    return priority


def _check_attributes(attributes: Any) -> None:
    if not isinstance(attributes, dict):
        raise InvalidRecord("attributes", f"is {_kind(attributes)}; an object of names and values is expected")
    if len(attributes) > ATTRIBUTES_MAX:
        raise InvalidRecord("attributes", f"has {len(attributes)} names, more than {ATTRIBUTES_MAX}")
    for name, value in attributes.items():
        if not isinstance(name, str):
            raise InvalidRecord("attributes", f"has the name {name!r}; a text is expected")
        check_name(name[: ATTRIBUTE_CHARS_MAX + 1], "attributes")
        field = f"attributes.{name}"
        match value:
            case str():
                _check_text(value, field, ATTRIBUTE_CHARS_MAX)
            case bool():
                pass
            case int() if JSON_INTEGER_MIN <= value <= JSON_INTEGER_MAX:
                pass
            case float() if math.isfinite(value):
                pass
            case _:
                raise InvalidRecord(field, f"is {_kind(value)}; a text, a number, true or false is expected")
    size = len(encode(attributes))
    if size > ATTRIBUTES_BYTES_MAX:
        raise InvalidRecord("attributes", f"are {size:,} bytes, more than {ATTRIBUTES_BYTES_MAX:,}")


def _check_text(text: str, field: str, chars_max: int) -> None:
    if len(text) > chars_max:
        raise InvalidRecord(field, f"is {len(text)} characters, more than {chars_max}")
    if _CONTROL.search(text):
        raise InvalidRecord(field, "holds control characters; remove them")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRecord(field, "holds half of a surrogate pair; it must be valid Unicode") from None


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case list():
            return "a list"
        case dict():
            return "an object"
        case int() | float():
            return "a number that JSON does not hold"
        case _:
            return f"a {type(value).__name__}"
