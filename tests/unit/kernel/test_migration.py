"""A running workflow moves to another hash of its definition: what fits, what becomes of what was out, what does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.engine.kernel.effects import ReviewNeeded
from sagalog.engine.kernel.migration import problems
from sagalog.engine.kernel.plan import compile_plan
from sagalog.engine.kernel.state import NEVER
from sagalog.schemas.definitions import Definition, Step, from_input, from_step
from sagalog.schemas.events import Action, Decision, FailureKind, MigrationRequested
from sagalog.schemas.limits import MIGRATIONS_KEPT_MAX, TEXT_CHARS_MAX

from .driver import (
    WORKFLOW,
    Driver,
    chain,
    command,
    commands,
    dead_letters,
    ignored,
    result,
    reviews,
    saga,
    shown,
    step,
    waiting,
)

ONCE = {"attempts": 1}


def driver_of(old: Definition, new: Definition, value: Any = None, *, round_trip: bool = True, **more: Any) -> Driver:
    driver = Driver(old, new, round_trip=round_trip)
    driver.start(f"saga@{old.hash}", value, **more)
    return driver


def moved(old: Definition, new: Definition) -> str:
    return f"migrated {old.hash} -> {new.hash}"


def what_does_not_fit(driver: Driver, new: Definition) -> list[str]:
    plan = driver.partition.plan_of(driver.state)
    return problems(driver.state, plan, compile_plan(new))


def refused(driver: Driver, new: Definition) -> list[str]:
    """The problems; the request is ignored because of them, and changes nothing."""
    driver.register(new)
    found = what_does_not_fit(driver, new)
    driver.now_ms += 5_000
    before = driver.everything()

    assert ignored(driver.migrate(new)) == "does_not_fit"
    assert driver.everything() == before
    return found


# --- what follows


def test_what_has_not_begun_is_the_new_definitions() -> None:
    old, new = chain("a", "b"), chain("a", "x", "b")
    driver = driver_of(old, new)

    assert shown(driver.migrate(new)) == [moved(old, new)]
    assert commands(driver.done("a")) == ["x/1/execute"]
    assert commands(driver.done("x")) == ["b/1/execute"]
    ended = result(driver.done("b"))
    assert (ended["status"], ended["definition"]) == ("completed", new.hash)
    assert [found["name"] for found in ended["steps"]] == ["a", "x", "b"]


def test_new_steps_whose_needs_are_met_begin_at_once() -> None:
    old = saga(step("a"), step("b", "a"))
    new = saga(step("root"), step("b", "a"), step("a"), step("after", "a"), step("later", "b"))
    driver = driver_of(old, new)
    driver.done("a")

    assert shown(driver.migrate(new)) == [
        moved(old, new),
        "root waiting -> running by dispatched",
        "send root/1/execute",
        "after waiting -> running by dispatched",
        "send after/1/execute",
    ]
    assert commands(driver.done("b")) == ["later/1/execute"]


def test_in_a_pause_nothing_begins() -> None:
    old, new = chain("a", "b"), saga(*chain("a", "b").steps, step("root"))
    driver = driver_of(old, new)
    driver.act(Action.PAUSE)

    assert shown(driver.migrate(new)) == [moved(old, new)]
    assert commands(driver.act(Action.RESUME)) == ["root/1/execute"]


def test_without_what_was_left_to_do_the_workflow_ends() -> None:
    old, new = chain("a", "b"), chain("a")
    driver = driver_of(saga(*old.steps, deadline_ms=1_000), new)
    driver.done("a", "out")
    driver.fail("b")
    kept = saga(*old.steps[:1], step("b", "a", when="false", critical=False))

    assert refused(driver, new) == ["steps.b: has begun, and is not in the new definition; keep it"]
    driver.register(kept)
    assert shown(driver.migrate(kept)) == [f"migrated {driver.state.migrated[0]['before']} -> {kept.hash}"]

    other = driver_of(saga(step("a"), waiting("nap", "a", sleep={"ms": 10}), step("b", "nap")), new)
    other.act(Action.PAUSE)
    other.done("a", "out")
    ended = other.migrate(new)
    assert shown(ended)[1:] == ["workflow running -> completed by all_steps_ended", "finished completed"]
    assert result(ended)["migrated"] == [
        {
            "before": result(ended)["migrated"][0]["before"],
            "after": new.hash,
            "at_ms": other.now_ms,
            "who": "tester",
            "reason": "wanted",
        }
    ]


def test_the_state_remembers_its_newest_moves() -> None:
    one, other = chain("a", "b"), chain("a", "c")
    driver = driver_of(one, other)
    for _ in range(MIGRATIONS_KEPT_MAX):
        driver.migrate(other)
        driver.migrate(one)
        driver.now_ms += 1

    assert len(driver.state.migrated) == MIGRATIONS_KEPT_MAX
    assert driver.state.migrated[-1] == {
        "before": other.hash,
        "after": one.hash,
        "at_ms": driver.now_ms - 1,
        "who": "tester",
        "reason": "wanted",
    }


def test_a_request_counts_once() -> None:
    one, other = chain("a", "b"), chain("a", "c")
    driver = driver_of(one, other)
    driver.migrate(other, ce_id="once")
    driver.migrate(one, ce_id="back")
    before = driver.everything()

    assert ignored(driver.migrate(other, ce_id="once")) == "duplicate"
    assert driver.everything() == before


def test_a_name_without_a_hash_is_the_newest() -> None:
    old, new = chain("a", "b"), chain("a", "c")
    driver = driver_of(old, new)

    assert shown(driver.migrate("saga")) == [moved(old, new)]


# --- attempts that are out


def test_the_answer_of_the_agent_before_counts_and_it_undoes_what_it_did() -> None:
    old = saga(step("a", agent="one", compensate={}), step("b", "a", retry=ONCE))
    new = saga(step("a", agent="two", compensate={}), step("b", "a", retry=ONCE))
    driver = driver_of(old, new)
    driver.migrate(new)

    assert shown(driver.done("a", "out")) == [
        "answered a/1/execute",
        "called one ok",
        "a running -> done by completed",
        "b waiting -> running by dispatched",
        "send b/1/execute",
    ]
    failed = driver.fail("b", FailureKind.TERMINAL)
    assert command(failed).agent == "one"
    assert "stand_in" not in result(driver.done("a", undo=True))["steps"][0]


def test_the_next_attempt_is_the_new_agents_and_both_undo_what_either_may_have_done() -> None:
    old = saga(step("a", agent="one", compensate={}), step("b", "a", retry=ONCE))
    new = saga(step("a", agent="two", compensate={}), step("b", "a", retry=ONCE))
    driver = driver_of(old, new)
    driver.migrate(new)
    assert shown(driver.lose("a"))[:2] == ["answered a/1/execute", "called one failed"]

    assert command(driver.wait(60_000)).agent == "two"
    assert driver.state.steps[0].asked is None
    driver.done("a", "out", attempt=2)
    assert command(driver.fail("b", FailureKind.TERMINAL)).agent == "two"
    assert command(driver.done("a", undo=True)).agent == "one"


def test_what_was_out_is_sent_again_to_who_had_it() -> None:
    bank = {"service": "bank"}
    old, new = saga(step("a", agent="one", **bank)), saga(step("a", agent="two", **bank))
    driver = driver_of(old, new)
    driver.migrate(new)
    driver.stop()

    sent = command(driver.act(Action.RESUME))
    assert (sent.agent, sent.service, sent.definition) == ("one", None, new.hash)
    assert dead_letters(driver.fail("a", FailureKind.TERMINAL))[0]["agent"] == "one"


def test_a_fallback_that_is_at_work_keeps_its_turn_wherever_it_stands_now() -> None:
    other, third = {"agent": "other", "reserve": {"tokens": 5}}, {"agent": "third"}
    old = saga(step("a", retry=ONCE, fallbacks=[other, third]), budget={"tokens": 100})
    new = saga(step("a", retry=ONCE, fallbacks=[third, other, {"value": "none"}]), budget={"tokens": 100})
    driver = driver_of(old, new)
    driver.fail("a")
    driver.migrate(new)

    assert driver.state.steps[0].fell_back == 2
    assert shown(driver.fail("a", attempt=2, tokens=1))[-4:] == [
        "dead letter a/2/execute",
        "a running -> degraded by fell_back",
        "workflow running -> degraded by ended_with_gaps",
        "finished degraded",
    ]


def test_a_fallback_that_is_at_work_must_be_there() -> None:
    old = saga(step("a", retry=ONCE, fallbacks=[{"agent": "other"}]))
    driver = driver_of(old, chain("a"))
    driver.fail("a")

    assert refused(driver, saga(step("a", retry=ONCE))) == [
        "steps.a.fallbacks: 'other' stands in for its agent already; keep it among them"
    ]


def test_a_budget_that_is_used_up_lets_no_further_attempt_be_made() -> None:
    old, new = saga(step("a"), step("b", "a")), saga(step("a"), step("b", "a"), budget={"attempts": 1})
    driver = driver_of(old, new)
    driver.migrate(new)

    assert result(driver.done("a"))["failure"]["kind"] == "over_budget"


# --- deadlines


def test_the_definitions_deadline_is_taken_anew_from_the_start() -> None:
    old, new = saga(*chain("a", "b").steps, deadline_ms=10_000), saga(*chain("a", "b").steps, deadline_ms=3_000)
    driver = driver_of(old, new)
    started_ms = driver.now_ms
    driver.now_ms += 1_000
    driver.migrate(new)

    assert driver.state.deadline_ms == started_ms + 3_000
    driver.migrate(old)
    assert driver.state.deadline_ms == started_ms + 10_000
    driver.register(chain("a", "b"))
    driver.migrate(chain("a", "b"))
    assert driver.state.deadline_ms == NEVER


@pytest.mark.parametrize("own_ms", [2_000, 3_000, 10_000])
def test_a_starts_own_deadline_stays(own_ms: int) -> None:
    old, new = saga(*chain("a", "b").steps, deadline_ms=10_000), saga(*chain("a", "b").steps, deadline_ms=3_000)
    driver = driver_of(old, new, deadline_ms=own_ms)
    deadline_ms = driver.now_ms + own_ms

    for definition in (new, old, new):
        driver.migrate(definition)
        assert driver.state.deadline_ms == deadline_ms


def test_a_deadline_that_is_over_stops_the_workflow() -> None:
    old, new = chain("a", "b"), saga(*chain("a", "b").steps, deadline_ms=1_000)
    driver = driver_of(old, new)
    driver.now_ms += 2_000
    driver.migrate(new)

    assert shown(driver.wait(0))[0] == "workflow running -> compensating by deadline_passed"


# --- steps that wait


def test_a_wait_keeps_its_time_and_its_signal_may_be_wanted_again_later() -> None:
    paid = {"signal": "paid", "timeout_ms": 1_000}
    old = saga(waiting("w", wait_for=paid))
    new = saga(waiting("w", wait_for={**paid, "timeout_ms": 99_000}), waiting("v", "w", wait_for=paid))
    driver = driver_of(old, new)
    until_ms = driver.state.steps[0].until_ms
    driver.migrate(new)

    assert driver.state.steps[0].until_ms == until_ms
    assert shown(driver.signal("paid", 1, ce_id="s1"))[0] == "w awaiting -> done by signalled"


def test_a_kept_signal_that_nobody_waits_for_any_more_is_kept_and_taken_by_whoever_waits_again() -> None:
    paid = {"signal": "paid", "timeout_ms": 1_000}
    old, new = saga(step("a"), waiting("w", "a", wait_for=paid)), saga(step("a"), step("b", "a"))
    driver = driver_of(old, new)
    driver.signal("paid", 7)
    driver.migrate(new)
    assert [signal["name"] for signal in driver.state.signals] == ["paid"]
    driver.migrate(old)

    ended = driver.done("a")
    assert shown(ended)[4:6] == ["w awaiting -> done by signalled", "workflow running -> completed by all_steps_ended"]
    assert result(ended)["steps"][1]["output"] == 7


def test_a_task_is_asked_anew_when_what_it_asks_has_changed() -> None:
    task = {"title": "look", "timeout_ms": 1_000, "assignee": "ana"}
    old = saga(waiting("t", task=task), step("b", "t"))
    same = saga(waiting("t", task=task), step("c", "t"))
    other = saga(waiting("t", task={**task, "form": {"type": "object"}, "assignee": "bo"}), step("b", "t"))
    driver = driver_of(old, same)
    driver.register(other)

    assert shown(driver.migrate(same)) == [moved(old, same)]
    asked = driver.migrate(other)
    assert shown(asked) == [moved(same, other), "review t/task"]
    assert reviews(asked)[0]["details"] == {
        "input": None,
        "until_ms": driver.now_ms + 1_000,
        "form": {"type": "object"},
        "assignee": "bo",
    }
    assert ignored(driver.decide("t", Decision.APPROVE, 7)) == "invalid_payload"
    assert commands(driver.decide("t", Decision.APPROVE, {})) == ["b/1/execute"]


def test_a_task_whose_input_has_changed_is_asked_anew_of_who_has_it_now() -> None:
    task = {"title": "look", "timeout_ms": 1_000, "assignee": "ana", "escalate_to": "boss"}
    old, new = saga(waiting("t", task=task)), saga(waiting("t", task=task, input=from_input("x")))
    driver = driver_of(old, new, {"x": 1})
    driver.wait(1_000)

    (review,) = [effect for effect in driver.migrate(new) if isinstance(effect, ReviewNeeded)]
    assert review.record["details"]["assignee"] == "boss" and review.record["details"]["input"] == 1


# --- maps and repeats


def mapped(**more: Any) -> Step:
    each = {"over": from_input("l"), "concurrency": 1, "tolerate": 1, **more}
    return step("each", map=each, retry=ONCE, compensate={})


def test_more_items_may_be_at_work_from_now_on() -> None:
    old, new = saga(mapped()), saga(mapped(concurrency=3, items_max=2))
    driver = driver_of(old, new, {"l": [1, 2, 3]})

    assert commands(driver.migrate(new)) == ["each[1]/1/execute", "each[2]/1/execute"]
    assert result([*driver.done("each[0]"), *driver.done("each[2]"), *driver.done("each[1]")])["status"] == "completed"


def test_a_map_of_which_too_many_items_have_failed_by_now_begins_no_more() -> None:
    old, new = saga(mapped(), step("b", "each")), saga(mapped(tolerate=0), step("b", "each"))
    driver = driver_of(old, new, {"l": [1, 2, 3]})
    driver.act(Action.PAUSE)
    driver.fail("each[0]")

    assert shown(driver.migrate(new)) == [
        moved(old, new),
        "each[1] waiting -> cancelled by stopped",
        "each[2] waiting -> cancelled by stopped",
        "each running -> failed by given_up",
        "workflow running -> compensating by step_failed",
        "b waiting -> cancelled by stopped",
        "workflow compensating -> failed by nothing_to_undo",
        "finished failed",
    ]


def test_a_map_that_is_failing_is_not_saved_by_more_tolerance() -> None:
    old = saga(mapped(tolerate=0, concurrency=2), step("b", "each"))
    driver = driver_of(old, saga(mapped(), step("c")), {"l": [1, 2, 3]})
    driver.fail("each[0]")

    assert refused(driver, saga(mapped(tolerate=3, concurrency=2))) == [
        "steps.each.map.tolerate: more of its items have failed than it tolerated, and the rest is not begun any more; "
        "keep it, or wait for the step's end"
    ]


def test_the_list_whose_items_have_begun_stays() -> None:
    driver = driver_of(saga(mapped()), chain("a"), {"l": [1, 2], "m": [2, 1], "k": [1, 2]})

    assert refused(driver, saga(mapped(over=from_input("m")))) == [
        "steps.each.map.over: gives another list than the one whose items have begun; keep it"
    ]
    # The same list, though taken from elsewhere, and found at another place.
    assert what_does_not_fit(driver, saga(step("z"), mapped(over=from_input("k")))) == []


@pytest.mark.parametrize("round_trip", [True, False])
def test_the_list_is_found_where_the_new_definition_has_its_step(round_trip: bool) -> None:
    old = saga(step("a"), step("each", "a", map={"over": from_step("a")}, retry=ONCE), step("z", "each"))
    new = saga(step("new"), step("newer"), old.steps[1], step("a"))
    driver = driver_of(old, new, round_trip=round_trip)
    driver.done("a", [1, 2])
    driver.migrate(new)

    driver.done("each[0]", "x")
    driver.done("each[1]", "y")
    driver.done("newer")
    assert result(driver.done("new"))["output"] == {"new": None, "newer": None, "each": ["x", "y"]}


def test_a_repeat_goes_on_by_the_new_condition() -> None:
    def poll(rounds_max: int, until: str) -> Definition:
        return saga(step("poll", repeat={"until": until, "rounds_max": rounds_max}, retry=ONCE))

    old, new = poll(3, "steps.poll == 1"), poll(5, "steps.poll == 2")
    driver = driver_of(old, new)
    driver.done("poll[0]", 0)
    driver.migrate(new)

    assert commands(driver.done("poll[1]", 1)) == ["poll[2]/1/execute"]
    assert result(driver.done("poll[2]", 2))["status"] == "completed"


# --- while it is undone


def test_a_compensation_can_be_mended_while_the_workflow_is_undone() -> None:
    undo = {"retry": {"attempts": 2, "base_ms": 100}}
    old = saga(step("a", compensate=undo), step("b", "a", compensate=undo), step("c", "b", retry=ONCE))
    mended = {**undo, "agent": "undoer"}
    new = saga(step("a", compensate=mended), step("b", "a", compensate=mended), step("d"), step("c", "b", retry=ONCE))
    driver = driver_of(old, new)
    driver.done("a")
    driver.done("b")
    driver.fail("c")
    driver.fail("b", undo=True)

    assert shown(driver.migrate(new)) == [moved(old, new), "d waiting -> cancelled by stopped"]
    assert command(driver.wait(60_000)).agent == "undoer"
    assert command(driver.done("b", attempt=2, undo=True)).agent == "undoer"
    ended = result(driver.done("a", undo=True))
    assert ended["status"] == "compensated"
    assert [(s["name"], s["status"], s["undo"]["status"]) for s in ended["steps"]] == [
        ("a", "done", "done"),
        ("b", "done", "done"),
        ("d", "cancelled", "not_needed"),
        ("c", "failed", "not_needed"),
    ]


def test_what_is_to_be_undone_keeps_its_compensation() -> None:
    c = step("c", "b", retry=ONCE, compensate={})
    old = saga(step("a", compensate={}), step("b", "a", compensate={}), c, step("d", "b"))
    driver = driver_of(old, chain("x"))
    driver.done("a")
    driver.done("b")
    driver.fail("c")

    bare = saga(step("a"), step("b", "a"), step("c", "b", retry=ONCE), step("d", "b"))
    draining = [
        "steps.a.compensate: is missing, and 'a' is to be undone; keep it",
        "steps.b.compensate: is missing, and 'b' is to be undone; keep it",
    ]
    assert refused(driver, bare) == draining
    driver.done("d")
    assert refused(driver, bare) == draining
    other = saga(step("a", compensate={}), step("b", "a", compensate={"agent": "x"}), *old.steps[2:])
    assert refused(driver, other) == [
        "steps.b.compensate.agent: 'b' is undoing 'b' now; keep it, or wait for its answer"
    ]
    driver.done("b", undo=True)
    assert what_does_not_fit(driver, other) == []
    pivot = saga(step("a", pivot=True, compensate={}), *old.steps[1:])
    assert refused(driver, pivot) == ["steps.a.pivot: it has ended well, and the workflow is being undone; drop it"]


def test_agents_that_undo_in_turn_are_not_changed_between_their_turns() -> None:
    undo = {"retry": {"attempts": 2, "base_ms": 100}}
    a = step("a", compensate=undo, retry=ONCE, fallback={"agent": "other"})
    driver = driver_of(saga(a, step("b", "a", retry=ONCE)), chain("x"))
    driver.lose("a")
    driver.done("a", attempt=2)
    driver.fail("b")
    driver.done("a", undo=True)
    driver.fail("a", attempt=2, undo=True)

    named = step("a", compensate={**undo, "agent": "x"}, retry=ONCE, fallback={"agent": "other"})
    assert refused(driver, saga(named, step("b", "a", retry=ONCE))) == [
        "steps.a.compensate.agent: several agents undo 'a' in turn, and it is not the first's; keep it, or wait"
    ]


# --- what does not fit


SCHEMA = {"type": "object", "required": ["x"]}


def begun(driver: Driver) -> None:
    driver.done("a", {"y": 1})


@pytest.mark.parametrize(
    ("new", "found"),
    [
        (saga(step("a")), ["steps.b: has begun, and is not in the new definition; keep it"]),
        (
            saga(step("a"), waiting("b", "a", sleep={"ms": 10})),
            ["steps.b: has begun as a step with agent, and has sleep now; keep the one, or give the other a new name"],
        ),
        (
            saga(step("a"), step("b", "a", map={"over": {"value": [1]}})),
            [
                "steps.b: has begun as a step with agent, and has agent and map now; keep the one, "
                "or give the other a new name"
            ],
        ),
        (
            saga(step("a"), step("x"), step("b", "a", "x")),
            ["steps.b.needs: 'x' has not ended, and 'b' has begun; let it come behind"],
        ),
        (
            saga(step("a", "b"), step("b")),
            ["steps.a.needs: 'b' has not ended, and 'a' has begun; let it come behind"],
        ),
        (
            saga(step("a", output_schema=SCHEMA), step("b", "a")),
            [
                "steps.a.output_schema: what 'a' gave does not fit (output: \"x\" is a required property); "
                "let the schema allow it"
            ],
        ),
        (
            saga(step("a"), step("b", "a"), input_schema={"type": "string"}),
            [
                'input_schema: the workflow\'s input does not fit (input: null is not of type "string"); '
                "let the schema allow it"
            ],
        ),
        (
            Definition(name="other", steps=(step("a"), step("b", "a"))),
            ["definition: is one of 'other', the workflow is of 'saga'; name one of its own"],
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_remedy(new: Definition, found: list[str]) -> None:
    driver = Driver(chain("a", "b", "c"))
    driver.start("saga")
    begun(driver)

    assert refused(driver, new) == found


def test_everything_that_does_not_fit_is_named() -> None:
    driver = Driver(chain("a", "b", "c"))
    driver.start("saga")
    begun(driver)

    new = saga(waiting("a", sleep={"ms": 10}), step("x"), input_schema={"type": "string"})
    assert [problem.partition(": ")[0] for problem in refused(driver, new)] == ["input_schema", "steps.a", "steps.b"]


def test_a_pivot_that_was_passed_stays_one() -> None:
    driver = Driver(saga(step("a", pivot=True), step("b", "a")))
    driver.start("saga")
    driver.done("a")

    assert refused(driver, chain("a", "b")) == [
        "steps.a.pivot: it has ended well, so the workflow goes only forward; keep it one"
    ]


def test_what_is_degraded_already_cannot_become_required() -> None:
    a = step("a", critical=False, retry=ONCE)
    driver = Driver(saga(a, step("b", "a")))
    driver.start("saga")
    driver.fail("a")

    assert refused(driver, saga(a, step("b", "a"), required=("a", "b"))) == [
        "required: names 'a', which is degraded already; leave it out"
    ]


def test_what_waits_for_a_signal_keeps_its_name_and_kept_signals_fit() -> None:
    def waits(first: str, schema: dict[str, Any]) -> Definition:
        paid = {"signal": "paid", "timeout_ms": 1_000, "payload_schema": schema}
        return saga(waiting("w", wait_for={"signal": first, "timeout_ms": 1_000}), waiting("v", "w", wait_for=paid))

    driver = Driver(waits("go", {}))
    driver.start("saga")
    driver.signal("paid", 7)

    assert refused(driver, waits("paid", {"type": "string"})) == [
        "steps.w.wait_for.signal: it waits for 'go' already; keep that name",
        "steps.v.wait_for.payload_schema: a signal 'paid' that is kept does not fit "
        '(payload: 7 is not of type "string"); let the schema allow it',
    ]


def test_a_step_that_an_operator_completed_is_held_to_the_new_schema_a_stand_in_is_not() -> None:
    old = saga(
        step("a", retry=ONCE, when_failed="review"), step("b", critical=False, retry=ONCE, default=1), step("c", "a")
    )
    driver = driver_of(old, chain("x"))
    driver.fail("a")
    driver.decide("a", Decision.COMPLETE, 7)
    driver.fail("b")
    new = saga(*(Step(**{**dict(found), "output_schema": SCHEMA}) for found in old.steps))

    assert [problem.partition(":")[0] for problem in refused(driver, new)] == ["steps.a.output_schema"]


def test_a_definition_that_the_partition_does_not_know() -> None:
    driver = Driver(chain("a", "b"))
    driver.start("saga")
    before = driver.everything()

    for named in (chain("z"), "nope", "other@" + chain("a", "b").hash, "", "@", "saga@" + "x" * 9_000):
        assert ignored(driver.migrate(named)) == "unknown_definition"
    assert ignored(driver.migrate(chain("a", "b"))) == "not_possible", "it is there already"
    assert driver.everything() == before


def test_a_workflow_that_does_not_run_is_not_moved() -> None:
    old, new = chain("a", "b"), chain("a", "c")
    driver = Driver(new)
    driver.start(f"saga@{old.hash}")
    assert ignored(driver.migrate(new)) == "not_possible"
    assert what_does_not_fit(driver, new) == [
        "workflow: waits for its definition; register that one (sagalog definitions register)"
    ]

    driver.register(old)
    driver.stop()
    assert ignored(driver.migrate(new)) == "stopped"
    assert what_does_not_fit(driver, new) == [
        "workflow: is quarantined; look at the record, resume it (sagalog resume), then move it"
    ]

    driver.act(Action.TERMINATE)
    assert ignored(driver.migrate(new)) == "already_finished"
    assert what_does_not_fit(driver, new) == ["workflow: is terminated; only what runs can be moved"]


def test_who_and_why_are_cut_to_their_limit() -> None:
    old, new = chain("a", "b"), chain("a", "c")
    driver = driver_of(old, new)
    driver.append(MigrationRequested("saga", "w" * 9_000, "r" * 9_000), key=WORKFLOW.encode(), ce_id="m")

    assert [len(driver.state.migrated[0][part]) for part in ("who", "reason")] == [TEXT_CHARS_MAX] * 2  # type: ignore[literal-required]


def test_a_step_that_waits_to_be_tried_anew_or_was_cancelled_after_an_attempt_has_begun() -> None:
    held = step("a", retry=ONCE, when_failed="review")
    driver = Driver(saga(held, step("b")))
    driver.start("saga")
    driver.fail("a")
    driver.act(Action.PAUSE)
    driver.decide("a", Decision.RETRY)
    assert refused(driver, saga(step("b"))) == ["steps.a: has begun, and is not in the new definition; keep it"]

    other = Driver(saga(step("a"), step("b", retry=ONCE), step("c", "a"), step("d", compensate={})))
    other.start("saga")
    other.fail("a")
    other.fail("b")
    assert refused(other, saga(step("b"))) == [
        "steps.a: has begun, and is not in the new definition; keep it",
        "steps.d: has begun, and is not in the new definition; keep it",
    ]
