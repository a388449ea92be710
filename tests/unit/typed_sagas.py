"""Sagas for the type checker: `test_agents_saga_types.py` runs mypy on this file and compares what it says with the marks.

A line that ends in `# refused` must get an error, and no other line may. What mypy reveals stands behind `# is`. Nothing here runs.
"""

from __future__ import annotations

from typing import TypedDict, reveal_type

from pydantic import BaseModel

from sagalog.agents import Context, Undo, agent
from sagalog.agents.saga import CONTEXT, Saga, bind, fall_back, instead
from sagalog.schemas.definitions import Retry


class Line(BaseModel):
    sku: str
    count: int


class Order(BaseModel):
    sku: str
    amount: int
    lines: list[Line]
    note: str | None


class Reservation(BaseModel):
    id: str


class Charge(BaseModel):
    amount: int
    reservation: str
    note: str | None = None


class Look(BaseModel):
    parcel: str
    before: bool | None


class Raw(TypedDict):
    sku: str


@agent("stock")
async def reserve(order: Order, ctx: Context) -> Reservation: ...


@reserve.compensation
async def release(undo: Undo[Order, Reservation]) -> None: ...


@agent("bank")
async def charge(charge: Charge) -> int: ...


@agent("other-bank")
def charge_elsewhere(ctx: Context, charge: Charge) -> int: ...


@agent("weigher")
async def weigh(line: Line) -> int: ...


@agent("printer")
def label(sku: str, ctx: Context, copies: int = 1) -> str: ...


@agent("carrier")
async def look(look: Look) -> bool: ...


@agent("clock")
async def tick(ctx: Context) -> int: ...


@agent("archive")
async def archive(order: Order | None) -> None: ...


@agent("refunds")
async def refund(reservation: Reservation) -> None: ...


saga = Saga("order", Order)
reserved = saga.step(reserve, input=saga.input, retry=Retry(attempts=4), timeout_ms=5_000)
charged = saga.step(charge, input=bind(Charge, amount=saga.input.amount, reservation=reserved.output.id))


def good() -> None:
    reveal_type(saga.input.amount)  # is int
    reveal_type(reserved.output)  # is Reservation
    reveal_type(charged.output)  # is int
    reveal_type(saga.step(charge_elsewhere, input=bind(Charge, amount=1, reservation="r")).output)  # is int
    reveal_type(saga.step(label, input=bind(label, sku=saga.input.sku, ctx=CONTEXT)).output)  # is str
    reveal_type(saga.step(tick).output)  # is int
    reveal_type(saga.step(archive, input=saga.input).output)  # is None
    reveal_type(saga.map(weigh, over=saga.input.lines).output)  # is list[int]
    reveal_type(saga.wait_for("paid", Reservation, timeout_ms=1_000).output)  # is Reservation
    reveal_type(saga.task("ask", "Ship?", Charge, timeout_ms=1_000, input=reserved.output).output)  # is Charge
    saga.step(charge, input=Charge(amount=1, reservation="r"), fallbacks=[fall_back(charge_elsewhere), instead(0)])
    saga.step(charge, input=bind(Charge, amount=charged.output, reservation="r"), critical=False, default=0)
    saga.step(charge, input=bind(Charge, amount=1, reservation="r", note=saga.input.note))
    weighed = saga.map(weigh, over=saga.input.lines, input=lambda line: bind(Line, sku=line.sku, count=1))
    weighed.each_undone_by(refund, input=lambda line, weight: bind(Reservation, id=line.sku))
    saga.map(label, over=saga.input.lines, input=lambda line: bind(label, sku=line.sku, ctx=CONTEXT), tolerate=1)
    saga.repeat(
        look,
        until="steps.look",
        rounds_max=5,
        input=lambda round: bind(Look, parcel=saga.input.sku, before=round.previous),
    )
    charged.undone_by(refund, input=bind(Reservation, id=reserved.output.id))
    Saga("raw", Raw).step(label, input=bind(label, sku=Saga("raw", Raw).input["sku"], ctx=CONTEXT))


def whole_values() -> None:
    saga.step(reserve, input=reserved.output)  # refused
    saga.step(charge, input=saga.input)  # refused
    saga.step(charge)  # refused
    saga.step(refund, input=charged.output)  # refused
    saga.map(weigh, over=saga.input.sku)  # refused
    saga.map(charge, over=saga.input.lines)  # refused
    charged.undone_by(refund, input=saga.input)  # refused


def paths_and_fields() -> None:
    saga.step(refund, input=bind(Reservation, id=saga.input.number))  # refused
    saga.step(charge, input=bind(Charge, amount=saga.input.sku, reservation="r"))  # refused
    saga.step(charge, input=bind(Charge, amount=saga.input.amount))  # refused
    saga.step(charge, input=bind(Charge, amount=1, reservation=saga.input.note))  # refused
    saga.step(charge, input=bind(Charge, amount=1, reservation="r", colour="red"))  # refused
    saga.step(label, input=bind(label, sku=saga.input.amount, ctx=CONTEXT))  # refused
    saga.step(label, input=bind(label, ctx=CONTEXT))  # refused
    saga.map(weigh, over=saga.input.lines, input=lambda line: bind(Line, sku=line.count, count=1))  # refused
    saga.map(weigh, over=saga.input.lines, input=lambda line: bind(Reservation, id=line.sku))  # refused


def policies() -> None:
    saga.step(charge, input=Charge(amount=1, reservation="r"), fallback=fall_back(refund))  # refused
    saga.step(charge, input=Charge(amount=1, reservation="r"), fallback=fall_back(weigh))  # refused
    saga.step(charge, input=Charge(amount=1, reservation="r"), fallback=instead("nothing"))  # refused
    saga.step(charge, input=Charge(amount=1, reservation="r"), critical=False, default="nothing")  # refused
    saga.step(charge, input=Charge(amount=1, reservation="r"), timeout="5 s")  # refused
    saga.step(charge, input=Charge(amount=1, reservation="r"), timeout_ms="5 s")  # refused
    saga.step(charge, input=Charge(amount=1, reservation="r"), needs=["reserve"])  # refused
