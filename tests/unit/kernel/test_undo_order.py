"""Undone by needs: independent branches side by side, and never a step before all that needs it."""

from __future__ import annotations

from typing import Any

from sagalog.engine.kernel.effects import Effect
from sagalog.schemas.definitions import Map, Repeat, UndoOrder, from_input, from_item
from sagalog.schemas.events import Action, Decision, FailureKind

from .driver import Driver, commands, result, saga, step

ONCE = {"attempts": 1}


def undoable(name: str, *needs: str, **more: Any) -> Any:
    return step(name, *needs, **{"retry": ONCE, "compensate": {"retry": ONCE}, **more})


def stopped(*steps: Any, value: Any = None, done: tuple[str, ...]) -> tuple[Driver, list[str]]:
    """A workflow of which these are done, cancelled; with the undoings that go out at once."""
    driver = Driver(saga(*steps, undo_order=UndoOrder.BY_NEEDS), round_trip=True)
    driver.start("saga", value)
    for name in done:
        driver.done(name)
    return driver, undoings(driver.cancel())


def undoings(effects: list[Effect]) -> list[str]:
    return [found.split("/")[0] for found in commands(effects) if found.endswith("/compensate")]


DIAMOND = (
    undoable("a"),
    undoable("b", "a"),
    undoable("c", "a"),
    undoable("d", "b", "c"),
    undoable("e", "d"),
)


def test_independent_branches_are_undone_side_by_side() -> None:
    driver, first = stopped(*DIAMOND, done=("a", "b", "c", "d"))
    # e is out, and drains first.
    assert first == []
    assert undoings(driver.fail("e", FailureKind.TERMINAL)) == ["d"]
    assert undoings(driver.done("d", undo=True)) == ["c", "b"]
    assert undoings(driver.done("b", undo=True)) == []
    assert undoings(driver.done("c", undo=True)) == ["a"]
    assert result(driver.done("a", undo=True))["status"] == "cancelled"


def test_a_step_waits_for_what_needs_it_through_one_that_has_nothing_to_undo() -> None:
    driver, _ = stopped(
        undoable("a"), step("between", "a"), undoable("last", "between"), undoable("end", "last"),
        done=("a", "between", "last"),
    )  # fmt: skip
    assert undoings(driver.fail("end", FailureKind.TERMINAL)) == ["last"]
    assert undoings(driver.done("last", undo=True)) == ["a"]


def test_an_undoing_that_backs_off_holds_up_what_it_needs_and_nothing_else() -> None:
    patient = {"retry": {"attempts": 2, "base_ms": 100, "cap_ms": 100}}
    driver, _ = stopped(
        undoable("a"), undoable("b", "a", compensate=patient), undoable("other"), undoable("end", "b", "other"),
        done=("a", "b", "other"),
    )  # fmt: skip
    assert undoings(driver.fail("end", FailureKind.TERMINAL)) == ["other", "b"]
    driver.fail("b", undo=True)
    assert undoings(driver.done("other", undo=True)) == []
    assert undoings(driver.wait(200)) == ["b"]
    assert undoings(driver.done("b", attempt=2, undo=True)) == ["a"]


def test_a_held_undoing_lets_the_others_go_on() -> None:
    held = {"retry": ONCE, "when_failed": "review"}
    driver = Driver(
        saga(undoable("a"), undoable("b", "a", compensate=held), step("c", "b"), undo_order="by_needs"), round_trip=True
    )
    driver.start("saga")
    driver.done("a")
    driver.done("b")
    driver.fail("c", FailureKind.TERMINAL)
    assert undoings(driver.fail("b", FailureKind.TERMINAL, undo=True)) == ["a"]
    driver.done("a", undo=True)
    assert not driver.state.terminal
    assert result(driver.decide("b", Decision.COMPLETE, undo=True))["status"] == "compensated"


def test_items_of_a_map_are_undone_as_many_at_a_time_as_they_were_done() -> None:
    mapped = undoable("each", map=Map(over=from_input("of"), concurrency=2), input=from_item())
    driver, _ = stopped(
        mapped, undoable("end", "each"), value={"of": [1, 2, 3]}, done=("each[0]", "each[1]", "each[2]")
    )
    assert undoings(driver.fail("end", FailureKind.TERMINAL)) == ["each[2]", "each[1]"]
    assert undoings(driver.done("each[1]", undo=True)) == ["each[0]"]


def test_rounds_are_undone_one_by_one_the_last_first() -> None:
    repeated = undoable("again", repeat=Repeat(until="steps.again == 2", rounds_max=5))
    driver = Driver(saga(repeated, step("end", "again"), undo_order="by_needs"), round_trip=True)
    driver.start("saga")
    for number in range(3):
        driver.done(f"again[{number}]", number)
    assert undoings(driver.fail("end", FailureKind.TERMINAL)) == ["again[2]"]
    assert undoings(driver.done("again[2]", undo=True)) == ["again[1]"]


def test_while_it_is_paused_no_undoing_begins() -> None:
    driver, _ = stopped(*DIAMOND, done=("a", "b", "c", "d"))
    driver.fail("e", FailureKind.TERMINAL)
    driver.act(Action.PAUSE)
    assert undoings(driver.done("d", undo=True)) == []
    assert undoings(driver.act(Action.RESUME)) == ["c", "b"]
