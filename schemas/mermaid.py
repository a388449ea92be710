"""A definition as a Mermaid flowchart; with the statuses of a workflow's steps, a coloured one.

Rule: whatever a definition says stands in quotes, with Mermaid's own marks as entities, so that no text can become a command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from .definitions import Definition, Step, fallbacks_of
from .ids import split_item
from .statuses import StepStatus, UndoStatus

_COLOURS: Final = {
    StepStatus.WAITING: "#eeeeee",
    StepStatus.RUNNING: "#9ecbff",
    StepStatus.BACKING_OFF: "#ffd8a8",
    StepStatus.RECONCILING: "#a5d8ff",
    StepStatus.AWAITING: "#d0bfff",
    StepStatus.HELD: "#ffa8a8",
    StepStatus.DONE: "#b2f2bb",
    StepStatus.SKIPPED: "#f8f9fa",
    StepStatus.DEGRADED: "#ffec99",
    StepStatus.FAILED: "#ff8787",
    StepStatus.CANCELLED: "#ced4da",
}
_UNDO_COLOURS: Final = {
    UndoStatus.PENDING: "#eeeeee",
    UndoStatus.RUNNING: "#9ecbff",
    UndoStatus.BACKING_OFF: "#ffd8a8",
    UndoStatus.HELD: "#ffa8a8",
    UndoStatus.DONE: "#b2f2bb",
    UndoStatus.SKIPPED: "#f8f9fa",
    UndoStatus.FAILED: "#ff8787",
}
_WORST_FIRST: Final = (
    UndoStatus.FAILED,
    UndoStatus.HELD,
    UndoStatus.BACKING_OFF,
    UndoStatus.RUNNING,
    UndoStatus.PENDING,
    UndoStatus.SKIPPED,
    UndoStatus.DONE,
)
"""Of the items of one step: the one whose colour the undoing of all has."""


def mermaid(
    definition: Definition, statuses: Mapping[str, str] | None = None, undoing: Mapping[str, str] | None = None
) -> str:
    """`statuses`, `undoing`: a step's or an item's name to its status, as rows and checkpoints have it.

    Steps that are not named there stay plain. Of items the counts are shown, and of their undoings the worst.
    """
    items, undone_items = _counts(statuses), _counts(undoing)
    ids = {step.name: f"s{place}" for place, step in enumerate(definition.steps)}
    lines = ["flowchart TD"]
    for step in definition.steps:
        lines.append(f"    {ids[step.name]}{_shape(step, items.get(step.name, ''))}")
    for step in definition.steps:
        arrow = f'-->|"{_text(step.when)}"|' if step.when is not None else "-->"
        lines += [f"    {ids[need]} {arrow} {ids[step.name]}" for need in step.needs]
    for step in definition.steps:
        if step.compensate is not None:
            undoer = step.compensate.agent or step.agent
            label = _text(undoer or "") + undone_items.get(step.name, "")
            lines.append(f'    {ids[step.name]} -.->|undo| {ids[step.name]}u(["{label}"])')
    if statuses:
        used = {StepStatus(status) for name, status in statuses.items() if name in ids}
        lines += [
            f"    classDef {status} fill:{_COLOURS[status]},color:#212529" for status in StepStatus if status in used
        ]
        lines += [f"    class {ids[name]} {status}" for name, status in statuses.items() if name in ids]
    if undoing:
        drawn = {step.name for step in definition.steps if step.compensate is not None}
        worst = {name: status for name, status in _worst(undoing).items() if name in drawn}
        used_undo = set(worst.values())
        lines += [
            f"    classDef undo_{status} fill:{_UNDO_COLOURS[status]},color:#212529,stroke-dasharray:4"
            for status in UndoStatus
            if status in used_undo
        ]
        lines += [f"    class {ids[name]}u undo_{status}" for name, status in worst.items()]
    return "\n".join(lines) + "\n"


def _counts(statuses: Mapping[str, str] | None) -> dict[str, str]:
    """What a step's label says of its items: how many are in which status."""
    counted: dict[str, Counter[str]] = {}
    for name, status in (statuses or {}).items():
        step, item = split_item(name)
        if item >= 0:
            counted.setdefault(step, Counter())[status] += 1
    return {
        step: "<br/>" + _text(", ".join(f"{count} {status}" for status, count in sorted(found.items())))
        for step, found in counted.items()
    }


def _worst(undoing: Mapping[str, str]) -> dict[str, UndoStatus]:
    """The status of each step's undoing that has begun or is due; of one that maps, its items' worst."""
    found: dict[str, set[UndoStatus]] = {}
    for name, status in undoing.items():
        if status != UndoStatus.NOT_NEEDED:
            found.setdefault(split_item(name)[0], set()).add(UndoStatus(status))
    return {step: min(statuses, key=_WORST_FIRST.index) for step, statuses in found.items()}


def _shape(step: Step, items: str = "") -> str:
    name = _text(step.name)
    optional = "" if step.critical else "<br/>optional"
    if step.sleep is not None:
        return f'{{{{"{name}<br/>sleep{optional}"}}}}'
    if step.wait_for is not None:
        return f'{{{{"{name}<br/>signal {_text(step.wait_for.signal)}{optional}"}}}}'
    if step.task is not None:
        return f'[/"{name}<br/>{_text(step.task.title)}{optional}"/]'
    if step.workflow is not None:
        return f'[["{name}<br/>workflow {_text(step.workflow.definition)}{optional}"]]'
    agents = [step.agent or "", *(fallback.agent or "a constant" for fallback in fallbacks_of(step))]
    each = " for each" if step.map is not None else ""
    return f'["{name}<br/>{_text(", else ".join(agents))}{each}{optional}{items}"]'


def _text(text: str) -> str:
    """Text that Mermaid takes as it is: its own marks as entities."""
    marks = {'"': "#quot;", "<": "#lt;", ">": "#gt;", "|": "#124;", "#": "#35;", ";": "#59;", "&": "#38;", "`": "#96;"}
    return "".join(marks.get(character, character) if character.isprintable() else " " for character in text)
