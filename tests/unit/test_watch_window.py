"""The window's arithmetic and the alert's rule, by example and against a model that keeps every call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.engine.watch.window import BUCKETS_MAX, Alert, AlertRule, Counts, SlidingCounts, judge

T = 1_700_000_000_000
RULE = AlertRule(threshold=0.05, calls_min=20, hold_ms=10_000)
QUIET = Alert(raised=False, since_ms=0)


def test_no_calls_have_the_rate_zero() -> None:
    assert Counts().error_rate == 0.0
    assert Counts().calls == 0


def test_the_rate_is_failed_calls_over_all() -> None:
    assert Counts(ok=3, failed=1).error_rate == 0.25
    assert Counts(ok=0, failed=2).error_rate == 1.0


def test_calls_of_one_bucket_add_up() -> None:
    window = SlidingCounts(60_000, 5_000)
    assert window.add(T, 1, 2, T)
    assert window.add(T + 4_999, 10, 20, T + 4_999)
    assert window.counts(T + 4_999) == Counts(11, 22)


@pytest.mark.parametrize(
    ("age_ms", "held"),
    [(0, True), (5_000, True), (55_000, True), (59_999, False), (60_000, False), (1_000_000, False)],
)
def test_a_call_counts_until_its_bucket_leaves_the_window(age_ms: int, held: bool) -> None:
    # T is the first millisecond of a bucket, so a call of 55 s ago lies in the oldest bucket that is held.
    window = SlidingCounts(60_000, 5_000)
    assert window.add(T - age_ms, 1, 0, T) is held
    assert window.counts(T) == Counts(int(held), 0)


def test_the_window_never_covers_more_than_its_width_and_at_most_a_bucket_less() -> None:
    window = SlidingCounts(60_000, 5_000)
    for within in range(0, 5_000, 250):
        now_ms = T + within
        held = [age for age in range(0, 70_000, 50) if window.add(now_ms - age, 1, 0, now_ms)]
        assert 55_000 <= max(held) < 60_000


def test_a_call_in_the_future_is_not_kept() -> None:
    window = SlidingCounts(60_000, 5_000)
    assert not window.add(T + 5_000, 1, 1, T)
    assert window.counts(T + 5_000) == Counts()


def test_a_clock_that_is_set_back_costs_no_more_than_the_window() -> None:
    window = SlidingCounts(60_000, 5_000)
    window.add(T, 5, 5, T)
    assert window.counts(T - 3_600_000) == Counts()
    assert window.add(T - 3_600_000, 1, 0, T - 3_600_000)
    assert window.counts(T - 3_600_000) == Counts(1, 0)


@pytest.mark.parametrize(("window_ms", "bucket_ms"), [(0, 1), (10, 0), (10, 20), (10, 3), (BUCKETS_MAX + 1, 1)])
def test_a_window_that_makes_no_sense_is_refused(window_ms: int, bucket_ms: int) -> None:
    with pytest.raises(ValueError, match="_ms: "):
        SlidingCounts(window_ms, bucket_ms)


@given(
    bucket_ms=st.integers(1, 50),
    buckets=st.integers(1, 20),
    calls=st.lists(
        st.tuples(st.integers(0, 60), st.integers(-200, 1_500), st.integers(0, 5), st.integers(0, 5)), max_size=60
    ),
)
def test_the_window_equals_the_sum_over_all_calls_in_it(
    bucket_ms: int, buckets: int, calls: list[tuple[int, int, int, int]]
) -> None:
    """Time goes on; records come late and out of order."""
    window = SlidingCounts(bucket_ms * buckets, bucket_ms)
    kept: list[tuple[int, int, int]] = []
    now_ms = T
    for step_ms, age_ms, ok, failed in calls:
        now_ms += step_ms
        at_ms = now_ms - age_ms
        if window.add(at_ms, ok, failed, now_ms):
            kept.append((at_ms, ok, failed))
        else:
            assert age_ms < 0 or age_ms > bucket_ms * (buckets - 1)
        inside = [call for call in kept if now_ms // bucket_ms - buckets < call[0] // bucket_ms <= now_ms // bucket_ms]
        assert window.counts(now_ms) == Counts(sum(c[1] for c in inside), sum(c[2] for c in inside))
    assert window.counts(now_ms + bucket_ms * buckets) == Counts()


@given(times=st.lists(st.tuples(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9)), max_size=80))
def test_memory_is_bounded_whatever_the_times_are(times: list[tuple[int, int]]) -> None:
    window = SlidingCounts(60_000, 5_000)
    for at_ms, now_ms in times:
        window.add(at_ms, 1, 1, now_ms)
        assert len(window._buckets) <= 12


# --- the alert


@pytest.mark.parametrize(
    ("ok", "failed", "raised"),
    [
        (2, 1, False),  # one of three proves nothing
        (0, 19, False),
        (19, 1, False),  # exactly 5 %
        (18, 2, True),
        (0, 20, True),
        (95, 5, False),
        (94, 6, True),
    ],
)
def test_an_alert_needs_more_than_the_threshold_of_enough_calls(ok: int, failed: int, raised: bool) -> None:
    alert = judge(QUIET, Counts(ok, failed), T, RULE)
    assert alert == (Alert(raised=True, since_ms=T) if raised else QUIET)


def test_a_raised_alert_keeps_its_start() -> None:
    alert = judge(Alert(raised=True, since_ms=T), Counts(0, 50), T + 1_000, RULE)
    assert alert == Alert(raised=True, since_ms=T)


def test_an_alert_is_cleared_when_the_rate_stayed_low_for_the_hold() -> None:
    alert = Alert(raised=True, since_ms=T)
    calm = Counts(ok=975, failed=25)  # 2.5 %, half of the threshold
    alert = judge(alert, calm, T + 1_000, RULE)
    assert alert == Alert(raised=True, since_ms=T, calm_since_ms=T + 1_000)
    alert = judge(alert, calm, T + 10_999, RULE)
    assert alert.raised
    alert = judge(alert, calm, T + 11_000, RULE)
    assert alert == Alert(raised=False, since_ms=T + 11_000)


def test_a_rate_between_half_the_threshold_and_the_threshold_does_not_clear() -> None:
    alert = Alert(raised=True, since_ms=T)
    for second in range(100):
        alert = judge(alert, Counts(ok=96, failed=4), T + second * 1_000, RULE)
    assert alert == Alert(raised=True, since_ms=T)


def test_the_hold_starts_over_when_the_rate_rises_again() -> None:
    alert = judge(Alert(raised=True, since_ms=T), Counts(100, 0), T, RULE)
    alert = judge(alert, Counts(90, 10), T + 9_000, RULE)
    alert = judge(alert, Counts(100, 0), T + 11_000, RULE)
    assert alert == Alert(raised=True, since_ms=T, calm_since_ms=T + 11_000)


def test_few_failing_calls_do_not_clear_an_alert_and_no_calls_do() -> None:
    alert = Alert(raised=True, since_ms=T)
    for second in range(60):
        alert = judge(alert, Counts(ok=2, failed=1), T + second * 1_000, RULE)
    assert alert.raised
    alert = judge(alert, Counts(), T + 60_000, RULE)
    assert not judge(alert, Counts(), T + 70_000, RULE).raised


def test_a_clock_that_is_set_back_does_not_stretch_the_hold() -> None:
    alert = judge(Alert(raised=True, since_ms=T), Counts(), T + 3_600_000, RULE)
    alert = judge(alert, Counts(), T, RULE)
    assert not judge(alert, Counts(), T + 10_000, RULE).raised


@given(failed=st.lists(st.integers(3, 7), min_size=1, max_size=200))
def test_a_rate_that_wavers_around_the_threshold_gives_one_alert(failed: list[int]) -> None:
    """3 to 7 % of 100 calls never fall to half of the threshold, so whatever their order, nothing flaps."""
    alert, changes = QUIET, 0
    for second, count in enumerate(failed):
        after = judge(alert, Counts(100 - count, count), T + second * 1_000, RULE)
        changes += after.raised != alert.raised
        alert = after
    assert changes == int(max(failed) > 5)


@given(looks=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20_000)), max_size=100))
def test_changes_of_an_alert_are_at_least_the_hold_apart_downwards(looks: list[tuple[int, int, int]]) -> None:
    alert, now_ms, raised_ms = QUIET, T, None
    for ok, failed, step_ms in looks:
        now_ms += step_ms
        counts = Counts(ok, failed)
        after = judge(alert, counts, now_ms, RULE)
        if after.raised and not alert.raised:
            assert counts.calls >= RULE.calls_min and counts.error_rate > RULE.threshold
            raised_ms = now_ms
        if alert.raised and not after.raised:
            assert counts.error_rate <= RULE.clear_at
            assert raised_ms is not None and now_ms - raised_ms >= RULE.hold_ms
        if after.raised == alert.raised:
            assert after.since_ms == alert.since_ms
        else:
            assert after.since_ms == now_ms
        alert = after


@pytest.mark.parametrize("wrong", [{"threshold": 1.0}, {"threshold": -0.1}, {"calls_min": 0}, {"hold_ms": -1}])
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AlertRule(**wrong)  # type: ignore[arg-type]
