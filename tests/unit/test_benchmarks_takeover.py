"""When the benchmark of take-overs takes two engines for settled."""

from __future__ import annotations

import pytest
from benchmarks.takeover import is_settled


@pytest.mark.parametrize("live, standby", [(8, 0), (7, 1), (5, 3), (3, 5), (4, 3), (0, 8), (4, 5)])
def test_engines_among_which_partitions_still_move_are_not_settled(live: int, standby: int) -> None:
    assert not is_settled({"live": live, "standby": standby, "loading": 8 - live - standby}, 8)


def test_engines_are_settled_once_each_has_its_half() -> None:
    assert is_settled({"live": 4, "standby": 4}, 8)
    assert is_settled({"live": 2, "standby": 3}, 5) and is_settled({"live": 3, "standby": 2}, 5)
    assert not is_settled({}, 8)
