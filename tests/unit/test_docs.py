"""The docs say what the code does, where the code can be asked: states, fields, reasons, commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from sagalog.agents import Agent
from sagalog.agents.saga import MapOf, Saga, StepOf
from sagalog.engine.cli import app
from sagalog.engine.kernel.circuits import CIRCUIT_MOVES
from sagalog.engine.kernel.effects import Reason
from sagalog.engine.kernel.state import WORKFLOW_MOVES
from sagalog.engine.testing import Ended, SagaTest
from sagalog.schemas import definitions
from sagalog.schemas.events import Decision, FailureKind
from sagalog.schemas.statuses import TERMINAL, StepStatus, UndoStatus, WorkflowStatus

DOCS = Path(__file__).resolve().parents[2] / "docs"


def read(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def typed_example() -> str:
    """The code of the section about the typed builder."""
    (source,) = re.findall(
        r"^## The typed builder\n.*?^```python\n(.*?)^```", read("definitions"), re.MULTILINE | re.DOTALL
    )
    return str(source)


def test_the_diagrams_of_states_are_the_tables() -> None:
    workflows, circuits = (
        set(re.findall(r"^    (\S+) --> (\S+?)(?:: (\w+))?$", diagram, re.MULTILINE))
        for diagram in re.findall(
            r"^```mermaid\nstateDiagram-v2\n(.*?)```", read("how-it-works"), re.MULTILINE | re.DOTALL
        )
    )

    rows = {(str(before or "[*]"), str(after), str(trigger)) for (before, trigger), after in WORKFLOW_MOVES.items()}
    assert workflows == rows | {(str(status), "[*]", "") for status in TERMINAL}
    moves = {(str(before), str(after), str(trigger)) for (before, trigger), after in CIRCUIT_MOVES.items()}
    assert circuits == moves | {("[*]", "closed", "")}


@pytest.mark.parametrize("statuses", [WorkflowStatus, StepStatus, UndoStatus])
def test_every_status_is_explained(statuses: type[WorkflowStatus | StepStatus | UndoStatus]) -> None:
    text = read("how-it-works") + read("definitions")

    assert [status for status in statuses if f"`{status}`" not in text and f" {status}:" not in text] == []


@pytest.mark.parametrize(
    "model",
    [
        definitions.Definition,
        definitions.Step,
        definitions.Retry,
        definitions.Compensation,
        definitions.Reconcile,
        definitions.Fallback,
        definitions.Budget,
        definitions.Usage,
        definitions.CircuitPolicy,
        definitions.Limit,
        definitions.Rate,
    ],
)
def test_every_field_of_a_definition_is_in_the_docs(model: type[BaseModel]) -> None:
    text = read("definitions")

    assert [name for name in model.model_fields if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("prefix", "model"),
    [
        ("sleep", definitions.Sleep),
        ("wait_for", definitions.WaitFor),
        ("task", definitions.Task),
        ("map", definitions.Map),
        ("repeat", definitions.Repeat),
    ],
)
def test_every_field_of_a_part_of_a_step_is_in_the_docs(prefix: str, model: type[BaseModel]) -> None:
    text = read("definitions")

    assert [name for name in model.model_fields if f"`{prefix}.{name}`" not in text] == []


def test_every_failure_decision_and_reason_is_in_the_docs() -> None:
    failures = [kind for kind in FailureKind if f"`{kind}`" not in read("definitions")]
    decisions = [decision for decision in Decision if f"`{decision}`" not in read("definitions")]
    reasons = [reason for reason in Reason if f"`{reason}`" not in read("operations")]

    assert (failures, decisions, reasons) == ([], [], [])


def test_every_command_is_named_somewhere_in_the_docs() -> None:
    text = "".join(file.read_text() for file in (*DOCS.glob("*.md"), DOCS.parent / "README.md"))
    names = [command.name or "" for command in app.registered_commands] + [
        group.name or "" for group in app.registered_groups
    ]

    assert [name for name in names if f"sagalog {name}" not in text and f"`{name}`" not in text] == []


def test_every_link_leads_somewhere() -> None:
    broken = []
    for file in (*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", file.read_text()):
            path, anchor = target
            if path.startswith("http"):
                continue
            found = (file.parent / path) if path else file
            if not found.exists() or (anchor and found.suffix == ".md" and anchor not in _anchors(found.read_text())):
                broken.append(f"{file.name}: {path}#{anchor}")

    assert broken == []


def test_the_example_of_the_test_kit_passes_its_own_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```", read("testing"), re.MULTILINE | re.DOTALL)
    example = ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", example)
    exec(compile(source, "docs/testing.md", "exec", dont_inherit=True), vars(example))

    tests = [function for name, function in vars(example).items() if name.startswith("test_")]
    for test in tests:
        test()
    assert len(tests) == 2


def test_the_example_of_the_typed_builder_is_a_saga_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    example = ModuleType("typed_example")
    monkeypatch.setitem(sys.modules, "typed_example", example)
    exec(compile(typed_example(), "docs/definitions.md", "exec", dont_inherit=True), vars(example))
    order = {"customer": "Ada", "amount": 5, "lines": [{"sku": "tea", "count": 1}]}

    agents = [value for value in vars(example).values() if isinstance(value, Agent)]
    with SagaTest([example.definition], agents) as t:
        assert t.run("typed-order", order).output == {"payment": 17, "label": "for Ada"}


def test_the_example_of_limits_is_a_saga_that_runs() -> None:
    (source,) = [
        found for found in re.findall(r"^```python\n(.*?)^```", read("definitions"), re.M | re.S) if "Limit(" in found
    ]
    example: dict[str, object] = {}
    exec(compile(source, "docs/definitions.md", "exec", dont_inherit=True), example)
    scans = example["scans"]
    assert isinstance(scans, definitions.Definition)
    t = SagaTest([scans])
    t.stub("scanner", lambda value: "text")
    t.stub("archive", lambda value: "filed")
    with t:
        assert t.run("scans", {}, tenant="acme").output == {"file": "filed"}


def test_everything_that_the_builder_offers_is_in_the_docs() -> None:
    text = read("definitions")
    offered = [
        *(f"saga.{name}" for name in vars(Saga) if not name.startswith("_")),
        *(f"step.{name}" for kind in (StepOf, MapOf) for name in vars(kind) if not name.startswith("_")),
    ]

    assert [name for name in offered if f"`{name}" not in text] == []


def test_everything_that_the_test_kit_offers_is_in_the_docs() -> None:
    text = read("testing")
    offered = [
        *(f"t.{name}" for name in vars(SagaTest) if not name.startswith("_")),
        *(f".{name}" for name in vars(Ended) if not name.startswith("_") and name != "record"),
    ]

    assert [name for name in offered if name not in text] == []


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_feature_names_tests_and_golden_logs_that_exist() -> None:
    tests, text = DOCS.parent / "tests", read("features")
    missing = []
    for name in re.findall(r"`((?:unit|integration|conformance|simulation|chaos)/[^`\s]*)`", text):
        file, _, test = name.partition("::")
        path = tests / file
        if not path.exists() or (test and f"def {test}" not in path.read_text()):
            missing.append(name)
    golden = {file.stem for file in (tests / "unit" / "kernel" / "golden").glob("*.jsonl")}
    named = set(re.findall(r"^\|.*\| `(\w+)` \|$", text, re.MULTILINE))

    assert (missing, golden - named, named - golden) == (
        ["unit/kernel/golden/NAME.jsonl"],
        set(),
        set(),
    )
