"""Starts under an id that is in use, through the client, the real engine and the real host: with crashes in between."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.agents import Terminal, Undo, agent
from sagalog.engine.audit import verify
from sagalog.engine.client import AnswerTimeout, DuplicateStart
from sagalog.engine.testing import _TOPICS, SagaTest
from sagalog.schemas.definitions import Compensation, Definition, Step, WaitFor
from sagalog.schemas.errors import InvalidRecord

done: list[Any] = []


@agent("stock")
async def stock(value: Any) -> Any:
    done.append(value)
    return value


@stock.compensation
async def put_back(undo: Undo[Any, Any]) -> None:
    done.append(f"undo {undo.input}")


ORDER = Definition(name="order", steps=(Step(name="reserve", agent="stock", compensate=Compensation()),))
SLOW = Definition(
    name="slow",
    steps=(
        Step(name="reserve", agent="stock", compensate=Compensation()),
        Step(name="paid", needs=("reserve",), wait_for=WaitFor(signal="paid", timeout_ms=60_000)),
    ),
)


def setup_function() -> None:
    done.clear()


def system() -> SagaTest:
    return SagaTest([ORDER, SLOW], [stock])


def check(t: SagaTest) -> None:
    """The checkpoints and the results are what the log says, answers and several runs among them."""
    t.advance(seconds=1)
    for report in t.do(verify(t._kafka.log("auditor"), _TOPICS)):
        assert report.differences == []


def test_a_start_that_must_know_is_told() -> None:
    with system() as t:
        t.start("slow", 1, workflow_id="w", on_duplicate="reject")
        with pytest.raises(DuplicateStart, match="'w' was not started anew: the workflow is running") as raised:
            t.start("slow", 2, workflow_id="w", on_duplicate="reject")
        t.signal("w", "paid")
        ended = t.wait("w")
        with pytest.raises(DuplicateStart, match="it is completed"):
            t.start("order", 3, workflow_id="w", on_duplicate="reject")
        check(t)

    assert raised.value.answer["status"] == "running"
    assert (ended.status, done) == ("completed", [1])


def test_a_start_that_is_not_told_in_time_says_what_is_not_known() -> None:
    with system() as t:
        t._processes["engine"].kill()
        with pytest.raises(
            AnswerTimeout, match="the start is durable, but no engine has said within 5 s whether it counted"
        ):
            t.start("order", 1, workflow_id="w", on_duplicate="reject", answer_timeout_s=5)
        t._start("engine", t._run_engine)
        assert t.wait("w").status == "completed"


def test_a_run_is_undone_and_the_one_that_replaces_it_runs_under_the_same_id() -> None:
    with system() as t:
        t.start("slow", "one", workflow_id="w")
        t.settle()
        ended = t.run("order", "two", workflow_id="w", on_duplicate="replace")
        check(t)

    # The agent remembers what it has done by the command's id: the second run's are others.
    assert done == ["one", "undo one", "two"]
    assert (ended.status, ended.output, ended.record["input"]) == ("completed", {"reserve": "two"}, "two")


def test_a_finished_run_is_simply_followed_by_another() -> None:
    with system() as t:
        assert t.run("order", 1, workflow_id="w").output == {"reserve": 1}
        assert t.run("order", 2, workflow_id="w", on_duplicate="replace").output == {"reserve": 2}
        assert t.run("order", 3, workflow_id="w", on_duplicate="replace").output == {"reserve": 3}
        check(t)

    assert done == [1, 2, 3]


@pytest.mark.parametrize("crash", ["engine", "host", "both"])
def test_the_start_that_waits_outlives_a_crash(crash: str) -> None:
    with system() as t:
        t.start("slow", "one", workflow_id="w")
        t.settle()
        t.fail("stock", times=3, undo=True)
        t.start("order", "two", workflow_id="w", on_duplicate="replace", tenant="acme", priority=8)
        t.settle()
        assert t.state("w")["next"]["input"] == "two"
        if crash != "host":
            t.crash_engine()
        if crash != "engine":
            t.crash_host()
        ended = t.wait("w")
        check(t)

    assert (ended.status, ended.record["tenant"], ended.record["priority"]) == ("completed", "acme", 8)
    assert done == ["one", "undo one", "two"]


def test_of_two_starts_that_wait_the_newer_runs_and_the_others_wait_says_so() -> None:
    with system() as t:
        t.start("slow", "one", workflow_id="w")
        t.settle()
        t.fail("stock", times=3, undo=True)
        t.start("order", "two", workflow_id="w", on_duplicate="replace")
        mine = t.client._started["w"]
        t.start("order", "three", workflow_id="w", on_duplicate="replace")
        ended = t.wait("w")
        t.client._started["w"] = mine
        with pytest.raises(DuplicateStart, match="a newer start replaced it before it began"):
            t.wait("w")

    assert ended.output == {"reserve": "three"}


def test_a_run_that_was_replaced_had_ended_as_cancelled() -> None:
    with system() as t:
        t.start("slow", "one", workflow_id="w")
        t.settle()
        t.run("order", "two", workflow_id="w", on_duplicate="replace")
        moves = t.history("w")

    assert moves.count("workflow: new -> running") == 2
    assert moves.index("workflow: compensating -> cancelled") < moves.index("workflow: running -> completed")


def test_a_run_that_is_on_is_what_there_is_to_see_not_the_one_that_ended_before() -> None:
    with system() as t:
        t.run("order", "one", workflow_id="w")
        t.start("slow", "two", workflow_id="w", on_duplicate="replace")
        t.settle()

        assert (t.state("w")["status"], t.state("w")["input"]) == ("running", "two")


def test_a_compensated_run_does_not_keep_the_next_from_being_done() -> None:
    """A host refuses what comes after its own undoing, by the idempotency key: the next run's is another."""
    with system() as t:
        t.start("slow", "one", workflow_id="w")
        t.settle()
        t.cancel("w")
        assert t.wait("w").status == "cancelled"
        again = t.run("order", "two", workflow_id="w", on_duplicate="replace")

    assert again.status == "completed"


def test_many_are_started_with_what_they_have_in_common() -> None:
    with system() as t:
        same: Any = {"tenant": "acme", "priority": 7, "attributes": {"batch": 1}}
        t.do(t.client.start_many("order", {"w1": 1, "w2": 2}, **same))
        for workflow_id in ("w1", "w2"):
            record: Any = t.wait(workflow_id).record
            assert {name: record[name] for name in same} == same
        with pytest.raises(InvalidRecord, match="priority"):
            t.do(t.client.start_many("order", {"w3": 3}, priority=11))


def test_what_waits_goes_by_the_priority_that_somebody_gave_it() -> None:
    with system() as t:
        t.start("slow", 1, workflow_id="w", priority=2)
        t.settle()
        t.prioritize("w", 9)
        assert t.state("w")["priority"] == 9
        t.signal("w", "paid")
        assert t.wait("w").record["priority"] == 9


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"tenant": ""}, "tenant"),
        ({"priority": 10}, "priority"),
        ({"attributes": {"Name": 1}}, "attributes"),
        ({"attributes": {"a": [1]}}, "attributes.a"),
        ({"on_duplicate": "restart"}, "on_duplicate"),
    ],
)
def test_what_the_fold_would_reject_is_refused_before_anything_is_written(more: dict[str, Any], field: str) -> None:
    with system() as t:
        with pytest.raises(InvalidRecord) as raised:
            t.start("order", 1, workflow_id="w", **more)
        assert t.do(t.client.history("w")) == []

    assert raised.value.field == field


def test_a_priority_that_is_none_is_refused() -> None:
    with system() as t:
        with pytest.raises(InvalidRecord, match="priority: 10 is not within 0 to 9"):
            t.prioritize("w", 10)
        with pytest.raises(InvalidRecord, match="call prioritize"):
            t.act("w", "prioritize")


def test_a_failed_run_may_be_followed_by_another() -> None:
    with system() as t:
        t.fail("stock", Terminal("no"))
        assert t.run("order", 1, workflow_id="w").status == "failed"
        assert t.run("order", 2, workflow_id="w", on_duplicate="replace").status == "completed"
