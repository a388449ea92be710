"""Definitions as pictures."""

from __future__ import annotations

from sagalog.schemas.definitions import Compensation, Definition, Fallback, Map, Sleep, Step, Task, WaitFor, from_input
from sagalog.schemas.mermaid import mermaid
from sagalog.schemas.statuses import StepStatus

DEFINITION = Definition(
    name="order",
    steps=(
        Step(name="reserve", agent="stock", compensate=Compensation(agent="refunds"), fallback=Fallback(agent="other")),
        Step(name="payment", needs=("reserve",), wait_for=WaitFor(signal="paid", timeout_ms=1_000)),
        Step(name="nap", needs=("payment",), sleep=Sleep(ms=50), critical=False),
        Step(
            name="ask", needs=("nap",), when='input.a > 1 || input.b == "x"', task=Task(title="Ship #1?", timeout_ms=50)
        ),
        Step(name="end", agent="mail", needs=("ask", "payment"), map=Map(over=from_input("to"))),
    ),
)


def test_a_definition_is_drawn() -> None:
    assert mermaid(DEFINITION).splitlines() == [
        "flowchart TD",
        '    s0["reserve<br/>stock, else other"]',
        '    s1{{"payment<br/>signal paid"}}',
        '    s2{{"nap<br/>sleep<br/>optional"}}',
        '    s3[/"ask<br/>Ship #35;1?"/]',
        '    s4["end<br/>mail for each"]',
        "    s0 --> s1",
        "    s1 --> s2",
        "    s2 -->|input.a #gt; 1 #124;#124; input.b == #quot;x#quot;| s3",
        "    s3 --> s4",
        "    s1 --> s4",
        '    s0 -.->|undo| s0u(["refunds"])',
    ]


def test_a_workflow_is_drawn_with_its_statuses() -> None:
    drawn = mermaid(DEFINITION, {"reserve": "done", "payment": "awaiting", "end[0]": "running"}).splitlines()

    assert drawn[-4:] == [
        "    classDef awaiting fill:#d0bfff,color:#212529",
        "    classDef done fill:#b2f2bb,color:#212529",
        "    class s0 done",
        "    class s1 awaiting",
    ]


def test_every_status_has_a_colour() -> None:
    for status in StepStatus:
        assert f"classDef {status} " in mermaid(DEFINITION, {"reserve": status})
