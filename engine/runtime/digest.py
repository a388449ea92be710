"""The digest over a partition's checkpoints: a sum of hashes, so that a change costs one hash and the order does not matter."""

from __future__ import annotations

from hashlib import blake2b

from sagalog.schemas.errors import SagalogError

_MASK = (1 << 64) - 1

REBUILD = (
    "stop the engines and delete the topic, so that all is folded again from the log (docs/operations.md says how)"
)
"""What to do about damaged checkpoints."""


class CheckpointsDamaged(SagalogError):
    """The checkpoints are not what their marker says."""


class Digest:
    """Sum over all (key, value) of blake2b-64(key, 0, value), modulo 2**64."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}
        self._sum = 0

    def put(self, key: str, value: bytes) -> None:
        hashed = int.from_bytes(blake2b(key.encode() + b"\0" + value, digest_size=8).digest())
        self._sum = (self._sum - self._hashes.get(key, 0) + hashed) & _MASK
        self._hashes[key] = hashed

    def drop(self, key: str) -> None:
        self._sum = (self._sum - self._hashes.pop(key, 0)) & _MASK

    def __len__(self) -> int:
        return len(self._hashes)

    def hex(self) -> str:
        return f"{self._sum:016x}"
