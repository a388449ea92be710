"""The engine's session on the simulated log: what it does when what it stands on breaks.

Each of these was found by the simulation (tests/simulation) first.
"""

from __future__ import annotations

from typing import Any

import orjson

from sagalog.engine.runtime.processor import Processor
from sagalog.engine.testing import SagaTest
from sagalog.schemas.definitions import Definition, Step
from sagalog.schemas.records import OWNER_KEY
from sagalog.topics.log import ProducerBroken

ONE = Definition(name="one", steps=(Step(name="a", agent="worker"),))


def system() -> SagaTest:
    t = SagaTest([ONE])
    t.stub("worker", "done")
    return t


def processors(t: SagaTest) -> list[Processor]:
    assert t._engine is not None and t._engine.session is not None
    return list(t._engine.session.processors.values())


def test_an_engine_whose_producer_broke_goes_on_with_a_new_one() -> None:
    with system() as t:
        session: Any = t._engine and t._engine.session
        session._producer._break(ProducerBroken("a send failed"), [])
        # The next send finds out: all partitions share the producer, so taking one of them over anew would not help.
        started = t.start("one", workflow_id="w1")

        assert t.wait(started).status == "completed"
        assert t._engine is not None and t._engine.session is not session


def test_each_take_over_claims_under_a_name_of_its_own() -> None:
    """Else a claim from before that the log still holds would pass for the new one, in the middle of the catching up."""

    async def start_over(t: SagaTest) -> None:
        session: Any = t._engine and t._engine.session
        for processor in processors(t):
            session._start_over(processor)

    with system() as t:
        for _ in range(3):
            t.do(start_over(t))
            t.settle()
            assert t.run("one").status == "completed"
        claims = [
            (claim["member"], claim["epoch"])
            for record in t._kafka.records("test.events", 0)
            if record.key == OWNER_KEY.encode()
            for claim in [orjson.loads(record.value or b"")]
        ]

    # One take-over may claim again, under its name and a later epoch, when it reads an older claim of its own.
    assert len(set(claims)) == len(claims)
    names = {member for member, _ in claims}
    assert len(names) == 4, "the first start and each of the three after it"
    assert len({claim.split("/")[0] for claim in names}) == 1, "all of one engine"
