"""What maps and budgets bring, as rows: a row for each item, the list that a checkpoint leaves out, what attempts used.

The records are the kernel's own, so that the rows hold for what it really writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from sagalog.engine.kernel.effects import Effect
from sagalog.engine.kernel.state import dump, restore
from sagalog.engine.projection import rows
from sagalog.engine.projection.compare import differences, expected_rows
from sagalog.engine.projection.rows import CompensationRow, Rank, StepRow
from sagalog.schemas.codec import decode_object, encode
from sagalog.schemas.definitions import from_input
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import Decision
from sagalog.schemas.limits import USAGE_MAX
from sagalog.topics.specs import Topics

from .kernel.driver import WORKFLOW, Driver, saga, step
from .kernel.driver import result as result_of
from .test_projection_rows import batch_of, checkpoint, result, staged, stub

TOPICS = Topics("unit")
ONCE = {"attempts": 1}
USAGE = {"attempts": 3, "tokens": 1_200, "cost": 35}


def mapped(**more: Any) -> Driver:
    """A step `first`, a step `each` over three items, and a step `last`."""
    own = {name: more.pop(name) for name in ("tolerate", "concurrency") if name in more}
    driver = Driver(
        saga(
            step("first", compensate={}),
            step("each", "first", map={"over": from_input(), **own}, retry=ONCE, **{"compensate": {}, **more}),
            step("last", "each", retry=ONCE),
        )
    )
    driver.start("saga", ["a", "b", "c"])
    driver.done("first", "ready")
    return driver


def record_of(driver: Driver) -> dict[str, Any]:
    """The checkpoint as the projector reads it."""
    return decode_object(encode(dump(driver.state, driver.partition.plan_of(driver.state))))


def read(effects: list[Effect]) -> dict[str, Any]:
    return decode_object(encode(result_of(effects)))


def steps_of(record: dict[str, Any]) -> dict[str, StepRow]:
    return {row.step: row for row in rows.step_rows(WORKFLOW, record)}


def ledger_of(record: dict[str, Any]) -> dict[str, CompensationRow]:
    return {row.step: row for row in rows.compensation_rows(WORKFLOW, record)}


def with_items(**more: Any) -> dict[str, Any]:
    """A checkpoint whose second step maps; `more` is of its second item."""
    record = checkpoint()
    record["steps"][1]["items"] = [
        {"name": "charge[0]", "status": "done", "attempt": 1, "output": 1},
        {"name": "charge[1]", "status": "running", "attempt": 1, **more},
    ]
    return record


# --- items


def test_every_item_is_a_row_behind_its_step_and_at_its_place() -> None:
    driver = mapped(concurrency=2)
    driver.done("each[1]", "B")

    found = rows.step_rows(WORKFLOW, record_of(driver))

    assert [(row.step, row.place, row.item, row.status) for row in found] == [
        ("first", 0, None, "done"),
        ("each", 1, None, "running"),
        ("each[0]", 1, 0, "running"),
        ("each[1]", 1, 1, "done"),
        ("each[2]", 1, 2, "running"),
        ("last", 2, None, "waiting"),
    ]
    assert [row.output for row in found] == ['"ready"', None, None, '"B"', None, None]
    assert rows.compensation_rows(WORKFLOW, record_of(driver)) == []


def test_of_a_map_the_items_are_in_the_ledger_and_not_the_step() -> None:
    driver = mapped(tolerate=1)
    driver.done("each[0]")
    driver.fail("each[1]", message="bad file")
    driver.done("each[2]")
    driver.fail("last")
    driver.done("each[2]", undo=True)

    steps, ledger = steps_of(record_of(driver)), ledger_of(record_of(driver))

    assert (steps["each[1]"].status, steps["each"].status, steps["each"].stand_in) == ("failed", "degraded", "items")
    assert steps["each[1]"].failures is not None and orjson.loads(steps["each[1]"].failures)[0]["message"] == "bad file"
    assert {name: (row.place, row.item, row.status, row.undone_order) for name, row in ledger.items()} == {
        "first": (0, None, "pending", None),
        "each[0]": (1, 0, "running", 2),
        "each[1]": (1, 1, "not_needed", None),
        "each[2]": (1, 2, "done", 1),
        "last": (2, None, "not_needed", None),
    }


def every_item(driver: Driver) -> None:
    for number in (2, 0, 1):
        driver.done(f"each[{number}]", {"number": number})


def held(driver: Driver, decision: Decision, output: Any = None) -> None:
    driver.done("each[0]", "kept")
    driver.fail("each[1]")
    driver.done("each[2]")
    driver.decide("each", decision, output)


def one_failed(driver: Driver) -> None:
    driver.done("each[0]", "one")
    driver.fail("each[1]")
    driver.done("each[2]", [3])


@pytest.mark.parametrize(
    ("more", "happens", "wanted"),
    [
        ({}, every_item, [{"number": 0}, {"number": 1}, {"number": 2}]),
        ({"tolerate": 1}, one_failed, ["one", None, [3]]),
        ({"critical": False, "default": "none"}, one_failed, "none"),
        ({"fallback": {"value": 7}, "tolerate": 3}, one_failed, ["one", 7, [3]]),
        ({"when_failed": "review"}, lambda driver: held(driver, Decision.COMPLETE, "by hand"), "by hand"),
        ({"when_failed": "review", "default": 0}, lambda driver: held(driver, Decision.SKIP), 0),
        ({"when_failed": "review"}, lambda driver: held(driver, Decision.FAIL), None),
        ({}, lambda driver: driver.done("each[0]", "early"), None),
    ],
)
def test_a_row_has_the_output_that_the_fold_restores(
    more: dict[str, Any], happens: Callable[[Driver], Any], wanted: Any
) -> None:
    driver = mapped(**more)
    happens(driver)
    record = record_of(driver)

    found = steps_of(record)

    assert found["each"].output == (None if wanted is None else encode(wanted).decode())
    state = restore(WORKFLOW, record)
    for restored in (one for step_ in state.steps for one in (step_, *step_.items)):
        name = record["steps"][restored.index]["name"] + (f"[{restored.item}]" if restored.item >= 0 else "")
        output = found[name].output
        assert (None if output is None else orjson.loads(output)) == restored.output


def test_of_a_step_that_repeats_each_round_is_a_row_and_its_output_is_that_of_the_last() -> None:
    driver = Driver(saga(step("ask", repeat={"until": "steps.ask >= 2", "rounds_max": 5}), step("last", "ask")))
    driver.start("saga")
    driver.done("ask[0]", 1, tokens=30)
    assert [(row.step, row.item, row.output) for row in rows.step_rows(WORKFLOW, record_of(driver))] == [
        ("ask", None, None),
        ("ask[0]", 0, "1"),
        ("ask[1]", 1, None),
        ("last", None, None),
    ]

    driver.done("ask[1]", 2)

    record = record_of(driver)
    assert {name: (row.place, row.output) for name, row in steps_of(record).items()} == {
        "ask": (0, "2"),
        "ask[0]": (0, "1"),
        "ask[1]": (0, "2"),
        "last": (1, None),
    }
    assert restore(WORKFLOW, record).steps[0].output == 2


def test_an_empty_list_is_an_output_without_items() -> None:
    driver = Driver(saga(step("each", map={"over": from_input()}), step("last", "each")))
    driver.start("saga", [])

    assert [(row.step, row.output) for row in rows.step_rows(WORKFLOW, record_of(driver))] == [
        ("each", "[]"),
        ("last", None),
    ]


def test_a_result_that_gave_up_its_steps_outputs_does_not_make_up_a_list() -> None:
    driver = mapped()
    every_item(driver)
    record = read(driver.done("last"))
    assert steps_of(record)["each"].output is not None

    for found in record["steps"][1]["items"]:
        del found["output"]
    record["shortened"] = ["steps"]

    assert steps_of(record)["each"].output is None
    record["shortened"] = 7  # nonsense
    assert steps_of(record)["each"].output == "[null,null,null]"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "charge[2]"}, "steps.1.items.1.name"),
        ({"name": "charge[0]"}, "steps.1.items.1.name"),
        ({"name": "charge"}, "steps.1.items.1.name"),
        ({"name": None}, "name"),
        ({"status": "asleep"}, "steps.1.items.1.status"),
        ({"attempt": -1}, "attempt"),
        ({"undo": 3}, "steps.1.items.1.undo"),
        ({"undo": {"status": "asleep", "attempt": 1}}, "steps.1.items.1.undo.status"),
        ({"tokens": -1}, "tokens"),
        ({"tokens": 1.5}, "tokens"),
        ({"cost": "much"}, "cost"),
        ({"cost": 2**63}, "cost"),
    ],
)
def test_an_item_that_does_not_fit_is_refused_with_its_field(change: dict[str, Any], field: str) -> None:
    record = with_items(**change)
    with pytest.raises(InvalidRecord) as refused:
        rows.step_rows("w", record)
        rows.compensation_rows("w", record)
    assert refused.value.field == field


@pytest.mark.parametrize("items", [7, {"0": {}}, ["charge[0]"]])
def test_items_that_are_no_list_of_records_are_refused(items: Any) -> None:
    record = checkpoint()
    record["steps"][1]["items"] = items
    with pytest.raises(InvalidRecord, match="items"):
        rows.step_rows("w", record)


@pytest.mark.parametrize("name", ["reserve", "charge[1]"])
def test_two_rows_of_one_name_never_reach_a_batch(name: str) -> None:
    """PostgreSQL refuses both in one statement, and with them everything else of the batch."""
    record = with_items()
    record["steps"].append({"name": name, "status": "waiting", "attempt": 0})

    batch = batch_of((TOPICS.checkpoints, "w", record), (TOPICS.checkpoints, "other", checkpoint()))

    assert [rejected.reason.split(":")[0] for rejected in batch.rejected] == ["steps.2.name"]
    assert {row.workflow_id for row in staged(batch)["step"]} == {"other"}


# --- what was used


def test_what_attempts_used_is_in_the_rows_of_those_that_made_them() -> None:
    driver = mapped()
    driver.done("each[0]", tokens=700, cost=20)
    driver.done("each[1]", tokens=500)
    driver.done("each[2]")

    running = record_of(driver)
    assert {name: (row.tokens, row.cost) for name, row in steps_of(running).items()} == {
        "first": (0, 0),
        "each": (0, 0),
        "each[0]": (700, 20),
        "each[1]": (500, 0),
        "each[2]": (0, 0),
        "last": (0, 0),
    }
    assert rows.workflow_row(WORKFLOW, running, 0).usage is None
    ended = read(driver.done("last", cost=USAGE_MAX))
    assert steps_of(ended)["last"].cost == USAGE_MAX
    row = rows.workflow_row(WORKFLOW, ended, 0)
    assert row.usage is not None
    assert orjson.loads(row.usage) == {"attempts": 5, "tokens": 1_200, "cost": 20 + USAGE_MAX}


@pytest.mark.parametrize("usage", [7, [1, 2, 3], "much"])
def test_a_usage_that_is_no_object_is_refused(usage: Any) -> None:
    with pytest.raises(InvalidRecord, match="usage"):
        rows.workflow_row("w", result(usage=usage), 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_stub_takes_neither_items_nor_usage_away(order: tuple[int, int]) -> None:
    record = result(usage=USAGE)
    record["steps"] = with_items()["steps"]
    both = [(TOPICS.results, "w", record), (TOPICS.checkpoints, "w", stub(10 if order == (0, 1) else 9))]

    found = staged(batch_of(*(both[place] for place in order)))

    (row,) = found["workflow"]
    assert row.rank == (Rank.FILLED_STUB if order == (0, 1) else Rank.RESULT)
    assert row.usage is not None and orjson.loads(row.usage) == USAGE
    assert [row.step for row in found["step"]] == ["reserve", "charge", "charge[0]", "charge[1]"]


# --- verify


def test_verify_sees_every_difference_in_items_and_usage() -> None:
    undo = {"status": "pending", "attempt": 0}

    def lines(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
        return [
            line.split(": ")[0] for line in differences(expected_rows("w", wanted, 0), expected_rows("w", found, 0))
        ]

    assert lines(with_items(undo=undo), with_items(undo=undo)) == []
    assert lines(with_items(output=2), with_items()) == ["steps.charge[1].output"]
    assert lines(with_items(tokens=5), with_items()) == ["steps.charge[1].tokens"]
    assert lines(with_items(cost=5), with_items()) == ["steps.charge[1].cost"]
    assert lines(with_items(tokens=0), with_items()) == []
    assert lines(with_items(undo=undo), with_items()) == ["compensations.charge[1]"]
    assert lines(with_items(), with_items(undo=undo)) == ["compensations.charge[1]"]
    assert lines(checkpoint(), with_items()) == ["steps.charge[0]", "steps.charge[1]"]
    assert lines(with_items(), checkpoint()) == ["steps.charge[0]", "steps.charge[1]"]
    assert lines(result(), result(usage=USAGE)) == ["workflow.usage"]
    assert lines(result(usage=USAGE | {"tokens": 1}), result(usage=USAGE)) == ["workflow.usage"]
    # A stub says nothing about it.
    assert lines(result(usage=USAGE), stub()) == []


def test_verify_sees_a_list_that_is_not_that_of_the_items() -> None:
    driver = mapped()
    every_item(driver)
    wanted = expected_rows(WORKFLOW, record_of(driver), 0)
    assert wanted.steps["each"]["output"] == [{"number": 0}, {"number": 1}, {"number": 2}]
    wrong = expected_rows(WORKFLOW, record_of(driver), 0)
    wrong.steps["each"]["output"] = None
    (line,) = differences(wanted, wrong)
    assert line.startswith("steps.each.output: is None where ")
