"""No row of a table of moves may be there that no test has ever taken (runs last; only when the whole folder runs)."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.engine.kernel.circuits import CIRCUIT_MOVES
from sagalog.engine.kernel.schedules import SCHEDULE_MOVES
from sagalog.engine.kernel.state import STEP_MOVES, UNDO_MOVES, WORKFLOW_MOVES

from .driver import TAKEN

TABLES: dict[str, tuple[set[Any], set[tuple[str | None, str]]]] = {
    "workflow": (set(WORKFLOW_MOVES), TAKEN.workflow),
    "step": (set(STEP_MOVES), TAKEN.step),
    "undo": (set(UNDO_MOVES), TAKEN.undo),
    "circuit": (set(CIRCUIT_MOVES), TAKEN.circuit),
    "schedule": (set(SCHEDULE_MOVES), TAKEN.schedule),
}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_the_table_is_taken_by_a_test(table: str, whole_folder: bool) -> None:
    if not whole_folder:
        pytest.skip("only a run of the whole folder, without failures, takes every row")
    rows, taken = TABLES[table]

    assert {row for row in rows if row not in taken} == set(), "rows that no test has taken"


@pytest.mark.parametrize("table", TABLES)
def test_no_test_took_a_row_that_is_not_in_the_table(table: str) -> None:
    rows, taken = TABLES[table]

    assert taken - rows == set()
