"""Declaring agents, and what they answer: inputs, outputs, exceptions, timeouts. One call, no log."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from sagalog.agents import AgentError, Context, NeedsReview, Refused, Retryable, Terminal, Undo, agent, load_agents
from sagalog.agents.testing import ask
from sagalog.schemas.events import FailureKind, StepCompleted, StepFailed
from sagalog.schemas.ids import Direction
from sagalog.schemas.limits import FAILURE_MESSAGE_CHARS_MAX, PAYLOAD_BYTES_MAX


class Invoice(BaseModel):
    number: str
    total: Decimal
    due: date | None = None


class Posting(BaseModel):
    posting: str
    total: Decimal


@agent("ledger")
async def post(invoice: Invoice, ctx: Context) -> Posting:
    return Posting(posting=f"{ctx.idempotency_key}/{invoice.number}", total=invoice.total)


async def test_input_and_output_are_typed() -> None:
    answer = await ask(post, {"number": "R-1", "total": "12.50"})
    assert answer == StepCompleted(
        step="ledger",
        attempt=1,
        direction=Direction.EXECUTE,
        token="token",
        output={"posting": "w-1/ledger/R-1", "total": "12.50"},
        agent="ledger",
        duration_ms=answer.duration_ms,
    )


async def test_an_input_that_does_not_fit_is_named_and_not_retried() -> None:
    answer = await ask(post, {"number": "R-1", "total": "twelve"})
    assert isinstance(answer, StepFailed)
    assert answer.kind is FailureKind.INVALID_INPUT
    assert answer.message.startswith("input.total: ")
    assert "twelve" not in answer.message


async def test_an_output_that_does_not_fit_is_named() -> None:
    @agent("liar")
    async def lie(invoice: Invoice) -> Posting:
        return {"posting": "p"}  # type: ignore[return-value]

    answer = await ask(lie, {"number": "R-1", "total": "1"})
    assert isinstance(answer, StepFailed)
    assert (answer.kind, answer.message) == (FailureKind.INVALID_OUTPUT, "output.total: Field required")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x" * PAYLOAD_BYTES_MAX, f"output: is {PAYLOAD_BYTES_MAX + 2:,} bytes, more than {PAYLOAD_BYTES_MAX:,}"),
        (2**64, "output: holds the integer 18446744073709551616, beyond 64 bits"),
        (object(), "output: cannot be written as JSON"),
    ],
)
async def test_an_output_that_no_record_can_hold_is_refused(value: Any, message: str) -> None:
    @agent("big")
    async def make() -> Any:
        return value

    answer = await ask(make)
    assert isinstance(answer, StepFailed)
    assert answer.kind is FailureKind.INVALID_OUTPUT
    assert answer.message.startswith(message)


async def test_several_parameters_are_filled_by_name() -> None:
    @agent("several")
    async def several(number: str, ctx: Context, total: Decimal, currency: str = "EUR") -> str:
        return f"{number} {total} {currency} {ctx.step}"

    answer = await ask(several, {"number": "R-1", "total": "1.5", "more": True})
    assert isinstance(answer, StepCompleted)
    assert answer.output == "R-1 1.5 EUR several"
    missing = await ask(several, {"number": "R-1"})
    assert isinstance(missing, StepFailed)
    assert missing.message == "input.total: Field required"


async def test_a_strict_model_takes_from_json_what_json_cannot_say() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        due: date
        pair: tuple[int, int]

    @agent("strict")
    async def take(value: Strict) -> Strict:
        return value

    answer = await ask(take, {"due": "2026-01-31", "pair": [1, 2]})
    assert isinstance(answer, StepCompleted)
    assert answer.output == {"due": "2026-01-31", "pair": [1, 2]}


async def test_a_function_without_input_ignores_it() -> None:
    @agent("bare")
    async def bare() -> None:
        return None

    answer = await ask(bare, {"a": 1})
    assert isinstance(answer, StepCompleted)
    assert answer.output is None


class Unlucky(Exception):
    """An error of a handler's own."""


@pytest.mark.parametrize(
    ("error", "kind", "error_type", "details", "retry_after_ms"),
    [
        (Retryable("busy", retry_after_ms=1_500), FailureKind.RETRYABLE, None, None, 1_500),
        (Terminal("refused", {"code": 7}), FailureKind.TERMINAL, None, {"code": 7}, None),
        (NeedsReview("odd", [1]), FailureKind.REVIEW_NEEDED, None, [1], None),
        (Refused("not that", {"policy": 3}), FailureKind.REFUSAL, None, {"policy": 3}, None),
        (Unlucky("busy"), FailureKind.RETRYABLE, "Unlucky", None, None),
        (SystemExit(3), FailureKind.RETRYABLE, "SystemExit", None, None),
    ],
)
async def test_exceptions_are_answers(
    error: BaseException, kind: FailureKind, error_type: str | None, details: Any, retry_after_ms: int | None
) -> None:
    @agent("raises")
    async def fail() -> None:
        raise error

    answer = await ask(fail)
    assert isinstance(answer, StepFailed)
    assert (answer.kind, answer.error_type, answer.details, answer.retry_after_ms) == (
        kind,
        error_type,
        details,
        retry_after_ms,
    )
    assert answer.message == str(error)


async def test_what_a_failure_says_is_bounded() -> None:
    @agent("talks")
    async def talk() -> None:
        raise Terminal("\ud800" + "x" * 5_000, {"text": "x" * 20_000})

    answer = await ask(talk)
    assert isinstance(answer, StepFailed)
    assert len(answer.message) == FAILURE_MESSAGE_CHARS_MAX
    assert answer.details["dropped"].startswith("details: is 20,011 bytes")


async def test_a_handler_that_is_too_slow_is_cancelled() -> None:
    cancelled = asyncio.Event()

    @agent("slow")
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    answer = await ask(slow, timeout_ms=30)
    assert isinstance(answer, StepFailed)
    assert (answer.kind, answer.message) == (FailureKind.TIMEOUT, "no answer within 30 ms")
    assert cancelled.is_set()


async def test_a_handler_that_swallows_its_cancellation_is_answered_for_all_the_same() -> None:
    @agent("stubborn")
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "too late"
        return "never"

    answer = await ask(stubborn, timeout_ms=30)
    assert isinstance(answer, StepFailed)
    assert answer.kind is FailureKind.TIMEOUT


async def test_a_synchronous_function_runs_in_a_thread_and_sees_its_cancellation() -> None:
    seen: list[bool] = []

    @agent("thread")
    def work(seconds: float, ctx: Context) -> str:
        seen.append(threading.current_thread() is threading.main_thread())
        for _ in range(200):
            if ctx.cancelled:
                seen.append(True)
                raise Retryable("cancelled")
            threading.Event().wait(seconds)
        return "done"

    answer = await ask(work, 0.0)
    assert isinstance(answer, StepCompleted)
    answer = await ask(work, 0.01, timeout_ms=50)
    assert isinstance(answer, StepFailed)
    assert answer.kind is FailureKind.TIMEOUT
    assert seen == [False, False, True]


async def test_the_context_knows_the_attempt() -> None:
    found: list[Context] = []

    @agent("context")
    async def note(ctx: Context) -> None:
        found.append(ctx)

    before = datetime.now(UTC)
    await ask(note, workflow_id="w-9", step="s", attempt=4, timeout_ms=60_000)
    ctx = found[0]
    assert (ctx.idempotency_key, ctx.workflow_id, ctx.step, ctx.attempt) == ("w-9/s", "w-9", "s", 4)
    assert (ctx.command_id, ctx.direction, ctx.cancelled) == ("w-9/s/4/execute", Direction.EXECUTE, False)
    assert ctx.deadline is not None
    assert 59 < (ctx.deadline - before).total_seconds() < 62


class TestCompensation:
    async def test_it_gets_input_and_output(self) -> None:
        @agent("paid")
        async def pay(amount: int) -> str:
            return "p-1"

        got: list[Undo[int, str]] = []

        @pay.compensation
        async def refund(undo: Undo[int, str]) -> None:
            got.append(undo)

        answer = await ask(pay, {"input": 5, "output": "p-1"}, direction=Direction.COMPENSATE)
        assert isinstance(answer, StepCompleted)
        assert answer.direction is Direction.COMPENSATE
        await ask(pay, {"input": 5, "output": None}, direction=Direction.COMPENSATE)
        assert [(undo.input, undo.output) for undo in got] == [(5, "p-1"), (5, None)]

    async def test_without_one_the_function_itself_undoes(self) -> None:
        @agent("refunds")
        async def refund(undo: Undo[int, str], ctx: Context) -> str:
            return f"{undo.output} {ctx.direction}"

        answer = await ask(refund, {"input": 5, "output": "p-1"}, direction=Direction.COMPENSATE)
        assert isinstance(answer, StepCompleted)
        assert answer.output == "p-1 compensate"

    async def test_a_function_that_does_not_fit_says_what_to_declare(self) -> None:
        answer = await ask(post, {"input": {}, "output": None}, direction=Direction.COMPENSATE)
        assert isinstance(answer, StepFailed)
        assert answer.kind is FailureKind.INVALID_INPUT
        assert "has no compensation" in answer.message


class TestDeclaration:
    def test_wrong_names_and_limits_are_refused(self) -> None:
        with pytest.raises(AgentError, match="'Ledger' is no name"):
            agent("Ledger")
        with pytest.raises(AgentError, match="concurrency 0"):
            agent("ledger", concurrency=0)

    def test_signatures_that_cannot_be_filled_are_refused(self) -> None:
        with pytest.raises(AgentError, match=r"\*args"):

            @agent("stars")
            async def stars(*args: int) -> None: ...

        with pytest.raises(AgentError, match="no type that pydantic can validate"):

            @agent("lock")
            async def lock(value: threading.Event) -> None: ...

        with pytest.raises(AgentError, match="generator"):

            @agent("yields")
            async def yields() -> Any:
                yield 1

    def test_two_compensations_are_refused(self) -> None:
        @agent("twice")
        async def twice() -> None: ...

        @twice.compensation
        async def first() -> None: ...

        with pytest.raises(AgentError, match="has a compensation already"):

            @twice.compensation
            async def second() -> None: ...

    async def test_an_agent_can_be_called_like_its_function(self) -> None:
        @agent("plain")
        async def double(number: int) -> int:
            return 2 * number

        assert await double(4) == 8

    def test_its_schemas_can_be_asked_for(self) -> None:
        assert post.input_schema["required"] == ["number", "total"]
        assert post.output_schema["properties"].keys() == {"posting", "total"}


class TestLoading:
    def test_agents_are_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "found_agents.py").write_text(
            "from sagalog.agents import agent\n"
            "@agent('one')\nasync def one() -> None: ...\n"
            "@agent('two')\nasync def two() -> None: ...\n"
            "both = [one, two]\nempty = []\ntwice = (one, one)\nnumber = 3\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
        assert [found.name for found in load_agents("found_agents:one")] == ["one"]
        assert [found.name for found in load_agents("found_agents:both")] == ["one", "two"]
        for where, message in [
            ("found_agents", "write MODULE:NAME"),
            ("found_agents:three", "has no 'three'; it has the agents one, two"),
            ("found_agents:number", "is a int, not an agent"),
            ("found_agents:empty", "is empty"),
            ("found_agents:twice", "two agents named 'one'"),
            ("no_such_module:x", "there is no module 'no_such_module'"),
        ]:
            with pytest.raises(AgentError, match=message):
                load_agents(where)

    def test_what_fails_inside_the_module_is_told_apart(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken_agents.py").write_text("import no_such_dependency\n")
        (tmp_path / "raising_agents.py").write_text("raise ValueError('nope')\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(AgentError, match="needs the module 'no_such_dependency'"):
            load_agents("broken_agents:x")
        with pytest.raises(AgentError, match="failed with ValueError: nope"):
            load_agents("raising_agents:x")


# --- what attempts use


@pytest.mark.parametrize("fails", [False, True])
async def test_an_answer_carries_what_the_attempt_used(fails: bool) -> None:
    @agent("model")
    async def model(prompt: str, ctx: Context) -> str:
        ctx.used(tokens=120, cost=3)
        ctx.used(tokens=30)
        if fails:
            raise Refused("no")
        return prompt

    answer = await ask(model, "hi")

    assert (answer.tokens, answer.cost) == (150, 3)


async def test_an_attempt_that_timed_out_carries_what_it_said_before() -> None:
    @agent("model")
    async def model(ctx: Context) -> None:
        ctx.used(cost=7)
        await asyncio.sleep(30)

    answer = await ask(model, timeout_ms=20)

    assert isinstance(answer, StepFailed) and answer.kind is FailureKind.TIMEOUT
    assert (answer.tokens, answer.cost) == (0, 7)


@pytest.mark.parametrize("amount", [-1, 1.5, "3", True, None])
async def test_what_is_no_amount_is_refused(amount: Any) -> None:
    @agent("model")
    async def model(ctx: Context) -> None:
        ctx.used(tokens=amount)

    answer = await ask(model)

    assert isinstance(answer, StepFailed) and "is no whole number from 0 on" in answer.message
