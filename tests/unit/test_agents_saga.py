"""The typed builder: what comes out is plain data, and a binding that need not fit is refused with its place, reason and remedy."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

import pytest
from pydantic import BaseModel, Field

from sagalog.agents import Context, Undo, agent
from sagalog.agents.policies import AgentPolicy, CompensationPolicy, MapPolicy, RepeatPolicy, StepPolicy
from sagalog.agents.saga import CONTEXT, Saga, bind, fall_back, instead
from sagalog.engine.testing import SagaTest
from sagalog.schemas.definitions import (
    Budget,
    CircuitPolicy,
    Compensation,
    Definition,
    Fallback,
    FallbackOn,
    Limit,
    Map,
    Repeat,
    Retry,
    Sleep,
    Step,
    Task,
    Usage,
    Value,
    WaitFor,
    WhenFailed,
    WhenOpen,
    fields,
    from_input,
    from_item,
    from_step,
)
from sagalog.schemas.errors import InvalidDefinition


class Speed(StrEnum):
    SLOW = "slow"
    FAST = "fast"


class Line(BaseModel):
    sku: str
    count: int


class Order(BaseModel):
    sku: str
    amount: int
    lines: list[Line]
    note: str | None
    due: date
    speed: Speed = Speed.SLOW
    labels: dict[str, str]


class Reservation(BaseModel):
    id: str
    parts: list[str]
    buyer: Line | None


class Charge(BaseModel):
    amount: int
    reservation: str
    note: str | None = None


class Look(BaseModel):
    parcel: str
    before: bool | None


class Receipt(BaseModel):
    number: int
    note: str | None = None


@agent("stock")
async def reserve(order: Order, ctx: Context) -> Reservation:
    return Reservation(id=f"{order.sku}-1", parts=[], buyer=None)


@reserve.compensation
async def release(undo: Undo[Order, Reservation]) -> None: ...


@agent("bank")
async def charge(charge: Charge) -> int:
    return charge.amount


@agent("other-bank")
def charge_elsewhere(charge: Charge) -> int:
    return charge.amount


@agent("strict")
async def strict(line: Line, when: date, speed: Speed, ratio: float) -> None: ...


@agent("weigher")
async def weigh(line: Line) -> int:
    return line.count


@agent("printer")
def label(sku: str, ctx: Context, copies: int = 1) -> str:
    return f"{sku} x {copies}"


@agent("carrier")
async def look(look: Look) -> bool:
    return look.before is not None


@agent("clock")
async def tick(ctx: Context) -> int:
    return 1


@agent("anything")
async def anything(value: Any) -> Any:
    return value


@agent("refunds")
async def refund(reservation: Reservation) -> None: ...


@agent("notes")
async def take_note(note: str | None) -> None: ...


@agent("texts")
async def take_text(text: str) -> None: ...


@agent("counts")
async def take_number(number: int) -> None: ...


@agent("undoes-lines")
async def undo_line(undo: Undo[Line, int]) -> None: ...


def order() -> Saga[Order]:
    return Saga("order", Order)


# --- what comes out


def test_a_saga_is_the_definition_that_one_would_write_by_hand() -> None:
    saga = Saga(
        "order",
        Order,
        description="An order.",
        deadline_ms=60_000,
        budget=Budget(attempts=50),
        services={"cards": CircuitPolicy(calls_min=3)},
    )
    reserved = saga.step(reserve, input=saga.input, name="hold")
    charged = saga.step(
        charge,
        input=bind(Charge, amount=saga.input.amount, reservation=reserved.output.id, note="by sagalog"),
        retry=Retry(attempts=5),
        timeout_ms=5_000,
        service="cards",
        when_open=WhenOpen.FALL_BACK,
        fallbacks=[fall_back(charge_elsewhere, on=[FallbackOn.CIRCUIT_OPEN], reserve=Usage(tokens=1)), instead(0)],
        required=True,
        irreversible=True,
    )

    assert saga.build(output=bind(Receipt, number=charged.output)) == Definition(
        name="order",
        description="An order.",
        deadline_ms=60_000,
        budget=Budget(attempts=50),
        input_schema=Order.model_json_schema(),
        services={"cards": CircuitPolicy(calls_min=3)},
        steps=(
            Step(name="hold", agent="stock", compensate=Compensation(), output_schema=reserve.output_schema),
            Step(
                name="charge",
                agent="bank",
                needs=("hold",),
                input=fields(amount=from_input("amount"), reservation=from_step("hold", "id"), note="by sagalog"),
                retry=Retry(attempts=5),
                timeout_ms=5_000,
                service="cards",
                when_open=WhenOpen.FALL_BACK,
                fallbacks=(
                    Fallback(agent="other-bank", on=(FallbackOn.CIRCUIT_OPEN,), reserve=Usage(tokens=1)),
                    Fallback(value=0),
                ),
                irreversible=True,
                output_schema={"type": "integer"},
            ),
        ),
        output=fields(number=from_step("charge")),
        required=("charge",),
    )


def test_the_needs_follow_from_what_is_taken_without_those_that_are_waited_for_anyway() -> None:
    saga = order()
    first = saga.step(tick, name="first")
    second = saga.step(take_number, input=first.output, name="second")
    saga.step(take_number, input=first.output, name="third", needs=[second])
    saga.step(take_number, input=first.output, name="fourth", when="steps.second == null && input.amount > 1")
    saga.step(tick, name="fifth", needs=[second, first])

    assert {step.name: step.needs for step in saga.build().steps} == {
        "first": (),
        "second": ("first",),
        "third": ("second",),
        "fourth": ("second",),
        "fifth": ("second", "first"),
    }


def test_a_map_gives_the_list_of_what_its_agent_gives() -> None:
    saga = order()
    whole = saga.map(weigh, over=saga.input.lines, concurrency=2, items_max=5, tolerate=1, name="whole")
    parts = saga.map(
        label,
        over=saga.input.lines,
        input=lambda line: bind(label, sku=line.sku, copies=line.count, ctx=CONTEXT),
        fallback=instead(""),
    )
    parts.each_undone_by(take_text, input=lambda line, _: line.sku, timeout_ms=50)
    built = saga.build()

    assert [step.map for step in built.steps] == [
        Map(over=from_input("lines"), concurrency=2, items_max=5, tolerate=1),
        Map(over=from_input("lines")),
    ]
    assert "input" not in built.steps[0].model_fields_set
    assert built.steps[1].input == fields(sku=from_item("sku"), copies=from_item("count"))
    assert built.steps[1].compensate == Compensation(agent="texts", input=from_item("sku"), timeout_ms=50)
    saga.step(anything, input=whole.output)
    with pytest.raises(InvalidDefinition, match=r"whole\.output\.\* may be null"):
        saga.step(take_numbers, input=whole.output)


@agent("takes-numbers")
async def take_numbers(numbers: list[int]) -> None: ...


def test_a_repeat_gives_what_its_last_round_gives() -> None:
    saga = order()
    looked = saga.repeat(
        look,
        input=lambda round: bind(Look, parcel=saga.input.sku, before=round.previous),
        until="steps.look",
        rounds_max=5,
        delay_ms=10,
    )
    saga.step(anything, input=looked.output)
    first, second = saga.build().steps

    assert first.repeat == Repeat(until="steps.look", rounds_max=5, delay_ms=10)
    assert first.input == fields(parcel=from_input("sku"), before=from_item("previous"))
    assert (second.input, second.needs) == (from_step("look"), ("look",))


def test_steps_without_an_agent() -> None:
    saga = order()
    paid = saga.wait_for("paid", Receipt, timeout_ms=1_000)
    asked = saga.task("ask", "Ship it?", Charge, timeout_ms=50, input=paid.output, group="shop", escalate_to="the boss")
    slept = saga.sleep("nap", ms=10, needs=[asked], critical=False)
    woken = saga.sleep("wake", until=datetime(2030, 1, 1, tzinfo=UTC), needs=[slept])
    saga.step(charge, input=asked.output, needs=[woken])
    steps = saga.build().steps

    assert steps[:4] == (
        Step(
            name="paid",
            wait_for=WaitFor(signal="paid", timeout_ms=1_000, payload_schema=Receipt.model_json_schema()),
        ),
        Step(
            name="ask",
            needs=("paid",),
            input=from_step("paid"),
            task=Task(
                title="Ship it?",
                form=Charge.model_json_schema(),
                group="shop",
                timeout_ms=50,
                escalate_to="the boss",
            ),
        ),
        Step(name="nap", needs=("ask",), sleep=Sleep(ms=10), critical=False),
        Step(name="wake", needs=("nap",), sleep=Sleep(until=fields(x="2030-01-01T00:00:00Z").fields["x"])),
    )
    assert steps[4].needs == ("wake",)


def test_plain_data_goes_wherever_the_builder_has_no_word() -> None:
    saga = order()
    added = saga.add(Step(name="plain", agent="bank", start_timeout_ms=99), Receipt)
    saga.step(take_number, input=added.output.number)

    plain, taken = saga.build().steps
    assert plain == Step(name="plain", agent="bank", start_timeout_ms=99)
    assert (taken.input, taken.needs) == (from_step("plain", "number"), ("plain",))


def test_whoever_did_it_undoes_it_unless_another_word_is_said() -> None:
    saga = order()
    saga.step(reserve, input=saga.input, name="own")
    saga.step(reserve, input=saga.input, name="none", compensate=None)
    saga.step(reserve, input=saga.input, name="final", irreversible=True)
    saga.step(reserve, input=saga.input, name="held", compensate=Compensation(when_failed=WhenFailed.REVIEW))
    saga.step(weigh, input=Line(sku="tea", count=1), name="other", compensate=undo_line)
    bound = saga.step(weigh, input=Line(sku="tea", count=1), name="bound")
    bound.undone_by(take_note, input=saga.input.note, retry=Retry(attempts=2))

    assert [step.compensate for step in saga.build().steps] == [
        Compensation(),
        None,
        None,
        Compensation(when_failed=WhenFailed.REVIEW),
        Compensation(agent="undoes-lines"),
        Compensation(agent="notes", input=from_input("note"), retry=Retry(attempts=2)),
    ]


def test_the_hash_is_the_same_in_every_process() -> None:
    code = "from sagalog.agents.accounts.saga import account; print(account.hash)"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {"ec7e87fb6b4fcf31"}


def test_a_built_saga_runs() -> None:
    saga = order()
    reserved = saga.step(reserve, input=saga.input)
    charged = saga.step(charge, input=bind(Charge, amount=saga.input.amount, reservation=reserved.output.id))
    weighed = saga.map(weigh, over=saga.input.lines)
    looked = saga.repeat(
        look,
        input=lambda round: bind(Look, parcel=saga.input.sku, before=round.previous),
        until="steps.look",
        rounds_max=3,
    )
    built = saga.build(
        output={"charged": charged.output, "weights": weighed.output, "first": weighed.output[0], "seen": looked.output}
    )
    given = Order(
        sku="tea", amount=5, lines=[Line(sku="a", count=2), Line(sku="b", count=3)], note=None, due=date(2030, 1, 1),
        labels={},
    )  # fmt: skip

    with SagaTest([built], [reserve, charge, weigh, look]) as t:
        ended = t.run("order", given.model_dump(mode="json"))

    assert (ended.status, ended.output) == ("completed", {"charged": 5, "weights": [2, 3], "first": 2, "seen": True})


# --- every field can be said

HANDLED = {"name", "agent", "sleep", "wait_for", "task", "map", "repeat", "input", "output_schema"}
"""Fields of a step that the builder's methods and the types say."""
ONLY_PLAIN: set[str] = {"reconcile", "workflow"}
"""Fields of a step that only `Saga.add` can say, as plain data."""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Step, AgentPolicy.__annotations__.keys() | HANDLED),
        (Map, MapPolicy.__annotations__.keys() | {"over"}),
        (Repeat, RepeatPolicy.__annotations__.keys()),
        (Compensation, CompensationPolicy.__annotations__.keys() | {"agent", "input"}),
        (Sleep, {"ms", "until"}),
        (WaitFor, {"signal", "timeout_ms", "payload_schema"}),
        (Task, {"title", "form", "assignee", "group", "timeout_ms", "escalate_to"}),
        (Fallback, {"agent", "value", "on", "reserve"}),
        (Definition, {"name", "description", "steps", "deadline_ms", "input_schema", "output", "services", "budget",
                      "required", "undo_order", "limits"}),
    ],
)  # fmt: skip
def test_every_field_can_be_said(model: type[BaseModel], said: set[str]) -> None:
    assert model.model_fields.keys() - said - ONLY_PLAIN == set()


def test_nothing_can_be_said_that_is_no_field() -> None:
    step = Step.model_fields.keys() | {"required"}

    assert StepPolicy.__annotations__.keys() <= step
    assert AgentPolicy.__annotations__.keys() <= step
    assert MapPolicy.__annotations__.keys() <= step | Map.model_fields.keys()
    assert RepeatPolicy.__annotations__.keys() <= step | Repeat.model_fields.keys()


def test_every_word_of_a_policy_reaches_the_step() -> None:
    said: dict[str, Any] = {
        "when": "input.amount > 1", "irreversible": True, "pivot": True, "critical": False, "default": 7,
        "retry": Retry(attempts=9), "timeout_ms": 11, "start_timeout_ms": 12, "heartbeat_timeout_ms": 13, "service": "s",
        "when_open": WhenOpen.FAIL, "budget": Budget(attempts=3), "reserve": Usage(cost=1), "compensate": None,
        "limits": ("few",),
    }  # fmt: skip
    other = {"name", "needs", "required", "fallback", "fallbacks", "when_failed"}  # each has a test of its own above
    assert AgentPolicy.__annotations__.keys() == said.keys() | other
    saga: Any = Saga("order", Order, limits={"few": Limit(concurrency=1)})
    saga.step(tick, **said)
    (step,) = saga.build().steps

    assert {name: getattr(step, name) for name in said} == said


# --- what is refused


class Reserved(BaseModel):
    id: str
    parts: list[int]
    buyer: Line | None


@agent("elsewhere")
def reserve_elsewhere(order: Order) -> Reservation: ...  # type: ignore[empty-body]


def anything_of(kind: Any) -> Any:
    async def take(value: Any) -> None: ...

    take.__annotations__["value"] = kind
    return agent("takes")(take)


REFUSED: dict[str, tuple[Callable[[Any], object], str]] = {
    # references
    "an_unknown_field": (lambda s: s.input.amout, "input: has no field 'amout'; it has sku, amount, lines"),
    "a_field_of_a_text": (lambda s: s.input.sku.upper, "input.sku: is a text and has no field 'upper'"),
    "a_field_of_a_list": (lambda s: s.input.lines.sku, "take an element by its index, or map over it"),
    "a_key_with_a_dot": (lambda s: s.input.labels["a.b"], "the key 'a.b' cannot be reached by a path"),
    "a_comparison": (lambda s: s.input.amount > 5, "__gt__ needs its value; decide with `when`"),
    "an_equation": (lambda s: s.input.amount == 5, "__eq__ needs its value"),
    "an_if": (lambda s: 1 if s.input.note else 2, "__bool__ needs its value"),
    "a_text_made_of_it": (lambda s: f"for {s.input.sku}", "__format__ needs its value"),
    "a_loop": (lambda s: list(s.input.lines), "__iter__ needs its value"),
    "a_sum": (lambda s: 1 + s.input.amount, "__radd__ needs its value"),
    "a_list_of_references": (lambda s: s.step(anything, input=[s.input.sku]), "references where only constants can stand"),
    "a_list_inside": (lambda s: s.step(anything, input={"a": {"b": [s.input.sku]}}), "steps.anything.input.a.b: is made of"),
    "a_constant_that_is_no_json": (lambda s: s.step(anything, input=object()), "no constant that can be written as JSON"),
    "a_default_that_is_a_reference": (
        lambda s: s.step(tick, critical=False, default=s.input.amount), "references where only constants can stand",
    ),
    "a_reference_of_another_saga": (
        lambda s: s.step(take_text, input=order().input.sku), "takes <reference input.sku> of another saga",
    ),
    "a_need_of_another_saga": (
        lambda s: s.step(tick, needs=[order().step(tick)]), "steps.tick.needs: names <step 'tick'> of another saga",
    ),
    "an_item_of_another_step": (
        lambda s: s.map(take_text, over=s.input.lines, input=lambda a: (
            s.map(take_text, over=s.input.lines, input=lambda b: a.sku, name="inner"), a.sku)[1]),
        "takes an item of another step",
    ),
    # inputs
    "no_input": (lambda s: s.step(charge), "steps.charge.input: is missing, and agent 'bank' takes one"),
    "no_agent": (lambda s: s.step(print), "is no agent; declare the function with @agent"),
    "a_wrong_type": (
        lambda s: s.step(take_number, input=s.input.sku),
        "steps.take_number.input: agent 'counts' takes it, and input.sku is a text, where an integer is wanted",
    ),
    "null_where_none_may_be": (
        lambda s: s.step(take_text, input=s.input.note), "input.note may be null, where a text is wanted; give it a default",
    ),
    "a_default_that_nobody_fills_in": (
        lambda s: s.step(anything_of(Speed), input=s.input.speed), "may be null ('speed' may be left out, and then it is null)",
    ),
    "a_field_of_what_may_be_null": (
        lambda s: s.step(take_text, input=s.step(reserve, input=s.input).output.buyer.sku),
        "reserve.output.buyer.sku may be null (what it is taken from may be null)",
    ),
    "an_element_that_need_not_be_there": (
        lambda s: s.step(take_text, input=s.input.lines[0].sku), "input.lines.0.sku may be null",
    ),
    "a_key_that_need_not_be_there": (
        lambda s: s.step(take_text, input=s.input.labels["x"]), "the key 'x' need not be there",
    ),
    "one_object_for_another": (
        lambda s: s.step(charge, input=s.input), "input has no field 'reservation', which is wanted",
    ),
    "an_object_with_another_inside": (
        lambda s: s.step(refund, input=s.wait_for("x", Reserved, timeout_ms=10).output),
        "x.output.parts.* is an integer, where a text is wanted",
    ),
    "one_for_many": (lambda s: s.step(take_numbers, input=s.input.amount), "is an integer, where a list is wanted"),
    "many_for_one": (lambda s: s.step(weigh, input=s.input.lines), "input.lines is a list, where an object (Line) is wanted"),
    "a_text_for_a_choice": (
        lambda s: s.step(anything_of(Speed), input=s.input.sku), "is a text, where one of 'slow', 'fast' is wanted",
    ),
    "a_text_for_a_date": (lambda s: s.step(anything_of(date), input=s.input.sku), "where a text (date) is wanted"),
    "a_constant": (
        lambda s: s.step(take_number, input="7"), "steps.take_number.input: is a constant that agent 'counts' does not take",
    ),
    # bound objects
    "a_bound_field_that_is_none": (
        lambda s: bind(Charge, amount=1, reservation="r", colour="red"),  # type: ignore[call-overload]
        "bind(Charge).colour: is no field of it; it has amount, reservation, note",
    ),
    "a_bound_field_that_is_missing": (
        lambda s: s.step(charge, input=bind(Charge, amount=s.input.amount)),  # type: ignore[call-overload]
        "steps.charge.input.reservation: is missing",
    ),
    "a_bound_field_of_another_type": (
        lambda s: s.step(charge, input=bind(Charge, amount=s.input.sku, reservation="r")),
        "steps.charge.input.amount: Charge takes it, and input.sku is a text, where an integer is wanted",
    ),
    "a_bound_constant_of_another_type": (
        lambda s: s.step(charge, input=bind(Charge, amount="1", reservation="r")),  # type: ignore[call-overload]
        "steps.charge.input.amount: is a constant that Charge does not take",
    ),
    "another_agents_arguments": (
        lambda s: s.step(charge, input=bind(label, sku=s.input.sku, ctx=CONTEXT)), "steps.charge.input.amount: is missing",
    ),
    "fields_without_their_names": (
        lambda s: bind(Charge, 1, "r"),  # type: ignore[call-overload]
        "bind(Charge): takes its fields by name",
    ),
    "bind_of_no_model": (lambda s: bind(len, [1]), "is neither a pydantic model nor an agent"),
    # outputs that may be missing
    "an_optional_step": (
        lambda s: s.step(take_number, input=s.step(tick, critical=False).output), "'tick' is optional and has no default",
    ),
    "a_conditional_step": (
        lambda s: s.step(take_number, input=s.step(tick, when="input.amount > 1").output), "'tick' is skipped when",
    ),
    "a_step_that_an_operator_may_skip": (
        lambda s: s.step(take_number, input=s.step(tick, when_failed=WhenFailed.REVIEW).output), "an operator may skip 'tick'",
    ),
    # policies
    "a_default_of_another_type": (
        lambda s: s.step(tick, critical=False, default="x"), "steps.tick.default: is a constant that whoever takes",
    ),
    "a_constant_of_another_type": (
        lambda s: s.step(tick, fallback=instead("x")), "steps.tick.fallback: is a constant that whoever takes",
    ),
    "a_fallback_that_takes_something_else": (
        lambda s: s.step(charge, input=Charge(amount=1, reservation="r"), fallbacks=[fall_back(weigh)]),
        "steps.charge.fallbacks.0: is a constant that agent 'weigher' does not take",
    ),
    "a_fallback_that_gives_something_else": (
        lambda s: s.step(tick, fallback=fall_back(label)), "steps.tick.fallback: whoever takes the output of 'clock' takes it",
    ),
    "a_compensation_that_is_not_there": (
        lambda s: s.step(tick, compensate=Compensation()), "agent 'clock' to undo what it did, and it has no compensation",
    ),
    "a_fallback_that_cannot_undo": (
        lambda s: s.step(reserve, input=s.input, fallback=fall_back(reserve_elsewhere)),
        "asks agent 'elsewhere' to undo what it did, and it has no compensation",
    ),
    "a_compensation_of_something_else": (
        lambda s: s.step(charge, input=Charge(amount=1, reservation="r"), compensate=undo_line),
        "steps.charge.compensate.input",
    ),
    "an_output_that_may_be_unknown": (
        lambda s: (step := s.step(tick)).undone_by(take_number, input=step.output),
        "may be null (nobody may know whether the step took effect)",
    ),
    "the_list_where_items_are_undone": (
        lambda s: (step := s.map(weigh, over=s.input.lines)).undone_by(anything, input=step.output), "use each_undone_by",
    ),
    "undone_and_irreversible": (
        lambda s: s.step(tick, irreversible=True).undone_by(anything, input=1), "stands beside a compensation",
    ),
    "a_bound": (lambda s: s.step(tick, timeout_ms=1), "steps.tick.timeout_ms: Input should be greater"),
    "a_word_that_is_none": (lambda s: s.step(tick, retries=1), "steps.tick.retries: Extra inputs are not permitted"),
    "a_name": (lambda s: s.step(tick, name="Tick"), "steps.Tick.name: 'Tick' is no name"),
    "a_name_twice": (lambda s: (s.step(tick), s.step(tick)), "steps.tick: stands there twice"),
    "a_condition": (lambda s: s.step(tick, when="steps.none == 1"), "takes the output of 'none'"),
    # maps, waits
    "a_map_over_no_list": (lambda s: s.map(take_text, over=s.input.sku), "steps.take_text.map.over: a map takes it"),
    "a_map_of_other_items": (
        lambda s: s.map(take_text, over=s.input.lines), "item is an object (Line), where a text is wanted",
    ),
    "a_maps_whole_input": (
        lambda s: s.map(anything, over=s.input.lines, input=lambda _: s.input), "which an item cannot get; bind its fields",
    ),
    "a_sleep_until_no_time": (lambda s: s.sleep("nap", until=s.input.sku), "steps.nap.sleep.until: a sleep takes it"),
    "a_sleep_until_a_time_of_no_zone": (lambda s: s.sleep("nap", until=datetime(2030, 1, 1)), "of no zone"),  # noqa: DTZ001
    "an_output_of_the_workflow": (
        lambda s: (s.step(tick), s.build(output=bind(Receipt, number=s.input.sku))), "output.number: Receipt takes it",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_need_not_fit_is_refused(wrong: Callable[[Any], object], said: str) -> None:
    with pytest.raises(InvalidDefinition) as raised:
        wrong(order())
    assert said in str(raised.value)


def test_what_fits_is_let_through() -> None:
    saga: Any = order()
    reserved = saga.step(reserve, input=saga.input).output
    takes = {
        "whole": (anything_of(Order), saga.input),
        "a_part": (anything_of(Line | None), reserved.buyer),
        "an_integer_for_a_number": (anything_of(float), saga.input.amount),
        "null_for_what_may_be": (take_note, saga.input.note),
        "a_text_for_what_may_be_null": (take_note, saga.input.sku),
        "a_date": (anything_of(date), saga.input.due),
        "a_date_as_a_text": (take_text, saga.input.due),
        "a_list": (anything_of(list[Line]), saga.input.lines),
        "one_of_several": (anything_of(int | list[str]), reserved.parts),
        "a_constant_of_a_model": (weigh, Line(sku="tea", count=1)),
        "a_choice_that_may_be_missing": (anything_of(Speed | None), saga.input.speed),
        "not_known": (take_number, saga.step(anything, input=1).output.whatever[3]),
        "optional_with_a_default": (take_number, saga.step(tick, critical=False, default=0).output),
    }
    for name, (taker, value) in takes.items():
        saga.step(taker, input=value, name=name)

    assert len(saga.build().steps) == len(takes) + 3


def test_a_model_that_holds_itself_is_compared_once() -> None:
    saga: Any = Saga("tree", Tree)
    saga.step(anything_of(Tree), input=saga.input)
    with pytest.raises(InvalidDefinition, match="may be null"):
        saga.step(anything_of(Tree), input=saga.input.left.left, name="deeper")


class Tree(BaseModel):
    left: Tree | None
    value: int = Field(ge=0)


class Renamed(BaseModel):
    amount: int = Field(alias="Amount")


@agent("renamed")
async def take_renamed(renamed: Renamed) -> None: ...


def test_a_field_with_an_alias_has_that_name_in_json() -> None:
    saga: Any = Saga("renamed", Renamed)
    saga.step(take_renamed, input=bind(Renamed, amount=saga.input.Amount), name="bound")  # type: ignore[call-overload]
    saga.step(take_renamed, input=bind(Renamed, Amount=7), name="as-constructed")
    saga.step(take_renamed, input=Renamed(Amount=1), name="constant")

    assert [step.input for step in saga.build().steps] == [
        fields(Amount=from_input("Amount")),
        fields(Amount=7),
        Value(value={"Amount": 1}),
    ]
    with pytest.raises(InvalidDefinition, match="has no field 'amount'; it has Amount"):
        _ = saga.input.amount


def test_a_reference_can_be_looked_at_and_copied() -> None:
    amount: Any = order().input.amount

    assert repr(amount) == "<reference input.amount>"
    assert repr(copy.copy(amount)) == "<reference input.amount>"
    assert not hasattr(amount, "real")
    assert {amount: 1}[amount] == 1
