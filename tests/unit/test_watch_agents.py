"""What the watch makes of outcomes: repeated ones, health records, what is forgotten and what is restored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagalog.engine.watch import agents as agents_module
from sagalog.engine.watch.agents import REFRESH_MS, Agents, TooManyAgents
from sagalog.engine.watch.outcomes import CALLS_MAX, Finished, Outcome, parse_outcome, parse_result
from sagalog.engine.watch.window import AlertRule, Counts
from sagalog.schemas.codec import encode
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.records import NO_SERVICE, HealthRecord

T = 1_700_000_000_000
RULE = AlertRule(threshold=0.05, calls_min=20, hold_ms=10_000)


def make() -> Agents:
    return Agents(60_000, 5_000, RULE)


def outcome(at_offset: int, *, service: str = "ocr", partition: int = 0, **agents: tuple[int, int]) -> Outcome:
    return Outcome(service, partition, at_offset, {name: Counts(*counts) for name, counts in agents.items()})


def health(agents: Agents, now_ms: int) -> dict[str, HealthRecord]:
    """What is to be written, taken as written."""
    records = agents.look(now_ms).health
    for record in records:
        agents.written(record)
    return {record["agent"]: record for record in records}


def test_an_agent_is_the_sum_over_services_and_partitions() -> None:
    agents = make()
    assert agents.count(outcome(5, reader=(3, 1)), T, T)
    assert agents.count(outcome(5, partition=1, reader=(1, 0)), T, T)
    assert agents.count(outcome(5, service=NO_SERVICE, reader=(1, 0), ledger=(0, 7)), T, T)
    assert health(agents, T) == {
        "reader": {
            "agent": "reader",
            "at_ms": T,
            "window_ms": 60_000,
            "ok": 5,
            "failed": 1,
            "error_rate": 1 / 6,
            "alert": False,
            "since_ms": T,
        },
        "ledger": {
            "agent": "ledger",
            "at_ms": T,
            "window_ms": 60_000,
            "ok": 0,
            "failed": 7,
            "error_rate": 1.0,
            "alert": False,
            "since_ms": T,
        },
    }


@pytest.mark.parametrize(("again", "counted"), [(4, False), (5, False), (6, True)])
def test_an_outcome_sent_again_is_not_counted_again(again: int, counted: bool) -> None:
    agents = make()
    agents.count(outcome(5, reader=(1, 0)), T, T)
    assert agents.count(outcome(again, reader=(1, 0)), T, T) is counted
    assert health(agents, T)["reader"]["ok"] == 1 + counted


def test_what_another_service_or_partition_sent_is_no_repetition() -> None:
    agents = make()
    agents.count(outcome(5, reader=(1, 0)), T, T)
    assert agents.count(outcome(3, service="other", reader=(1, 0)), T, T)
    assert agents.count(outcome(3, partition=9, reader=(1, 0)), T, T)


def test_an_outcome_older_than_the_window_is_known_but_not_counted() -> None:
    agents = make()
    assert agents.count(outcome(5, reader=(9, 9)), T - 60_000, T)
    assert len(agents) == 0
    assert not agents.count(outcome(5, reader=(9, 9)), T, T)
    assert agents.look(T).health == []


def test_a_broker_whose_clock_is_ahead_counts_now() -> None:
    agents = make()
    agents.count(outcome(5, reader=(1, 0)), T + 3_600_000, T)
    assert health(agents, T)["reader"]["ok"] == 1
    assert health(agents, T + 60_000)["reader"]["ok"] == 0


@given(sent=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), max_size=60))
def test_every_offset_counts_at_most_once(sent: list[tuple[int, int]]) -> None:
    agents = make()
    newest: dict[int, int] = {}
    expected = 0
    for partition, at_offset in sent:
        fresh = at_offset > newest.get(partition, -1)
        assert agents.count(outcome(at_offset, partition=partition, reader=(1, 0)), T, T) is fresh
        if fresh:
            newest[partition] = at_offset
            expected += 1
    assert sum(record["ok"] for record in agents.look(T).health) == expected


def test_sources_are_bounded_and_the_least_recently_heard_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_module, "SOURCES_MAX", 2)
    agents = make()
    agents.count(outcome(5, partition=0, reader=(1, 0)), T, T)
    agents.count(outcome(5, partition=1, reader=(1, 0)), T, T)
    assert not agents.count(outcome(5, partition=0, reader=(1, 0)), T, T)
    agents.count(outcome(5, partition=2, reader=(1, 0)), T, T)
    assert not agents.count(outcome(5, partition=0, reader=(1, 0)), T, T), "heard of lately"
    assert agents.count(outcome(5, partition=1, reader=(1, 0)), T, T), "forgotten"


def test_agents_are_bounded_and_those_known_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents_module, "AGENTS_MAX", 1)
    agents = make()
    agents.count(outcome(1, reader=(1, 0)), T, T)
    with pytest.raises(TooManyAgents, match="ledger"):
        agents.count(outcome(2, reader=(1, 0), ledger=(1, 0)), T, T)
    assert {name: record["ok"] for name, record in health(agents, T).items()} == {"reader": 2}


# --- what is written


def test_a_record_is_written_when_something_changed_and_else_now_and_then() -> None:
    agents = make()
    agents.count(outcome(1, reader=(1, 0)), T, T)
    assert list(health(agents, T)) == ["reader"]
    assert health(agents, T + 1_000) == {}
    agents.count(outcome(2, reader=(1, 0)), T + 2_000, T + 2_000)
    assert health(agents, T + 2_000)["reader"]["ok"] == 2
    assert health(agents, T + 2_000 + REFRESH_MS - 1) == {}
    assert list(health(agents, T + 2_000 + REFRESH_MS)) == ["reader"]


def test_what_the_broker_did_not_get_is_written_again() -> None:
    agents = make()
    agents.count(outcome(1, reader=(1, 0)), T, T)
    assert len(agents.look(T).health) == 1
    assert len(agents.look(T + 1).health) == 1


def test_an_agent_without_calls_gets_zeros_once_and_is_forgotten() -> None:
    agents = make()
    agents.count(outcome(1, reader=(1, 0)), T, T)
    health(agents, T)
    zeros = agents.look(T + 60_000)
    assert [(r["ok"], r["failed"], r["error_rate"]) for r in zeros.health] == [(0, 0, 0.0)]
    assert zeros.forgotten == []
    agents.written(zeros.health[0])
    last = agents.look(T + 61_000)
    assert (last.health, last.forgotten, last.now) == ([], ["reader"], {})
    assert len(agents) == 0


def test_an_alert_is_raised_and_cleared_once_each() -> None:
    agents = make()
    agents.count(outcome(1, reader=(30, 10)), T, T)
    changes = []
    for second in range(120):
        look = agents.look(T + second * 1_000)
        changes += [(second, record["alert"], record["since_ms"]) for record in look.changed]
        for record in look.health:
            agents.written(record)
    # The last call leaves after 60 s, and the rate must have been low for 10 s.
    assert changes == [(0, True, T), (70, False, T + 70_000)]
    assert len(agents) == 0


# --- a start


def test_a_raised_alert_is_restored_and_not_raised_again() -> None:
    before = make()
    before.count(outcome(1, reader=(30, 10)), T, T)
    written = health(before, T)
    agents = make()
    agents.restore(written.values())
    agents.count(outcome(1, reader=(30, 10)), T, T + 5_000)
    look = agents.look(T + 5_000)
    assert look.changed == []
    assert look.health == [], "nothing is new"
    assert look.now["reader"]["alert"] and look.now["reader"]["since_ms"] == T


def test_a_raised_alert_is_cleared_after_a_start_without_calls() -> None:
    before = make()
    before.count(outcome(1, reader=(30, 10)), T, T)
    agents = make()
    agents.restore(health(before, T).values())
    assert agents.look(T + 100_000).changed == []
    assert [record["alert"] for record in agents.look(T + 110_000).changed] == [False]


def test_what_an_earlier_watch_said_last_is_corrected() -> None:
    before = make()
    before.count(outcome(1, reader=(3, 0)), T, T)
    agents = make()
    agents.restore(health(before, T).values())
    assert [(r["agent"], r["ok"]) for r in agents.look(T + 100_000).health] == [("reader", 0)]


# --- records as they come


def test_an_outcome_is_read() -> None:
    raw = encode({"service": "@none", "partition": 3, "at_offset": 9, "calls": [], "agents": {"reader": [2, 1]}})
    assert parse_outcome(raw) == Outcome("@none", 3, 9, {"reader": Counts(2, 1)})


def test_an_outcome_that_only_announces_parked_commands_has_no_calls() -> None:
    raw = encode({"service": "ocr", "partition": 3, "at_offset": -1, "calls": [], "parked": 4})
    assert parse_outcome(raw).agents == {}


GOOD = {"service": "ocr", "partition": 0, "at_offset": 0, "agents": {"reader": [1, 0]}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"service": None}, "outcome.service"),
        ({"service": ""}, "outcome.service"),
        ({"service": "x" * 64}, "outcome.service"),
        ({"partition": -1}, "outcome.partition"),
        ({"partition": True}, "outcome.partition"),
        ({"at_offset": "7"}, "outcome.at_offset"),
        ({"at_offset": -2}, "outcome.at_offset"),
        ({"at_offset": 1.5}, "outcome.at_offset"),
        ({"agents": [1]}, "outcome.agents"),
        ({"agents": {"Reader!": [1, 0]}}, "outcome.agents"),
        ({"agents": {"reader": [1]}}, "outcome.agents.reader"),
        ({"agents": {"reader": [1, 2, 3]}}, "outcome.agents.reader"),
        ({"agents": {"reader": [1, -1]}}, "outcome.agents.reader"),
        ({"agents": {"reader": [1, None]}}, "outcome.agents.reader"),
        ({"agents": {"reader": [CALLS_MAX, 1]}}, "outcome.agents.reader"),
    ],
)
def test_an_outcome_that_breaks_the_contract_is_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        parse_outcome(encode({**GOOD, **change}))
    assert caught.value.field == field


@pytest.mark.parametrize("raw", [None, b"", b"{", b"[]", b"null", b"\xff\xfe", b"7", b"[" * 2_000])
def test_bytes_that_are_no_record_are_refused(raw: bytes | None) -> None:
    with pytest.raises(InvalidRecord):
        parse_outcome(raw)
    with pytest.raises(InvalidRecord):
        parse_result(raw)


@given(raw=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for parse in (parse_outcome, parse_result):
        try:
            parse(raw)
        except InvalidRecord as error:
            assert str(error)


def test_a_result_is_read_and_one_without_a_last_status_is_refused() -> None:
    assert parse_result(encode({"name": "invoice", "status": "completed"})) == Finished("invoice", "completed")
    for status in ("running", "", None, 7, [], {}):
        with pytest.raises(InvalidRecord, match="status"):
            parse_result(encode({"name": "invoice", "status": status}))
