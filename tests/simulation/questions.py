"""What a log says about questions whether an attempt happened: read record by record, beside the fold.

Rule: it goes by the events and by the commands that follow, not by the statuses that the engine gives to its steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sagalog.engine.kernel.effects import Dispatch, Effect, Finished, Ignored, Moved
from sagalog.schemas.commands import Question
from sagalog.schemas.definitions import Definition
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import ASKED_ABOUT, AttemptLost, Event, Outcome, StepCompleted, StepFailed, parse_event
from sagalog.schemas.ids import Direction, split_item
from sagalog.topics.log import Message, header

Leaf = tuple[str, str]
"""A workflow, and a step or an item of it."""


@dataclass(slots=True)
class Questions:
    """One partition, read up to some record."""

    problems: list[str] = field(default_factory=list)
    asking: set[Leaf] = field(default_factory=set)
    """Steps whose agents are asked, by their definitions."""
    unknown: dict[Leaf, int] = field(default_factory=dict)
    """The attempt whose outcome nobody knows, as long as nobody was asked."""
    happened: dict[Leaf, int] = field(default_factory=dict)
    """The question that was answered so."""

    def note(self, message: Message, effects: list[Effect], definitions: Mapping[str, Definition]) -> None:
        """One record, and what followed from it."""
        if not any(isinstance(effect, Ignored) for effect in effects):
            try:
                event = parse_event(header(message.headers, "ce_type"), message.value)
            except InvalidRecord:
                return
            self._event((message.key or b"").decode(errors="replace"), event)
        for effect in effects:
            if isinstance(effect, Dispatch):
                self._dispatch(effect, definitions)
            elif isinstance(effect, Finished):
                self._end(effect.result["workflow_id"])
                self.asking = {leaf for leaf in self.asking if leaf[0] != effect.result["workflow_id"]}
            elif isinstance(effect, Moved) and effect.step is None and effect.trigger == "rewound":
                self._end(effect.workflow_id)

    def _end(self, workflow_id: str) -> None:
        """What is said of a later run under the id, or after a rewinding, is about other attempts."""
        for known in (self.unknown, self.happened):
            for leaf in [leaf for leaf in known if leaf[0] == workflow_id]:
                del known[leaf]

    def _event(self, workflow_id: str, event: Event) -> None:
        if not isinstance(event, StepCompleted | StepFailed | AttemptLost):
            return
        leaf = workflow_id, event.step
        if event.direction is Direction.EXECUTE:
            lost = not isinstance(event, StepCompleted) and event.kind in ASKED_ABOUT
            if lost and leaf in self.asking:
                self.unknown[leaf] = event.attempt
            else:
                self.unknown.pop(leaf, None)
        elif isinstance(event, StepCompleted) and event.outcome is Outcome.HAPPENED:
            self.happened[leaf] = event.attempt

    def _dispatch(self, effect: Dispatch, definitions: Mapping[str, Definition]) -> None:
        command = effect.command
        leaf = command.workflow_id, command.step
        if isinstance(command, Question):
            if leaf not in self.asking:
                self.problems.append(f"{command.command_id}: its step asks nothing")
            self.unknown.pop(leaf, None)
            return
        definition = definitions.get(command.definition)
        if definition is not None and command.direction is Direction.EXECUTE:
            spec = next(step for step in definition.steps if step.name == split_item(command.step)[0])
            if spec.reconcile is not None:
                self.asking.add(leaf)
        if leaf in self.unknown:
            self.problems.append(f"{command.command_id}: nobody asked whether attempt {self.unknown[leaf]} happened")
        if leaf in self.happened and command.direction is Direction.EXECUTE:
            self.problems.append(f"{command.command_id}: question {self.happened[leaf]} said that it happened already")
