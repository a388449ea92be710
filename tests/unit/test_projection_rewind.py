"""What rewinding and forking bring, as rows: lineage and rewindings in the workflow's row, and what a stub keeps of them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sagalog.engine.projection import rows
from sagalog.engine.projection.compare import differences, expected_rows
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import Forked
from sagalog.topics.specs import Topics

from .kernel.driver import Driver, saga, step
from .test_projection_rows import batch_of, checkpoint, result, staged, stub

TOPICS = Topics("unit")
FORKED = {"workflow_id": "w-0", "at_offset": 3, "dead_letter": "w-0/a/1/execute", "who": "ana", "reason": "again"}
REWIND = {"step": "a", "undo": True, "who": "bo", "reason": "wrong", "at_ms": 5}


def test_a_workflow_shows_where_it_comes_from_and_its_rewindings() -> None:
    for record in (checkpoint(forked_from=FORKED, rewinds=[REWIND]), result(forked_from=FORKED, rewinds=[REWIND])):
        row = rows.workflow_row("w", record, 0)
        assert row.forked_from is not None and orjson.loads(row.forked_from) == FORKED
        assert row.rewinds is not None and orjson.loads(row.rewinds) == [REWIND]
    for record in (checkpoint(), result(), stub()):
        row = rows.workflow_row("w", record, 0)
        assert (row.forked_from, row.rewinds) == (None, None)


def test_a_stub_keeps_what_the_checkpoint_before_it_said() -> None:
    batch = batch_of(
        (TOPICS.checkpoints, "w", checkpoint(5, forked_from=FORKED, rewinds=[REWIND])),
        (TOPICS.checkpoints, "w", stub(9)),
    )
    (row,) = staged(batch)["workflow"]
    assert isinstance(row, rows.WorkflowRow)
    assert row.forked_from is not None and row.rewinds is not None


def test_rows_that_say_otherwise_are_different() -> None:
    def lines(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
        told = differences(expected_rows("w", expected, 0), expected_rows("w", found, 0))
        return [line.partition(":")[0] for line in told]

    assert lines(checkpoint(rewinds=[REWIND]), checkpoint()) == ["workflow.rewinds"]
    assert lines(checkpoint(forked_from=FORKED), checkpoint()) == ["workflow.forked_from"]


@pytest.mark.parametrize(
    ("more", "field"),
    [({"rewinds": 7}, "rewinds"), ({"rewinds": ["a"]}, "rewinds"), ({"forked_from": []}, "forked_from")],
)
def test_what_does_not_fit_is_refused_with_the_field(more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRecord, match=field):
        rows.workflow_row("w", checkpoint(**more), 0)


def test_the_kernels_own_records_fit() -> None:
    driver = Driver(saga(step("a"), step("b", "a")))
    driver.start("saga", forked=Forked("w-0", 3, {"a": 1}, who="ana"))
    driver.rewind("a", undo=True)
    record = orjson.loads(driver.dumps()["wf-1"])
    row = rows.workflow_row("wf-1", record, 0)

    assert (row.status, row.forked_from, row.rewinds is not None) == (
        "rewinding",
        '{"workflow_id":"w-0","at_offset":3,"who":"ana"}',
        True,
    )
