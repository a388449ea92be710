"""A definition as a Mermaid flowchart; with the statuses of a workflow's steps, a coloured one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .definitions import Definition, Step, fallbacks_of
from .statuses import StepStatus

_COLOURS: Final = {
    StepStatus.WAITING: "#eeeeee",
    StepStatus.RUNNING: "#9ecbff",
    StepStatus.BACKING_OFF: "#ffd8a8",
    StepStatus.AWAITING: "#d0bfff",
    StepStatus.HELD: "#ffa8a8",
    StepStatus.DONE: "#b2f2bb",
    StepStatus.SKIPPED: "#f8f9fa",
    StepStatus.DEGRADED: "#ffec99",
    StepStatus.FAILED: "#ff8787",
    StepStatus.CANCELLED: "#ced4da",
}


def mermaid(definition: Definition, statuses: Mapping[str, str] | None = None) -> str:
    """`statuses`: step name to status, as rows and checkpoints have it; steps that are not named there stay plain."""
    ids = {step.name: f"s{place}" for place, step in enumerate(definition.steps)}
    lines = ["flowchart TD"]
    for step in definition.steps:
        lines.append(f"    {ids[step.name]}{_shape(step)}")
    for step in definition.steps:
        arrow = f"-->|{_text(step.when)}|" if step.when is not None else "-->"
        lines += [f"    {ids[need]} {arrow} {ids[step.name]}" for need in step.needs]
    for step in definition.steps:
        if step.compensate is not None:
            undoer = step.compensate.agent or step.agent
            lines.append(f'    {ids[step.name]} -.->|undo| {ids[step.name]}u(["{_text(undoer or "")}"])')
    if statuses:
        used = {StepStatus(status) for name, status in statuses.items() if name in ids}
        lines += [
            f"    classDef {status} fill:{_COLOURS[status]},color:#212529" for status in StepStatus if status in used
        ]
        lines += [f"    class {ids[name]} {status}" for name, status in statuses.items() if name in ids]
    return "\n".join(lines) + "\n"


def _shape(step: Step) -> str:
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
    return f'["{name}<br/>{_text(", else ".join(agents))}{each}{optional}"]'


def _text(text: str) -> str:
    """Text that Mermaid takes as it is: its own marks as entities."""
    marks = {'"': "#quot;", "<": "#lt;", ">": "#gt;", "|": "#124;", "\n": " ", "#": "#35;", ";": "#59;"}
    return "".join(marks.get(character, character) for character in text)
