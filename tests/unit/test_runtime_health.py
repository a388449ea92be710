"""Health: which partition does not move, since when, and why; and when it is none of the process's fault."""

from __future__ import annotations

from typing import Any

from sagalog.engine.runtime.health import Change, Health, Seen
from sagalog.engine.runtime.limits import END_UNKNOWN_MS, STUCK_MS, STUCK_RESTART_MS
from sagalog.infra.probes import LOOP_STILL_MS, Answer, LoopProbes
from sagalog.topics.log import TopicPartition

E0, E1 = TopicPartition("events", 0), TopicPartition("events", 1)


class Clock:
    def __init__(self) -> None:
        self.ms = 1_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms


def seen(position: int, phase: str = "live", *, loaded: int = 0, saved: bool = True) -> Seen:
    return Seen(phase, position, loaded, saved)


class Engine:
    """What an engine would tell, one look a second."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.health = Health(self.clock)
        self.changes: list[Change] = []

    def look(self, *, ends: dict[TopicPartition, int] | None = None, **partitions: Seen) -> None:
        """`e0=...`, `e1=...`; then a second passes."""
        if ends is not None:
            self.health.ended_at(ends, {})
        names = {"e0": E0, "e1": E1}
        self.changes += self.health.look({names[name]: found for name, found in partitions.items()})
        self.clock.ms += 1_000

    def unconnected(self) -> None:
        """A look while the group has not told it anything."""
        self.changes += self.health.look(None)
        self.clock.ms += 1_000

    @property
    def told(self) -> list[tuple[str, bool]]:
        return [(change.health.name, change.stuck) for change in self.changes]


def problems(answer: Answer) -> list[tuple[Any, str]]:
    return [(problem.get("partition"), problem["why"]) for problem in answer.body["problems"]]


def test_a_partition_that_applies_what_comes_is_healthy() -> None:
    engine = Engine()
    for second in range(20):
        engine.look(ends={E0: 1_000}, e0=seen(second * 10))

    assert (engine.health.ready().ok, engine.health.live().ok, engine.told) == (True, True, [])
    (found,) = engine.health.partitions()
    assert (found.applied_offset, found.end_offset, found.lag_records) == (189, 1_000, 810)


def test_a_partition_with_nothing_to_read_is_healthy_for_ever() -> None:
    engine = Engine()
    for _ in range(1_000):
        engine.look(ends={E0: 7}, e0=seen(7))

    assert (engine.health.ready().ok, engine.health.live().ok, engine.told) == (True, True, [])


def test_a_partition_that_stands_still_before_the_end_is_told_within_ten_seconds() -> None:
    engine = Engine()
    engine.look(ends={E0: 5, E1: 5}, e0=seen(5), e1=seen(5))
    began_ms = engine.clock.ms
    while not engine.changes:
        engine.look(ends={E0: 6, E1: 6}, e0=seen(5), e1=seen(6))

    assert engine.clock.ms - began_ms <= 7_000, "and at most 2 s until the end is known, and 1 s until the first look"
    assert engine.told == [("events/0", True)]
    answer = engine.health.ready()
    assert not answer.ok
    assert problems(answer) == [("events/0", "what follows on offset 4 is not applied, 1 records")]
    assert answer.body["problems"][0]["since_s"] >= STUCK_MS / 1000
    assert [(part["partition"], part["lag_records"]) for part in answer.body["partitions"]] == [
        ("events/0", 1),
        ("events/1", 0),
    ]
    assert engine.health.live().ok, "not yet"

    engine.look(ends={E0: 6, E1: 6}, e0=seen(6), e1=seen(6))
    assert engine.told == [("events/0", True), ("events/0", False)]
    assert engine.health.ready().ok


def test_transaction_markers_at_the_end_are_not_waited_for() -> None:
    engine = Engine()
    engine.health.ended_at({E0: 9}, {E0: 9})
    for _ in range(20):
        engine.look(e0=seen(8))

    assert (engine.told, engine.health.partitions()[0].lag_records) == ([], 0)


def test_a_partition_that_is_not_live_is_not_ready_and_stuck_when_its_loading_does_not_go_on() -> None:
    engine = Engine()
    for second in range(30):
        engine.look(ends={E0: 5}, e0=seen(0, "loading", loaded=second))
    assert engine.told == [], "it reads its checkpoints"
    assert problems(engine.health.ready()) == [("events/0", "it is not live: loading")]

    for _ in range(10):
        engine.look(ends={E0: 5}, e0=seen(0, "loading", loaded=29))
    assert engine.told == [("events/0", True)]


def test_one_that_fails_again_and_again_at_the_same_record_is_stuck_and_says_why() -> None:
    engine = Engine()
    for _ in range(5):
        engine.look(ends={E0: 50}, e0=seen(10, "catching_up", saved=False))
        engine.look(ends={E0: 50}, e0=seen(20, saved=False))
        engine.health.failed(E0, "bad record")
        engine.look(ends={E0: 50}, e0=seen(0, "loading", saved=False))

    assert engine.told == [("events/0", True)]
    assert problems(engine.health.ready()) == [("events/0", "it is not live: loading; it failed: bad record")]


def test_one_that_two_engines_take_from_each_other_is_stuck_while_nothing_new_is_applied() -> None:
    """Nothing fails then: each has lost the partition to the other."""
    engine = Engine()
    for _ in range(5):
        engine.look(ends={E0: 50}, e0=seen(10, "catching_up", saved=False))
        engine.look(ends={E0: 50}, e0=seen(20))

    assert engine.told == [("events/0", True)]


def test_one_whose_snapshots_fail_is_stuck_although_it_applies_more_each_time() -> None:
    engine = Engine()
    for second in range(10):
        engine.look(ends={E0: 50}, e0=seen(20 + second, saved=False))
        engine.health.failed(E0, "not allowed")

    assert engine.told == [("events/0", True)]
    engine.look(ends={E0: 30}, e0=seen(30, saved=True))
    assert engine.told == [("events/0", True), ("events/0", False)]


def test_one_failure_that_is_mended_is_nothing_to_tell() -> None:
    engine = Engine()
    engine.look(ends={E0: 5}, e0=seen(5))
    engine.health.failed(E0, "fenced")
    engine.look(ends={E0: 6}, e0=seen(0, "loading", saved=False))
    engine.look(ends={E0: 6}, e0=seen(6, saved=False))
    for _ in range(20):
        engine.look(ends={E0: 6}, e0=seen(6))

    assert (engine.told, engine.health.ready().ok) == ([], True)


def test_a_partition_that_went_to_another_engine_is_forgotten() -> None:
    engine = Engine()
    for _ in range(10):
        engine.look(ends={E0: 6}, e0=seen(5))
    engine.look()

    assert engine.health.partitions() == ()
    assert engine.health.ready().ok, "it owns nothing, and is to own nothing"


def test_without_a_broker_it_is_not_ready_says_since_when_and_does_not_ask_to_be_restarted() -> None:
    engine = Engine()
    engine.look(ends={E0: 5}, e0=seen(5))
    engine.health.disconnected("no broker answers")
    for _ in range(STUCK_RESTART_MS // 1_000 + 10):
        engine.unconnected()
    engine.health.disconnected("still none")
    answer = engine.health.ready()

    assert engine.told == [("events/0", True)]
    assert problems(answer)[0] == (None, "the engine is not connected: still none")
    assert answer.body["problems"][0]["since_s"] > STUCK_RESTART_MS / 1000
    assert engine.health.live().ok


def test_an_engine_that_has_not_been_told_what_to_own_is_not_ready() -> None:
    engine = Engine()
    engine.unconnected()

    assert problems(engine.health.ready()) == [(None, "the engine is not connected: it has not connected yet")]
    assert engine.health.live().ok
    engine.look()
    assert engine.health.ready().ok, "it is told to own nothing"
    engine.unconnected()
    assert problems(engine.health.ready()) == [(None, "the engine is not connected: it starts over")]


def test_a_broker_that_does_not_say_where_the_log_ends_makes_it_not_ready() -> None:
    engine = Engine()
    engine.look(ends={E0: 5}, e0=seen(5))
    engine.health.unanswered("timed out")
    for _ in range(END_UNKNOWN_MS // 1_000 + 1):
        engine.look(e0=seen(5))

    assert problems(engine.health.ready()) == [(None, "the broker does not say where the log ends: timed out")]
    assert (engine.told, engine.health.live().ok) == ([], True)


def test_what_stands_still_while_the_broker_is_silent_is_not_the_process_s_fault() -> None:
    engine = Engine()
    engine.look(ends={E0: 6}, e0=seen(5))
    engine.health.unanswered("timed out")
    for _ in range(STUCK_RESTART_MS // 1_000 + 10):
        engine.look(e0=seen(5))

    assert engine.told == [("events/0", True)]
    assert engine.health.live().ok
    engine.look(ends={E0: 6}, e0=seen(5))
    assert not engine.health.live().ok, "the broker is there"


def test_what_stands_still_without_a_known_cause_makes_the_process_not_live_in_time() -> None:
    engine = Engine()
    engine.look(ends={E0: 5, E1: 5}, e0=seen(5), e1=seen(5))
    for _ in range(STUCK_RESTART_MS // 1_000 - 2):
        engine.look(ends={E0: 6, E1: 6}, e0=seen(5), e1=seen(6))
    assert engine.health.live().ok
    for _ in range(3):
        engine.look(ends={E0: 6, E1: 6}, e0=seen(5), e1=seen(6))
    assert [partition for partition, _ in problems(engine.health.live())] == ["events/0"]

    engine.health.failed(E0, "begun anew, as a restart would")
    engine.look(ends={E0: 6, E1: 6}, e0=seen(5, saved=False), e1=seen(6))
    assert engine.health.live().ok
    assert not engine.health.ready().ok


def test_a_loop_that_does_not_turn_is_found_by_the_clock_alone() -> None:
    engine = Engine()
    probes = LoopProbes(engine.clock, lambda: None)
    engine.look(ends={E0: 5}, e0=seen(5))
    assert all(answer.ok for answer in (engine.health.live(), engine.health.ready(), probes.live(), probes.ready()))

    engine.clock.ms += LOOP_STILL_MS
    for answer in (engine.health.live(), probes.live(), probes.ready()):
        assert problems(answer) == [(None, "the process's loop does not turn")]


def test_a_process_says_what_it_lacks() -> None:
    probes = LoopProbes(Clock(), lambda: "no partitions yet")

    assert (problems(probes.ready()), probes.live().ok) == ([(None, "no partitions yet")], True)
