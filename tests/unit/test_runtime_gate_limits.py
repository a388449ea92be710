"""The gate with limits by key: never more out than allowed, everything goes out in the end, and nobody waits for another's key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagalog.engine.kernel.circuits import CircuitPartition
from sagalog.engine.kernel.effects import Dispatch
from sagalog.engine.kernel.leases import dump_lease
from sagalog.engine.kernel.record import Record
from sagalog.engine.runtime import gate as gates
from sagalog.engine.runtime.buckets import CONCURRENCY, RATE, Claim, Claims, fixed_share
from sagalog.engine.runtime.gate import CircuitView, Gate
from sagalog.engine.runtime.limits import LEASE_IDLE_MS, LEASE_TURN_MS
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import WhenOpen
from sagalog.schemas.ids import Direction, command_id
from sagalog.schemas.records import LEASE_KEY, TYPE_DEMAND, LeaseRecord
from sagalog.schemas.statuses import CircuitStatus


def dispatch(workflow_id: str, *, agent: str = "agent", priority: int = 5, service: str | None = None) -> Dispatch:
    name = command_id(workflow_id, "a", 1, Direction.EXECUTE)
    sent = Command(
        name, workflow_id, "hash", "a", agent, 1, Direction.EXECUTE, "t", f"{workflow_id}/a", None, 1_000,
        service=service, priority=priority,
    )  # fmt: skip
    return Dispatch(sent, WhenOpen.PARK, 10_000, None)


def few(key: str, amount: int, limit: str = "few", tenant: str = "") -> Claims:
    return Claims(tenant, (Claim(CONCURRENCY, "saga", limit, key, amount),))


def slow(key: str, per_second: float, burst: int = 1) -> Claims:
    return Claims("", (), (Claim(RATE, "saga", "slow", key, burst, per_second),))


def done(gate: Gate, workflow_id: str) -> None:
    gate.answered(command_id(workflow_id, "a", 1, Direction.EXECUTE))


def released(gate: Gate, now_ms: int) -> list[str]:
    gate.time(now_ms)
    return [effect.command.workflow_id for effect in gate.release(now_ms)]


def live(**more: Any) -> Gate:
    gate = Gate(0, **more)
    gate.begin(1, 0)
    return gate


# --- one partition


def test_what_one_key_holds_holds_up_no_other() -> None:
    gate = live()
    for number in range(5):
        assert gate.admit(dispatch(f"a{number}"), 0, few("acme", 2)) is (number < 2)
    assert gate.admit(dispatch("b0"), 0, few("other", 2)) is True
    assert gate.withheld("a2") == [
        {
            "step": "a", "attempt": 1, "direction": "execute", "reason": "concurrency_limit", "since_ms": 0,
            "limit": "few", "key": "acme",
        }
    ]  # fmt: skip
    assert gate.reasons() == {"concurrency_limit": 3}

    done(gate, "a0")
    gate.time(70)
    (out,) = gate.release(70)
    withheld = out.command.withheld
    assert withheld is not None
    assert (withheld.reason, withheld.ms, withheld.limit, withheld.key) == ("concurrency_limit", 70, "few", "acme")
    assert gate.reasons() == {"concurrency_limit": 2}


def test_a_rate_lets_its_burst_out_and_then_one_at_a_time() -> None:
    gate = live()
    gate.time(10_000)
    assert [gate.admit(dispatch(f"w{number}"), 10_000, slow("acme", 10, 2)) for number in range(5)] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert gate.admit(dispatch("other"), 10_000, slow("other", 10, 2)) is True
    assert released(gate, 10_050) == []
    assert gate.next_due_ms() == 10_101
    assert released(gate, 10_101) == ["w2"]
    assert released(gate, 10_350) == ["w3", "w4"]


def test_after_a_take_over_a_rate_begins_without_tokens() -> None:
    gate = Gate(0)
    gate.begin(2, 5_000)
    assert gate.admit(dispatch("w0"), 5_000, slow("acme", 1, 5)) is False
    assert released(gate, 5_900) == []
    assert released(gate, 6_001) == ["w0"]


def test_a_command_that_waits_for_its_agent_has_taken_no_token() -> None:
    gate = live(in_flight_max=1)
    gate.time(10_000)
    gate.admit(dispatch("first"), 10_000)
    for number in range(3):
        assert gate.admit(dispatch(f"w{number}"), 10_000, slow("acme", 1)) is False
    done(gate, "first")
    assert released(gate, 20_000) == ["w0"]
    done(gate, "w0")
    assert released(gate, 20_100) == [], "the token is used"
    assert gate.reasons()["rate_limit"] == 2
    assert released(gate, 21_001) == ["w1"]


def test_commands_of_several_limits_never_wait_for_each_other() -> None:
    gate = live()
    both = Claims("", tuple(sorted((*few("x", 1, "one").places, *few("y", 1, "two").places), key=lambda c: c.bucket)))
    waiting = [f"w{number}" for number in range(6)]
    out = [name for name in waiting if gate.admit(dispatch(name), 0, both)]
    out += [name for name in ("solo",) if gate.admit(dispatch(name), 0, few("y", 1, "two"))]
    seen = list(out)
    for now_ms in range(1, 20):
        for name in out:
            done(gate, name)
        out = released(gate, now_ms)
        assert len(out) <= 2
        seen += out
    assert sorted(seen) == sorted([*waiting, "solo"])


def test_what_waits_for_a_limit_when_its_circuit_opens_waits_for_that_and_gives_its_places_back() -> None:
    gate = live()
    gate.circuit("bank", CircuitView(CircuitStatus.CLOSED, 0))
    gate.admit(dispatch("w0", service="bank"), 0, few("acme", 1))
    gate.admit(dispatch("w1", service="bank"), 0, few("acme", 1))
    gate.circuit("bank", CircuitView(CircuitStatus.OPEN, 1))
    done(gate, "w0")

    assert released(gate, 2) == []
    assert gate.withheld("w1")[0]["reason"] == "circuit_open"
    assert gate.admit(dispatch("w2"), 3, few("acme", 1)) is True


def test_of_too_many_keys_the_last_ones_wait_until_others_are_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "BUCKETS_MAX", 2)
    gate = live()
    assert gate.admit(dispatch("w0"), 0, few("a", 1)) is True
    assert gate.admit(dispatch("w1"), 0, few("b", 1)) is True
    assert gate.admit(dispatch("w2"), 0, few("c", 1)) is False
    assert gate.withheld("w2")[0]["reason"] == "limit_keys_full"
    done(gate, "w0")
    gate.time(5_000)
    gate.demands()
    assert released(gate, 5_001) == ["w2"]


def test_tenants_take_turns_by_weight_and_within_one_it_goes_by_priority() -> None:
    gate = live(in_flight_max=1, weights={"big": 2})
    gate.admit(dispatch("first"), 0)
    for number in range(20):
        gate.admit(dispatch(f"big-{number}"), 0, Claims("big"))
    for number in range(5):
        gate.admit(dispatch(f"small-{number}", priority=number), 0, Claims("small"))
    order = []
    out = ["first"]
    for now_ms in range(1, 10):
        done(gate, out[0])
        out = released(gate, now_ms)
        order += out
    assert order == ["big-0", "big-1", "small-4", "big-2", "big-3", "small-3", "big-4", "big-5", "small-2"]


def test_a_command_that_is_sent_again_counts_once() -> None:
    gate = live(in_flight_max=1)
    assert gate.admit(dispatch("w0"), 0, few("acme", 1)) is True
    assert gate.admit(dispatch("w0"), 0, few("acme", 1)) is True
    done(gate, "w0")
    assert gate.admit(dispatch("w1"), 0, few("acme", 1)) is True


# --- take-over


def test_what_was_out_counts_after_a_take_over() -> None:
    before = live()
    for number in range(3):
        before.admit(dispatch(f"w{number}"), 0, few("acme", 2))
    told = {name: decode_object(encode(before.counted(name))) for name in ("w0", "w1")}
    assert before.counted("w2") == {}

    after = Gate(0)
    for name, counted in told.items():
        after.count_again(name, counted)
    after.begin(2, 0)
    assert after.admit(dispatch("w9"), 0, few("acme", 2)) is False
    assert {name: decode_object(encode(after.counted(name))) for name in told} == told, "and for the one after it"
    done(after, "w0")
    assert released(after, 1) == ["w9"]


def test_what_was_withheld_keeps_its_place_after_a_take_over() -> None:
    after = Gate(0)
    after.count_again("w0", {"concurrency/saga/few/acme": [1, ["a/1/execute"]]})
    for name, since_ms in (("zz", 10), ("aa", 20)):
        record = {"reason": "concurrency_limit", "since_ms": since_ms, "limit": "few", "key": "acme"}
        after.hold_again(dispatch(name), record, few("acme", 1))
    after.begin(2, 0)
    assert released(after, 30) == []
    done(after, "w0")
    assert released(after, 31) == ["zz"], "the one that waits longest"


def test_what_a_rate_withheld_goes_on_at_its_rate_after_a_take_over() -> None:
    after = Gate(0)
    for number in range(3):
        record = {"reason": "rate_limit", "since_ms": number, "limit": "slow", "key": "acme"}
        after.hold_again(dispatch(f"w{number}"), record, slow("acme", 1, 5))
    after.begin(2, 10_000)
    assert [released(after, at_ms) for at_ms in (10_000, 10_900, 11_001, 12_002, 13_003)] == [
        [], [], ["w0"], ["w1"], ["w2"],
    ]  # fmt: skip


# --- the fleet


class Fleet:
    """Gates of several partitions, and the fold of leases between them, each a step behind the other."""

    def __init__(self, partitions: int, weights: Mapping[str, int] | None = None) -> None:
        self.leases: dict[str, LeaseRecord] = {}
        self.partitions = partitions
        self.epochs = [1] * partitions
        self.gates = [self.gate(number, 0) for number in range(partitions)]
        self.fold = CircuitPartition()
        self.log: list[Record] = []
        self.now_ms = 0
        self.out: list[set[str]] = [set() for _ in range(partitions)]

    def gate(self, number: int, now_ms: int) -> Gate:
        gate = Gate(number, partitions=self.partitions, leases=self.leases)
        gate.begin(self.epochs[number], now_ms)
        return gate

    def speak(self, number: int) -> None:
        for said in self.gates[number].demands():
            key = (LEASE_KEY + said["bucket"]).encode()
            self.log.append(Record(len(self.log), self.now_ms, key, encode(said), TYPE_DEMAND.encode(), b"id", 0, None))

    def publish(self) -> None:
        for record in self.log[self.fold.offset + 1 :]:
            self.fold.apply(record, [])
        for key in self.fold.touched:
            lease = self.fold.leases.by_key.get(key)
            bucket = key.removeprefix(LEASE_KEY)
            if lease is None:
                self.leases.pop(bucket, None)
            else:
                self.leases[bucket] = decode_object(encode(dump_lease(lease)))  # type: ignore[assignment]
            for gate in self.gates:
                gate.leased(bucket)
        self.fold.touched.clear()

    def take_over(self, number: int) -> None:
        counted = {name: self.gates[number].counted(name) for name in self.out[number]}
        before = self.gates[number]
        held = [
            found
            for name in before.held_workflows()
            for found in zip(before.held_of(name), before.withheld(name), strict=True)
        ]
        self.epochs[number] += 1
        gate = Gate(number, partitions=self.partitions, leases=self.leases)
        for name, told in counted.items():
            gate.count_again(name, told)
        for effect, record in sorted(held, key=lambda found: found[1]["since_ms"]):
            gate.hold_again(effect, record, self.claims[effect.command.workflow_id])
        gate.begin(self.epochs[number], self.now_ms)
        self.gates[number] = gate

    claims: dict[str, Claims]

    def tick(self, number: int) -> list[str]:
        out = released(self.gates[number], self.now_ms)
        self.out[number].update(out)
        return out


steps = st.lists(
    st.tuples(
        st.sampled_from(("come", "come", "done", "tick", "speak", "publish", "take_over")),
        st.integers(0, 2),
        st.sampled_from(("acme", "other")),
        st.integers(0, 700),
    ),
    max_size=80,
)


@given(st.integers(1, 12), steps)
@settings(max_examples=150, deadline=None)
def test_in_the_fleet_never_more_are_out_than_a_limit_allows_and_all_go_out_in_the_end(amount: int, what: Any) -> None:
    fleet = Fleet(3)
    fleet.claims = {}
    keys: dict[str, str] = {}
    left: set[str] = set()

    def check() -> None:
        counts = Counter(keys[name] for out in fleet.out for name in out)
        assert all(count <= amount for count in counts.values()), counts

    def step(kind: str, number: int, key: str) -> None:
        gate = fleet.gates[number]
        match kind:
            case "come":
                name = f"w{len(keys)}"
                keys[name] = key
                fleet.claims[name] = few(key, amount)
                if gate.admit(dispatch(name), fleet.now_ms, fleet.claims[name]):
                    fleet.out[number].add(name)
                else:
                    left.add(name)
            case "done" if fleet.out[number]:
                name = min(fleet.out[number])
                fleet.out[number].discard(name)
                done(gate, name)
            case "tick":
                left.difference_update(fleet.tick(number))
            case "speak":
                gate.time(fleet.now_ms)
                fleet.speak(number)
            case "publish":
                fleet.publish()
            case "take_over":
                fleet.take_over(number)
        check()

    for kind, number, key, later_ms in what:
        fleet.now_ms += later_ms
        step(kind, number, key)
    for _ in range(60 + 6 * len(left)):
        fleet.now_ms += 400
        for number in range(3):
            while fleet.out[number]:
                step("done", number, "")
            step("tick", number, "")
            step("speak", number, "")
        step("publish", 0, "")
        if not left:
            break
    assert left == set()


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 2), st.integers(1, 1_500)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_in_the_fleet_a_rate_is_never_exceeded(burst: int, what: Any) -> None:
    fleet, per_second = Fleet(3), 4.0
    claims = slow("acme", per_second, burst)
    went_ms: list[int] = []
    for place, (number, later_ms) in enumerate(what):
        fleet.now_ms += later_ms
        gate = fleet.gates[number]
        gate.time(fleet.now_ms)
        if gate.admit(dispatch(f"w{place}"), fleet.now_ms, claims):
            went_ms.append(fleet.now_ms)
        for other in range(3):
            went_ms += [fleet.now_ms] * len(fleet.tick(other))
            fleet.speak(other)
        fleet.publish()
    for _ in range(600):
        if len(went_ms) == len(what):
            break
        fleet.now_ms += 200
        for number in range(3):
            went_ms += [fleet.now_ms] * len(fleet.tick(number))
            fleet.speak(number)
        fleet.publish()
    assert len(went_ms) == len(what)
    tokens, last_ms = float(burst), 0
    for at_ms in went_ms:
        tokens, last_ms = min(float(burst), tokens + (at_ms - last_ms) / 1000 * per_second) - 1, at_ms
        assert tokens >= -0.01


def test_what_the_partition_is_leased_is_used_after_a_take_over_once_the_first_word_is_answered() -> None:
    fleet = Fleet(2)
    claims = few("acme", 2)
    for name in ("a0", "a1"):
        fleet.gates[0].admit(dispatch(name), 0, claims)
    fleet.speak(0)
    fleet.publish()
    assert fleet.tick(0) == ["a0", "a1"]
    done(fleet.gates[0], "a1")
    fleet.out[0].discard("a1")

    fleet.take_over(0)
    after = fleet.gates[0]
    assert after.admit(dispatch("a2"), 0, claims) is False, "the owner before may have given it back"
    fleet.publish()
    assert fleet.tick(0) == []
    fleet.speak(0)
    assert fleet.tick(0) == []
    fleet.publish()
    assert fleet.tick(0) == ["a2"]


def test_what_was_given_back_is_not_used_from_that_moment_on() -> None:
    fleet = Fleet(2)
    first, second = fleet.gates
    claims = few("acme", 1)
    first.admit(dispatch("a0"), 0, claims)
    fleet.speak(0)
    fleet.publish()
    assert fleet.tick(0) == ["a0"]
    done(first, "a0")
    second.admit(dispatch("b0"), 0, claims)
    fleet.speak(1)
    fleet.publish()
    fleet.speak(0)

    assert first.admit(dispatch("a1"), 0, claims) is False
    fleet.publish()
    assert (fleet.tick(0), fleet.tick(1)) == ([], ["b0"])


def test_fixed_shares_and_what_is_leased_add_up_to_the_limit() -> None:
    for amount in (1, 2, 7, 16, 17, 100):
        for partitions in (1, 2, 8):
            assert 0 <= partitions * fixed_share(amount, partitions) <= amount
    assert (fixed_share(15, 8), fixed_share(16, 8), fixed_share(100, 8), fixed_share(5, 1)) == (0, 1, 6, 5)


def test_a_lease_moves_to_who_waits_when_its_turn_is_over_or_when_it_is_idle() -> None:
    fleet = Fleet(2)
    fleet.claims = {}
    first, second = fleet.gates
    first.admit(dispatch("a0"), 0, few("acme", 1))
    for number in range(2):
        fleet.speak(number)
    fleet.publish()
    assert fleet.tick(0) == ["a0"]
    first.admit(dispatch("a1"), 0, few("acme", 1))
    second.admit(dispatch("b0"), 0, few("acme", 1))
    fleet.speak(1)
    fleet.publish()
    fleet.now_ms = LEASE_TURN_MS + 1
    fleet.tick(0)
    fleet.speak(0)
    done(first, "a0")
    assert fleet.tick(0) == [], "its turn is over"
    fleet.speak(0)
    fleet.publish()
    assert fleet.tick(1) == ["b0"]
    done(second, "b0")
    fleet.tick(1)
    fleet.speak(1)
    fleet.publish()
    assert fleet.tick(0) == ["a1"], "nobody waits there any more"
    done(first, "a1")
    fleet.now_ms += LEASE_IDLE_MS + 2_000
    fleet.tick(0)
    fleet.speak(0)
    fleet.publish()
    assert fleet.leases == {} or not next(iter(fleet.leases.values()))["parts"]
