"""The account agents: each effect once, each undone once, in whatever order the calls come."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sagalog.agents import AnyAgent
from sagalog.agents.accounts.agents import agents, create_user, reserve_mailbox, send_welcome, subscribe
from sagalog.agents.accounts.saga import account
from sagalog.agents.accounts.store import DATABASE_VARIABLE
from sagalog.agents.testing import ask
from sagalog.schemas.definitions import SchemaValidator
from sagalog.schemas.events import FailureKind, StepCompleted, StepFailed
from sagalog.schemas.ids import Direction

SIGN_UP = {"email": "ada@example.org", "name": "Ada", "plan": "team", "card": "tok_1"}
TABLES = ("user", "mailbox", "subscription", "outbox")


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "accounts.sqlite"
    monkeypatch.setenv(DATABASE_VARIABLE, str(path))
    return path


def counts(path: Path) -> list[int]:
    with sqlite3.connect(path) as connection:
        found = [connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in TABLES]
    connection.close()
    return found


async def output(agent: AnyAgent, value: Any, **options: Any) -> Any:
    answer = await ask(agent, value, **options)
    assert isinstance(answer, StepCompleted), answer
    return answer.output


async def refused(agent: AnyAgent, value: Any, **options: Any) -> str:
    answer = await ask(agent, value, **options)
    assert isinstance(answer, StepFailed), answer
    assert answer.kind is FailureKind.TERMINAL, answer
    return answer.message


async def all_steps() -> list[tuple[AnyAgent, Any, Any]]:
    """Does every step twice; each agent with its input and output."""
    done: list[tuple[AnyAgent, Any, Any]] = []
    user = await output(create_user, SIGN_UP)
    for agent, value in (
        (create_user, SIGN_UP),
        (reserve_mailbox, user),
        (subscribe, {"user": user, "card": "tok_1"}),
        (send_welcome, {"user": user, "name": "Ada"}),
    ):
        first = await output(agent, value)
        assert await output(agent, value, attempt=2) == first
        done.append((agent, value, first))
    return done


async def test_every_effect_happens_once_however_often_it_is_asked_for(database: Path) -> None:
    await all_steps()
    assert counts(database) == [1, 1, 1, 1]


async def test_everything_is_undone_once_whether_the_output_is_known_or_not(database: Path) -> None:
    for agent, value, first in reversed(await all_steps()):
        for known in (None, first):
            await output(agent, {"input": value, "output": known}, direction=Direction.COMPENSATE)
        assert "undone before" in await refused(agent, value, attempt=3)
    assert counts(database) == [0, 0, 0, 0]


async def test_what_was_undone_before_it_was_done_is_refused(database: Path) -> None:
    for attempt in (1, 2):
        undo = {"input": SIGN_UP, "output": None}
        await output(create_user, undo, direction=Direction.COMPENSATE, attempt=attempt)
    assert "undone before" in await refused(create_user, SIGN_UP)
    assert counts(database) == [0, 0, 0, 0]


async def test_business_refusals_are_final(database: Path) -> None:
    user = await output(create_user, SIGN_UP)
    assert "has an account already" in await refused(create_user, SIGN_UP, workflow_id="w-2")
    assert await refused(subscribe, {"user": user, "card": "tok_declined"}) == "the card was declined"
    assert "a card is needed" in await refused(subscribe, {"user": user, "card": None})
    free = {**user, "plan": "free"}
    assert (await output(subscribe, {"user": free, "card": None}, workflow_id="w-3"))["monthly_cents"] == 0


async def test_the_quota_is_finite() -> None:
    messages = []
    for number in range(21):
        user = await output(create_user, {**SIGN_UP, "email": f"u{number}@example.org"}, workflow_id=f"w-{number}")
        answer = await ask(reserve_mailbox, user, workflow_id=f"w-{number}")
        messages += [answer.message] if isinstance(answer, StepFailed) else []
    assert messages == ["only 24576 MiB of mail quota are left and 51200 are needed"]


async def test_the_definition_and_the_agents_speak_of_the_same() -> None:
    assert {step.agent for step in account.steps} == {agent.name for agent in agents}
    assert all(agent.compensates for agent in agents)
    assert account.input_validator is not None
    assert account.input_validator.problem(SIGN_UP) is None
    assert account.input_validator.problem({"name": "Ada"}) is not None
    schemas = {step.agent: step.output_schema for step in account.steps}
    for agent, _, first in await all_steps():
        schema = schemas[agent.name]
        assert schema is not None
        assert SchemaValidator(schema, "output").problem(first) is None


async def test_a_host_without_a_database_says_which_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATABASE_VARIABLE)
    answer = await ask(create_user, SIGN_UP)
    assert isinstance(answer, StepFailed)
    assert DATABASE_VARIABLE in answer.message
