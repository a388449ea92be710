"""What a workflow that nobody touches weighs: its checkpoint's bytes, and nothing around them."""

from __future__ import annotations

import tracemalloc

from sagalog.schemas.codec import encode
from sagalog.schemas.definitions import Definition, Step

from .driver import WORKFLOW, Driver

COUNT = 500


def test_a_workflow_at_rest_keeps_no_more_than_its_bytes() -> None:
    driver = Driver(Definition(name="one", steps=(Step(name="only", agent="worker"),)))
    driver.start("one")
    driver.done("only")
    partition, state = driver.partition, driver.state
    document = {"status": str(state.status), "padding": "x" * 200}
    names = [f"{WORKFLOW}-{number}" for number in range(COUNT)]
    partition.hot.update(dict.fromkeys(names, state))

    tracemalloc.start()
    try:
        for name in names:
            partition.rest(name, encode(document))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # The encoder's own bytes hold 4 KiB each, whatever their length.
    assert held / COUNT < 2 * len(encode(document))
    assert partition.cold[names[0]] == encode(document)
