"""Limits by key: some definitions get them, and at the end no more may have been under way than they allow.

Rules:
- The draw has a random stream of its own: without limits a seed means what it meant before.
- Counted is by the log: a command is under way from when an engine first sent it until the event that ended its attempt.
- Of definitions that share a limit and name different numbers, the largest holds.
- Who takes over without a word of the owner before cannot know what that one let out since its last snapshot. Those commands are
  left out of the count: that is the bound that the docs name.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sagalog.infra.simulation import EPOCH_MS
from sagalog.schemas.codec import decode_object
from sagalog.schemas.conditions import Key
from sagalog.schemas.definitions import Definition, Limit, Rate
from sagalog.schemas.ids import split_item
from sagalog.schemas.records import MARKER_KEY

if TYPE_CHECKING:
    from .checkers import Evidence

SEEDS_WITH: Final = 0.4
STEPS_WITH: Final = 0.6
KEYS: Final = (None, "input.number % 2", "tenant", "service")
LOAD_MS: Final = 1_000
"""A marker that is younger than this at a claim need not be the one that the new owner has read."""
DRIFT: Final = 1.4
"""Clocks of this simulation run up to 30 % too fast."""


def with_limits(seed: int, definitions: Sequence[Definition]) -> tuple[Definition, ...]:
    """Versions of one definition have the same limits, on the same steps."""
    if random.Random(f"limits/{seed}").random() >= SEEDS_WITH:
        return tuple(definitions)
    return tuple(_limited(random.Random(f"limits/{seed}/{definition.name}"), definition) for definition in definitions)


def _limited(rng: random.Random, definition: Definition) -> Definition:
    drawn = {
        "few": Limit(key=rng.choice(KEYS), concurrency=rng.choice((1, 2, 3, 9)), shared=rng.random() < 0.3),
        "slow": Limit(
            key=rng.choice(KEYS), rate=Rate(per_second=rng.choice((2.0, 10.0)), burst=rng.choice((1, 3, 20)))
        ),
    }
    chance = rng.random()
    steps = []
    for step in definition.steps:
        # By the step's name, so that a version with other steps draws the same for those that it has.
        own = random.Random(f"{chance}/{step.name}")
        named = tuple(name for name in drawn if own.random() < 0.6) if own.random() < STEPS_WITH else ()
        steps.append(step.model_copy(update={"limits": named}) if step.agent is not None and named else step)
    used = {name for step in steps for name in step.limits}
    limits = {name: limit for name, limit in drawn.items() if name in used}
    return definition.model_copy(update={"steps": tuple(steps), "limits": limits}) if limits else definition


@dataclass(frozen=True, slots=True)
class Taken:
    """What a command takes part in."""

    kind: str
    bucket: str
    limit: Limit


def taken(definition: Definition, step: str, agent: str, value: Any, tenant: str | None) -> Iterable[Taken]:
    """Of a command that the definition makes for a step, for this workflow's input and tenant."""
    spec = next((spec for spec in definition.steps if spec.name == split_item(step)[0]), None)
    if spec is None or spec.agent != agent:
        return
    for name in spec.limits:
        limit = definition.limits[name]
        key = Key(limit.key, "key").of(value, tenant, spec.service) if limit.key is not None else ""
        bucket = f"{'*' if limit.shared else definition.name}/{name}/{key}"
        if limit.concurrency is not None:
            yield Taken("concurrency", bucket, limit)
        if limit.rate is not None:
            yield Taken("rate", bucket, limit)


@dataclass(frozen=True, slots=True)
class _Way:
    """A command under way."""

    command_id: str
    from_ms: int
    to_ms: int


def limits_hold(evidence: Evidence) -> list[str]:
    """No more of one key were under way at a time, and no more went out in any time, than its limit allows."""
    if not any(definition.limits for definition in evidence.definitions.values()):
        return []
    first_ms: dict[str, tuple[int, str]] = {}
    for sent in evidence.sent:
        if ".commands." in sent.topic:
            first_ms.setdefault(sent.ce_id, (int(sent.at_s * 1000), sent.process))
    ways: dict[tuple[str, str], list[_Way]] = {}
    limits: dict[tuple[str, str], Limit] = {}
    for partition, refold in enumerate(evidence.refolds):
        events = {message.offset: message.timestamp - EPOCH_MS for message in _records(evidence, partition)}
        unsure = _Unsure(evidence, partition)
        for command_id, found in refold.limited.items():
            if command_id not in first_ms or unsure.of(*first_ms[command_id]):
                continue
            answered_at = refold.answered_at.get(command_id)
            if answered_at is None and refold.quarantined:
                continue
            to_ms = events[answered_at] if answered_at is not None else 1 << 60
            for one in found:
                before = limits.get((one.kind, one.bucket))
                if before is None or (before.concurrency or 0) < (one.limit.concurrency or 0):
                    limits[one.kind, one.bucket] = one.limit
                ways.setdefault((one.kind, one.bucket), []).append(_Way(command_id, first_ms[command_id][0], to_ms))
    problems = []
    for (kind, bucket), found_ways in sorted(ways.items()):
        check = _too_many if kind == "concurrency" else _too_fast
        if (problem := check(found_ways, limits[kind, bucket])) is not None:
            problems.append(f"{bucket}: {problem}")
    return problems


def _too_many(ways: list[_Way], limit: Limit) -> str | None:
    assert limit.concurrency is not None
    moves = sorted([(way.to_ms, 0, way) for way in ways] + [(way.from_ms, 1, way) for way in ways], key=lambda m: m[:2])
    out: dict[str, None] = {}
    for at_ms, begins, way in moves:
        if begins and way.to_ms > way.from_ms:
            out[way.command_id] = None
            if len(out) > limit.concurrency:
                return f"{len(out)} under way at {at_ms} ms where {limit.concurrency} may be: {', '.join(out)}"
        else:
            out.pop(way.command_id, None)
    return None


def _too_fast(ways: list[_Way], limit: Limit) -> str | None:
    assert limit.rate is not None
    tokens, last_ms = float(limit.rate.burst), 0
    for way in sorted(ways, key=lambda way: way.from_ms):
        more = (way.from_ms - last_ms + 1) / 1000 * limit.rate.per_second * DRIFT
        tokens, last_ms = min(float(limit.rate.burst), tokens + more) - 1, way.from_ms
        if tokens < -0.01:
            return f"{way.command_id} went out at {way.from_ms} ms, too soon for {limit.rate}"
    return None


class _Unsure:
    """Commands of one partition that an owner may have let out without its successor knowing."""

    def __init__(self, evidence: Evidence, partition: int) -> None:
        from .checkers import _claims

        events = _records(evidence, partition)
        times = {message.offset: message.timestamp - EPOCH_MS for message in events}
        markers = [
            (message.timestamp - EPOCH_MS, decode_object(message.value)["at_offset"])
            for message in evidence.kafka.records(evidence.topics.checkpoints, partition)
            if message.key == MARKER_KEY.encode()
        ]
        self._claims = [(int(claim.at_s * 1000), claim.process) for claim in _claims(evidence, partition)]
        self._known_ms = []
        for claim_ms, _ in self._claims:
            read = bisect_right(markers, (claim_ms - LOAD_MS, 1 << 60)) - 1
            self._known_ms.append(times.get(markers[read][1], 0) if read >= 0 else 0)

    def of(self, sent_ms: int, process: str) -> bool:
        for number, (claim_ms, owner) in enumerate(self._claims):
            until_ms = self._claims[number + 1][0] if number + 1 < len(self._claims) else 1 << 60
            if self._known_ms[number] <= sent_ms <= claim_ms and number > 0:
                return True
            if claim_ms <= sent_ms <= until_ms and process != owner:
                return True
        return False


def _records(evidence: Evidence, partition: int) -> Any:
    return evidence.kafka.records(evidence.topics.events, partition)
