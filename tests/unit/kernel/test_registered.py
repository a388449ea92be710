"""Definitions that stand in a log from before their bindings were refused: events and checkpoints read them as they are."""

from __future__ import annotations

from sagalog.engine.kernel.partition import Partition
from sagalog.schemas.definitions import parse_definition

from .driver import Driver


def test_a_workflow_on_a_binding_that_leads_nowhere_goes_on() -> None:
    closed = {"type": "object", "properties": {"a": {}}, "additionalProperties": False}
    written = {
        "name": "saga",
        "input_schema": closed,
        "steps": [{"name": "a", "agent": "a", "input": {"fields": {"x": {"input": "gone"}}}}],
    }
    definition = parse_definition(written, registered=True)
    driver = Driver(definition)
    driver.start("saga", {"a": 1})
    driver.done("a", output="done")

    assert driver.state.status == "completed"

    owner_after = Partition()
    owner_after.load_definition(definition.encoded)
    assert owner_after.plans.keys() == driver.partition.plans.keys() == {definition.hash}
