"""Steps with `reconcile`: what is refused, and that definitions without it keep their hash."""

from __future__ import annotations

import pytest

from sagalog.schemas import ids
from sagalog.schemas.commands import Question
from sagalog.schemas.definitions import Definition, Reconcile, Retry, Step, parse_definition
from sagalog.schemas.errors import InvalidDefinition
from sagalog.schemas.ids import Direction


@pytest.mark.parametrize(
    "kind",
    [
        {"sleep": {"ms": 500}},
        {"wait_for": {"signal": "go", "timeout_ms": 500}},
        {"task": {"title": "t", "timeout_ms": 500}},
    ],
)
def test_a_step_without_an_agent_has_nobody_to_ask(kind: dict[str, object]) -> None:
    with pytest.raises(InvalidDefinition, match=r"steps.a.reconcile: is of agents' attempts"):
        Definition(name="saga", steps=(Step(name="a", **kind, reconcile={}),))


@pytest.mark.parametrize(("field", "value"), [("timeout_ms", 9), ("attempts", 0), ("agent", "other")])
def test_what_cannot_be_asked_is_refused(field: str, value: object) -> None:
    reconcile = {"retry": {field: value}} if field == "attempts" else {field: value}
    with pytest.raises(InvalidDefinition, match=field):
        parse_definition({"name": "saga", "steps": [{"name": "a", "agent": "a", "reconcile": reconcile}]})


def test_without_reconcile_the_hash_is_what_it_was() -> None:
    assert b"reconcile" not in Definition(name="saga", steps=(Step(name="a", agent="a"),)).encoded


def test_it_is_written_without_its_defaults_and_read_again() -> None:
    saga = Definition(
        name="saga",
        steps=(
            Step(name="a", agent="a", reconcile=Reconcile()),
            Step(name="b", agent="b", reconcile=Reconcile(timeout_ms=500, retry=Retry(attempts=2))),
        ),
    )
    a, b = saga.model_dump(mode="json")["steps"]

    assert (a["reconcile"], b["reconcile"]) == ({}, {"timeout_ms": 500, "retry": {"attempts": 2}})
    assert parse_definition(saga.encoded) == saga


def test_a_question_of_a_later_run_is_about_an_attempt_of_that_run() -> None:
    for run, about in ((1, "w1/a/2/execute"), (46, "w1/a/2@46/execute")):
        command_id = ids.command_id("w1", "a", 7, Direction.RECONCILE, run)
        question = Question(command_id, "w1", "h", "a", "a", 7, Direction.RECONCILE, "t", "w1/a", None, 1_000, about=2)
        assert question.about_id == about
