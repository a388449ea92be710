"""Moving running workflows to another definition, on the real engine: what the log says before and afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.agents import agent
from sagalog.engine import migrating
from sagalog.engine.audit import verify
from sagalog.engine.cli.migrating import Moved, Summary, _print_many, _print_one
from sagalog.engine.cli.workflows import moved as sentence
from sagalog.engine.client import UnknownDefinition
from sagalog.engine.migrating import Check, Outcome
from sagalog.engine.testing import _TOPICS, SagaTest
from sagalog.schemas.definitions import Definition, Step, WaitFor, from_step

OLD = Definition(
    name="order",
    steps=(
        Step(name="reserve", agent="stock", compensate={}),
        Step(name="paid", needs=("reserve",), wait_for=WaitFor(signal="paid", timeout_ms=60_000)),
        Step(name="ship", agent="truck", needs=("paid",)),
    ),
)
NEW = OLD.model_copy(
    update={
        "steps": (
            *OLD.steps[:2],
            Step(name="pack", agent="stock", needs=("paid",), input=from_step("reserve")),
            Step(name="ship", agent="train", needs=("pack",)),
        )
    }
)
UNFIT = Definition(name="order", steps=(Step(name="ship", agent="truck"),))


@agent("stock")
async def stock(value: Any) -> Any:
    return "from stock"


@agent("truck")
async def truck(value: Any) -> Any:
    return "by truck"


@agent("train")
async def train(value: Any) -> Any:
    return "by train"


def system(**more: Any) -> SagaTest:
    return SagaTest([OLD], [stock, truck, train], **more)


def test_a_running_workflow_goes_on_by_its_new_definition_through_a_crash() -> None:
    with system() as t:
        started = t.start("order", {"sku": "tea"})
        t.settle()

        assert t.migrate(started, NEW) == []
        t.crash_engine()
        t.signal(started, "paid", 7)
        ended = t.wait(started)

        assert ended.status == "completed"
        assert ended.record["definition"] == NEW.hash
        assert ended.output == {"ship": "by train"}
        assert [(move["before"], move["after"]) for move in ended.record["migrated"]] == [(OLD.hash, NEW.hash)]
        assert f"definition: {OLD.hash} -> {NEW.hash}" in t.history(started)
        assert all(report.ok for report in t.do(verify(t._kafka.log("auditor"), _TOPICS)))


def test_what_does_not_fit_stays_where_it_is() -> None:
    with system() as t:
        started = t.start("order", {"sku": "tea"})
        t.settle()

        assert t.migrate(started, UNFIT) == [
            "steps.reserve: has begun, and is not in the new definition; keep it",
            "steps.paid: has begun, and is not in the new definition; keep it",
        ]
        assert t.state(started)["definition"] == OLD.hash
        t.signal(started, "paid")
        ended = t.wait(started)
        assert ended.output == {"ship": "by truck"}
        assert t.migrate(started, NEW) == ["workflow: is completed; only what runs can be moved"]


def test_replay_against_a_definition_leaves_moves_out() -> None:
    with system() as t:
        started = t.start("order", {"sku": "tea"})
        t.settle()
        t.migrate(started, NEW)
        t.signal(started, "paid")
        t.wait(started)

        changed = t.replay(started, OLD)
        assert f"-definition: {OLD.hash} -> {NEW.hash}" in changed
        assert "-pack: waiting -> running" in changed


def test_the_log_says_who_fits_and_what_came_of_each_request() -> None:
    with system(partitions=2) as t:
        log = t._kafka.log("reader")
        waits = [t.start("order", {"n": n}, workflow_id=f"w{n}") for n in range(4)]
        t.settle()
        t.signal(waits[0], "paid")
        t.wait(waits[0])
        t.do(t.client.register(NEW))
        t.do(t.client.start(f"order@{NEW.hash}", {}, workflow_id="new"))
        t.settle()

        checks = t.do(migrating.check_all(log, _TOPICS, "order", OLD.hash, NEW))
        assert sorted(found.workflow_id for found in checks) == waits[1:]
        assert all(found.fits and not found.there for found in checks)
        unfit = t.do(migrating.check_all(log, _TOPICS, "order", OLD.hash, UNFIT))
        assert {found.problems[0].partition(";")[0] for found in unfit} == {
            f"definition: order@{UNFIT.hash} is not known to its partition"
        }

        requests = [t.do(t.client.migrate(one, "order", who="ana", reason="")) for one in waits]
        again = t.do(t.client.migrate("new", "order", who="ana", reason=""))
        found = t.do(migrating.outcomes(log, _TOPICS, {*requests, again, "never sent"}))
        assert [found[request].taken for request in requests] == [False, True, True, True]
        assert found[requests[0]] == Outcome(
            False, "already_finished", ["workflow: is completed; only what runs can be moved"]
        )
        assert found[again] == Outcome(False, "not_possible", [])
        assert "never sent" not in found

        assert t.do(migrating.check(log, _TOPICS, waits[1], NEW)) == Check(waits[1], NEW.hash, there=True)
        assert t.do(migrating.check(log, _TOPICS, "nobody", NEW)) is None
        assert t.do(migrating.outcome(log, _TOPICS, waits[1], "never sent")) is None
        assert t.do(migrating.check_all(log, _TOPICS, "order", OLD.hash, NEW)) == []


def test_the_newest_is_looked_up_anew() -> None:
    with system() as t:
        started = t.start("order", {"sku": "tea"})
        t.settle()
        t.do(t.client.register(NEW))

        request = t.do(t.client.migrate(started, "order", who="ana", reason=""))
        found = t.do(migrating.outcome(t._kafka.log("reader"), _TOPICS, started, request))
        assert found == Outcome(taken=True)


def test_a_definition_that_nobody_registered_is_refused_before_anything_is_written() -> None:
    with system() as t:
        started = t.start("order", {"sku": "tea"})

        with pytest.raises(UnknownDefinition):
            t.do(t.client.migrate(started, f"order@{NEW.hash}", who="ana", reason=""))
        t.settle()
        assert len(t.do(t.client.history(started))) == 2, "the start, and the answer of the first step"


# --- what the command prints


def test_one_that_fits_and_one_that_does_not_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    unfit = Check("w", OLD.hash, there=False, problems=["steps.a: has begun; keep it"])
    _print_one(Moved(unfit, NEW.hash), dry_run=True, json=False)
    _print_one(Moved(Check("w", OLD.hash, there=False), NEW.hash), dry_run=True, json=False)
    _print_one(Moved(Check("w", OLD.hash, there=False), NEW.hash, Outcome(True)), dry_run=False, json=False)
    _print_one(Moved(Check("w", NEW.hash, there=True), NEW.hash), dry_run=False, json=False)
    overtaken = Outcome(False, "does_not_fit", ["steps.b: has begun; keep it"])
    _print_one(Moved(Check("w", OLD.hash, there=False), NEW.hash, overtaken), dry_run=False, json=False)

    assert capsys.readouterr().out.splitlines() == [
        f"w: does not fit {NEW.hash}",
        "  steps.a: has begun; keep it",
        f"w: fits {NEW.hash}",
        f"w: moved from {OLD.hash} to {NEW.hash}",
        f"w: is on {NEW.hash} already",
        f"w: does not fit {NEW.hash} (does_not_fit)",
        "  steps.b: has begun; keep it",
    ]


def test_many_are_summed_up(capsys: pytest.CaptureFixture[str]) -> None:
    unfit = Check("w2", OLD.hash, there=False, problems=["steps.a: has begun; keep it"])
    fits = Check("w1", OLD.hash, there=False)
    _print_many(Summary([Moved(fits, NEW.hash), Moved(unfit, NEW.hash)], 3), dry_run=True, json=False)
    _print_many(Summary([Moved(fits, NEW.hash, Outcome(True))], 0), dry_run=False, json=False)

    assert capsys.readouterr().out.splitlines() == [
        f"w2: does not fit {NEW.hash}",
        "  steps.a: has begun; keep it",
        "1 would be moved, 1 do not fit",
        "3 more are on it: raise --limit, or call it again",
        "1 were moved, 0 do not fit",
    ]


def test_a_move_is_a_sentence() -> None:
    move = {"before": "a", "after": "b", "who": "ana", "at": "today", "reason": "why"}

    assert sentence(move) == "moved from a to b by ana at today: why"
    assert sentence({**move, "reason": ""}) == "moved from a to b by ana at today"
