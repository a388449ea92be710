"""Workloads: random definitions over everything that the kernel offers, and the bank.

Rule: numbers are small (timeouts of a second, circuits that open after three faults), so that within a few simulated seconds
every policy is put to use.
"""

from __future__ import annotations

import random
from typing import Any, Final

from sagalog.schemas.definitions import (
    Binding,
    Budget,
    Child,
    CircuitPolicy,
    Compensation,
    Definition,
    Fallback,
    FallbackOn,
    FromInput,
    Map,
    Reconcile,
    Retry,
    Sleep,
    Step,
    Task,
    UndoOrder,
    WaitFor,
    WhenFailed,
    WhenOpen,
    fields,
    from_input,
    from_step,
)

AGENTS: Final = ("a0", "a1", "a2")
UNDOER: Final = "undoer"
WITHDRAW: Final = "withdraw"
DEPOSIT: Final = "deposit"
ALL_AGENTS: Final = (*AGENTS, UNDOER, WITHDRAW, DEPOSIT)
SERVICES: Final = ("s0", "s1")
SIGNALS: Final = ("go", "stop")
CONDITIONS: Final = ("input.number % 2 == 0", "input.number > 5", "size(input.items) > 1")

UNDO_RETRY: Final = Retry(attempts=100, base_ms=100, cap_ms=1_000)
"""An undoing is not given up while faults last, so that what has to be undone is undone in the end."""

OUTPUT_SCHEMA: Final = {"type": "object", "required": ["key"]}

BANK: Final = Definition(
    name="bank",
    steps=(
        Step(
            name="withdraw",
            agent=WITHDRAW,
            input=fields(account=from_input("source"), amount=from_input("amount")),
            retry=Retry(attempts=4, base_ms=100, cap_ms=1_000),
            timeout_ms=800,
            start_timeout_ms=6_000,
            compensate=Compensation(retry=UNDO_RETRY, timeout_ms=800),
            reconcile=Reconcile(retry=Retry(attempts=4, base_ms=100, cap_ms=1_000), timeout_ms=800),
        ),
        Step(
            name="deposit",
            agent=DEPOSIT,
            needs=("withdraw",),
            input=fields(account=from_input("target"), amount=from_step("withdraw", "amount")),
            retry=Retry(attempts=3, base_ms=100, cap_ms=1_000),
            timeout_ms=800,
            start_timeout_ms=6_000,
            compensate=Compensation(retry=UNDO_RETRY, timeout_ms=800),
            output_schema=OUTPUT_SCHEMA,
        ),
        Step(
            name="notify",
            agent="a0",
            needs=("deposit",),
            retry=Retry(attempts=2, base_ms=100, cap_ms=500),
            timeout_ms=800,
            start_timeout_ms=6_000,
        ),
    ),
    output=fields(deposit=from_step("deposit"), withdraw=from_step("withdraw")),
)


def random_definitions(rng: random.Random, count: int) -> list[Definition]:
    return [_definition(rng, f"random-{number}") for number in range(count)]


def _definition(rng: random.Random, name: str) -> Definition:
    steps: list[Step] = []
    for number in range(rng.randint(1, 6)):
        before = [step.name for step in steps]
        waits = rng.random() < 0.15
        steps.append(_waiting(rng, f"step-{number}", before) if waits else _step(rng, f"step-{number}", before))
    services = {
        service: CircuitPolicy(
            failure_ratio=0.5,
            calls_min=rng.randint(2, 5),
            window_ms=rng.choice((2_000, 10_000)),
            recovery_ms=rng.choice((200, 800, 2_000)),
        )
        for service in SERVICES
        if any(step.service == service for step in steps)
    }
    return Definition(
        name=name,
        steps=tuple(steps),
        deadline_ms=rng.randint(1_500, 12_000) if rng.random() < 0.2 else None,
        services=services,
        output=from_step(steps[-1].name) if rng.random() < 0.3 else None,
        budget=Budget(attempts=rng.randint(3, 12)) if rng.random() < 0.15 else None,
    )


def some_by_needs(rng: random.Random, definitions: list[Definition]) -> list[Definition]:
    """One in four is undone by its needs instead of in reverse order."""
    return [
        definition.model_copy(update={"undo_order": UndoOrder.BY_NEEDS}) if rng.random() < 0.25 else definition
        for definition in definitions
    ]


def with_children(rng: random.Random, definitions: list[Definition]) -> list[Definition]:
    """In one plan of three: some steps are done by workflows of one definition more."""
    if rng.random() >= 1 / 3:
        return definitions
    child = _definition(rng, "child")
    return [child, *(_by_children(rng, definition) for definition in definitions)]


def _by_children(rng: random.Random, definition: Definition) -> Definition:
    steps = tuple(
        _child_step(rng, step) if step.agent is not None and rng.random() < 0.4 else step for step in definition.steps
    )
    used = {step.service for step in steps}
    services = {service: policy for service, policy in definition.services.items() if service in used}
    return definition.model_copy(update={"steps": steps, "services": services})


def _child_step(rng: random.Random, step: Step) -> Step:
    return Step(
        name=step.name,
        workflow=Child(definition="child", timeout_ms=rng.choice((1_500, 60_000))),
        needs=step.needs,
        when=step.when,
        map=step.map,
        retry=step.retry,
        critical=step.critical,
        when_failed=step.when_failed,
        default=step.default,
        fallbacks=tuple(fallback for fallback in step.fallbacks if fallback.on != (FallbackOn.CIRCUIT_OPEN,)),
        budget=step.budget,
        irreversible=rng.random() < 0.1,
        input=FromInput(input=""),
        **_of_agents(step),
    )


def _of_agents(step: Step) -> dict[str, int]:
    """Of the agents among a step's fallbacks, if there are any."""
    if all(fallback.agent is None for fallback in step.fallbacks):
        return {}
    return {"timeout_ms": step.timeout_ms, "start_timeout_ms": step.start_timeout_ms}


def _waiting(rng: random.Random, name: str, before: list[str]) -> Step:
    """A step without an agent: it sleeps, waits for a signal, or is a person's task."""
    common: dict[str, Any] = {"name": name, "needs": _needs(rng, before), "when": _condition(rng)}
    if rng.random() < 0.5:
        common |= {"critical": False, "default": {"default": name}}
    match rng.randrange(3):
        case 0:
            return Step(**common, sleep=Sleep(ms=rng.choice((10, 300, 2_000))))
        case 1:
            return Step(**common, wait_for=WaitFor(signal=rng.choice(SIGNALS), timeout_ms=rng.choice((500, 4_000))))
        case _:
            escalate = "boss" if rng.random() < 0.3 else None
            return Step(**common, task=Task(title=name, timeout_ms=rng.choice((500, 4_000)), escalate_to=escalate))


def _step(rng: random.Random, name: str, before: list[str]) -> Step:
    needs = _needs(rng, before)
    service = rng.choice(SERVICES) if rng.random() < 0.4 else None
    critical = rng.random() < 0.75
    fallbacks = _fallbacks(rng, name) if rng.random() < 0.25 else ()
    when_open = WhenOpen.PARK
    if service is not None:
        any_kind = any(not fallback.on for fallback in fallbacks)
        choices = [WhenOpen.PARK, WhenOpen.PARK, WhenOpen.FAIL, *([WhenOpen.FALL_BACK] if any_kind else [])]
        when_open = rng.choice(choices)
    held = critical and rng.random() < 0.15
    mapped = None
    if rng.random() < 0.15:
        mapped = Map(over=from_input("items"), concurrency=rng.randint(1, 3), tolerate=rng.randint(0, 1))
    return Step(
        name=name,
        agent=rng.choice(AGENTS),
        needs=needs,
        when=_condition(rng),
        map=mapped,
        input=FromInput(input="") if mapped else _binding(rng, list(needs)),
        retry=Retry(
            attempts=rng.randint(1, 4),
            base_ms=rng.choice((20, 200)),
            cap_ms=1_000,
            terminal=("Busy",) if rng.random() < 0.2 else (),
            total_ms=rng.choice((300, 3_000)) if rng.random() < 0.15 else None,
        ),
        timeout_ms=rng.choice((400, 800, 1_500)),
        start_timeout_ms=rng.choice((1_000, 4_000, 10_000)),
        heartbeat_timeout_ms=rng.choice((None, None, 600)),
        critical=critical,
        when_failed=WhenFailed.REVIEW if held else WhenFailed.STOP,
        default=None if critical else {"default": name},
        compensate=_compensation(rng) if rng.random() < 0.7 else None,
        service=service,
        when_open=when_open,
        fallbacks=fallbacks,
        budget=Budget(attempts=rng.randint(1, 6)) if rng.random() < 0.1 else None,
        output_schema=OUTPUT_SCHEMA if rng.random() < 0.5 else None,
        reconcile=_reconcile(rng) if rng.random() < 0.5 else None,
    )


def _needs(rng: random.Random, before: list[str]) -> tuple[str, ...]:
    return tuple([step for step in before if rng.random() < 0.4][:3])


def _condition(rng: random.Random) -> str | None:
    return rng.choice(CONDITIONS) if rng.random() < 0.15 else None


def _fallbacks(rng: random.Random, name: str) -> tuple[Fallback, ...]:
    """A chain: agents for some failures or for all, and perhaps a constant at its end."""
    chain = [
        Fallback(agent=rng.choice(AGENTS), on=rng.choice(((), (), (FallbackOn.TIMEOUT,), (FallbackOn.ERROR,))))
        for _ in range(rng.randint(0, 2))
    ]
    if not chain or rng.random() < 0.4:
        chain.append(Fallback(value={"constant": name}))
    return tuple(chain)


def _compensation(rng: random.Random) -> Compensation:
    patient = rng.random() < 0.8
    return Compensation(
        agent=UNDOER if rng.random() < 0.2 else None,
        retry=UNDO_RETRY if patient else Retry(attempts=2, base_ms=50, cap_ms=200),
        timeout_ms=rng.choice((400, 800)),
        when_failed=WhenFailed.REVIEW if not patient and rng.random() < 0.5 else WhenFailed.STOP,
    )


def _reconcile(rng: random.Random) -> Reconcile:
    patient = rng.random() < 0.7
    return Reconcile(
        timeout_ms=rng.choice((400, 800)),
        retry=UNDO_RETRY if patient else Retry(attempts=rng.randint(1, 2), base_ms=50, cap_ms=200),
    )


def _binding(rng: random.Random, needs: list[str]) -> Binding:
    choices: list[Any] = [FromInput(input=""), from_input("number")]
    if needs:
        choices += [from_step(needs[0]), fields(number=from_input("number"), before=from_step(needs[-1], "key"))]
    found: Binding = rng.choice(choices)
    return found
