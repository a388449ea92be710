"""What a migration brings, as rows: the moves, and who was asked for a step that has another agent since."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sagalog.engine.kernel.state import dump
from sagalog.engine.projection import rows
from sagalog.engine.projection.compare import differences, expected_rows
from sagalog.engine.projection.rows import Rank
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.errors import InvalidRecord
from sagalog.topics.specs import Topics

from .kernel.driver import WORKFLOW, Driver, saga, step
from .test_projection_rows import batch_of, checkpoint, result, staged, stub

TOPICS = Topics("unit")
MOVES = [{"before": "a", "after": "b", "at_ms": 1, "who": "ana", "reason": "why"}]


def test_the_rows_of_a_workflow_that_moved_say_so_and_who_was_asked() -> None:
    old, new = saga(step("a", agent="one"), step("b", "a")), saga(step("z"), step("a", agent="two"))
    driver = Driver(old, new)
    driver.start(f"saga@{old.hash}")
    driver.migrate(new)
    record = decode_object(encode(dump(driver.state, driver.partition.plan_of(driver.state))))

    row = rows.workflow_row(WORKFLOW, record, 0)

    assert row.definition == new.hash
    assert row.migrated is not None and orjson.loads(row.migrated) == record["migrated"]
    assert [(found.step, found.agent) for found in rows.step_rows(WORKFLOW, record)] == [("z", None), ("a", "one")]
    assert rows.workflow_row("w", checkpoint(), 0).migrated is None


@pytest.mark.parametrize("migrated", [7, ["a"], {"before": "a"}])
def test_moves_that_are_no_list_of_objects_are_refused(migrated: Any) -> None:
    with pytest.raises(InvalidRecord, match="migrated"):
        rows.workflow_row("w", result(migrated=migrated), 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_stub_does_not_take_the_moves_away(order: tuple[int, int]) -> None:
    both = [
        (TOPICS.results, "w", result(migrated=MOVES)),
        (TOPICS.checkpoints, "w", stub(10 if order == (0, 1) else 9)),
    ]

    (row,) = staged(batch_of(*(both[place] for place in order)))["workflow"]

    assert row.rank == (Rank.FILLED_STUB if order == (0, 1) else Rank.RESULT)
    assert row.migrated is not None and orjson.loads(row.migrated) == MOVES


def test_verify_sees_a_difference_in_the_moves() -> None:
    def lines(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
        both = (expected_rows("w", record, 0) for record in (wanted, found))
        return [line.split(": ")[0] for line in differences(*both)]

    assert lines(result(), result(migrated=MOVES)) == ["workflow.migrated"]
    assert lines(result(migrated=MOVES), result(migrated=[{**MOVES[0], "who": "bo"}])) == ["workflow.migrated"]
    assert lines(result(migrated=MOVES), stub()) == []
