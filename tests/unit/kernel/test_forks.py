"""A fork begins where another workflow was: what it keeps, what it does itself, what it undoes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.schemas.definitions import from_input
from sagalog.schemas.events import FailureKind, Forked, Gap
from sagalog.schemas.limits import PAYLOAD_BYTES_MAX, STATE_BYTES_MAX

from .driver import Driver, chain, command, commands, result, saga, shown, step

ONCE = {"attempts": 1}


def forked(steps: dict[str, Any], **more: Any) -> Forked:
    return Forked("original", 17, steps, **more)


def test_what_is_kept_counts_as_done_and_the_rest_is_done() -> None:
    driver = Driver(chain("a", "b", "c"), round_trip=True)

    effects = driver.start("saga", "in", forked=forked({"b": "out-b", "a": "out-a"}, who="ana", reason="why not"))

    assert shown(effects) == [
        "workflow None -> running by started",
        "a waiting -> done by forked",
        "b waiting -> done by forked",
        "c waiting -> running by dispatched",
        "send c/1/execute",
    ]
    assert command(effects).input == "out-b"
    record = result(driver.done("c", "out-c"))
    assert (record["status"], record["completeness"], record["output"]) == ("completed", 1.0, {"c": "out-c"})
    lineage = {"workflow_id": "original", "at_offset": 17, "who": "ana", "reason": "why not"}
    assert record["forked_from"] == lineage
    assert [s.get("stand_in") for s in record["steps"]] == ["fork", "fork", None]


def test_what_is_kept_ended_each_after_its_needs() -> None:
    driver = Driver(saga(step("c", "b"), step("b", "a"), step("a"), step("d", "c")))
    driver.start("saga", forked=forked({"c": 3, "a": 1, "b": 2}))

    assert [s.order for s in driver.state.steps] == [3, 2, 1, 0]


def test_a_fork_undoes_what_it_did_and_nothing_of_the_original() -> None:
    driver = Driver(chain("a", "b", "c", retry=ONCE), round_trip=True)
    driver.start("saga", forked=forked({"a": "out-a"}))
    driver.done("b")

    assert commands(driver.fail("c", FailureKind.TERMINAL)) == ["b/1/compensate"]
    record = result(driver.done("b", undo=True))
    assert [s["undo"]["status"] for s in record["steps"]] == ["not_needed", "done", "not_needed"]


def test_rewound_a_kept_step_is_the_forks_own() -> None:
    driver = Driver(chain("a", "b", retry=ONCE), round_trip=True)
    driver.start("saga", forked=forked({"a": "out-a"}))
    driver.rewind("a", undo=True)
    assert commands(driver.done("b", "out-b")) == ["b/1/compensate"]
    assert commands(driver.done("b", undo=True)) == ["a/1/execute"]
    driver.done("a", "own")

    assert commands(driver.fail("b", attempt=2)) == ["a/1/compensate"]


def test_a_fork_that_keeps_a_pivot_only_goes_forward() -> None:
    driver = Driver(saga(step("p", pivot=True), step("b", "p", retry=ONCE)), round_trip=True)
    driver.start("saga", forked=forked({"p": 1}))

    assert shown(driver.fail("b"))[-2:] == ["b running -> held by held", "review b/step_failed"]


def test_what_was_skipped_or_degraded_stays_so() -> None:
    definition = saga(step("a", when="false"), step("b", "a", critical=False), step("c", "b"))
    driver = Driver(definition, round_trip=True)
    kept = {"a": None, "b": {"n": 0}}
    driver.start("saga", forked=forked(kept, skipped=["a"], missing={"b": Gap("down", "terminal")}))

    record = result(driver.done("c"))
    assert (record["status"], record["missing"]) == (
        "degraded",
        [{"step": "b", "why": "down", "kind": "terminal", "stand_in": "fork"}],
    )
    assert [s["status"] for s in record["steps"]] == ["skipped", "degraded", "done"]


def test_with_everything_kept_it_is_over_at_once() -> None:
    driver = Driver(chain("a", "b"))

    assert result(driver.start("saga", forked=forked({"a": 1, "b": 2})))["output"] == {"b": 2}


def test_a_map_is_kept_as_the_list_of_its_outputs() -> None:
    each = {"over": from_input("l")}
    definition = saga(step("each", map=each, output_schema={"type": "integer"}), step("b", "each"))
    driver = Driver(definition, round_trip=True)

    assert commands(driver.start("saga", {"l": [1, 2]}, forked=forked({"each": [1, 2]}))) == ["b/1/execute"]


def test_a_fork_waits_for_its_definition_like_any_start() -> None:
    driver = Driver(round_trip=True)
    driver.start("saga", forked=forked({"a": 1}, missing={"a": Gap("down", "terminal")}))

    assert commands(driver.register(chain("a", "b"))) == ["b/1/execute"]
    assert result(driver.done("b"))["forked_from"] == {"workflow_id": "original", "at_offset": 17}


def test_a_fork_that_does_not_fit_its_late_definition_is_rejected() -> None:
    driver = Driver(round_trip=True)
    driver.start("saga", forked=forked({"nope": 1}))

    assert result(driver.register(chain("a", "b")))["status"] == "rejected"


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (forked({"nope": 1}), "forked.steps: 'nope' is no step of 'saga'; fork before a step that comes earlier"),
        (forked({"b": {}}), "forked.steps.b: needs 'a', which is not among them; keep both, or neither"),
        (forked({"a": 1, "b": "x"}), 'forked.steps.b: output: "x" is not of type "object"'),
        (forked({"m": 1}), "forked.steps.m: is no list, but the step maps: it takes one output for each item"),
        (forked({"m": [1, "x"]}), 'forked.steps.m: output: "x" is not of type "integer"'),
        (
            forked({}, skipped=["a"]),
            "forked.skipped: 'a' is not among forked.steps; add it there, or leave it out",
        ),
        (
            Forked("@owner", 1),
            "forked.workflow_id: '@owner' starts with '@', which marks the engine's own keys; choose another id",
        ),
    ],
)
def test_what_does_not_fit_is_rejected_with_its_path(kept: Forked, said: str) -> None:
    definition = saga(
        step("a"),
        step("b", "a", output_schema={"type": "object"}),
        step("m", map={"over": {"value": [1]}}, output_schema={"type": "integer"}),
    )
    driver = Driver(definition)

    record = result(driver.start("saga", forked=kept))
    assert (record["status"], record["failure"]["message"]) == ("rejected", said)


def test_what_is_kept_may_be_as_large_as_a_state_and_no_larger() -> None:
    large = "x" * (PAYLOAD_BYTES_MAX - 100)
    driver = Driver(chain("a", "b"))
    assert commands(driver.start("saga", 1, forked=forked({"a": large + "x" * 1_000}))) == ["b/1/execute"]
    too_large = driver.start("saga", 1, workflow_id="wf-2", forked=forked({"a": "x" * STATE_BYTES_MAX}))
    assert "more than 500,000" in result(too_large)["failure"]["message"]
    too_large = driver.start("saga", large + "x" * 200, workflow_id="wf-3", forked=forked({}))
    assert result(too_large)["failure"]["message"].startswith("input: is more than 262,144 bytes")
