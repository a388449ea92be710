"""The invoice saga: what each agent answers, what a person gets to see, and which way a workflow goes."""

from __future__ import annotations

import datetime as dt
import json
import sqlite3
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from sagalog.agents import AnyAgent
from sagalog.agents.invoices import agents as invoices
from sagalog.agents.invoices.errors import ReadingTimeout
from sagalog.agents.invoices.models import AmountPlace, Doubt, Invoice
from sagalog.agents.invoices.orders import sample_orders
from sagalog.agents.invoices.saga import agents, definition
from sagalog.agents.testing import ask
from sagalog.engine.kernel import Partition, Record
from sagalog.engine.kernel.effects import Dispatch, Effect, Finished, ReviewNeeded
from sagalog.schemas.commands import Command
from sagalog.schemas.definitions import SchemaValidator, parse_definition
from sagalog.schemas.events import (
    TYPE_OF,
    DefinitionRegistered,
    Event,
    FailureKind,
    StepCompleted,
    StepFailed,
    WorkflowStarted,
    encode_event,
)
from sagalog.schemas.ids import Direction
from sagalog.schemas.records import ResultRecord

WORKFLOW = "w-1"
CONFIDENT = {"invoice_number": 0.99, "date": 0.99, "currency": 0.99, "supplier": 0.99, "amount": 0.99}


def place(role: Any, value: str, line: int, confidence: float = 0.99) -> AmountPlace:
    return AmountPlace(
        role=role, value=Decimal(value), label=role, text=value, page=1, line=line, confidence=confidence
    )


def sound(**changes: Any) -> Invoice:
    """119.00 = 100.00 + 19.00, everything read well."""
    found: dict[str, Any] = {
        "invoice_number": "R-7",
        "date": dt.date(2024, 4, 5),
        "currency": "EUR",
        "amount": Decimal("119.00"),
        "amount_untaxed": Decimal("100.00"),
        "amount_tax": Decimal("19.00"),
        "supplier": "Lindental Werkzeuge GmbH",
        "places": (place("net", "100.00", 1), place("tax", "19.00", 2), place("gross", "119.00", 3)),
        "confidence": CONFIDENT,
    }
    return Invoice.model_validate(found | changes)


WRONG_TOTAL = {
    "amount": Decimal("129.00"),
    "places": (place("net", "100.00", 1), place("tax", "19.00", 2), place("gross", "129.00", 3)),
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(invoices.LEDGER_VARIABLE, str(tmp_path / "ledger.sqlite"))
    monkeypatch.setenv(invoices.OUTBOX_VARIABLE, str(tmp_path / "outbox.sqlite"))
    monkeypatch.delenv(invoices.ORDERS_VARIABLE, raising=False)
    return tmp_path


async def output(agent: AnyAgent, value: Any, **options: Any) -> Any:
    answer = await ask(agent, value, **options)
    assert isinstance(answer, StepCompleted), answer
    return answer.output


async def failure(agent: AnyAgent, value: Any, **options: Any) -> StepFailed:
    answer = await ask(agent, value, **options)
    assert isinstance(answer, StepFailed), answer
    return answer


# --- read


async def test_a_file_that_is_no_document_goes_to_a_person_with_the_reason(files: Path) -> None:
    (files / "note.png").write_text("not a picture")
    answer = await failure(invoices.read, {"file": str(files / "note.png")})
    assert answer.kind is FailureKind.REVIEW_NEEDED
    assert "neither a PDF nor an image" in answer.message
    assert answer.details["reasons"] == [answer.message]
    assert answer.details["invoice"] == dict.fromkeys(("invoice_number", "date", "currency", "amount"))


async def test_a_file_that_is_not_there_goes_to_a_person(files: Path) -> None:
    answer = await failure(invoices.read, {"file": str(files / "gone.pdf")})
    assert answer.kind is FailureKind.REVIEW_NEEDED
    assert "gone.pdf cannot be opened" in answer.message


async def test_no_time_left_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path) -> None:
        raise ReadingTimeout("reading the page stopped: the time is used up")

    monkeypatch.setattr(invoices, "read_document", slow)
    answer = await failure(invoices.read, {"file": "a.pdf"})
    assert (answer.kind, answer.message) == (
        FailureKind.RETRYABLE,
        "reading the page stopped: the time is used up",
    )


async def test_a_read_without_a_file_is_refused() -> None:
    answer = await failure(invoices.read, {"files": "a.pdf"})
    assert answer.kind is FailureKind.INVALID_INPUT


# --- validate


def asked(invoice: Invoice) -> dict[str, Any]:
    return {"invoice": invoice.model_dump(mode="json"), "file": "a.pdf"}


async def test_a_sound_invoice_is_accepted() -> None:
    verdict = await output(invoices.validate, asked(sound()))
    assert verdict["decision"] == "accept"
    assert "net 100.00 + tax 19.00 = total 119.00" in verdict["confirmations"]


async def test_a_total_that_does_not_add_up_goes_to_a_person_and_is_not_shown_as_known() -> None:
    answer = await failure(invoices.validate, asked(sound(**WRONG_TOTAL)))
    assert answer.kind is FailureKind.REVIEW_NEEDED
    assert "total 129.00 differs from net 100.00 + tax 19.00 = 119.00" in answer.message
    assert answer.details["file"] == "a.pdf"
    assert answer.details["invoice"] == {
        "invoice_number": "R-7",
        "date": "2024-04-05",
        "currency": "EUR",
        "amount": None,
    }


async def test_a_missing_date_does_not_hide_an_amount_that_adds_up() -> None:
    confidence = {name: value for name, value in CONFIDENT.items() if name != "date"}
    answer = await failure(invoices.validate, asked(sound(date=None, confidence=confidence)))
    assert answer.details["invoice"]["date"] is None
    assert answer.details["invoice"]["amount"] == "119.00"
    assert answer.details["reasons"] == ["the invoice date could not be read"]


@pytest.mark.parametrize("field", ["invoice_number", "date", "currency"])
def test_a_field_that_was_read_without_confidence_is_not_known(field: str) -> None:
    known = invoices.known_fields(sound(confidence=CONFIDENT | {field: 0.5}))
    assert getattr(known, field) is None
    others = {"invoice_number", "date", "currency"} - {field}
    assert all(getattr(known, name) is not None for name in others)


def test_a_doubted_field_is_not_known_however_well_it_was_read() -> None:
    known = invoices.known_fields(sound(doubts=(Doubt(field="date", reason="two dates"),)))
    assert known.date is None
    assert known.amount == Decimal("119.00")


def test_a_doubted_amount_is_not_known_even_when_it_adds_up() -> None:
    known = invoices.known_fields(sound(doubts=(Doubt(field="amount", reason="two totals"),)))
    assert known.amount is None


def test_without_a_currency_no_amount_is_known() -> None:
    assert invoices.known_fields(sound(currency=None)).amount is None


# --- match


async def test_orders_are_suggested() -> None:
    order = next(order for order in sample_orders() if order.supplier == "Lindental Werkzeuge GmbH")
    invoice = sound(order_reference=order.reference)
    found = await output(invoices.match, invoice.model_dump(mode="json"))
    assert found["matches"][0]["reference"] == order.reference


async def test_no_order_fits_gives_the_neutral_answer() -> None:
    found = await output(invoices.match, sound(supplier="Nobody").model_dump(mode="json"))
    assert found == {"matches": []}
    assert found == next(step for step in definition.steps if step.name == "match").default


async def test_the_orders_come_from_the_file_that_the_environment_names(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = {"reference": "4711", "supplier": "Nobody", "currency": "EUR", "amount": "100.00"}
    (files / "orders.json").write_text(json.dumps([order]))
    monkeypatch.setenv(invoices.ORDERS_VARIABLE, str(files / "orders.json"))
    found = await output(invoices.match, sound(supplier="Nobody", order_reference="4711").model_dump(mode="json"))
    assert [match["reference"] for match in found["matches"]] == ["4711"]


@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ('[{"reference": 1}]', "no list of orders")])
async def test_a_file_of_orders_that_cannot_be_used_is_said(
    files: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, said: str
) -> None:
    if content is not None:
        (files / "orders.json").write_text(content)
    monkeypatch.setenv(invoices.ORDERS_VARIABLE, str(files / "orders.json"))
    answer = await failure(invoices.match, sound().model_dump(mode="json"))
    assert answer.kind is FailureKind.RETRYABLE
    assert said in answer.message


# --- post, and its reversal


async def test_an_invoice_is_posted_once_however_often_it_is_asked() -> None:
    first = await output(invoices.post, sound().model_dump(mode="json"))
    again = await output(invoices.post, sound().model_dump(mode="json"), attempt=2)
    assert first == again
    assert first["amount_minor"] == 11_900
    assert invoices.ledger().balance() == {"EUR": {"expenses": 10_000, "input-tax": 1_900, "payables": -11_900}}


async def test_a_posting_is_reversed() -> None:
    value = sound().model_dump(mode="json")
    posting = await output(invoices.post, value)
    undo = {"input": value, "output": posting}
    for attempt in (1, 2):
        assert await output(invoices.post, undo, direction=Direction.COMPENSATE, attempt=attempt) is None
    assert invoices.ledger().balance() == {"EUR": {"expenses": 0, "input-tax": 0, "payables": 0}}
    assert len(invoices.ledger().entries()) == 6


async def test_a_posting_that_comes_after_its_reversal_is_refused_for_good() -> None:
    value = sound().model_dump(mode="json")
    await output(invoices.post, {"input": value, "output": None}, direction=Direction.COMPENSATE)
    answer = await failure(invoices.post, value)
    assert answer.kind is FailureKind.TERMINAL
    assert "reversed before" in answer.message
    assert invoices.ledger().entries() == ()


async def test_an_invoice_that_the_ledger_cannot_hold_goes_to_a_person() -> None:
    answer = await failure(invoices.post, sound(invoice_number=None).model_dump(mode="json"))
    assert answer.kind is FailureKind.REVIEW_NEEDED
    assert "without invoice_number" in answer.message


async def test_without_a_setting_the_ledger_lies_beside_the_data_of_dev(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(invoices.LEDGER_VARIABLE)
    monkeypatch.chdir(files)
    await output(invoices.post, sound().model_dump(mode="json"))
    assert (files / ".sagalog" / "invoices-ledger.sqlite").is_file()


# --- notify


async def test_a_message_is_put_into_the_outbox_once(files: Path) -> None:
    posting = await output(invoices.post, sound().model_dump(mode="json"))
    value = {"posting": posting, "suggestions": {"matches": []}, "supplier": None}
    for attempt in (1, 2):
        notice = await output(invoices.notify, value, attempt=attempt)
    assert notice["text"] == "Invoice R-7 of an unknown supplier is in the books."
    with sqlite3.connect(files / "outbox.sqlite") as connection:
        assert connection.execute("SELECT key, text FROM messages").fetchall() == [("w-1/notifier", notice["text"])]
    connection.close()


# --- the saga


class Saga:
    """Drives the definition through the fold with the real agents, except where an answer is given."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.by_name = {agent.name: agent for agent in agents}
        self.fold = Partition()
        self.commands: list[str] = []
        self.reviews: list[Any] = []
        self.result: ResultRecord | None = None
        self.offset = 0

    async def run(self) -> ResultRecord:
        self._apply(f"@definition/{definition.hash}", DefinitionRegistered(definition.model_dump(mode="json")))
        queue = self._apply(WORKFLOW, WorkflowStarted(f"invoice@{definition.hash}", {"file": "a.pdf"}))
        while queue:
            command = queue.pop(0)
            self.commands.append(f"{command.direction.value} {command.step}")
            queue += self._apply(WORKFLOW, await self._answer(command))
        assert self.result is not None
        return self.result

    async def _answer(self, command: Command) -> Event:
        given = self.answers.get(command.step)
        if isinstance(given, Invoice):
            return StepCompleted(
                command.step, command.attempt, command.direction, command.token, given.model_dump(mode="json")
            )
        if isinstance(given, FailureKind):
            return StepFailed(command.step, command.attempt, command.direction, command.token, given, "down")
        answer = await ask(
            self.by_name[command.agent],
            json.loads(json.dumps(command.input)),
            step=command.step,
            direction=command.direction,
        )
        answer_type = type(answer)
        fields = {name: getattr(answer, name) for name in answer.__slots__}
        return answer_type(**(fields | {"token": command.token, "attempt": command.attempt}))

    def _apply(self, key: str, event: Event) -> list[Command]:
        self.offset += 1
        effects: list[Effect] = []
        value = encode_event(event)
        self.fold.apply(
            Record(
                self.offset,
                1_000 + self.offset,
                key.encode(),
                value,
                TYPE_OF[type(event)].encode(),
                f"e-{self.offset}".encode(),
                len(value),
            ),
            effects,
        )
        for effect in effects:
            if isinstance(effect, ReviewNeeded):
                self.reviews.append(effect.record)
            if isinstance(effect, Finished):
                self.result = effect.result
        return [effect.command for effect in effects if isinstance(effect, Dispatch)]


def test_the_definition_is_the_same_after_a_round_trip() -> None:
    assert parse_definition(definition.encoded).hash == definition.hash
    assert [(step.name, step.critical) for step in definition.steps] == [
        ("read", True),
        ("validate", True),
        ("match", False),
        ("post", True),
        ("notify", False),
    ]
    assert [step.name for step in definition.steps if step.compensate is not None] == ["post"]
    assert {step.name: step.service for step in definition.steps if step.service} == {"read": "ocr"}


def test_every_step_has_an_agent_and_its_schema() -> None:
    by_name = {agent.name: agent for agent in agents}
    for step in definition.steps:
        assert step.output_schema == by_name[step.agent].output_schema


def test_what_the_agents_hand_on_fits_the_schemas() -> None:
    read = next(step for step in definition.steps if step.name == "read")
    assert read.output_schema is not None
    validator = SchemaValidator(read.output_schema, "output")
    assert validator.problem(sound().model_dump(mode="json")) is None
    assert validator.problem({"kind": "letter"}) is not None


async def test_a_sound_invoice_is_posted_and_told() -> None:
    saga = Saga(read=sound())
    result = await saga.run()
    assert saga.commands == [f"execute {step.name}" for step in definition.steps]
    assert result["status"] == "completed"
    assert result["output"]["invoice"] == {
        "invoice_number": "R-7",
        "date": "2024-04-05",
        "currency": "EUR",
        "amount": "119.00",
    }
    assert result["output"]["posting"]["amount_minor"] == 11_900
    assert invoices.ledger().balance()["EUR"]["payables"] == -11_900


async def test_a_wrong_total_ends_in_review_with_nothing_posted() -> None:
    saga = Saga(read=sound(**WRONG_TOTAL))
    result = await saga.run()
    assert saga.commands == ["execute read", "execute validate"]
    assert result["status"] == "review"
    assert [review["step"] for review in saga.reviews] == ["validate"]
    assert "differs from" in saga.reviews[0]["reason"]
    assert saga.reviews[0]["details"]["invoice"]["amount"] is None
    assert invoices.ledger().entries() == ()


async def test_without_orders_and_messages_it_is_posted_all_the_same() -> None:
    saga = Saga(read=sound(), match=FailureKind.TERMINAL, notify=FailureKind.TERMINAL)
    result = await saga.run()
    assert result["status"] == "degraded"
    assert [(line["step"], line["why"], line["stand_in"]) for line in result["missing"]] == [
        ("match", "down", "default"),
        ("notify", "down", "default"),
    ]
    assert result["output"]["matches"] == []
    assert invoices.ledger().balance()["EUR"]["payables"] == -11_900
