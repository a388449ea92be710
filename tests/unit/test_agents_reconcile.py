"""An agent is asked whether an attempt happened: how it is declared, what it answers, and what its host knows by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from sagalog.agents import AgentError, AgentHost, AnyAgent, Context, DidNotHappen, Happened, Retryable, agent
from sagalog.agents.testing import ask, command
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.schemas.commands import Question, encode_command, parse_command
from sagalog.schemas.errors import InvalidRecord
from sagalog.schemas.events import FailureKind, Outcome, StepCompleted, StepFailed
from sagalog.schemas.ids import Direction
from sagalog.topics.log import header
from sagalog.topics.provision import provision
from sagalog.topics.specs import EVENTS, Topics

from .hosting import HostedLog

RECONCILE = Direction.RECONCILE
TOPICS = Topics("unit")
NAME = "bank"
COMMANDS = TOPICS.commands(NAME)
WAIT_S = 10.0


class Order(BaseModel):
    amount: int


class Receipt(BaseModel):
    number: str


@agent(NAME)
async def charge(order: Order, ctx: Context) -> Receipt:
    return Receipt(number=f"r-{order.amount}")


@charge.reconcile
async def look_up(order: Order, ctx: Context) -> Happened[Receipt] | DidNotHappen:
    if order.amount == 0:
        raise Retryable("the bank does not answer", retry_after_ms=7)
    if order.amount < 0:
        return DidNotHappen()
    return Happened(Receipt(number=f"{ctx.idempotency_key} {ctx.attempt} about {ctx.about}"))


async def said(amount: int, **options: Any) -> StepCompleted:
    answer = await ask(charge, {"amount": amount}, direction=RECONCILE, **options)
    assert isinstance(answer, StepCompleted)
    return answer


# --- one question


async def test_it_happened_with_the_output_of_the_attempt() -> None:
    answer = await said(5, attempt=3, about=2)

    assert (answer.attempt, answer.direction, answer.outcome) == (3, RECONCILE, Outcome.HAPPENED)
    assert answer.output == {"number": "w-1/bank 3 about 2"}


async def test_it_did_not_happen() -> None:
    answer = await said(-1)

    assert (answer.outcome, answer.output) == (Outcome.DID_NOT_HAPPEN, None)


async def test_what_the_function_raises_is_a_failure_of_the_question() -> None:
    answer = await ask(charge, {"amount": 0}, direction=RECONCILE)

    assert isinstance(answer, StepFailed)
    assert (answer.kind, answer.retry_after_ms, answer.direction) == (FailureKind.RETRYABLE, 7, RECONCILE)


async def test_its_input_is_validated() -> None:
    answer = await ask(charge, {"amount": "much"}, direction=RECONCILE)

    assert isinstance(answer, StepFailed)
    assert (answer.kind, answer.message[:13]) == (FailureKind.INVALID_INPUT, "input.amount:")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Happened({"number": 7}), "output.number: Input should be a valid string"),
        (Receipt(number="r"), "output: is Receipt; return Happened(output) or DidNotHappen()"),
        (None, "output: is NoneType; return Happened(output) or DidNotHappen()"),
    ],
)
async def test_an_answer_that_the_agent_s_function_could_not_give_is_refused(value: Any, message: str) -> None:
    @agent("liar")
    async def work(order: Order) -> Receipt:
        return Receipt(number="r")

    @work.reconcile
    async def look() -> Any:
        return value

    answer = await ask(work, {"amount": 1}, direction=RECONCILE)

    assert isinstance(answer, StepFailed)
    assert (answer.kind, answer.message) == (FailureKind.INVALID_OUTPUT, message)


async def test_an_agent_that_cannot_say_names_the_remedy() -> None:
    @agent("mute")
    async def work(order: Order) -> None:
        raise AssertionError("must not be called")

    answer = await ask(work, {"amount": 1}, direction=RECONCILE)

    assert isinstance(answer, StepFailed)
    assert answer.kind is FailureKind.TERMINAL
    assert "@mute.reconcile" in answer.message and "drop the step's reconcile" in answer.message


async def test_a_function_in_a_thread_may_answer() -> None:
    @agent("slow")
    def work(order: Order) -> int:
        return 1

    @work.reconcile
    def look(order: Order) -> Happened[int] | DidNotHappen:
        return Happened(order.amount)

    answer = await ask(work, {"amount": 4}, direction=RECONCILE)
    assert isinstance(answer, StepCompleted) and answer.output == 4


def test_two_reconcile_functions_are_refused() -> None:
    with pytest.raises(AgentError, match="has a reconcile function already"):
        charge.reconcile(look_up)


async def test_outside_of_a_question_there_is_no_attempt_asked_about() -> None:
    seen: list[int | None] = []

    @agent("curious")
    async def work(ctx: Context) -> None:
        seen.append(ctx.about)

    await ask(work)
    assert seen == [None]


def test_a_question_is_read_as_it_was_written() -> None:
    question = command(NAME, {"amount": 1}, direction=RECONCILE, attempt=4, about=2)

    assert isinstance(question, Question)
    assert question.about_id == "w-1/bank/2/execute"
    assert parse_command(encode_command(question)) == question


@pytest.mark.parametrize("about", [b"", b',"about":0', b',"about":"x"'])
def test_a_question_about_nothing_is_no_question(about: bytes) -> None:
    raw = encode_command(command(NAME, direction=RECONCILE)).replace(b',"about":1', about)

    with pytest.raises(InvalidRecord, match="about"):
        parse_command(raw)


# --- in a host


@pytest.fixture
async def log() -> AsyncIterator[HostedLog]:
    found = HostedLog()
    await provision(found, TOPICS, [EVENTS], partitions=1, replication=1)
    yield found
    await found.close()


def host(log: HostedLog, hosted: AnyAgent) -> AgentHost:
    return AgentHost([hosted], log, TOPICS, clock=SystemClock(), rng=SystemRng())


async def answered(log: HostedLog, count: int) -> list[Any]:
    async with asyncio.timeout(WAIT_S):
        while len(log.records(TOPICS.events)) < count:  # noqa: ASYNC110 - commits announce themselves to nobody
            await asyncio.sleep(0.005)
    return log.events(TOPICS.events)


class Bank:
    """An agent that waits where it is told to, and says in which order it was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.gate = asyncio.Event()
        self.agent: AnyAgent = self._make()

    def _make(self) -> AnyAgent:
        @agent(NAME, concurrency=4)
        async def work(value: str) -> str:
            self.calls.append(f"{value} starts")
            if value in ("wait", "fail late"):
                await self.gate.wait()
            self.calls.append(f"{value} ends")
            if value.startswith("fail"):
                raise Retryable("no")
            return value

        @work.compensation
        async def undo(value: Any) -> None:
            self.calls.append("undo")

        @work.reconcile
        async def look(value: str) -> DidNotHappen:
            self.calls.append("question")
            return DidNotHappen()

        return work


@pytest.mark.parametrize("value", ["do", "fail"])
async def test_a_host_that_did_the_attempt_sends_its_own_answer_again(log: HostedLog, value: str) -> None:
    bank = Bank()
    async with host(log, bank.agent):
        log.send(COMMANDS, 0, command(NAME, value))
        await answered(log, 1)
        log.send(COMMANDS, 0, command(NAME, value, direction=RECONCILE))
        first, second = await answered(log, 2)

    assert first == second
    assert "question" not in bank.calls
    ids = [header(record.headers, "ce_id") for record in log.records(TOPICS.events)]
    assert ids == [b"w-1/bank/1/execute/result", b"w-1/bank/1/reconcile/result"]


async def test_a_host_that_only_knows_that_it_timed_out_asks_its_function(log: HostedLog) -> None:
    bank = Bank()
    async with host(log, bank.agent):
        log.send(COMMANDS, 0, command(NAME, "wait", timeout_ms=20))
        await answered(log, 1)
        log.send(COMMANDS, 0, command(NAME, "wait", direction=RECONCILE))
        _, answer = await answered(log, 2)

    assert (answer.direction, answer.outcome) == (RECONCILE, Outcome.DID_NOT_HAPPEN)
    assert bank.calls == ["wait starts", "question"]


async def test_a_question_waits_for_the_end_of_the_attempt_that_it_asks_about(log: HostedLog) -> None:
    bank = Bank()
    async with host(log, bank.agent):
        log.send(COMMANDS, 0, command(NAME, "wait"))
        log.send(COMMANDS, 0, command(NAME, "wait", direction=RECONCILE))
        log.send(COMMANDS, 0, command(NAME, "other", workflow_id="w-2"))
        await answered(log, 1)
        assert "question" not in bank.calls
        bank.gate.set()
        found = await answered(log, 3)

    assert bank.calls.index("wait ends") < bank.calls.index("question")
    assert [event.direction for event in found[1:]] == [Direction.EXECUTE, RECONCILE]
    assert found[1].output == "wait", "it was not stopped"


async def test_a_newer_question_takes_the_place_of_one_that_waits(log: HostedLog) -> None:
    bank = Bank()
    async with host(log, bank.agent):
        log.send(COMMANDS, 0, command(NAME, "wait"))
        log.send(COMMANDS, 0, command(NAME, "wait", direction=RECONCILE))
        log.send(COMMANDS, 0, command(NAME, "wait", direction=RECONCILE, attempt=2))
        (older,) = await answered(log, 1)
        bank.gate.set()
        await answered(log, 3)

    assert (older.attempt, older.kind) == (1, FailureKind.CANCELLED)
    assert bank.calls == ["wait starts", "wait ends", "question"]


async def test_a_question_that_waits_too_long_has_no_answer(log: HostedLog) -> None:
    bank = Bank()
    async with host(log, bank.agent):
        log.send(COMMANDS, 0, command(NAME, "wait"))
        log.send(COMMANDS, 0, command(NAME, "wait", direction=RECONCILE, timeout_ms=20))
        (question,) = await answered(log, 1)
        bank.gate.set()
        await answered(log, 2)

    assert (question.direction, question.kind) == (RECONCILE, FailureKind.TIMEOUT)
    assert "question" not in bank.calls


async def test_a_question_stops_no_attempt_that_came_after_the_one_it_asks_about(log: HostedLog) -> None:
    bank = Bank()
    async with host(log, bank.agent):
        log.send(COMMANDS, 0, command(NAME, "wait", attempt=2))
        log.send(COMMANDS, 0, command(NAME, "wait", direction=RECONCILE, about=1))
        (question,) = await answered(log, 1)
        bank.gate.set()
        _, attempt = await answered(log, 2)

    assert (question.kind, question.message) == (FailureKind.RETRYABLE, "w-1/bank/2/execute is at work")
    assert attempt.output == "wait"


async def test_a_question_takes_no_place_from_an_attempt_that_waits(log: HostedLog) -> None:
    """The first attempt was stopped and does not end, the second waits for that: the engine has gone on, or asks again."""
    calls: list[int] = []
    gate = asyncio.Event()

    @agent(NAME, concurrency=4)
    async def work(ctx: Context) -> int:
        calls.append(ctx.attempt)
        try:
            await (asyncio.Event() if ctx.attempt == 1 else gate).wait()
        except asyncio.CancelledError:
            await gate.wait()
            raise
        return ctx.attempt

    @work.reconcile
    async def look() -> DidNotHappen:
        return DidNotHappen()

    async with host(log, work):
        log.send(COMMANDS, 0, command(NAME))
        async with asyncio.timeout(WAIT_S):
            while not calls:  # noqa: ASYNC110 - a handler's start announces itself to nobody
                await asyncio.sleep(0.005)
        log.send(COMMANDS, 0, command(NAME, attempt=2))
        log.send(COMMANDS, 0, command(NAME, direction=RECONCILE, about=1))
        _, question = await answered(log, 2)
        gate.set()
        *_, second = await answered(log, 3)

    assert (question.kind, question.message) == (FailureKind.RETRYABLE, "w-1/bank/2/execute is at work")
    assert (second.attempt, second.output, calls) == (2, 2, [1, 2])


async def test_an_attempt_that_was_asked_about_may_be_executed_again(log: HostedLog) -> None:
    """Other than after a compensation."""
    bank = Bank()
    async with host(log, bank.agent):
        log.send(COMMANDS, 0, command(NAME, "do", direction=RECONCILE))
        await answered(log, 1)
        log.send(COMMANDS, 0, command(NAME, "do", attempt=2))
        _, attempt = await answered(log, 2)

    assert attempt.output == "do"
