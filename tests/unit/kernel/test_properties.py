"""Any saga under any sequence of events: the properties that make a crash, a copy and a second engine harmless.

A story is a definition and a list of numbers. The numbers are read against the state as it is, so that most of them do
something: answers, failures, losses, timers, signals, decisions, pauses, cancels - and copies, stale answers, forged tokens,
old epochs, rubbish.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sagalog.engine.kernel import Partition, Record
from sagalog.engine.kernel.effects import (
    ClaimLost,
    Dispatch,
    Effect,
    Finished,
    Ignored,
    Migrated,
    Moved,
    Quarantine,
    StartAnswered,
)
from sagalog.engine.kernel.migration import problems
from sagalog.engine.kernel.state import STEP_MOVES, UNDO_MOVES, WORKFLOW_MOVES
from sagalog.schemas.codec import encode
from sagalog.schemas.commands import Command, Question
from sagalog.schemas.definitions import Definition, Step, Task, UndoOrder, fallbacks_of
from sagalog.schemas.events import (
    Action,
    ActionRequested,
    CancelRequested,
    Decision,
    FailureKind,
    Forked,
    OnDuplicate,
    Outcome,
    Owned,
    StepCompleted,
    StepFailed,
    Timer,
    WorkflowStarted,
)
from sagalog.schemas.ids import Direction, split_item
from sagalog.schemas.records import ResultRecord, StepRecord
from sagalog.schemas.statuses import StepStatus, UndoStatus, WorkflowStatus

from .driver import SEED, WORKFLOW, Driver, saga, waiting
from .driver import step as a_step

SERVICE = "bank"
KINDS = [
    FailureKind.RETRYABLE,
    FailureKind.RETRYABLE,
    FailureKind.TIMEOUT,
    FailureKind.TERMINAL,
    FailureKind.INVALID_INPUT,
    FailureKind.REVIEW_NEEDED,
    FailureKind.REFUSAL,
    FailureKind.UNKNOWN,
]
AWAITED: list[dict[str, Any]] = [
    {"sleep": {"ms": 500}},
    {"wait_for": {"signal": "go", "timeout_ms": 2_000}},
    {"wait_for": {"signal": "go", "timeout_ms": 2_000, "payload_schema": {"type": "object"}}},
    {"task": {"title": "look", "timeout_ms": 1_500, "escalate_to": "boss"}},
    {"task": {"title": "fill in", "timeout_ms": 1_500, "form": {"type": "object"}}},
]
CHAINS: list[tuple[dict[str, Any], ...]] = [
    ({"agent": "other", "on": ["refusal", "over_budget"]}, {"agent": "third", "reserve": {"tokens": 1}}),
    ({"agent": "other"}, {"value": "stand-in", "on": ["error", "circuit_open"]}),
]
REPEATS: list[dict[str, Any]] = [
    {"until": "input.x == 0", "rounds_max": 3},
    {"until": "steps.NAME == 'text'", "rounds_max": 3, "delay_ms": 300},
    {"until": "steps.NAME.x == 1", "rounds_max": 2},
]
MAPS: list[dict[str, Any]] = [
    {"over": {"value": [1, 2, 3]}, "concurrency": 2},
    {"over": {"value": [1, 2, 3, 4]}, "concurrency": 3, "tolerate": 1},
    {"over": {"value": []}},
    {"over": {"value": "no list"}},
]
OUTPUTS: list[Any] = [{"x": 1}, {}, None, "text", [1, {"x": 2}]]


# --- stories


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    """A small DAG with policies of every kind."""
    names = [f"s{n}" for n in range(draw(st.integers(1, 6)))]
    steps = []
    for place, name in enumerate(names):
        needs = draw(st.lists(st.sampled_from(names[:place]), unique=True, max_size=3)) if place else []
        critical = draw(st.booleans())
        service = draw(st.sampled_from([None, SERVICE]))
        fallback = draw(st.sampled_from([None, {"value": "stand-in"}, {"agent": "other"}]))
        when_open = draw(st.sampled_from(["park", "fail", "fall_back"])) if service else "park"
        if when_open == "fall_back" and fallback is None:
            when_open = "fail"
        retry = {"attempts": draw(st.integers(1, 3)), "base_ms": 100, "cap_ms": 1_000}
        if draw(st.integers(0, 4)) == 0:
            retry["total_ms"] = 700
        chain = draw(st.sampled_from([(), (), *CHAINS])) if fallback is None else ()
        if chain and service and draw(st.booleans()):
            when_open = "fall_back"
        when_failed = draw(st.sampled_from(["stop", "stop", "review"])) if critical else "stop"
        when = draw(st.sampled_from([None, None, "input.x == 0", "input.x == 1", "input.nope"]))
        if needs and draw(st.booleans()):
            when = f"has(steps.{needs[0]}.x)"
        awaited = draw(st.sampled_from([None, None, None, *AWAITED]))
        if awaited is not None:
            undo = {"retry": retry, "agent": "undoer"}
            steps.append(
                waiting(
                    name,
                    *needs,
                    **awaited,
                    when=when,
                    critical=critical,
                    when_failed=when_failed,
                    compensate=draw(st.sampled_from([None, undo])),
                )
            )
            continue
        mapped = draw(st.sampled_from([None, None, None, *MAPS]))
        undo_review = draw(st.sampled_from(["stop", "stop", "review"]))
        steps.append(
            a_step(
                name,
                *needs,
                **({} if mapped is None else {"map": mapped}),
                **repeated(draw(st.sampled_from([None, None, None, *REPEATS])) if mapped is None else None, name),
                pivot=draw(st.integers(0, 9)) == 0,
                input={"fields": {need: {"step": need, "path": "x"} for need in needs}},
                retry=retry,
                critical=critical,
                default=None if critical else draw(st.sampled_from([None, {"x": 0}])),
                when=when,
                when_failed=when_failed,
                compensate=draw(
                    st.sampled_from(
                        [
                            None,
                            {"retry": retry, "when_failed": undo_review},
                            {"retry": retry, "agent": "undoer", "when_failed": undo_review},
                        ]
                    )
                ),
                reconcile=draw(st.sampled_from([None, {}, {"retry": {"attempts": 2, "base_ms": 100}}])),
                service=service,
                when_open=when_open,
                fallback=fallback,
                fallbacks=chain,
                budget=draw(st.sampled_from([None, None, {"attempts": 2}, {"tokens": 25}, {"ms": 300}])),
                reserve=draw(st.sampled_from([{}, {"tokens": 10}])),
                output_schema=draw(st.sampled_from([None, None, {"type": "object"}])),
            )
        )
    return saga(
        *draw(st.permutations(steps)),
        deadline_ms=draw(st.sampled_from([None, None, 3_000])),
        budget=draw(st.sampled_from([None, None, {"attempts": 5}, {"tokens": 60}])),
        required=draw(st.sampled_from([(), (), (), tuple(names[:1])])),
        undo_order=draw(st.sampled_from(["reverse", "reverse", "by_needs"])),
    )


def repeated(repeat: dict[str, Any] | None, name: str) -> dict[str, Any]:
    return {} if repeat is None else {"repeat": {**repeat, "until": repeat["until"].replace("NAME", name)}}


MOVES = st.lists(st.tuples(st.integers(0, 151), st.integers(0, 99)), min_size=10, max_size=60)


@dataclass
class Story:
    """What happened: a log to fold again, with what its first folding gave."""

    driver: Driver
    effects: list[list[Effect]] = field(default_factory=list)
    """Per record."""

    @property
    def log(self) -> list[Record]:
        return self.driver.log

    def all_effects(self) -> list[Effect]:
        return [effect for effects in self.effects for effect in effects]


class _Watched(Driver):
    """A driver that keeps the effects of every record, and holds the clock to its rule after each."""

    def __init__(self, definition: Definition) -> None:
        self.per_record: list[list[Effect]] = []
        self.newest_ms = 0
        super().__init__(definition)

    def apply(self, record: Record) -> list[Effect]:
        effects = super().apply(record)
        self.per_record.append(effects)
        state = self.partition.get(WORKFLOW)
        if state is not None:
            assert state.now_ms >= self.newest_ms
            self.newest_ms = state.now_ms
        return effects


def out(driver: Driver) -> list[tuple[str, int, bool]]:
    """The attempts that are out: (step, attempt, whether it undoes)."""
    return [(step, attempt, direction is Direction.COMPENSATE) for step, attempt, direction in all_out(driver)
            if direction is not Direction.RECONCILE]  # fmt: skip


def questions(driver: Driver) -> list[tuple[str, int]]:
    """The questions that are out: (step, number)."""
    return [(step, number) for step, number, direction in all_out(driver) if direction is Direction.RECONCILE]


def all_out(driver: Driver) -> list[tuple[str, int, Direction]]:
    """The commands that are out: (step, attempt, direction)."""
    state = driver.state
    plan = driver.partition.plan_of(state)
    if plan is None or state.status not in (
        WorkflowStatus.RUNNING,
        WorkflowStatus.REWINDING,
        WorkflowStatus.COMPENSATING,
    ):
        return []
    found = []
    for step in state.leaves():
        name = plan.steps[step.index].name_of(step)
        if step.status is StepStatus.RUNNING:
            found.append((name, step.attempt, Direction.EXECUTE))
        elif step.question is not None and step.question.out:
            found.append((name, step.questions, Direction.RECONCILE))
        elif step.undo is not None and step.undo.status is UndoStatus.RUNNING:
            found.append((name, step.undo.attempt, Direction.COMPENSATE))
    return found


def happen(driver: Driver, what: int, number: int) -> None:
    """One event, chosen by numbers against the state as it is."""
    attempts = out(driver)
    step, attempt, undo = attempts[number % len(attempts)] if attempts else ("s0", 1 + number % 3, number % 2 == 0)
    direction = Direction.COMPENSATE if undo else Direction.EXECUTE
    epoch = driver.partition.epoch
    driver.now_ms += number
    asked = questions(driver)
    if what >= 144:
        driver.rewind(f"s{number % 6}", undo=number % 4 != 0)
    elif what >= 140:
        renew(driver, what - 140, number)
    elif asked and what < 58 and number % 4:
        answer(driver, *asked[number % len(asked)], what, number)
    elif what >= 100:
        intervene(driver, what - 100, number)
    elif what < 30:
        driver.done(step, OUTPUTS[number % len(OUTPUTS)], attempt=attempt, undo=undo, tokens=number % 40)
    elif what < 48:
        kind = KINDS[number % len(KINDS)]
        driver.fail(step, kind, attempt=attempt, undo=undo, retry_after_ms=number * 7 if number % 3 == 0 else None)
    elif what < 54:
        driver.lose(step, attempt, undo=undo, epoch=epoch)
    elif what < 58:
        driver.refuse(step, SERVICE, attempt, epoch=epoch)
    elif what < 74:
        driver.wait(number * 20)
    elif what < 77:
        driver.append(CancelRequested("wanted", "tester"), ce_id=f"cancel-{len(driver.log)}")
    elif what < 82:
        record = driver.log[number % len(driver.log)]
        driver.append_raw(record.key, record.value, record.ce_type, record.ce_id)
    elif what < 85:
        driver.done(step, attempt=attempt + 1, undo=undo)
    elif what < 88:
        driver.append(StepCompleted(step, attempt, direction, "forged" if number % 2 else "", "x"))
    elif what < 91:
        driver.lose(step, attempt, undo=undo, epoch=epoch - 1)
    elif what < 93:
        driver.fire(list(Timer)[number % len(Timer)], step, attempt, epoch=epoch - 1)
    elif what < 95:
        driver.append_raw(WORKFLOW.encode(), b"{", b"sagalog.step-completed.v1")
    elif what < 97:
        driver.now_ms -= 2_000  # the broker's clock steps back with a new leader
    elif what < 98:
        driver.append(Owned(epoch + 1, f"member-{number}"), key=b"@owner")
    elif what < 99:
        driver.append(StepFailed("no-such-step", 1, direction, "t", FailureKind.TERMINAL, "no"))
    else:
        driver.start("saga", "again")


def answer(driver: Driver, step: str, question: int, what: int, number: int) -> None:
    """The agent that is asked says what became of an attempt, or does not; or the attempt's own answer comes after all."""
    if what < 30:
        outcome = [Outcome.HAPPENED, Outcome.DID_NOT_HAPPEN, Outcome.DID_NOT_HAPPEN, None][number % 3 + (number > 95)]
        driver.say(step, outcome, OUTPUTS[number % len(OUTPUTS)], question=question)
    elif what < 42:
        driver.say_nothing(step, KINDS[number % len(KINDS)], question=question, retry_after_ms=number)
    elif what < 48:
        driver.lose_question(step, question, epoch=driver.partition.epoch)
    else:
        found = driver.partition.plans[driver.state.definition].find(driver.state, step)
        assert found is not None
        if number % 2:
            driver.done(step, OUTPUTS[number % len(OUTPUTS)], attempt=found.attempt, tokens=number % 40)
        else:
            driver.fail(step, KINDS[number % len(KINDS)], attempt=found.attempt)


def intervene(driver: Driver, what: int, number: int) -> None:
    """What somebody outside does."""
    decided = undecided(driver)
    step, undo = decided[number % len(decided)] if decided else (f"s{number % 6}", number % 2 == 0)
    if what < 12:
        driver.signal("go" if number % 8 else "stop", OUTPUTS[number % len(OUTPUTS)], ce_id=f"signal-{number}")
    elif what < 30:
        driver.decide(step, list(Decision)[number % len(Decision)], OUTPUTS[number % len(OUTPUTS)], undo=undo)
    elif what < 33:
        driver.act(Action.PAUSE)
    elif what < 37:
        driver.act(Action.RESUME)
    elif what < 39:
        driver.stop(epoch=driver.partition.epoch)
    elif number > 90:
        driver.act(Action.TERMINATE)


def renew(driver: Driver, what: int, number: int) -> None:
    """A start under the id that is in use, or a change of priority."""
    ce_id = f"start-{len(driver.log)}"
    if what == 0:
        driver.append(WorkflowStarted("saga", {"x": 1}, on_duplicate=OnDuplicate.REJECT), ce_id=ce_id)
    elif what < 3:
        urgent = number % 12 - 1  # one in six of them cannot run
        again = WorkflowStarted("saga", {"x": number % 2}, priority=urgent, on_duplicate=OnDuplicate.REPLACE)
        driver.append(again, ce_id=ce_id)
    else:
        driver.append(ActionRequested(Action.PRIORITIZE, "wanted", "tester", number % 12), ce_id=ce_id)


def undecided(driver: Driver) -> list[tuple[str, bool]]:
    """What waits for a person: (step, whether it is an undoing)."""
    state = driver.state
    plan = driver.partition.plan_of(state)
    if plan is None:
        return []
    found = []
    for step in [one for parent in state.steps for one in (parent, *parent.items)]:
        spec = plan.steps[step.index]
        if step.status is StepStatus.HELD or (step.status is StepStatus.AWAITING and isinstance(spec.awaits, Task)):
            found.append((spec.name, False))
        if step.undo is not None and step.undo.status is UndoStatus.HELD:
            found.append((spec.name_of(step), True))
    return found


def tell(definition: Definition, moves: list[tuple[int, int]]) -> Story:
    driver = _Watched(definition)
    # What was done to a run that may be replaced is remembered, if its own start replaces.
    replaced = any(what in (141, 142) for what, _ in moves)
    if replaced:
        driver.start("saga", {"x": 0}, on_duplicate=OnDuplicate.REPLACE)
    else:
        driver.start("saga", {"x": 0}, forked=kept(definition, moves[0][1]))
    for what, number in moves:
        happen(driver, what, number)
    return Story(driver, driver.per_record)


def kept(definition: Definition, number: int) -> Forked | None:
    """One story in five is that of a fork: it keeps some steps, closed under needs."""
    if number % 5:
        return None
    found = Forked("original", number)
    for _ in definition.steps:
        for step in definition.steps:
            if (
                len(found.steps) < 1 + number % 3
                and step.name not in found.steps
                and found.steps.keys() >= set(step.needs)
            ):
                found.steps[step.name] = [{"x": 1}] if step.map is not None else {"x": 1}
    found.skipped += list(found.steps)[: number % 2]
    return found


def settle(story: Story) -> None:
    """Faults stop: every command is answered, every timer fires, people decide."""
    driver = story.driver
    for _ in range(200):
        if driver.state.terminal:
            return
        if driver.state.paused is not None or driver.state.status is WorkflowStatus.QUARANTINED:
            driver.act(Action.RESUME)
        for step, undo in undecided(driver):
            driver.decide(step, Decision.FAIL, undo=undo)
            driver.decide(step, Decision.COMPLETE, {"x": 1}, undo=undo)  # past a pivot nothing is given up
            driver.decide(step, Decision.REJECT)
        for step, attempt, undo in out(driver):
            driver.done(step, {"x": 1}, attempt=attempt, undo=undo)
        for step, question in questions(driver):
            driver.say(step, Outcome.HAPPENED, {"x": 1}, question=question)
        if not driver.state.terminal:
            driver.wait(5_000)
    raise AssertionError(f"still {driver.state.status} although everything was answered")


def fold(log: list[Record], *, round_trip: bool = False) -> tuple[list[list[Effect]], list[dict[str, bytes]]]:
    """Effects and checkpoints after every record."""
    driver = Driver(round_trip=round_trip)
    driver.partition = Partition()
    effects, dumps = [], []
    for record in log:
        effects.append(driver.apply(record))
        dumps.append(driver.dumps())
    return effects, dumps


def story(test: Callable[[Definition, list[tuple[int, int]]], None]) -> Callable[[], None]:
    return given(definitions(), MOVES)(test)


# --- another definition of the same saga


@st.composite
def changed(draw: st.DrawFn, definition: Definition) -> Definition:
    """The definition with some steps left out, added, changed or put elsewhere: as somebody would change it while it runs."""
    other = {step.name: step for step in draw(definitions()).steps}
    names = {step.name for step in definition.steps}
    steps: list[dict[str, Any]] = []
    for step in definition.steps:
        what = draw(st.integers(0, 19))  # mostly as it was: what fits nowhere moves nothing
        if what == 0:
            continue
        if what == 1 and step.name in other:
            step = other[step.name]
        own = {name: getattr(step, name) for name in step.model_fields_set}
        if what == 2 and step.agent is not None:
            own["agent"] = draw(st.sampled_from(["other", "third", "new"]))
        elif what == 3 and step.compensate is not None:
            again = {"agent": None if step.agent else "undoer", "retry": {"attempts": 1}}
            own["compensate"] = draw(st.sampled_from([None, {"agent": "other"}, again]))
        elif what == 4 and step.agent is not None:
            own["output_schema"] = draw(st.sampled_from([None, {"type": "object"}]))
        elif what == 5 and step.map is not None:
            own["map"] = {**step.map.model_dump(), "concurrency": 1, "tolerate": draw(st.integers(0, 2))}
        elif what == 6 and step.wait_for is not None:
            own["wait_for"] = {"signal": "stop", "timeout_ms": 2_000}
        steps.append(own)
    for number in range(draw(st.integers(0, 2))):
        needs = draw(st.lists(st.sampled_from(sorted(names)), unique=True, max_size=2))
        steps.append({"name": f"new{number}", "agent": "new", "needs": needs, "compensate": {}})
        if steps and draw(st.booleans()):
            at = draw(st.integers(0, len(steps) - 1))
            steps[at]["needs"] = (*steps[at].get("needs", ()), f"new{number}")
    within = {
        "deadline_ms": draw(st.sampled_from([None, definition.deadline_ms, 6_000])),
        "budget": draw(st.sampled_from([definition.budget, None, {"attempts": 3}])),
    }
    return _closed(steps or [{"name": "only", "agent": "new"}], within)


def _closed(steps: list[dict[str, Any]], within: dict[str, Any]) -> Definition:
    """Without needs of, bindings to and conditions on what is not there, or not before: a definition that can be built."""
    ready: list[str] = []
    closed = []
    for own in sorted(steps, key=lambda step: str(step["name"])):
        needs = tuple(dict.fromkeys(need for need in own.get("needs", ()) if need in ready and need != own["name"]))
        own = {**own, "needs": needs}
        if "input" in own:
            own["input"] = {"fields": {need: {"step": need, "path": "x"} for need in needs}}
        when = own.get("when")
        if when is not None and when.startswith("has(steps.") and when.split(".")[1] not in needs:
            own["when"] = None
        closed.append(own)
        ready.append(own["name"])
    return saga(*(Step(**own) for own in closed), **within)


@st.composite
def migrations(draw: st.DrawFn) -> tuple[Definition, Definition]:
    before = draw(definitions())
    return before, draw(changed(before))


# --- properties


@story
def test_a_checkpoint_after_every_event_changes_nothing(definition: Definition, moves: list[tuple[int, int]]) -> None:
    log = tell(definition, moves).log

    assert fold(log, round_trip=True) == fold(log)


@story
def test_folding_the_same_log_again_gives_the_same_bytes(definition: Definition, moves: list[tuple[int, int]]) -> None:
    told = tell(definition, moves)
    effects, dumps = fold(told.log)

    assert effects == told.effects
    assert dumps[-1] == told.driver.dumps()
    assert repr(effects).encode() == repr(told.effects).encode()


@given(definitions(), MOVES, st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_a_copy_of_an_event_that_counted_changes_nothing(
    definition: Definition, moves: list[tuple[int, int]], gaps: list[int]
) -> None:
    told = tell(definition, moves)
    spread = [replace(record, offset=record.offset * 1_000) for record in told.log]
    plain = fold(spread)
    # Each event that counted is copied, a few records later. Those that were ignored are left out: too early may count later.
    counted = [place for place, effects in enumerate(told.effects) if not any(isinstance(e, Ignored) for e in effects)]
    log = list(spread)
    copies = [0] * len(spread)
    for turn, place in enumerate(counted):
        at = min(place + gaps[turn % len(gaps)], len(spread) - 1)
        copies[at] += 1
        copy = replace(spread[place], offset=spread[at].offset + copies[at], time_ms=spread[at].time_ms + 10_000)
        log.append(copy)
    log.sort(key=lambda record: record.offset)

    effects, dumps = fold(log)

    for record, found in zip(log, effects, strict=True):
        if record.offset % 1_000 != 0:
            (effect,) = found
            assert isinstance(effect, Ignored | ClaimLost | Quarantine)
    kept = [place for place, record in enumerate(log) if record.offset % 1_000 == 0]
    assert [effects[place] for place in kept] == plain[0]
    assert [dumps[place] for place in kept] == plain[1]


@story
def test_every_workflow_ends_once_and_in_order(definition: Definition, moves: list[tuple[int, int]]) -> None:
    told = tell(definition, moves)
    settle(told)

    effects = told.all_effects()
    assert not [effect for effect in effects if isinstance(effect, Quarantine) and effect.stage == "fold"]
    for run in runs(effects):
        (ended,) = (effect.result for effect in run if isinstance(effect, Finished))
        check_sent(run)
        check_moves(run)
        check_result(definition, ended)
        check_who_undoes(definition, ended, run)
        check_asked(definition, run)
    check_starts(effects)


def runs(effects: list[Effect]) -> list[list[Effect]]:
    """The effects of each run under the id. After the last there is nothing but what was ignored."""
    ends = [place + 1 for place, effect in enumerate(effects) if isinstance(effect, Finished)]
    rest = effects[ends[-1] :]
    assert not [effect for effect in rest if isinstance(effect, Dispatch | Moved)]
    return [effects[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def check_starts(effects: list[Effect]) -> None:
    """Every start that asked was answered alike each time; those that were accepted to replace ran, each once."""
    told: dict[str, set[bool]] = {}
    for effect in effects:
        if isinstance(effect, StartAnswered):
            told.setdefault(effect.record["start_id"], set()).add(effect.record["accepted"])
    assert all(len(answers) == 1 for answers in told.values())
    results = [effect.result for effect in effects if isinstance(effect, Finished)]
    ran = [found["start_id"] for found in results if "start_id" in found]
    assert len(set(ran)) == len(ran)
    assert set(ran) == {start_id for start_id, answers in told.items() if answers == {True}}
    assert len({found.get("run") for found in results}) == len(results)
    assert sorted(results, key=lambda found: found["started_ms"]) == results
    for one, other in pairwise(
        [{e.command.idempotency_key for e in run if isinstance(e, Dispatch)} for run in runs(effects)]
    ):
        assert not one & other


def check_sent(effects: list[Effect]) -> None:
    """Each attempt is sent once, with an unbroken count and a token that only it has; nothing goes out after the end."""
    last = next(place for place, effect in enumerate(effects) if isinstance(effect, Finished))
    assert not [effect for effect in effects[last:] if isinstance(effect, Dispatch)]
    dispatched = [effect.command for effect in effects if isinstance(effect, Dispatch)]
    # After a quarantine what was out is sent again, the very same.
    sent = list({command.command_id: command for command in reversed(dispatched)}.values())[::-1]
    stopped = any(isinstance(effect, Moved) and effect.after == WorkflowStatus.QUARANTINED for effect in effects)
    assert len(sent) == len(dispatched) or stopped
    assert len({command.token for command in sent}) == len(sent)
    attempts: dict[tuple[str, Direction], int] = {}
    for command in sent:
        key = command.step, command.direction
        before = attempts.get(key, 0)
        # The items that a rewinding makes begin behind the greatest number that one of those before them had.
        made_anew = rewound(effects) and split_item(command.step)[1] >= 0
        assert command.attempt > before if made_anew else command.attempt == before + 1
        attempts[key] = command.attempt
        assert SEED not in encode(command).decode()
    # Questions belong to neither way: what is out when the workflow stops is asked about.
    undoing = [command.direction is Direction.COMPENSATE for command in sent if not isinstance(command, Question)]
    assert rewound(effects) or undoing == sorted(undoing), "a step was sent after the first compensation"
    check_keys([command for command in sent if not isinstance(command, Question)])


def rewound(effects: list[Effect]) -> bool:
    return any(isinstance(effect, Moved) and effect.after == WorkflowStatus.REWINDING for effect in effects)


def check_keys(sent: list[Command]) -> None:
    """Once an undoing under a key has gone out, nothing is done under it any more: it would be done and never be undone."""
    undone: set[str] = set()
    for command in sent:
        if command.direction is Direction.COMPENSATE:
            undone.add(command.idempotency_key)
        else:
            assert command.idempotency_key not in undone


def check_moves(effects: list[Effect]) -> None:
    """Every status follows from the one before by a row of its table."""
    status: dict[tuple[str | None, bool], str | None] = {}
    for effect in effects:
        if not isinstance(effect, Moved):
            continue
        key = effect.step, effect.undo
        if effect.trigger == "rewound" and effect.step is not None:
            # Its items and its entries in the ledger are no more: what comes under their names is new.
            for name, undo in list(status):
                if name is not None and split_item(name)[0] == effect.step and (undo or name != effect.step):
                    del status[name, undo]
        if effect.step is None:
            assert effect.before == status.get(key)
            assert WORKFLOW_MOVES[effect.before, effect.trigger] == effect.after  # type: ignore[index]
        elif effect.undo:
            assert effect.before == status.get(key, UndoStatus.PENDING)
            assert (effect.before, effect.after) in UNDO_MOVES
        else:
            assert effect.before == status.get(key, StepStatus.WAITING)
            assert (effect.before, effect.after) in STEP_MOVES
        status[key] = effect.after


def may_have_had_an_effect(step: StepRecord, spec: Step) -> bool:
    """By the step's own agent or by its fallback: it did it, or nobody can say that it did not."""
    # Of a wait that timed out nobody was asked to do anything.
    failures = step.get("failures", []) if spec.agent is not None else []
    # An agent that was asked may have said it.
    kinds = {failure["kind"] for failure in failures if "outcome" not in failure}
    unsaid = kinds & {"timeout", "lost", "unknown_outcome", "invalid_output"}
    if step.get("stand_in") == "fork":
        return False  # by its original
    did_it = step["status"] == "done" or step.get("stand_in", "").startswith("fallback:")
    # In a round before, which nothing has undone.
    return did_it or bool(unsaid) or step.get("unknown", False)


def leaves(record: ResultRecord) -> list[StepRecord]:
    """Steps, and in place of those that map their items."""
    return [leaf for step in record["steps"] for leaf in step.get("items", [step])]


def check_who_undoes(definition: Definition, record: ResultRecord, effects: list[Effect]) -> None:
    """The agent that the compensation names, else those that were asked to do it: each that may have, once."""
    specs = {step.name: step for step in definition.steps}
    asked: dict[str, str] = {}
    who: dict[str, list[str | None]] = {
        leaf["name"]: [specs[split_item(leaf["name"])[0]].agent] for leaf in leaves(record)
    }
    for effect in effects:
        if not isinstance(effect, Dispatch):
            continue
        command = effect.command
        spec = specs[split_item(command.step)[0]]
        if command.direction is Direction.EXECUTE:
            assert spec.agent is not None
            assert command.agent in (spec.agent, *(fallback.agent for fallback in fallbacks_of(spec)))
            asked[command.step] = command.agent
            who.setdefault(command.step, []).append(command.agent)
        elif isinstance(command, Question):
            assert command.agent == asked[command.step]
        else:
            assert spec.compensate is not None
            assert command.agent in (spec.compensate.agent, *([] if spec.compensate.agent else who[command.step]))
        assert command.service == (spec.service if command.agent == spec.agent else None)
    for found in leaves(record):
        if found.get("fell_back_after", 0) == found["attempt"]:
            continue  # an operator had it tried anew, by its own agent again, and it did not come to that
        own = specs[split_item(found["name"])[0]].agent
        assert found.get("agent", own) == asked.get(found["name"], own)


def check_asked(definition: Definition, effects: list[Effect]) -> None:
    """Of a step with `reconcile`, nothing follows from an unknown outcome before its agent was asked; of another, nobody is."""
    specs = {step.name: step for step in definition.steps}
    asking: set[str] = set()
    for effect in effects:
        if isinstance(effect, Moved) and effect.step is not None and not effect.undo:
            if effect.after == StepStatus.RECONCILING:
                asking.add(effect.step)
            else:
                asking.discard(effect.step)
        elif isinstance(effect, Dispatch):
            command = effect.command
            if isinstance(command, Question):
                assert specs[split_item(command.step)[0]].reconcile is not None
                assert command.step in asking
            else:
                assert command.direction is not Direction.RECONCILE
                assert command.step not in asking
            # While one is asked about, nothing is undone: what is depends on the answer.
            assert not (asking and command.direction is Direction.COMPENSATE)


def check_result(definition: Definition, record: ResultRecord) -> None:
    steps = {step["name"]: step for step in record["steps"]}
    assert list(steps) == [step.name for step in definition.steps]
    specs = {step.name: step for step in definition.steps}
    forward = record["status"] in ("completed", "degraded")
    # Completion: steps are numbered without a gap, in an order in which their needs come first.
    everything = [one for step in record["steps"] for one in (step, *step.get("items", []))]
    order = sorted(one["order"] for one in everything if "order" in one)
    if "forked_from" in record and "rewinds" not in record:
        assert all(
            s["attempt"] == 0 and s["status"] in ("done", "skipped")
            for s in record["steps"]
            if s.get("stand_in") == "fork"
        )
    retried = "rewinds" in record or any(one.get("fell_back_after") for one in everything)
    assert order == list(range(1, len(order) + 1)) or (retried and len(set(order)) == len(order))
    for name, step in steps.items():
        if "started_ms" in step:
            assert all(steps[need]["order"] < step.get("order", 10**9) for need in specs[name].needs)
    if record["status"] == "terminated":
        return
    if forward:
        assert all(step["status"] in ("done", "degraded", "skipped") for step in steps.values())
        degraded = [name for name, step in steps.items() if step["status"] == "degraded"]
        assert [line["step"] for line in record["missing"]] == degraded
        assert (record["status"] == "degraded") == bool(degraded) == (record["completeness"] < 1.0)
        assert "failure" not in record
        assert not [step for step in steps.values() if "undo" in step]
        return
    # Compensation: what was done, or may have been, is undone in exact reverse order of completion.
    assert "output" not in record
    undone = [step for step in leaves(record) if step["undo"]["status"] != "not_needed"]
    if definition.undo_order is UndoOrder.REVERSE and "rewinds" not in record:
        assert [s["name"] for s in sorted(undone, key=lambda s: s["undo"]["order"])] == [
            s["name"] for s in sorted(undone, key=lambda s: -s["order"])
        ]
    for first in undone:
        for other in undone:
            if split_item(first["name"])[0] in specs[split_item(other["name"])[0]].needs:
                assert first["undo"]["order"] > other["undo"]["order"]
    assert sorted(s["undo"]["order"] for s in undone) == list(range(1, len(undone) + 1))
    needed = {
        leaf["name"]
        for leaf in leaves(record)
        for spec in [specs[split_item(leaf["name"])[0]]]
        if spec.compensate is not None and may_have_had_an_effect(leaf, spec)
        if (spec.map is None and spec.repeat is None) or leaf["name"] != spec.name
    }
    assert {step["name"] for step in undone} == needed
    assert all(step["undo"]["status"] in ("done", "failed", "skipped") for step in undone)
    failed = any(step["undo"]["status"] == "failed" for step in undone)
    assert (record["status"] == "compensation_failed") == failed
    if not failed:
        kind = record["failure"]["kind"]
        done = any(step["undo"]["status"] in ("done", "skipped") for step in undone)
        expected = {"cancelled": "cancelled", "review_needed": "review"}.get(kind, "compensated" if done else "failed")
        assert record["status"] == expected


# --- migrations


@given(migrations(), MOVES, st.lists(st.integers(0, 59), min_size=1, max_size=4))
def test_a_migration_that_does_not_fit_changes_nothing_and_one_that_fits_still_ends(
    pair: tuple[Definition, Definition], moves: list[tuple[int, int]], at: list[int]
) -> None:
    driver = _Watched(pair[0])
    for definition in reversed(pair):
        driver.register(definition)
    driver.start("saga", {"x": 0})
    for number, (what, much) in enumerate(moves):
        if number in at:
            try_to_migrate(driver, pair)
        happen(driver, what % 140, much)  # what is beyond begins further runs
    told = Story(driver, driver.per_record)
    settle(told)

    effects = told.all_effects()
    assert not [effect for effect in effects if isinstance(effect, Quarantine) and effect.stage == "fold"]
    results = [effect.result for effect in effects if isinstance(effect, Finished)]
    assert len(results) == 1
    (definition,) = {found.hash: found for found in pair if found.hash == results[0]["definition"]}.values()
    assert [step["name"] for step in results[0]["steps"]] == [step.name for step in definition.steps]
    assert results[0].get("migrated", [])[-1:] == [
        {"before": effect.before, "after": effect.after, "at_ms": driver_ms, "who": "tester", "reason": "wanted"}
        for effect, driver_ms in told_moves(told)[-1:]
    ]
    check_sent(effects)
    check_moves(effects)
    if all(found.undo_order is UndoOrder.REVERSE for found in pair):
        check_undone(results[0])
    assert fold(told.log, round_trip=True) == fold(told.log)


def try_to_migrate(driver: Driver, pair: tuple[Definition, Definition]) -> None:
    """To the other one of the two. Whether it fits is known before, and asking changes nothing."""
    here = driver.state.definition
    target = pair[0] if here == pair[1].hash else pair[1]
    plans = driver.partition.plans
    found = problems(driver.state, plans[here], plans[target.hash])
    before = driver.everything()
    effects = driver.migrate(target)
    if found or target.hash == here:
        (effect,) = effects
        assert isinstance(effect, Ignored)
        assert driver.everything() == before
    else:
        assert isinstance(effects[0], Migrated)
        assert driver.state.terminal or driver.state.definition == target.hash


def told_moves(story: Story) -> list[tuple[Migrated, int]]:
    """Each move with the workflow's time at it."""
    found, newest_ms = [], 0
    for record, effects in zip(story.log, story.effects, strict=True):
        if record.key == WORKFLOW.encode() and not any(isinstance(effect, Ignored | Quarantine) for effect in effects):
            newest_ms = max(newest_ms, record.time_ms)
        found += [(effect, newest_ms) for effect in effects if isinstance(effect, Migrated)]
    return found


def check_undone(record: ResultRecord) -> None:
    """What the ledger names is undone, in exact reverse order of completion, as without a migration."""
    undone = [step for step in leaves(record) if step.get("undo", {}).get("order")]
    assert [s["name"] for s in sorted(undone, key=lambda s: s["undo"]["order"])] == [
        s["name"] for s in sorted(undone, key=lambda s: -s["order"])
    ]
    if record["status"] in ("completed", "degraded"):
        assert not undone
