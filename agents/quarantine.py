"""A record that is no command, as it goes to the quarantine topic: as it was, as far as it fits, and where it came from."""

from __future__ import annotations

import base64
from typing import Final

from sagalog.schemas.codec import encode
from sagalog.schemas.limits import QUARANTINE_VALUE_BYTES_MAX
from sagalog.schemas.records import TYPE_QUARANTINE, QuarantineRecord
from sagalog.topics.log import Message, Out

REASON_CHARS_MAX: Final = 1_000
HEADERS_MAX: Final = 50
HEADER_NAME_CHARS_MAX: Final = 200
HEADER_BYTES_MAX: Final = 2_000


def quarantined(message: Message, reason: str, source: bytes, at_ms: int) -> Out:
    """For `quarantine`, keyed by the record's origin."""
    origin = f"{message.topic}/{message.partition}/{message.offset}"
    value = message.value
    record: QuarantineRecord = {
        "origin": origin,
        "reason": reason[:REASON_CHARS_MAX].encode("utf-8", "replace").decode(),
        "stage": "decode",
        "at_ms": at_ms,
        "key": _base64(message.key),
        "value": _base64(value[:QUARANTINE_VALUE_BYTES_MAX] if value is not None else None),
        "value_bytes": len(value) if value is not None else 0,
        "headers": [
            [name[:HEADER_NAME_CHARS_MAX], _base64((found or b"")[:HEADER_BYTES_MAX]) or ""]
            for name, found in list(message.headers)[:HEADERS_MAX]
        ],
    }
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_type", TYPE_QUARANTINE.encode()),
        ("ce_source", source),
        ("ce_id", origin.encode()),
        ("content-type", b"application/json"),
    ]
    return Out(origin.encode(), encode(record), headers)


def _base64(value: bytes | None) -> str | None:
    return base64.b64encode(value).decode() if value is not None else None
