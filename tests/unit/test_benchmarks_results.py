"""The longest time without a result, as the benches and the chaos test tell it."""

from __future__ import annotations

import pytest
from benchmarks.results import longest_gap_ms

TIMES = [1.0, 1.5, 4.0, 4.25, 9.0]


@pytest.mark.parametrize(
    ("after", "before", "gap_ms"),
    [
        (0.0, 10.0, 4_750.0),
        (2.0, 4.1, 2_500.0),  # the kill came in the middle of it
        (4.0, 4.2, 250.0),
        (4.1, 4.2, 250.0),
        (4.1, 4.5, 4_750.0),  # it began before the end of what is looked at
        (9.0, 10.0, 0.0),
    ],
)
def test_gaps_that_touch_the_window_count_whole(after: float, before: float, gap_ms: float) -> None:
    assert longest_gap_ms(TIMES, after, before) == gap_ms


def test_no_results_no_gap() -> None:
    assert longest_gap_ms([], 0.0, 1.0) == 0.0
