"""Definitions as pictures."""

from __future__ import annotations

from sagalog.schemas.definitions import Compensation, Definition, Fallback, Map, Sleep, Step, Task, WaitFor, from_input
from sagalog.schemas.mermaid import mermaid
from sagalog.schemas.statuses import StepStatus, UndoStatus

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
        '    s2 -->|"input.a #gt; 1 #124;#124; input.b == #quot;x#quot;"| s3',
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


def test_items_are_counted() -> None:
    running = {"end": "running", "end[0]": "done", "end[1]": "running", "end[2]": "done", "end[x]": "done"}
    drawn = mermaid(DEFINITION, running).splitlines()

    assert drawn[5] == '    s4["end<br/>mail for each<br/>2 done, 1 running"]'
    assert drawn[-2:] == ["    classDef running fill:#9ecbff,color:#212529", "    class s4 running"]


def test_an_undoing_is_drawn_where_it_would_be_done() -> None:
    ended = mermaid(DEFINITION, {"reserve": "done"}, {"reserve": "done", "payment": "not_needed", "gone": "done"})

    assert ended.splitlines()[-4:] == [
        "    classDef done fill:#b2f2bb,color:#212529",
        "    class s0 done",
        "    classDef undo_done fill:#b2f2bb,color:#212529,stroke-dasharray:4",
        "    class s0u undo_done",
    ]
    assert "undo_" not in mermaid(DEFINITION, {}, {"reserve": "not_needed"})


def test_the_worst_of_the_items_colours_their_undoing() -> None:
    mapped = Definition(
        name="m", steps=(Step(name="a", agent="b", map=Map(over=from_input("x")), compensate=Compensation()),)
    )
    drawn = mermaid(mapped, {}, {"a[0]": "done", "a[1]": "failed", "a[2]": "running"}).splitlines()

    assert drawn[2] == '    s0 -.->|undo| s0u(["b<br/>1 done, 1 failed, 1 running"])'
    assert drawn[-1] == "    class s0u undo_failed"


HOSTILE = 'a"]; click s0 "javascript:x" %%{init}%%\n    s0 --> s9\u2028`b` & <script>|'


def test_no_text_becomes_a_command() -> None:
    drawn = mermaid(
        Definition(
            name="m",
            steps=(
                Step(name="a", task=Task(title=HOSTILE, timeout_ms=10)),
                Step(name="b", agent="b", needs=("a",), when=f"input.x == {HOSTILE!r}"),
            ),
        ),
        {"a": "done"},
    ).splitlines()

    assert [line.split('"')[0] for line in drawn] == [
        "flowchart TD",
        "    s0[/",
        "    s1[",
        "    s0 -->|",
        "    classDef done fill:#b2f2bb,color:#212529",
        "    class s0 done",
    ]
    assert [line.count('"') for line in drawn] == [0, 2, 2, 2, 0, 0]
    assert not any(mark in line.split('"')[1] for line in drawn[1:4] for mark in "`|&\u2028")
    assert "<script" not in "".join(drawn)


def test_every_status_has_a_colour() -> None:
    for undo in UndoStatus:
        assert (f"classDef undo_{undo} " in mermaid(DEFINITION, {}, {"reserve": undo})) == (undo != "not_needed")
    for status in StepStatus:
        assert f"classDef {status} " in mermaid(DEFINITION, {"reserve": status})
