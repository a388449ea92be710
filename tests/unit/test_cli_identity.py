"""The pieces of the command line about tenants, priorities, search attributes and starts under an id in use."""

from __future__ import annotations

from typing import Any

import pytest

from sagalog.engine.cli import exit_code
from sagalog.engine.cli.workflows import identity, read_attributes, why
from sagalog.engine.client import AnswerTimeout, DuplicateStart
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.records import StartAnsweredRecord

from .test_cli_pieces import workflow


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["customer=4711"], {"customer": 4711}),
        (["share=0.5", "vip=true"], {"share": 0.5, "vip": True}),
        (["region=north"], {"region": "north"}),
        (['customer="4711"'], {"customer": "4711"}),
        (["code=007"], {"code": "007"}),
        (["note=a=b"], {"note": "a=b"}),
        (["note="], {"note": ""}),
        (["note=null"], {"note": "null"}),
        (["note=[1]"], {"note": "[1]"}),
        (["a=1", "a=2"], {"a": 2}),
        ([], {}),
    ],
)
def test_attributes_are_read_as_json_where_they_are_a_value_and_as_text_otherwise(
    given: list[str], found: dict[str, Any]
) -> None:
    read = read_attributes(given, "--where")

    assert read == found
    assert {name: type(value) for name, value in read.items()} == {name: type(value) for name, value in found.items()}


@pytest.mark.parametrize("given", ["customer", "=1", "Customer=1", f"a={'x' * 300}"])
def test_what_is_no_attribute_is_refused(given: str) -> None:
    with pytest.raises(InvalidRecord):
        read_attributes([given], "--where")


def test_show_says_whose_it_is_and_how_urgent() -> None:
    assert identity(workflow()["workflow"]) == ""
    found = workflow(tenant="acme", priority=8, attributes={"vip": True, "customer": "4711", "n": 7})
    assert identity(found["workflow"]) == 'tenant acme, priority 8, customer="4711", n=7, vip=true'


def test_why_says_that_a_start_waits() -> None:
    found = workflow(next={"definition": "order", "at_ms": 1_500})
    assert why(found) == [
        "a newer start of 1970-01-01 00:00:01.500 waits for its end, and replaces it then",
    ]


def test_a_start_that_did_not_count_is_a_no_and_one_that_nobody_answered_a_time_out() -> None:
    answer: StartAnsweredRecord = {
        "workflow_id": "w",
        "start_id": "0" * 16,
        "accepted": False,
        "at_ms": 1,
        "at_offset": 2,
        "reason": "the workflow is running",
        "status": "running",
    }
    error = DuplicateStart("w", answer)

    assert str(error) == (
        "workflow_id: 'w' was not started anew: the workflow is running (it is running); see: sagalog show w"
    )
    assert (exit_code(error), exit_code(AnswerTimeout("late"))) == (1, 4)
