"""Golden logs: one for each feature, with what folding it gave when it was written. Behaviour cannot drift unnoticed.

    python -m tests.unit.kernel.golden_logs            # writes those that are missing
    python -m tests.unit.kernel.golden_logs --again    # writes all anew: say in the commit why the fold gives something else

A file has a line per record: the record, the effects, and the checkpoint of its workflow afterwards, as canonical JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel

from sagalog.engine.kernel import Record
from sagalog.engine.kernel.effects import Effect
from sagalog.engine.kernel.schedules import dump_schedule
from sagalog.engine.kernel.state import dump
from sagalog.schemas.definitions import from_input, from_item, from_step
from sagalog.schemas.events import (
    Action,
    Decision,
    FailureKind,
    Forked,
    Gap,
    OnDuplicate,
    Outcome,
    Overlap,
    ScheduleActed,
    ScheduleAction,
    ScheduleDue,
    ScheduleRemoved,
    ScheduleSet,
    StepFailed,
    WorkflowStarted,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import PRIORITY_DEFAULT

from .driver import WORKFLOW, Driver, chain, saga, step, waiting

FOLDER = Path(__file__).parent / "golden"
ONCE = {"attempts": 1}


class _Told(Driver):
    """A driver that writes down what happens."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        super().__init__()

    def apply(self, record: Record) -> list[Effect]:
        effects = super().apply(record)
        self.lines.append(line(record, effects, self))
        return effects


def line(record: Record, effects: list[Effect], driver: Driver) -> bytes:
    """One line of a golden log."""
    workflow_id = (record.key or b"").decode()
    state = driver.partition.get(workflow_id)
    schedule = driver.partition.schedules.get(workflow_id)
    document = {
        "record": {
            "offset": record.offset,
            "time_ms": record.time_ms,
            "key": workflow_id,
            "type": (record.ce_type or b"").decode(),
            "id": (record.ce_id or b"").decode(),
            "value": (record.value or b"").decode(errors="replace"),
        },
        "effects": [{"is": type(effect).__name__, "fields": effect} for effect in effects],
        "checkpoint": dump(state, driver.partition.plan_of(state)) if state is not None else None,
    }
    if schedule is not None:
        document["checkpoint"] = dump_schedule(schedule)
    return orjson.dumps(document, default=_plain, option=orjson.OPT_PASSTHROUGH_DATACLASS)


_LATER: dict[tuple[str, str], Any] = {("Command", "priority"): PRIORITY_DEFAULT, ("WorkflowStarted", "forked"): None}
"""Fields of effects that came after the first logs were written, with the default at which they are left out."""


_NOTHING = object()


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        told = {field.name: getattr(value, field.name) for field in fields(value)}
        kind = type(value).__name__
        return {name: found for name, found in told.items() if found != _LATER.get((kind, name), _NOTHING)}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(type(value).__name__)


def fold_again(lines: list[bytes]) -> list[bytes]:
    """The lines that folding a golden log's records gives today."""
    driver = _Told()
    del driver.lines[:]
    driver.partition = type(driver.partition)()
    driver.log.clear()
    for told in lines:
        record = orjson.loads(told)["record"]
        value = record["value"].encode()
        driver.apply(
            Record(
                record["offset"],
                record["time_ms"],
                record["key"].encode(),
                value,
                record["type"].encode(),
                record["id"].encode(),
                len(value),
            )
        )
    return driver.lines


# --- the stories


def retries(d: Driver) -> None:
    d.register(saga(step("a", retry={"attempts": 3, "base_ms": 100, "cap_ms": 1_000})))
    d.start("saga", {"x": 1})
    d.fail("a", FailureKind.RETRYABLE, "first", error_type="Hiccup")
    d.wait(1_000)
    d.fail("a", FailureKind.TIMEOUT, "second", attempt=2, retry_after_ms=700)
    d.wait(1_000)
    d.done("a", {"y": 2}, attempt=3)


def compensation(d: Driver) -> None:
    d.register(chain("a", "b", "c", retry=ONCE))
    d.start("saga", "in")
    d.done("a", "out-a")
    d.done("b", "out-b")
    d.fail("c", FailureKind.TERMINAL, "no c", details={"why": 1})
    d.fail("b", undo=True)
    d.wait(60_000)
    d.done("b", attempt=2, undo=True)
    d.done("a", undo=True)


def compensation_fails(d: Driver) -> None:
    d.register(saga(step("a", compensate={"retry": ONCE}), step("b", "a", retry=ONCE)))
    d.start("saga")
    d.done("a")
    d.fail("b")
    d.fail("a", undo=True)


def unknown_outcome(d: Driver) -> None:
    d.register(saga(step("a", compensate={}, retry=ONCE, fallback={"agent": "other"}), step("b", "a", retry=ONCE)))
    d.start("saga")
    d.lose("a")
    d.done("a", "by other", attempt=2)
    d.fail("b")
    d.fail("a", FailureKind.TERMINAL, undo=True)
    d.done("a", attempt=2, undo=True)


def degraded(d: Driver) -> None:
    d.register(saga(step("a", critical=False, default={"n": 0}, retry=ONCE), step("b", "a", input=from_step("a", "n"))))
    d.start("saga")
    d.fail("a", FailureKind.TERMINAL, "down")
    d.done("b")


def fallbacks(d: Driver) -> None:
    chain_ = [{"agent": "other", "on": ["refusal"]}, {"value": "none"}]
    d.register(saga(step("a", retry=ONCE, fallbacks=chain_), step("b", retry=ONCE, fallback={"agent": "other"})))
    d.start("saga")
    d.fail("a", FailureKind.REFUSAL)
    d.fail("a", FailureKind.INVALID_OUTPUT, attempt=2)
    d.fail("b")
    d.done("b", "by other", attempt=2)


def circuit_open(d: Driver) -> None:
    d.register(saga(step("a", service="bank", when_open="fail", retry=ONCE, compensate={}), services={"bank": {}}))
    d.start("saga")
    d.refuse("a", "bank", maybe_sent=True)
    d.done("a", undo=True)


def deadline(d: Driver) -> None:
    d.register(saga(step("a", compensate={}), step("b", "a"), deadline_ms=5_000))
    d.start("saga")
    d.done("a")
    d.wait(5_000)
    d.done("b")
    d.done("a", undo=True)


def cancel(d: Driver) -> None:
    d.register(chain("a", "b"))
    d.start("saga")
    d.done("a")
    d.cancel()
    d.done("b")
    d.done("b", undo=True)
    d.done("a", undo=True)


def conditions(d: Driver) -> None:
    d.register(saga(step("a"), step("b", "a", when="steps.a.n > 1"), step("c", "b", when="input.x == 1")))
    d.start("saga", {"x": 1})
    d.done("a", {"n": 1})
    d.done("c")


def sleeps_and_signals(d: Driver) -> None:
    paid = {"signal": "paid", "timeout_ms": 1_000}
    d.register(
        saga(
            waiting("nap", sleep={"ms": 500}),
            waiting("one", "nap", wait_for=paid),
            waiting("two", "one", wait_for=paid, critical=False, default=0),
        )
    )
    d.start("saga")
    d.signal("paid", {"n": 1}, ce_id="s1")
    d.signal("paid", {"n": 1}, ce_id="s1")
    d.wait(500)
    d.wait(1_000)


def tasks(d: Driver) -> None:
    task = {"title": "look", "timeout_ms": 1_000, "escalate_to": "boss", "form": {"type": "object"}, "group": "g"}
    d.register(saga(waiting("one", task=task), waiting("two", "one", task=task, critical=False)))
    d.start("saga", {"x": 1})
    d.wait(1_000)
    d.decide("one", Decision.APPROVE, {"x": 2})
    d.decide("two", Decision.REJECT)


def held(d: Driver) -> None:
    undo = {"retry": ONCE, "when_failed": "review"}
    d.register(
        saga(
            step("a", retry=ONCE, when_failed="review", compensate=undo),
            step("b", "a", retry=ONCE, when_failed="review", default="none"),
            step("c", "b", retry=ONCE, when_failed="review"),
        )
    )
    d.start("saga")
    d.fail("a")
    d.decide("a", Decision.RETRY)
    d.fail("a", attempt=2)
    d.decide("a", Decision.COMPLETE, "by hand")
    d.fail("b")
    d.decide("b", Decision.SKIP)
    d.fail("c")
    d.decide("c", Decision.FAIL)
    d.fail("a", undo=True)
    d.decide("a", Decision.RETRY, undo=True)
    d.fail("a", attempt=2, undo=True)
    d.decide("a", Decision.SKIP, undo=True)


def maps(d: Driver) -> None:
    each = {"over": from_input("l"), "concurrency": 2, "tolerate": 1}
    d.register(
        saga(
            step("each", map=each, input=from_item("n"), retry=ONCE, compensate={}),
            step("sum", "each", input=from_step("each"), retry=ONCE),
        )
    )
    d.start("saga", {"l": [{"n": 1}, {"n": 2}, {"n": 3}]})
    d.done("each[1]", 2)
    d.fail("each[0]")
    d.done("each[2]", 3)
    d.fail("sum")
    d.done("each[2]", undo=True)
    d.done("each[1]", undo=True)


def repeats(d: Driver) -> None:
    repeat = {"until": "steps.poll.ready", "rounds_max": 3, "delay_ms": 500}
    d.register(saga(step("poll", repeat=repeat, input=from_item(), compensate={}), step("b", "poll", retry=ONCE)))
    d.start("saga")
    d.done("poll[0]", {"ready": False})
    d.wait(500)
    d.done("poll[1]", {"ready": True})
    d.fail("b")
    d.done("poll[1]", undo=True)
    d.done("poll[0]", undo=True)


def pivots(d: Driver) -> None:
    d.register(saga(step("a", pivot=True, compensate={}), step("b", "a", retry=ONCE), deadline_ms=1_000))
    d.start("saga")
    d.done("a")
    d.wait(1_000)
    d.fail("b")
    d.cancel()
    d.decide("b", Decision.SKIP)


def required(d: Driver) -> None:
    d.register(saga(step("a", critical=False, retry=ONCE), required=("a",)))
    d.start("saga")
    d.fail("a")


def budgets(d: Driver) -> None:
    cheap = {"agent": "small", "on": ["over_budget"], "reserve": {"tokens": 1}}
    d.register(
        saga(
            step("a", reserve={"tokens": 60}, fallbacks=[cheap], retry={"attempts": 5}),
            step("b", "a", reserve={"cost": 5}),
            budget={"tokens": 100, "cost": 5},
        )
    )
    d.start("saga")
    d.fail("a", tokens=70)
    d.wait(60_000)
    d.done("a", "cheap", attempt=2, tokens=2, cost=1)


def paused(d: Driver) -> None:
    d.register(chain("a", "b", retry={"attempts": 2, "base_ms": 100}))
    d.start("saga")
    d.fail("a")
    d.act(Action.PAUSE)
    d.wait(1_000)
    d.act(Action.RESUME)
    d.act(Action.PAUSE)
    d.done("a", attempt=2)
    d.act(Action.RESUME)
    d.done("b")


def terminated(d: Driver) -> None:
    d.register(chain("a", "b"))
    d.start("saga")
    d.done("a", 1)
    d.act(Action.TERMINATE)


def migrated(d: Driver) -> None:
    undo = {"compensate": {}}
    task = {"title": "look", "timeout_ms": 9_000}
    old = saga(
        step("a", agent="one", **undo),
        waiting("t", "a", task=task),
        step("b", "t"),
        step("gone", "b"),
        deadline_ms=60_000,
    )
    new = saga(
        step("first", **undo),
        step("a", agent="two", **undo),
        waiting("t", "a", task={**task, "title": "look again"}),
        step("b", "t", "first", retry=ONCE),
        deadline_ms=90_000,
    )
    d.register(old)
    d.start("saga", {"x": 1})
    d.register(new)
    d.register(chain("z"))
    d.migrate(chain("z"))
    d.migrate(new)
    d.done("a", "by one")
    d.migrate(old)
    d.done("first", 1)
    d.decide("t", Decision.APPROVE)
    d.fail("b")
    d.done("first", undo=True)
    d.done("a", undo=True)


def quarantined(d: Driver) -> None:
    d.register(chain("a", "b"))
    d.start("saga")
    d.append_raw(WORKFLOW.encode(), b"{", b"sagalog.step-completed.v1")
    d.stop()
    d.done("a")
    d.act(Action.RESUME)
    d.done("a")
    d.done("b")


def starts(d: Driver) -> None:
    d.start("saga", {"early": 1}, correlation_id="c", deadline_ms=60_000)
    d.start("nope", workflow_id="wf-2")
    d.register(saga(step("a"), input_schema={"type": "object"}, output={"fields": {"of": from_step("a")}}))
    d.start("saga", "no object", workflow_id="wf-3")
    d.start("saga", workflow_id="wf-2")
    d.done("a", [1])


def late_results(d: Driver) -> None:
    once = {"retry": ONCE, "compensate": {}}
    d.register(saga(step("a", **once), step("b", "a", **once)))
    d.start("saga")
    d.done("a")
    d.fail("b", FailureKind.TIMEOUT)
    d.done("b", undo=True)
    d.done("b", "late")
    d.done("b", attempt=2, undo=True)
    d.done("a", undo=True)
    d.start("saga", workflow_id="wf-2")
    d.answer("wf-2", "a")
    d.append(
        StepFailed("b", 1, Direction.EXECUTE, d.token("b", 1, Direction.EXECUTE, "wf-2"), FailureKind.TIMEOUT, "no"),
        key=b"wf-2",
    )
    d.answer("wf-2", "b", undo=True)
    d.answer("wf-2", "a", undo=True)
    d.answer("wf-2", "b", "later still")


def undone_by_needs(d: Driver) -> None:
    each = {"compensate": {}, "retry": ONCE}
    d.register(saga(step("a", **each), step("b", "a", **each), step("c", "a", **each), undo_order="by_needs"))
    d.start("saga")
    for name in ("a", "b", "c"):
        if name == "c":
            d.cancel()
        d.done(name)
    for name in ("b", "c", "a"):
        d.done(name, undo=True)


def children(d: Driver) -> None:
    d.register(saga(step("pick", compensate={}), name="ship"))
    by = {"definition": "ship", "timeout_ms": 60_000}
    d.register(saga(waiting("sent", workflow=by), step("thanked", "sent"), name="order", budget={"tokens": 50}))
    d.start("order")
    d.deliver()
    child = f"{WORKFLOW}/sent.1"
    for undo in (False, True):
        d.answer(child, "pick", undo=undo)
        d.deliver()
        if not undo:
            d.fail("thanked", FailureKind.TERMINAL)
            d.deliver()


def identities(d: Driver) -> None:
    d.register(chain("a", "b"))
    attributes = {"customer": 4711, "region": "north", "vip": True}
    d.start("saga", tenant="acme", priority=8, attributes=attributes)
    d.done("a")
    d.act(Action.PRIORITIZE, 2)
    d.act(Action.PRIORITIZE, 10)
    d.done("b")
    d.start("saga", workflow_id="wf-2", attributes={"Customer": 1})
    d.start("saga", workflow_id="wf-3", priority=10)


def duplicate_starts(d: Driver) -> None:
    reject, replace = OnDuplicate.REJECT, OnDuplicate.REPLACE
    d.register(chain("a", "b"))
    d.append(WorkflowStarted("saga", 1, on_duplicate=reject), ce_id="one")
    d.append(WorkflowStarted("saga", 2, on_duplicate=reject), ce_id="two")
    d.done("a")
    d.append(WorkflowStarted("saga", 3, on_duplicate=replace), ce_id="three")
    d.append(WorkflowStarted("saga", 4, tenant="acme", priority=7, on_duplicate=replace), ce_id="four")
    d.append(WorkflowStarted("saga", 3, on_duplicate=replace), ce_id="three")
    d.fail("b", FailureKind.TERMINAL)
    d.done("a", undo=True)
    d.append(WorkflowStarted("saga", 4, tenant="acme", priority=7, on_duplicate=replace), ce_id="four")
    d.done("a")
    d.done("b")


def reconciled(d: Driver) -> None:
    asked = {"reconcile": {"retry": {"attempts": 2, "base_ms": 100}}, "compensate": {}, "service": "bank"}
    d.register(saga(step("a", **asked), step("b", "a", **asked, retry={"attempts": 2, "base_ms": 100}), step("c", "b")))
    d.start("saga", {"x": 1})
    d.lose("a")
    d.say("a", Outcome.HAPPENED, "out-a")
    d.fail("b", FailureKind.TIMEOUT, "no answer within 30000 ms")
    d.say_nothing("b", error_type="Busy")
    d.wait(1_000)
    d.say("b", Outcome.DID_NOT_HAPPEN, question=2)
    d.wait(1_000)
    d.lose("b", 2)
    d.cancel()
    d.lose_question("b", 3)
    d.wait(1_000)
    d.lose_question("b", 4)
    d.done("b", undo=True)
    d.done("a", undo=True)


def schedules(d: Driver) -> None:
    key, first_ms, minute_ms = b"@schedule/daily", 1_020_000, 60_000
    d.register(saga(step("a", compensate={})))
    wanted = ScheduleSet("saga", "* * * * *", "UTC", "ann", first_ms, {"n": 1}, Overlap.BUFFER_ONE, jitter_ms=5_000)
    d.append(wanted, key=key)
    due = [first_ms + n * minute_ms for n in range(6)]
    for first, last in ((0, 0), (1, 2)):
        d.now_ms = due[last] + 10_000
        d.append(ScheduleDue(1, tuple(due[first : last + 1]), due[last + 1]), key=key)
        d.deliver()
    d.answer("daily/1970-01-01T00:17:00Z", "a", {"x": 1})
    d.deliver()
    d.append(ScheduleActed(ScheduleAction.PAUSE, "enough", "bob"), key=key, ce_id="pause")
    d.append(ScheduleActed(ScheduleAction.TRIGGER, "but this", "bob"), key=key, ce_id="trigger")
    d.now_ms = due[4]
    d.append(ScheduleActed(ScheduleAction.RESUME, "go on", "bob"), key=key, ce_id="resume")
    d.append(ScheduleDue(1, (due[3],), due[4]), key=key)
    d.append(replace(wanted, next_ms=due[4], overlap=Overlap.CANCEL_RUNNING, jitter_ms=0), key=key, ce_id="again")
    d.append(ScheduleDue(1, (due[4],), due[5]), key=key)
    d.deliver()
    d.append(ScheduleRemoved("over", "bob"), key=key, ce_id="remove")


def rewound(d: Driver) -> None:
    each = {"over": from_input("l")}
    undo = {"retry": ONCE, "when_failed": "review"}
    d.register(
        saga(
            step("a", compensate={}),
            step("each", "a", map=each, input=from_item(), compensate=undo),
            step("c", "each", retry=ONCE),
            step("x", retry={"attempts": 2, "base_ms": 100}),
        )
    )
    d.start("saga", {"l": [1, 2]})
    d.done("a", "out-a")
    d.done("each[0]", "one", tokens=3)
    d.rewind("each", undo=True)
    d.fail("x")
    d.done("each[1]", "two", tokens=3)
    d.wait(100)
    d.fail("each[1]", FailureKind.TERMINAL, undo=True)
    d.done("each[0]", undo=True)
    d.decide("each[1]", Decision.COMPLETE, undo=True)
    d.done("each[0]", "one", attempt=2)
    d.done("each[1]", "two", attempt=2)
    d.rewind("c")
    d.fail("c", FailureKind.TIMEOUT)
    d.done("x", attempt=2)
    d.cancel()
    d.done("c", attempt=2)
    d.done("each[1]", attempt=2, undo=True)
    d.done("each[0]", attempt=2, undo=True)
    d.done("a", undo=True)


def forked(d: Driver) -> None:
    d.register(
        saga(
            step("a", when="input.x == 2"),
            step("b", "a", critical=False, compensate={}),
            step("c", "b", compensate={}),
            step("d", "c", retry=ONCE),
        )
    )
    gap = {"b": Gap("down", "terminal")}
    kept = Forked("wf-0", 7, {"a": None, "b": 1}, ["a"], gap, "wf-0/b/1/execute", "ana", "it works again")
    d.start("saga", {"x": 1}, forked=kept)
    d.done("c", "out-c")
    d.fail("d")
    d.done("c", undo=True)
    d.start("saga", {"x": 1}, workflow_id="wf-2", forked=Forked("wf-0", 7, {"c": 1}))


STORIES: dict[str, Callable[[Driver], None]] = {
    story.__name__: story
    for story in (
        retries,
        compensation,
        compensation_fails,
        unknown_outcome,
        reconciled,
        degraded,
        fallbacks,
        circuit_open,
        deadline,
        cancel,
        conditions,
        sleeps_and_signals,
        tasks,
        held,
        maps,
        repeats,
        pivots,
        required,
        budgets,
        paused,
        terminated,
        migrated,
        quarantined,
        starts,
        children,
        undone_by_needs,
        late_results,
        identities,
        duplicate_starts,
        schedules,
        rewound,
        forked,
    )
}


def tell(name: str) -> list[bytes]:
    driver = _Told()
    STORIES[name](driver)
    return driver.lines


def path(name: str) -> Path:
    return FOLDER / f"{name}.jsonl"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for story_name in STORIES:
        if "--again" in sys.argv or not path(story_name).exists():
            path(story_name).write_bytes(b"\n".join(tell(story_name)) + b"\n")
            print(path(story_name).name)
