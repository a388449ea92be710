"""Targets beside what was measured: which value of several counts, and what is kept of a report."""

from __future__ import annotations

from benchmarks.plots import over_targets
from benchmarks.report import Figure, Report, measured_in, merged
from benchmarks.targets import NEVER_DOWN, SPEED, TARGETS, rows

TAKEOVER = Report("takeover", {}, 3, {"takeover_ms": Figure("ms", [40.0, 50.0, 101.0]), "other": Figure("s", [1.0])})
ENGINE = Report("engine", {}, 3, {"engine_step_p99": Figure("ms", [4.0, 9.0, 30.0])}, {"throughput_vs_floor": 0.49996})


def test_of_speed_the_median_counts_and_of_never_down_the_worst() -> None:
    found = {row["name"]: row for row in merged("all", [TAKEOVER, ENGINE]).document()["targets"]}

    assert list(found) == ["throughput_vs_floor", "engine_step_p99", "takeover_ms"], "in the tables' order"
    assert (found["takeover_ms"]["table"], found["takeover_ms"]["reached"]) == (NEVER_DOWN, False)
    assert (found["engine_step_p99"]["table"], found["engine_step_p99"]["reached"]) == (SPEED, True)
    assert found["throughput_vs_floor"]["reached"] is True, "what is shown counts: 0.5"
    assert found["throughput_vs_floor"]["target"] == "at least 0.5"


def test_a_target_is_on_its_right_side_when_it_is_met_exactly() -> None:
    for name, target in TARGETS.items():
        bound = target.most if target.most is not None else target.least
        assert bound is not None
        exactly = dict.fromkeys(("min", "median", "max"), bound)
        beyond = dict.fromkeys(exactly, bound + (0.1 if target.most is not None else -0.1))
        assert [target.reached(exactly), target.reached(beyond)] == [True, False], name


def test_a_kept_report_says_the_same_as_the_one_that_was_measured_and_is_drawn_over_its_targets() -> None:
    kept = measured_in(TAKEOVER.document()) | measured_in(ENGINE.document())

    assert rows(kept) == merged("all", [TAKEOVER, ENGINE]).document()["targets"]
    assert [(low, middle, high) for _, low, middle, high in over_targets(kept)] == [
        (1.0, 1.0, 1.0),
        (10 / 30, 10 / 9, 10 / 4),
        (100 / 101, 2.0, 2.5),
    ]
