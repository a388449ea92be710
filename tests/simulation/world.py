"""The external services that the agents act on. They outlive every process, and honour idempotency keys as the docs ask.

Rules:
- What becomes of an attempt is decided once per command and holds for every delivery of it, on whatever host: a service that
  refused a request refuses the same request again. So the end can be checked exactly.
- An undoing marks its key even when there is nothing to undo: an execution that comes after it is refused.
- Asked whether an attempt happened, they tell the truth by their books, and keep to it: an attempt that is said not to have
  happened is refused when it comes late.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sagalog.agents import AnyAgent, Context, DidNotHappen, Happened, NeedsReview, Retryable, Terminal, agent
from sagalog.infra.simulation import EPOCH_MS, SimulationLoop, current_process
from sagalog.schemas.definitions import Definition
from sagalog.schemas.ids import Direction, split_item

from .definitions import ALL_AGENTS, DEPOSIT, WITHDRAW
from .plan import ACCOUNTS, BALANCE, Plan

HANG_S = 3_600.0


class Busy(Retryable):
    """A retryable failure that some steps declare terminal."""


@dataclass(slots=True)
class Effect:
    """What became of one idempotency key."""

    applied: int = 0
    """The tick at which it was done; 0: never."""
    applied_ms: int = 0
    undone: int = 0
    undone_ms: int = 0
    reversed: bool = False
    """It was done, and then undone."""
    refused: str | None = None
    denied: int = 0
    """The newest attempt that was said not to have happened."""
    output: Any = None
    account: str | None = None
    amount: int = 0


@dataclass(slots=True)
class Decision:
    """What becomes of one command, whoever gets it."""

    what: str
    before_s: float
    after_s: float
    late: bool
    """What goes wrong goes wrong after the effect."""
    always: bool
    deaths: int = 0


@dataclass(slots=True)
class World:
    plan: Plan
    loop: SimulationLoop
    definitions: dict[str, Definition]
    """By hash."""
    rng: random.Random
    effects: dict[str, Effect] = field(default_factory=dict)
    balances: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    calm: bool = False
    """No agent misbehaves any more."""
    down: dict[str, int] = field(default_factory=dict)
    """Services that fail, with how many faults hold them down."""
    kill_host: Callable[[], None] = lambda: None
    ticks: int = 0
    _decisions: dict[str, Decision] = field(default_factory=dict)
    _running: dict[tuple[str, str, str], str] = field(default_factory=dict)
    _started: Counter[tuple[str, str]] = field(default_factory=Counter)
    _undone: set[tuple[str, str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.balances = {f"account-{number}": BALANCE for number in range(ACCOUNTS)}

    def now_ms(self) -> int:
        """True time."""
        return EPOCH_MS + int(self.loop.time() * 1000)

    def agents(self) -> list[AnyAgent]:
        """The agents of one host."""
        return [_make_agent(self, name) for name in ALL_AGENTS]

    # --- one attempt

    async def attempt(self, name: str, value: Any, ctx: Context) -> Any:
        process = current_process()
        assert process is not None
        host, key = process.name, ctx.idempotency_key
        self._enter(host, name, key, ctx)
        try:
            decision = self._decide(name, ctx)
            await asyncio.sleep(decision.before_s)
            if not decision.late:
                await self._go_wrong(decision, ctx)
            output = self._act(name, value, ctx)
            if decision.late:
                await self._go_wrong(decision, ctx)
            await asyncio.sleep(decision.after_s)
        finally:
            self._running.pop((host, name, key), None)
        return {"nonsense": True} if decision.what == "garbage" else output

    async def question(self, name: str, ctx: Context) -> Any:
        """Whether an attempt happened; the question itself may be answered late, wrongly or not at all."""
        process = current_process()
        assert process is not None
        host, key = process.name, ctx.idempotency_key
        self._enter(host, name, key, ctx)
        try:
            decision = self._decide(name, ctx)
            await asyncio.sleep(decision.before_s)
            await self._go_wrong(decision, ctx)
            effect = self.effect(key)
            if not effect.applied:
                assert ctx.about is not None
                effect.denied = max(effect.denied, ctx.about)
            await asyncio.sleep(decision.after_s)
        finally:
            self._running.pop((host, name, key), None)
        if decision.what == "garbage":
            return {"nonsense": True}
        return Happened(effect.output) if effect.applied else DidNotHappen()

    def _enter(self, host: str, name: str, key: str, ctx: Context) -> None:
        """What a host promises: nothing twice, nothing of one key side by side, nothing that is being undone."""
        other = self._running.get((host, name, key))
        if other is not None:
            self.problems.append(f"{host} runs {ctx.command_id} beside {other}: one key, two handlers")
        self._running[host, name, key] = ctx.command_id
        if ctx.direction is Direction.COMPENSATE:
            self._undone.add((host, name, key))
        elif ctx.direction is Direction.EXECUTE and (host, name, key) in self._undone:
            self.problems.append(f"{host} runs {ctx.command_id} after its compensation")
        self._started[host, ctx.command_id] += 1
        if self._started[host, ctx.command_id] > 1:
            self.problems.append(f"{host} runs {ctx.command_id} a second time")

    def _decide(self, name: str, ctx: Context) -> Decision:
        found = self._decisions.get(ctx.command_id)
        if found is None:
            found = self._decisions[ctx.command_id] = self._draw(ctx)
        return found

    def _draw(self, ctx: Context) -> Decision:
        rng, rates = self.rng, self.plan.rates
        before_s, after_s = rng.uniform(0.0, 0.03), rng.uniform(0.0, 0.02)
        late, always, number = rng.random() < 0.5, rng.random() < 0.1, rng.uniform(0, 100)
        undo = ctx.direction is Direction.COMPENSATE
        if self._is_down(ctx):
            return Decision("down", before_s, after_s, False, True)
        if self.calm:
            return Decision("ok", before_s, after_s, False, False)
        chances = [
            ("retryable", rates.retryable),
            ("hang", rates.hang),
            ("slow", rates.slow),
            ("die", rates.die),
        ]
        if ctx.direction is Direction.RECONCILE:
            chances.append(("garbage", rates.garbage))
        elif not undo:
            chances += [("terminal", rates.terminal), ("review", rates.review), ("garbage", rates.garbage)]
        elif not self._is_bank(ctx):
            chances.append(("undo_terminal", rates.undo_terminal))
        for what, chance in chances:
            number -= chance
            if number < 0:
                if what == "slow":
                    after_s = rng.uniform(0.3, 1.6)
                if what == "garbage":
                    late = True
                if what in ("retryable", "terminal", "review", "undo_terminal"):
                    # What says that it did not do it did not do it.
                    late = False
                return Decision(what, before_s, after_s, late, always)
        return Decision("ok", before_s, after_s, False, False)

    async def _go_wrong(self, decision: Decision, ctx: Context) -> None:
        match decision.what:
            case "down" | "retryable":
                raise Busy("busy") if ctx.attempt % 2 else Retryable("not now")
            case "terminal" | "undo_terminal":
                raise Terminal("will not")
            case "review":
                raise NeedsReview("look at it")
            case "hang":
                await asyncio.sleep(HANG_S)
            case "die":
                decision.deaths += 1
                if decision.always or decision.deaths == 1:
                    self.kill_host()
                    await self.loop.create_future()
            case _:
                pass

    # --- effects

    def effect(self, key: str) -> Effect:
        found = self.effects.get(key)
        if found is None:
            found = self.effects[key] = Effect()
        return found

    def _act(self, name: str, value: Any, ctx: Context) -> Any:
        if ctx.direction is Direction.COMPENSATE:
            return self._undo(ctx)
        effect = self.effect(ctx.idempotency_key)
        if effect.undone:
            raise Terminal("it was undone already")
        if effect.refused is not None:
            raise Terminal(effect.refused)
        if effect.applied:
            return effect.output
        if ctx.attempt <= effect.denied:
            raise Retryable("it was said not to have happened")
        if name in (WITHDRAW, DEPOSIT):
            self._move(name, value, effect)
        self.ticks += 1
        effect.applied, effect.applied_ms = self.ticks, self.now_ms()
        effect.output = {"key": ctx.idempotency_key, "tick": self.ticks, "amount": effect.amount}
        return effect.output

    def _move(self, name: str, value: Any, effect: Effect) -> None:
        account, amount = value["account"], value["amount"]
        if account not in self.balances:
            effect.refused = f"there is no {account}"
        elif name == WITHDRAW and self.balances[account] < amount:
            effect.refused = f"only {self.balances[account]} on {account}"
        if effect.refused is not None:
            raise Terminal(effect.refused)
        effect.account, effect.amount = account, amount
        self.balances[account] += amount if name == DEPOSIT else -amount

    def _undo(self, ctx: Context) -> Any:
        effect = self.effect(ctx.idempotency_key)
        if effect.undone:
            return {"key": ctx.idempotency_key}
        self.ticks += 1
        effect.undone, effect.undone_ms = self.ticks, self.now_ms()
        if effect.applied:
            effect.reversed = True
            if effect.account is not None:
                self.balances[effect.account] += effect.amount if ctx.step == "withdraw" else -effect.amount
        return {"key": ctx.idempotency_key}

    # ---

    def _is_down(self, ctx: Context) -> bool:
        definition = self.definitions.get(ctx.definition)
        if definition is None or not self.down:
            return False
        step = next(step for step in definition.steps if step.name == split_item(ctx.step)[0])
        return step.service is not None and self.down.get(step.service, 0) > 0

    def _is_bank(self, ctx: Context) -> bool:
        definition = self.definitions.get(ctx.definition)
        return definition is not None and definition.name == "bank"


def _make_agent(world: World, name: str) -> AnyAgent:
    @agent(name, concurrency=4)
    async def act(value: Any, ctx: Context) -> Any:
        return await world.attempt(name, value, ctx)

    @act.compensation
    async def undo(value: Any, ctx: Context) -> Any:
        return await world.attempt(name, value, ctx)

    @act.reconcile
    async def look_up(ctx: Context) -> Any:
        return await world.question(name, ctx)

    return act
