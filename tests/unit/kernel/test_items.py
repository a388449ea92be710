"""A step that maps: its items, how many are at work, what some that fail lead to, and how they are undone."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.schemas.definitions import FromItem, from_input, from_item, from_step
from sagalog.schemas.errors import InvalidDefinition
from sagalog.schemas.events import Action, Decision, FailureKind
from sagalog.schemas.ids import split_item
from sagalog.schemas.limits import ITEMS_MAX

from .driver import Driver, command, commands, dead_letters, ignored, result, reviews, saga, shown, step

ONCE = {"attempts": 1}


def mapped(*after: Any, over: Any = None, round_trip: bool = True, **more: Any) -> Driver:
    """A step `each` over the input's `files`. Anything of Map's goes to it, the rest to the step."""
    names = ("concurrency", "items_max", "tolerate", "tolerate_percent")
    own = {name: more.pop(name) for name in names if name in more}
    each = step("each", **{"map": {"over": over or from_input("files"), **own}, "retry": ONCE, **more})
    return Driver(saga(each, *after), round_trip=round_trip)


def test_each_item_is_sent_to_the_agent_under_its_own_name() -> None:
    driver = mapped()

    started = driver.start("saga", {"files": ["a.png", "b.png"]})

    assert commands(started) == ["each[0]/1/execute", "each[1]/1/execute"]
    sent = [effect.command for effect in started if type(effect).__name__ == "Dispatch"]
    assert [(one.step, one.input, one.idempotency_key) for one in sent] == [
        ("each[0]", "a.png", "wf-1/each[0]"),
        ("each[1]", "b.png", "wf-1/each[1]"),
    ]


def test_the_output_is_the_list_of_the_items_outputs_in_the_order_of_the_list() -> None:
    driver = mapped(step("sum", "each", input=from_step("each")))
    driver.start("saga", {"files": ["a", "b", "c"]})

    driver.done("each[2]", 3)
    driver.done("each[0]", 1)
    summing = driver.done("each[1]", 2)

    assert command(summing).input == [1, 2, 3]
    ended = result(driver.done("sum", 6))
    assert ended["status"] == "completed"
    assert [item["output"] for item in ended["steps"][0]["items"]] == [1, 2, 3]
    assert "output" not in ended["steps"][0], "the checkpoint holds each output once"


def test_only_so_many_items_are_at_work_at_a_time() -> None:
    driver = mapped(concurrency=2)

    assert commands(driver.start("saga", {"files": [1, 2, 3, 4]})) == ["each[0]/1/execute", "each[1]/1/execute"]
    assert commands(driver.done("each[1]")) == ["each[2]/1/execute"]
    assert commands(driver.done("each[2]")) == ["each[3]/1/execute"]
    assert commands(driver.done("each[0]")) == []
    assert result(driver.done("each[3]"))["output"] == {"each": [None] * 4}


def test_an_item_that_backs_off_keeps_its_place() -> None:
    driver = mapped(concurrency=1, retry={"attempts": 2})
    driver.start("saga", {"files": [1, 2]})

    assert commands(driver.fail("each[0]")) == []
    assert commands(driver.wait(60_000)) == ["each[0]/2/execute"]
    assert commands(driver.done("each[0]", attempt=2)) == ["each[1]/1/execute"]


def test_an_empty_list_ends_the_step_at_once() -> None:
    driver = mapped(step("next", "each", input=from_step("each")))

    started = driver.start("saga", {"files": []})

    assert command(started).input == []
    assert commands(started) == ["next/1/execute"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ("text", "maps over str, which is no list"),
        (None, "maps over NoneType, which is no list"),
        ([1, 2, 3], "maps over 3 items, more than 2"),
    ],
)
def test_what_is_no_list_or_too_long_fails_the_step(files: Any, said: str) -> None:
    driver = mapped(items_max=2)

    ended = result(driver.start("saga", {"files": files}))

    assert ended["status"] == "failed" and said in ended["failure"]["message"]


def test_all_maps_of_a_workflow_share_one_limit() -> None:
    big = {"over": {"input": ""}, "items_max": ITEMS_MAX, "concurrency": 1}
    driver = Driver(saga(step("a", map=big), step("b", map=big)))

    ended = driver.start("saga", [0] * (ITEMS_MAX // 2 + 1))

    assert "the workflow would have more than 1,000" in driver.state.steps[1].failures[0]["message"]
    assert commands(ended) == ["a[0]/1/execute"]


# --- items that fail


def test_an_item_that_fails_for_good_fails_the_step_once_the_others_have_ended() -> None:
    driver = mapped(concurrency=2, compensate={})
    driver.start("saga", {"files": [1, 2, 3]})

    failed = driver.fail("each[0]", FailureKind.TERMINAL, "bad file")

    assert shown(failed) == [
        "answered each[0]/1/execute",
        "called each failed",
        "dead letter each[0]/1/execute",
        "each[0] running -> failed by given_up",
        "each[2] waiting -> cancelled by stopped",
    ]
    done = driver.done("each[1]", "out")
    assert "each running -> failed by given_up" in shown(done)
    assert commands(done) == ["each[1]/1/compensate"]
    assert command(done).input == {"input": 2, "output": "out"}
    ended = result(driver.done("each[1]", undo=True))
    assert ended["status"] == "compensated"
    assert ended["failure"]["message"] == "2 of 3 items did not deliver; each[0]: bad file"


@pytest.mark.parametrize("tolerance", [{"tolerate": 1}, {"tolerate_percent": 40.0}])
def test_failures_within_the_tolerance_degrade_the_step(tolerance: dict[str, Any]) -> None:
    driver = mapped(**tolerance)
    driver.start("saga", {"files": [1, 2, 3]})
    driver.done("each[0]", "one")
    driver.fail("each[1]", message="no")

    ended = result(driver.done("each[2]", "three"))

    assert ended["status"] == "degraded"
    assert ended["output"] == {"each": ["one", None, "three"]}
    assert ended["missing"] == [
        {
            "step": "each",
            "why": "1 of 3 items did not deliver; each[1]: no",
            "kind": "retryable",
            "stand_in": "items",
        }
    ]


def test_an_item_has_the_step_s_fallback() -> None:
    driver = mapped(fallback={"agent": "other"})
    driver.start("saga", {"files": [1]})

    assert commands(driver.fail("each[0]")) == ["each[0]/2/execute"]
    ended = result(driver.done("each[0]", "by other", attempt=2))

    assert ended["status"] == "degraded" and ended["output"] == {"each": ["by other"]}


def test_an_optional_map_that_fails_has_its_default() -> None:
    driver = mapped(critical=False, default="none")
    driver.start("saga", {"files": [1]})

    ended = result(driver.fail("each[0]"))

    assert ended["output"] == {"each": "none"} and ended["missing"][0]["stand_in"] == "default"
    assert [letter["step"] for letter in dead_letters([])] == []


def test_a_held_map_is_tried_anew_where_it_did_not_end_well() -> None:
    driver = mapped(when_failed="review", concurrency=1)
    driver.start("saga", {"files": ["a", "b", "c"]})
    driver.done("each[0]", 1)

    held = driver.fail("each[1]")

    assert "each running -> held by held" in shown(held)
    assert reviews(held)[0]["details"]["input"] == ["a", "b", "c"]
    again = driver.decide("each", Decision.RETRY)
    assert commands(again) == ["each[1]/2/execute"]
    driver.done("each[1]", 2, attempt=2)
    ended = result(driver.done("each[2]", 3))
    assert ended["status"] == "completed" and ended["output"] == {"each": [1, 2, 3]}


def test_a_map_that_is_tried_anew_counts_on_as_its_checkpoint_does() -> None:
    told = []
    for round_trip in (False, True):
        driver = mapped(when_failed="review", round_trip=round_trip)
        driver.start("saga", {"files": ["a", "b"]})
        driver.done("each[1]")
        driver.fail("each[0]")
        driver.decide("each", Decision.RETRY)
        told.append(result(driver.done("each[0]", attempt=2)))

    assert told[0] == told[1]


# --- backward, pause, terminate


def test_items_are_undone_in_reverse_order_of_their_ends_and_between_other_steps() -> None:
    driver = Driver(
        saga(
            step("first", compensate={}),
            step("each", "first", map={"over": from_input()}, compensate={"input": from_step("each")}),
            step("last", "each", retry=ONCE),
        ),
        round_trip=True,
    )
    driver.start("saga", ["a", "b", "c"])
    driver.done("first")
    for item in ("each[1]", "each[2]", "each[0]"):
        driver.done(item, f"out of {item}")

    order = []
    effects = driver.fail("last")
    while sent := commands(effects):
        order.append((sent[0].split("/")[0], command(effects).input))
        effects = driver.done(order[-1][0], undo=True)

    assert order == [
        ("each[0]", "out of each[0]"),
        ("each[2]", "out of each[2]"),
        ("each[1]", "out of each[1]"),
        ("first", {"input": ["a", "b", "c"], "output": None}),
    ]
    assert result(effects)["status"] == "compensated"


def test_an_empty_list_leaves_nothing_to_undo() -> None:
    driver = mapped(step("last", "each", retry=ONCE), compensate={})
    driver.start("saga", {"files": []})

    assert result(driver.fail("last"))["status"] == "failed"


def test_a_cancel_waits_for_the_items_that_are_out() -> None:
    driver = mapped(concurrency=2, compensate={})
    driver.start("saga", {"files": [1, 2, 3]})
    driver.done("each[0]", 1)

    cancelled = driver.cancel()

    assert commands(cancelled) == []
    assert commands(driver.fail("each[1]")) == []
    drained = driver.done("each[2]", 3)
    assert "each running -> cancelled by stopped" in shown(drained)
    assert commands(drained) == ["each[2]/1/compensate"]


def test_a_lost_item_is_undone_like_one_that_was_done() -> None:
    driver = mapped(compensate={})
    driver.start("saga", {"files": [1]})
    driver.cancel()

    assert commands(driver.lose("each[0]")) == ["each[0]/1/compensate"]


def test_in_a_pause_no_further_item_begins() -> None:
    driver = mapped(concurrency=1)
    driver.start("saga", {"files": [1, 2]})
    driver.act(Action.PAUSE)

    assert commands(driver.done("each[0]")) == []
    assert commands(driver.act(Action.RESUME)) == ["each[1]/1/execute"]


def test_resuming_leaves_a_map_alone_that_has_ended() -> None:
    driver = mapped(step("next", "each"))
    driver.start("saga", {"files": [1]})
    driver.done("each[0]")
    driver.act(Action.PAUSE)

    assert shown(driver.act(Action.RESUME)) == []


def test_a_held_undoing_of_an_item_is_decided_by_its_name() -> None:
    driver = mapped(step("last", "each", retry=ONCE), compensate={"retry": ONCE, "when_failed": "review"})
    driver.start("saga", {"files": [1]})
    driver.done("each[0]")
    driver.fail("last")
    driver.fail("each[0]", undo=True)

    assert result(driver.decide("each[0]", Decision.SKIP, undo=True))["status"] == "compensated"


def test_terminating_answers_for_every_item_that_is_out() -> None:
    driver = mapped()
    driver.start("saga", {"files": [1, 2]})

    assert shown(driver.act(Action.TERMINATE))[:2] == ["answered each[0]/1/execute", "answered each[1]/1/execute"]


# --- what does not fit


@pytest.mark.parametrize("name", ["each[2]", "each[-1]", "each[01]", "each[0", "each[]", "each[x]", "other[0]"])
def test_a_result_for_an_item_that_is_none_is_ignored(name: str) -> None:
    driver = mapped()
    driver.start("saga", {"files": [1, 2]})

    assert ignored(driver.done(name)) == "unknown_step"


def test_a_result_for_the_step_itself_is_ignored() -> None:
    driver = mapped()
    driver.start("saga", {"files": [1, 2]})

    assert ignored(driver.done("each")) == "not_waited_for"


@pytest.mark.parametrize(
    "name", ["a", "a[0]", "a[12]", "a[01]", "a[", "a[1]b", "[0]", "a[1][2]", "a[" + "9" * 30 + "]"]
)
def test_a_name_is_split_into_what_makes_it(name: str) -> None:
    step_, item = split_item(name)

    assert (f"{step_}[{item}]" if item >= 0 else step_) == name


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"input": from_item("x")}, "steps.s.input"),
        ({"input": {"fields": {"a": from_item()}}}, "steps.s.input.a"),
        ({"compensate": {"input": FromItem(item="")}}, "steps.s.compensate.input"),
        ({"map": {"over": from_step("later")}}, "steps.s.map.over"),
        ({"map": {"over": from_item()}}, "steps.s.map.over"),
        ({"agent": None, "sleep": {"ms": 50}, "map": {"over": from_input()}}, "steps.s.map"),
    ],
)
def test_a_binding_that_cannot_be_is_refused(more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidDefinition) as raised:
        saga(step("s", **more), step("later"))

    assert raised.value.field == field


# --- repeat


def polling(*after: Any, round_trip: bool = True, **more: Any) -> Driver:
    repeat = {"until": "steps.poll.ready", "rounds_max": 3, **more.pop("repeat", {})}
    options = {"repeat": repeat, "input": from_item(), "retry": ONCE, **more}
    return Driver(saga(step("poll", **options), *after), round_trip=round_trip)


def test_a_step_is_repeated_until_its_condition_holds() -> None:
    driver = polling(step("next", "poll", input=from_step("poll")))

    first = driver.start("saga")
    second = driver.done("poll[0]", {"ready": False, "n": 1})
    last = driver.done("poll[1]", {"ready": True, "n": 2})

    assert (commands(first), command(first).input) == (["poll[0]/1/execute"], {"round": 0, "previous": None})
    assert (commands(second), command(second).input) == (
        ["poll[1]/1/execute"],
        {"round": 1, "previous": {"ready": False, "n": 1}},
    )
    assert command(last).input == {"ready": True, "n": 2}, "its output is the last round's"
    assert result(driver.done("next"))["status"] == "completed"


def test_the_next_round_may_wait() -> None:
    driver = polling(repeat={"delay_ms": 5_000})
    driver.start("saga")

    assert shown(driver.done("poll[0]", {"ready": False}))[-1] == "poll[1] waiting -> backing_off by delayed"
    assert driver.wait(4_999) == []
    assert commands(driver.wait(1)) == ["poll[1]/1/execute"]


def test_a_delayed_round_waits_for_the_end_of_a_pause() -> None:
    driver = polling(repeat={"delay_ms": 5_000})
    driver.start("saga")
    driver.done("poll[0]", {"ready": False})
    driver.act(Action.PAUSE)

    assert driver.wait(5_000) == []
    assert commands(driver.act(Action.RESUME)) == ["poll[1]/1/execute"]


def test_a_step_that_is_not_there_after_its_last_round_has_failed() -> None:
    driver = polling(compensate={})
    driver.start("saga")
    driver.done("poll[0]", {"ready": False})
    driver.done("poll[1]", {"ready": False})

    stopped = driver.done("poll[2]", {"ready": False})

    assert commands(stopped) == ["poll[2]/1/compensate"]
    driver.done("poll[2]", undo=True)
    driver.done("poll[1]", undo=True)
    ended = result(driver.done("poll[0]", undo=True))
    assert ended["failure"]["message"] == "'steps.poll.ready' does not hold after 3 rounds"


def test_a_round_whose_condition_cannot_be_evaluated_fails_the_step() -> None:
    driver = polling(critical=False, default="none")
    driver.start("saga")

    ended = result(driver.done("poll[0]", {}))

    assert ended["output"] == {"poll": "none"}
    assert "cannot be evaluated" in ended["missing"][0]["why"]


def test_a_failed_round_fails_the_step() -> None:
    driver = polling()
    driver.start("saga")
    driver.done("poll[0]", {"ready": False})

    assert result(driver.fail("poll[1]", message="down"))["failure"]["message"] == (
        "1 of 2 items did not deliver; poll[1]: down"
    )


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"repeat": {"until": "steps.later.x", "rounds_max": 2}}, "steps.s.repeat.until"),
        ({"repeat": {"until": "true", "rounds_max": 2}, "map": {"over": from_input()}}, "steps.s.repeat"),
        ({"agent": None, "sleep": {"ms": 50}, "repeat": {"until": "true", "rounds_max": 2}}, "steps.s.repeat"),
        ({"repeat": {"until": "1 +", "rounds_max": 2}}, "steps.s.repeat.until"),
    ],
)
def test_what_cannot_be_repeated_is_refused(more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidDefinition) as raised:
        saga(step("s", **more), step("later"))

    assert raised.value.field == field
