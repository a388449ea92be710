"""When a cron expression is due: the days on which clocks change, what is refused, and that time always goes on."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.engine.schedules import coming
from sagalog.schemas.cron import check_cron, check_zone, next_after
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.limits import TIME_MS_MAX

BERLIN = "Europe/Berlin"


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def shown(cron: str, zone: str, after: str, count: int) -> list[str]:
    clock = ZoneInfo(zone)
    return [
        datetime.fromtimestamp(at / 1000, clock).strftime("%m-%d %H:%M%z")
        for at in coming(cron, zone, count, ms(after))
    ]


def test_it_is_due_by_the_clock_of_its_zone() -> None:
    assert shown("0 9 * * MON-FRI", BERLIN, "2026-11-27T08:00+00:00", 2) == ["11-30 09:00+0100", "12-01 09:00+0100"]
    assert shown("0 9 * * *", BERLIN, "2026-03-28T07:00+00:00", 3) == [
        "03-28 09:00+0100",
        "03-29 09:00+0200",
        "03-30 09:00+0200",
    ]


def test_a_due_time_is_later_than_the_time_asked_after() -> None:
    at = ms("2026-11-25T09:00+00:00")
    assert next_after("0 9 * * *", "UTC", at - 1) == at
    assert next_after("0 9 * * *", "UTC", at) == ms("2026-11-26T09:00+00:00")


@pytest.mark.parametrize("cron", ["30 2 * * *", "*/30 2 * * *", "0 30 2 * * *", "0,30 2,3 * * *"])
def test_a_time_that_does_not_exist_is_due_once_at_the_next_that_does(cron: str) -> None:
    """On 29 March 2026 the clocks of Berlin go from 02:00 to 03:00."""
    on_that_day = [at for at in shown(cron, BERLIN, "2026-03-28T23:00+00:00", 6) if at.startswith("03-29")]
    assert on_that_day[0] == "03-29 03:00+0200"
    assert on_that_day == sorted(set(on_that_day))
    assert on_that_day[1:] == (["03-29 03:30+0200"] if "3 *" in cron and "2,3" in cron else [])


@pytest.mark.parametrize("cron", ["30 2 * * *", "0 30 2 * * *", "30 2-2 * * *", "30 */2 * * *"])
def test_a_time_that_exists_twice_is_due_once(cron: str) -> None:
    """On 25 October 2026 the hour from 02:00 is there twice."""
    found = [at for at in shown(cron, BERLIN, "2026-10-24T22:30+00:00", 3) if " 02:30" in at]
    assert found[0] == "10-25 02:30+0200"
    assert "10-25 02:30+0100" not in found
    # Asked between the two, it is over for the day.
    between = ms("2026-10-25T02:10+01:00")
    assert next_after("30 2 * * *", BERLIN, between) == ms("2026-10-26T02:30+01:00")


def test_what_is_due_every_hour_goes_by_the_time_that_passes() -> None:
    assert shown("30 * * * *", BERLIN, "2026-10-24T23:45+00:00", 3) == [
        "10-25 02:30+0200",
        "10-25 02:30+0100",
        "10-25 03:30+0100",
    ]
    assert shown("30 * * * *", BERLIN, "2026-03-29T00:15+00:00", 2) == ["03-29 01:30+0100", "03-29 03:30+0200"]


def test_a_day_that_was_left_out_is_no_endless_search() -> None:
    """Samoa had no 30 December 2011."""
    assert shown("0 12 30 * *", "Pacific/Apia", "2011-12-29T20:00+00:00", 1) == ["12-31 00:00+1400"]


def test_seconds_are_a_sixth_field_in_front() -> None:
    at = ms("2026-11-25T09:00:00+00:00")
    assert next_after("*/5 * * * * *", "UTC", at) == at + 5_000


@pytest.mark.parametrize(
    ("cron", "problem"),
    [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("* * * * * * *", "7 fields"),
        ("60 * * * *", "bad minute"),
        ("* * * * FUNDAY", "bad day-of-week"),
        ("@daily", "1 fields"),
        ("*/0 * * * *", "bad minute"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 31 2 *", "bad day-of-month"),
        ("0 0 * * \u00b2", "bad day-of-week"),
        ("0 " * 200, "400 characters"),
    ],
)
def test_what_is_no_cron_expression_is_refused_with_the_field(cron: str, problem: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        check_cron(cron)
    assert refused.value.field == "cron"
    assert problem in str(refused.value)


@pytest.mark.parametrize("zone", ["", "Berlin", "../etc/passwd", "Europe", "/etc/localtime", "x" * 101, "a\0b"])
def test_what_is_no_zone_is_refused_with_the_field(zone: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        check_zone(zone)
    assert refused.value.field == "zone"


def test_at_the_end_of_time_nothing_is_due() -> None:
    assert next_after("* * * * *", "UTC", TIME_MS_MAX) is None
    assert next_after("0 0 1 1 *", BERLIN, TIME_MS_MAX - 1_000) is None
    assert next_after("* * * * *", "UTC", -1) is None


def test_how_many_are_shown_is_bounded() -> None:
    assert len(coming("* * * * *", "UTC", 7, 0)) == 7
    with pytest.raises(InvalidRecord, match="count"):
        coming("* * * * *", "UTC", 0, 0)


FIELDS = st.tuples(
    st.sampled_from(["*", "0", "*/7", "5,50"]),
    st.sampled_from(["*", "2", "*/3", "1-3", "0", "23"]),
    st.sampled_from(["*", "1", "29", "L"]),
    st.sampled_from(["*", "2", "3,10"]),
    st.sampled_from(["*", "SUN", "MON#1"]),
).map(" ".join)
ZONES = st.sampled_from([BERLIN, "UTC", "America/Sao_Paulo", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Apia"])


@given(FIELDS, ZONES, st.integers(0, 4_000_000_000_000))
def test_due_times_ascend_and_asking_in_between_gives_the_same(cron: str, zone: str, after_ms: int) -> None:
    first, second = coming(cron, zone, 2, after_ms)
    assert after_ms < first < second
    assert next_after(cron, zone, first - 1) == first
    assert next_after(cron, zone, (first + second) // 2) == second
    at = datetime.fromtimestamp(first / 1000, UTC)
    assert (at.second, at.microsecond) == (0, 0) or at.year < 1990, "zones once had offsets with seconds"
