"""The other fold: outcomes of calls in, a service's circuit out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sagalog.engine.kernel.circuits import Circuit
from sagalog.engine.kernel.effects import Quarantine
from sagalog.engine.kernel.state import NEVER
from sagalog.schemas.codec import encode
from sagalog.schemas.definitions import CircuitPolicy
from sagalog.schemas.events import KINDS, TYPE_OF, CancelRequested, Owned, encode_event
from sagalog.schemas.limits import WINDOW_CALLS_MAX
from sagalog.schemas.records import NO_SERVICE, TYPE_OUTCOME

from .driver import START_MS, CircuitDriver, ignored, shown

POLICY = {"failure_ratio": 0.5, "calls_min": 4, "window_ms": 10_000, "recovery_ms": 1_000}

OPENED = ["workflow closed -> open by too_many_faults"]
RECOVERED = ["workflow open -> half_open by recovery_time_over"]
CLOSED = ["workflow half_open -> closed by probe_succeeded"]
REOPENED = ["workflow half_open -> open by probe_failed"]


def calls(start: int, *oks: int, ago_ms: int = 0) -> list[tuple[int, int, int]]:
    return [(start + place, ok, ago_ms) for place, ok in enumerate(oks)]


def opened(**more: Any) -> CircuitDriver:
    driver = CircuitDriver(**more)
    assert shown(driver.outcome(*calls(0, 0, 0, 0, 0), policy=POLICY)) == OPENED
    return driver


def half_open(*candidates: int) -> CircuitDriver:
    driver = opened()
    for partition in candidates:
        driver.outcome(partition=partition, parked=2, policy=POLICY)
    driver.now_ms += 1_000
    assert shown(driver.fire("open", 1)) == RECOVERED
    return driver


def circuit(driver: CircuitDriver) -> Circuit:
    return driver.partition.circuits["bank"]


# --- opening


def test_the_first_outcome_makes_a_closed_circuit() -> None:
    driver = CircuitDriver()

    assert driver.outcome((5, 1, 0), policy=POLICY) == []
    assert driver.dump() == {
        "v": 1,
        "service": "bank",
        "status": "closed",
        "since_ms": START_MS,
        "now_ms": START_MS,
        "at_offset": 1,
        "opened": 0,
        "turn": 0,
        "candidates": [],
        "window": [[START_MS, 1]],
        "seen": {"0": 5},
        # Defaults are left out, as everywhere in definitions.
        "policy": {"calls_min": 4, "window_ms": 10_000, "recovery_ms": 1_000},
    }
    assert list(driver.partition.touched) == ["bank"]


def test_it_opens_when_enough_of_enough_calls_failed() -> None:
    driver = CircuitDriver()

    assert driver.outcome(*calls(0, 1, 0, 1), policy=POLICY) == []
    effects = driver.outcome(*calls(3, 0), policy=POLICY)

    assert shown(effects) == OPENED
    assert (circuit(driver).reason, circuit(driver).opened) == ("2 of the last 4 calls failed", 1)
    assert circuit(driver).half_open_at_ms == START_MS + 1_000


@pytest.mark.parametrize("oks", [(0, 0, 0), (1, 1, 1, 0), (1, 1, 1, 1, 0, 0, 0), (0, 0, 1, 1)])
def test_it_stays_closed_below_the_least_calls_or_the_ratio_and_never_opens_on_a_success(oks: tuple[int, ...]) -> None:
    driver = CircuitDriver()

    assert driver.outcome(*calls(0, *oks), policy=POLICY) == []
    assert circuit(driver).status == "closed"


def test_a_fault_that_left_the_window_does_not_count() -> None:
    driver = CircuitDriver()
    driver.outcome(*calls(0, 0, 0, 0), policy=POLICY)
    driver.now_ms += 10_001

    assert driver.outcome(*calls(3, 0), policy=POLICY) == []
    assert circuit(driver).window == [[driver.now_ms, 0]]


def test_a_fault_at_the_windows_edge_counts() -> None:
    driver = CircuitDriver()
    driver.outcome(*calls(0, 0, 0, 0), policy=POLICY)
    driver.now_ms += 10_000

    assert shown(driver.outcome(*calls(3, 0), policy=POLICY)) == OPENED


def test_an_old_fault_that_is_reported_late_does_not_count() -> None:
    driver = CircuitDriver()
    driver.outcome((0, 1, 0), partition=0, policy=POLICY)

    # Another partition catches up after an outage: its calls ended an hour ago.
    assert driver.outcome(*calls(0, 0, 0, 0, 0, ago_ms=3_600_000), partition=1, policy=POLICY) == []


def test_only_so_many_calls_are_kept() -> None:
    driver = CircuitDriver()
    for batch in range(5):
        driver.outcome(*calls(batch * 300, *[1] * 300), policy=POLICY)

    assert len(circuit(driver).window) == WINDOW_CALLS_MAX


def test_every_policy_can_open_its_circuit() -> None:
    # Even one that asks for as many calls as the window can hold, and for all of them to fail.
    policy = {**POLICY, "calls_min": WINDOW_CALLS_MAX, "failure_ratio": 1.0}
    driver = CircuitDriver()
    driver.outcome(*calls(0, *[0] * (WINDOW_CALLS_MAX - 1)), policy=policy)
    assert circuit(driver).status == "closed"

    assert shown(driver.outcome((WINDOW_CALLS_MAX, 0, 0), policy=policy)) == OPENED


def test_a_policy_that_asks_for_more_calls_than_the_window_holds_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        CircuitPolicy(calls_min=WINDOW_CALLS_MAX + 1)


def test_the_exact_ratio_opens() -> None:
    driver = CircuitDriver()

    assert (
        shown(
            driver.outcome(*calls(0, *[1] * 45, *[0] * 55), policy={**POLICY, "failure_ratio": 0.55, "calls_min": 100})
        )
        == OPENED
    )


def test_a_newer_policy_counts_from_then_on() -> None:
    driver = CircuitDriver()
    driver.outcome(*calls(0, 0), policy=POLICY)

    assert shown(driver.outcome(*calls(1, 0), policy={**POLICY, "calls_min": 2})) == OPENED


def test_circuits_of_two_services_are_apart() -> None:
    driver = CircuitDriver()
    driver.outcome(*calls(0, 0, 0, 0), policy=POLICY)
    before = driver.dump()
    driver.outcome(*calls(0, 0, 0, 0, 0), service="post", policy=POLICY)

    assert driver.dump() == before
    assert driver.partition.circuits["post"].status == "open"


def test_calls_of_no_service_have_no_circuit() -> None:
    driver = CircuitDriver()

    assert ignored(driver.outcome(*calls(0, 0), service=NO_SERVICE)) == "no_circuit"
    assert driver.partition.circuits == {}


# --- open


def test_results_that_land_while_it_is_open_change_nothing() -> None:
    driver = opened()
    before = driver.dump()

    assert driver.outcome(*calls(4, 1, 0, 1), policy=POLICY) == []
    after = driver.dump()
    assert (after.pop("seen"), after.pop("at_offset")) == ({"0": 6}, 2)
    assert after == {key: value for key, value in before.items() if key not in ("seen", "at_offset")}


def test_the_recovery_timer_half_opens_it_and_grants_the_probe_to_who_waits_longest() -> None:
    driver = opened()
    driver.outcome(partition=3, parked=1, policy=POLICY)
    driver.outcome(partition=1, parked=5, policy=POLICY)
    driver.now_ms += 1_000

    assert shown(driver.fire("open", 1)) == RECOVERED
    assert (circuit(driver).probe, circuit(driver).probe_until_ms) == (3, driver.now_ms + 1_000)
    assert circuit(driver).timer() == ("half_open", 2)
    assert circuit(driver).half_open_at_ms == NEVER


def test_without_a_candidate_it_waits_half_open_for_the_first_one() -> None:
    driver = half_open()
    assert (circuit(driver).probe, circuit(driver).due_ms()) == (None, NEVER)

    assert driver.outcome(partition=2, parked=1, policy=POLICY) == []
    assert circuit(driver).probe == 2


def test_a_partition_whose_commands_no_longer_wait_is_no_candidate() -> None:
    driver = opened()
    driver.outcome(partition=3, parked=1, policy=POLICY)
    driver.outcome(partition=1, parked=1, policy=POLICY)
    driver.outcome(partition=3, parked=0, policy=POLICY)
    driver.fire_due()

    assert circuit(driver).probe == 1


# --- half open


def test_a_probe_that_succeeds_closes_it_with_an_empty_window() -> None:
    driver = half_open(3)

    assert shown(driver.outcome((0, 1, 0), partition=3, policy=POLICY)) == CLOSED
    state = circuit(driver)
    assert (state.window, state.reason, state.probe, state.candidates, state.due_ms()) == ([], None, None, [], NEVER)
    # One fault after that is not held against it.
    assert driver.outcome((1, 0, 0), partition=3, policy=POLICY) == []


def test_a_probe_that_fails_opens_it_again() -> None:
    driver = half_open(3, 1)

    assert shown(driver.outcome((0, 0, 0), partition=3, policy=POLICY)) == REOPENED
    state = circuit(driver)
    assert (state.reason, state.opened, state.probe) == ("the probe failed", 2, None)
    assert state.half_open_at_ms == driver.now_ms + 1_000
    # Turns: 1 opened, 2 granted, 3 opened again. The timer of the first opening is not the one of the second.
    assert state.timer() == ("open", 3)
    assert ignored(driver.fire("open", 1)) == "not_waited_for"
    assert shown(driver.fire("open", 3)) == RECOVERED


def test_every_state_of_a_circuit_survives_its_record() -> None:
    driver = opened(round_trip=True)
    driver.outcome(partition=3, parked=1, policy=POLICY)
    driver.fire_due()
    driver.fire_due()
    assert circuit(driver).turn == 3

    assert shown(driver.outcome((0, 1, 0), partition=3, policy=POLICY)) == CLOSED


def test_only_the_probes_partition_is_believed_while_half_open() -> None:
    driver = half_open(3)

    assert driver.outcome((0, 1, 0), partition=1, policy=POLICY) == []
    assert driver.outcome((1, 0, 0), partition=1, policy=POLICY) == []
    assert (circuit(driver).status, circuit(driver).probe) == ("half_open", 3)


def test_a_probe_that_nobody_uses_goes_to_the_next_candidate_in_turn() -> None:
    driver = half_open(3, 1)
    holders = []
    for _ in range(4):
        holders.append(circuit(driver).probe)
        driver.now_ms += 1_000
        assert driver.fire_due() == []

    assert holders == [3, 1, 3, 1]


def test_a_copy_of_the_timer_that_ended_a_grant_does_not_end_the_next() -> None:
    driver = half_open(3, 1)
    driver.now_ms += 1_000
    assert driver.fire("half_open", 2) == []
    before = driver.dump()

    assert ignored(driver.fire("half_open", 2)) == "not_waited_for"
    assert driver.dump() == before
    assert (circuit(driver).probe, circuit(driver).timer()) == (1, ("half_open", 3))


# --- timers and owners


@pytest.mark.parametrize(
    ("reason", "status", "more"),
    [
        ("old_epoch", "open", {"epoch": 0}),
        ("old_epoch", "open", {"epoch": 2}),
        ("not_waited_for", "half_open", {}),
        ("not_waited_for", "closed", {}),
        ("not_waited_for", "open", {"turn": 0}),
        ("not_waited_for", "open", {"turn": 2}),
        ("not_waited_for", "open", {"service": "post"}),
    ],
)
def test_a_timer_that_is_not_set_changes_nothing(reason: str, status: str, more: dict[str, Any]) -> None:
    driver = opened()
    before = (driver.dump(), dict(driver.partition.touched))
    driver.now_ms += 5_000

    assert ignored(driver.fire(status, **{"turn": 1, **more})) == reason
    assert (driver.dump(), dict(driver.partition.touched)) == before


def test_the_recovery_timer_counts_once() -> None:
    driver = half_open(3)
    before = driver.dump()

    assert ignored(driver.fire("open", 1)) == "not_waited_for"
    assert driver.dump() == before


def test_a_closed_circuit_has_no_timer() -> None:
    driver = CircuitDriver()
    driver.outcome((0, 1, 0), policy=POLICY)

    assert ignored(driver.fire("closed", 0)) == "not_waited_for"


def test_ownership_is_as_in_the_events() -> None:
    driver = opened()
    owned = TYPE_OF[Owned].encode()

    assert shown(driver.append_raw(b"@owner", encode_event(Owned(2, "next")), owned)) == ["owner 2 next"]
    assert shown(driver.append_raw(b"@owner", encode_event(Owned(2, "late")), owned)) == ["claim lost 2 late"]
    assert ignored(driver.fire_due(epoch=1)) == "old_epoch"
    assert shown(driver.fire_due(epoch=2)) == RECOVERED


# --- outcomes that come twice


def test_outcomes_that_are_sent_again_count_once() -> None:
    driver = CircuitDriver()
    driver.outcome(*calls(0, 0, 0, 0), policy=POLICY)

    assert driver.outcome(*calls(0, 0, 0, 0), policy=POLICY) == []
    assert len(circuit(driver).window) == 3


def test_of_an_overlapping_list_only_the_new_calls_count() -> None:
    driver = CircuitDriver()
    driver.outcome(*calls(10, 1, 0, 1), policy=POLICY)

    # A re-folding engine cuts its lists elsewhere.
    driver.outcome(*calls(8, 0, 0, 0, 0, 0, 1), policy=POLICY)

    assert [ok for _, ok in circuit(driver).window] == [1, 0, 1, 1]
    assert circuit(driver).seen == {0: 13}


def test_the_offsets_of_each_partition_are_its_own() -> None:
    driver = CircuitDriver()
    driver.outcome(*calls(5, 0, 0), partition=0, policy=POLICY)

    assert shown(driver.outcome(*calls(5, 0, 0), partition=1, policy=POLICY)) == OPENED
    assert circuit(driver).seen == {0: 6, 1: 6}


def test_the_clock_never_steps_back() -> None:
    driver = CircuitDriver()
    driver.outcome((0, 1, 0), policy=POLICY)
    driver.now_ms -= 5_000
    driver.outcome((1, 1, 0), policy=POLICY)

    assert circuit(driver).now_ms == START_MS


# --- records that cannot be read


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "value: is empty"),
        (b"{", "value: is not JSON"),
        (b"[]", "value: is a JSON list"),
        (b"{}", "service: "),
        (b'{"service":"a","partition":"x","at_offset":1,"calls":[],"policy":{}}', "partition: "),
        (b'{"service":"a","partition":0,"at_offset":1,"calls":[[1,1]],"policy":{}}', "calls.0"),
        (b'{"service":"a","partition":0,"at_offset":1,"calls":[],"policy":{"calls_min":0}}', "policy.calls_min"),
    ],
)
def test_an_outcome_that_cannot_be_read_is_quarantined(value: bytes | None, reason: str) -> None:
    driver = CircuitDriver()

    (effect,) = driver.append_raw(b"a", value, TYPE_OUTCOME.encode())

    assert isinstance(effect, Quarantine)
    assert (effect.stage, effect.workflow_id) == ("decode", None)
    assert effect.reason.startswith(reason)
    assert driver.partition.circuits == {}


def test_an_event_of_a_workflow_is_not_waited_for() -> None:
    driver = CircuitDriver()

    assert ignored(
        driver.append_raw(b"w", encode_event(CancelRequested("a", "b")), TYPE_OF[CancelRequested].encode())
    ) == ("not_waited_for")


@given(
    st.binary(max_size=80) | st.none(),
    st.sampled_from([TYPE_OUTCOME.encode(), *(k.encode() for k in KINDS)]) | st.none(),
)
def test_no_bytes_make_the_fold_raise(value: bytes | None, ce_type: bytes | None) -> None:
    CircuitDriver().append_raw(b"\xff", value, ce_type)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["calls", "calls", "calls", "parked", "fire", "fire", "back", "again"]),
        st.integers(0, 2),
        st.lists(st.sampled_from([0, 0, 1]), max_size=6),
        st.integers(0, 1_500),
    ),
    min_size=10,
    max_size=40,
)


@given(STEPS)
def test_a_circuit_folds_on_from_its_record_like_the_circuit_itself(
    steps: list[tuple[str, int, list[int], int]],
) -> None:
    policy = {**POLICY, "calls_min": 2}
    drivers = [CircuitDriver(), CircuitDriver(round_trip=True)]
    offsets = [0, 0, 0]
    newest_ms = newest_turn = 0
    for what, partition, oks, ms in steps:
        seen = []
        for driver in drivers:
            driver.now_ms += -ms if what == "back" else ms
            state = driver.partition.circuits.get("bank")
            match what:
                case "parked":
                    effects = driver.outcome(partition=partition, parked=len(oks), policy=policy)
                case "fire" if state is not None:
                    effects = driver.fire_due()
                case "again":
                    effects = driver.outcome(
                        *calls(max(offsets[partition] - 3, 0), 0, 0), partition=partition, policy=policy
                    )
                case _:
                    effects = driver.outcome(*calls(offsets[partition], *oks), partition=partition, policy=policy)
            seen.append((effects, {name: encode(driver.dump(name)) for name in driver.partition.circuits}))
        if what in ("calls", "back"):
            offsets[partition] += len(oks)
        assert seen[0] == seen[1]
        state = drivers[0].partition.circuits.get("bank")
        if state is not None:
            assert state.now_ms >= newest_ms
            assert state.turn >= max(newest_turn, state.opened)
            newest_ms, newest_turn = state.now_ms, state.turn
            assert (state.half_open_at_ms != NEVER) == (state.status == "open")
            assert state.probe is None or state.status == "half_open"
            assert (state.probe is None) == (state.probe_until_ms == NEVER)
