"""What a seed means: the cluster, the workflows, the faults. A plan is data, so that a shrinker can leave parts of it out."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from sagalog.schemas.definitions import Definition
from sagalog.schemas.events import OnDuplicate
from sagalog.topics.simulated import Request
from sagalog.topics.simulated.faults import FAILING

from .changed import changes_of, with_migrations
from .definitions import BANK, SIGNALS, random_definitions, some_by_needs, with_children
from .limited import with_limits
from .timetables import Timetable, timetables

CHAOS_MS_MAX: Final = 20_000
WORKFLOWS_MAX: Final = 120
ACCOUNTS: Final = 5
BALANCE: Final = 100
NARROW_EVERY: Final = 2
LEFT_OUT: Final = 0.6
ONLY_ROLLED: Final = 0.12
"""Of all plans: nothing else goes wrong in them, so a roll must not be noticed."""
ROLLED_TOO: Final = 0.06
PROJECTED_EVERY: Final = 5
"""PostgreSQL is real, and costs more than all that is simulated."""


class Kind(StrEnum):
    """What is done to the cluster, and when it ends of itself."""

    KILL = "kill"
    """Of a process, at once or after some more of its steps; started again after `for_ms`."""
    FREEZE = "freeze"
    """For `for_ms`: longer than the session makes a zombie of it."""
    STOP = "stop"
    """In good order; started again after `for_ms`."""
    ROLL = "roll"
    """Each engine in turn stops in good order and is started again after `for_ms`; the next one `amount` ms later, or, when that
    is 0, once it is ready."""
    OUTAGE = "outage"
    """The brokers are away for `for_ms`."""
    CLOCK_STEP = "clock_step"
    """The wall clock of a machine moves by `amount` milliseconds."""
    DRIFT = "drift"
    """The clocks of a machine run by `amount` percent too fast, for `for_ms`."""
    JOIN = "join"
    """One engine more, for `for_ms`: everything is handed out anew, twice."""
    COMPACT = "compact"
    """The cleaner runs over the compacted topics."""
    SERVICE_DOWN = "service_down"
    """An external service fails every call, for `for_ms`."""
    REPLAY = "replay"
    """`amount` records of the events topic come a second time: answers, timers, starts, claims."""
    FORGE = "forge"
    """Somebody answers `amount` commands that are not theirs: a wrong token."""
    GARBAGE = "garbage"
    """`amount` records that cannot be read, or belong to no workflow."""
    STORM = "storm"
    """The engines' group is told `amount` times to join anew, and now and then that its members' sessions are over."""
    DATABASE_DOWN = "database_down"
    """PostgreSQL is away for `for_ms`: every session ends."""
    DATABASE_SILENT = "database_silent"
    """For `for_ms` nothing gets through to PostgreSQL or back, and neither side is told."""
    DATABASE_EMPTIED = "database_emptied"
    """PostgreSQL is away for `for_ms`, and its rows are for ever: it was restored from nothing."""
    PROJECTOR_JOINS = "projector_joins"
    """One projector more, for `for_ms`."""
    PROJECTOR_STORM = "projector_storm"
    """As `STORM`, of the projectors' group."""
    SKIP = "skip"
    """All hosts die, and before they are back somebody moves their agents' groups to the end: what lay before is never answered."""
    HEALTH = "health"
    """`amount` records of the topic `health`: reports, agents that are forgotten, and some that cannot be read."""


@dataclass(frozen=True, slots=True)
class Fault:
    at_ms: int
    kind: Kind
    target: str = ""
    """A machine (`engine-0`, `host-1`) or a service."""
    for_ms: int = 0
    amount: int = 0
    """Steps before a kill, milliseconds of a clock's step or between two engines, percent of drift, records of a replay."""

    def __str__(self) -> str:
        parts = [f"{self.at_ms} ms: {self.kind}", self.target]
        if self.for_ms:
            parts.append(f"for {self.for_ms} ms")
        if self.amount:
            parts.append(f"({self.amount})")
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Start:
    """One workflow."""

    workflow_id: str
    definition: str
    input: Any
    at_ms: int
    deadline_ms: int | None = None
    cancel_at_ms: int | None = None
    pause_at_ms: int | None = None
    resume_at_ms: int | None = None
    terminate_at_ms: int | None = None
    signals: tuple[tuple[int, str], ...] = ()
    """(when, which); some come too early, some twice, some never."""
    again: bool = False
    """Started a second time, a moment later."""
    rewinds: tuple[tuple[int, str, bool], ...] = ()
    """(when, to which step, whether it is undone first); many come when they cannot be."""
    tenant: str | None = None
    priority: int | None = None
    attributes: dict[str, Any] | None = None
    on_duplicate: OnDuplicate = OnDuplicate.IGNORE
    further: tuple[tuple[int, OnDuplicate, int], ...] = ()
    """Starts under the same id: (when, policy, priority)."""
    prioritize_at_ms: int | None = None
    migrations: tuple[tuple[int, str], ...] = ()
    """(when, to which definition)"""

    @property
    def several(self) -> bool:
        """Whether more than one run may come of it."""
        policies = {self.on_duplicate, *(policy for _, policy, _ in self.further)}
        return OnDuplicate.REPLACE in policies and (self.again or bool(self.further))


@dataclass(frozen=True, slots=True)
class Rates:
    """How agents misbehave, per hundred attempts."""

    retryable: int = 0
    terminal: int = 0
    review: int = 0
    hang: int = 0
    """The handler never answers; half of them after the effect."""
    slow: int = 0
    """The answer comes around the timeout."""
    garbage: int = 0
    """What it returns breaks the step's schema, after the effect."""
    die: int = 0
    """The host dies; half of them after the effect, one in ten of them every time."""
    undo_terminal: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    seed: int
    partitions: int
    engines: int
    hosts: int
    chaos_ms: int
    shuffled: bool
    rates: Rates
    definitions: tuple[Definition, ...]
    starts: tuple[Start, ...]
    faults: tuple[Fault, ...]
    log_faults: dict[str, Any] = field(default_factory=dict)
    """Arguments of the simulated Kafka's `Faults`."""
    changes: tuple[Definition, ...] = ()
    """Other versions of the definitions, to which workflows are moved."""
    projectors: int = 0
    """Without any there is no database either."""
    sql_faults: dict[str, Any] = field(default_factory=dict)
    """Arguments of the database's `SqlFaults`."""
    timetables: tuple[Timetable, ...] = ()
    cut: tuple[int, float] = (64, 0.0)
    """Checkpoints encoded for a snapshot before folding goes on, and for how many seconds; so that it meets one half done."""


def plan_of(seed: int, *, projected: bool | None = None, rolled: bool | None = None) -> Plan:
    """The plan of a seed. One in eight is without faults, and one in eight without misbehaving agents.

    `projected`: with projectors and a database; by default one seed in PROJECTED_EVERY is. `rolled`: with rolling restarts and no
    other faults; by default a share of ONLY_ROLLED.
    """
    plan = _plan_of(seed)
    if seed % NARROW_EVERY == 0:
        plan = narrowed(plan)
    if seed % PROJECTED_EVERY == 0 if projected is None else projected:
        plan = with_projectors(plan)
    return with_rolls(plan, rolled)


def _plan_of(seed: int) -> Plan:
    rng = random.Random(seed)
    chaos_ms = rng.randint(3_000, CHAOS_MS_MAX)
    engines = rng.randint(1, 3)
    hosts = rng.randint(1, 3)
    calm = rng.random() < 0.125
    polite = rng.random() < 0.125
    drawn = random_definitions(rng, rng.randint(1, 3))
    # Of streams of their own, as whatever is drawn in between would make another plan of every seed.
    drawn = with_children(random.Random(f"{seed}/children"), drawn)
    definitions = (BANK, *some_by_needs(random.Random(f"{seed}/undo"), drawn))
    changes = with_limits(seed, changes_of(seed, definitions))
    definitions = with_limits(seed, definitions)
    plan = Plan(
        seed=seed,
        partitions=rng.randint(2, 4),
        engines=engines,
        hosts=hosts,
        chaos_ms=chaos_ms,
        shuffled=rng.random() < 0.75,
        rates=Rates() if polite else _rates(rng),
        definitions=definitions,
        starts=tuple(_rewound(seed, definitions, _identified(seed, _starts(rng, seed, definitions, chaos_ms)))),
        faults=() if calm else tuple(_faults(rng, chaos_ms, engines, hosts)),
        log_faults={} if calm else _log_faults(rng),
        changes=changes,
        cut=random.Random(f"{seed}/cut").choice(((1, 0.01), (2, 0.0), (64, 0.0))),
        timetables=timetables(random.Random(f"{seed}/schedules"), definitions[1:], chaos_ms),
    )
    return replace(plan, starts=with_migrations(seed, plan.starts, definitions, changes))


def with_rolls(plan: Plan, only: bool | None = None) -> Plan:
    """Some plans with rolling restarts in them, beside other faults or alone. By a stream of its own: all else stays as it was."""
    rng = random.Random(f"rolls/{plan.seed}")
    drawn = rng.random()
    alone = drawn < ONLY_ROLLED if only is None else only
    if not alone and not ONLY_ROLLED <= drawn < ONLY_ROLLED + ROLLED_TOO:
        return plan
    count = rng.choice((1, 2, 3))
    rolls = [
        Fault(rng.randint(200, plan.chaos_ms), Kind.ROLL, for_ms=rng.choice((50, 1_000, 5_000)), amount=apart_ms)
        for apart_ms in (rng.choice((0, 0, 200, rng.randint(2_000, 3_000))) for _ in range(count))
    ]
    if alone:
        plan = replace(plan, faults=(), log_faults={}, sql_faults={})
    else:
        # What is out while a partition is handed over is lost: its next owner has to notice.
        rolls += [
            Fault(roll.at_ms + rng.randint(1_300, 3_000), Kind.SKIP, for_ms=rng.choice((300, 3_000))) for roll in rolls
        ]
    return replace(plan, faults=tuple(sorted((*plan.faults, *rolls), key=lambda fault: fault.at_ms)))


def narrowed(plan: Plan) -> Plan:
    """The plan with fewer kinds of things in it, and more of each: what a rare pair needs is then often in one run.

    Most of what people do to a workflow ends it or sends it elsewhere; where each does all of it, few get far enough for the rest.
    """
    rng = random.Random(f"narrow/{plan.seed}")
    nothing: tuple[dict[str, Any], ...] = (
        {"cancel_at_ms": None},
        {"pause_at_ms": None, "resume_at_ms": None},
        {"terminate_at_ms": None},
        {"deadline_ms": None},
        {"again": False},
        {"rewinds": ()},
        {"on_duplicate": OnDuplicate.IGNORE, "further": ()},
        {"migrations": ()},
    )
    without = {name: value for parts in nothing if rng.random() < LEFT_OUT for name, value in parts.items()}
    faults = plan.faults
    if faults:
        faults = tuple(_faults(rng, plan.chaos_ms, plan.engines, plan.hosts, share=0.3, counts=(6, 24)))
    return replace(
        plan,
        starts=tuple(replace(start, **without) for start in plan.starts),
        timetables=() if rng.random() < LEFT_OUT else plan.timetables,
        faults=faults,
    )


def _rates(rng: random.Random) -> Rates:
    def some(most: int) -> int:
        return rng.randint(0, most) if rng.random() < 0.6 else 0

    return Rates(
        retryable=some(30),
        terminal=some(12),
        review=some(4),
        hang=some(8),
        slow=some(10),
        garbage=some(8),
        die=some(4),
        undo_terminal=some(5),
    )


def _starts(rng: random.Random, seed: int, definitions: tuple[Definition, ...], chaos_ms: int) -> list[Start]:
    found = []
    for number in range(rng.randint(10, WORKFLOWS_MAX)):
        definition = definitions[0] if rng.random() < 0.4 else rng.choice(definitions)
        at_ms = rng.randint(0, chaos_ms)
        value: Any = {"items": list(range(rng.randint(0, 4))), "number": number}
        if definition.name == BANK.name:
            source, target = rng.sample(range(ACCOUNTS), 2)
            # Now and then the target is an account that does not exist: the deposit fails for good.
            gone = rng.random() < 0.2
            value |= {
                "source": f"account-{source}",
                "target": "closed" if gone else f"account-{target}",
                "amount": rng.randint(1, BALANCE // 2),
            }
        paused = rng.random() < 0.08
        found.append(
            Start(
                workflow_id=f"w{seed}-{number}",
                definition=definition.name,
                input=value,
                at_ms=at_ms,
                deadline_ms=rng.randint(500, 8_000) if rng.random() < 0.05 else None,
                cancel_at_ms=at_ms + rng.randint(0, 3_000) if rng.random() < 0.12 else None,
                pause_at_ms=at_ms + rng.randint(0, 2_000) if paused else None,
                resume_at_ms=at_ms + rng.randint(2_000, 6_000) if paused else None,
                terminate_at_ms=at_ms + rng.randint(0, 3_000) if rng.random() < 0.03 else None,
                signals=tuple(
                    (at_ms + rng.randint(0, 3_000), rng.choice(SIGNALS)) for _ in range(rng.choice((0, 0, 1, 2)))
                ),
                again=rng.random() < 0.1,
            )
        )
    return sorted(found, key=lambda start: start.at_ms)


def _identified(seed: int, starts: list[Start]) -> list[Start]:
    """Tenants, priorities and starts under an id in use. By a stream of chance of their own: what else a seed means stays."""
    rng = random.Random(f"identity/{seed}")
    policies = (OnDuplicate.REJECT, OnDuplicate.REPLACE, OnDuplicate.REPLACE)
    found = []
    for start in starts:
        said: dict[str, Any] = {}
        if rng.random() < 0.3:
            said |= {
                "tenant": rng.choice(("acme", "other")),
                "priority": rng.randint(0, 9),
                "attributes": {"customer": rng.randint(1, 5), "vip": rng.random() < 0.5},
            }
        if rng.random() < 0.15:
            said["on_duplicate"] = rng.choice(policies)
        if rng.random() < 0.15:
            said["further"] = tuple(
                (start.at_ms + rng.randint(0, 4_000), rng.choice(policies), rng.randint(0, 9))
                for _ in range(rng.choice((1, 1, 2, 3)))
            )
        if rng.random() < 0.1:
            said["prioritize_at_ms"] = start.at_ms + rng.randint(0, 2_000)
        found.append(replace(start, **said))
    return found


def _rewound(seed: int, definitions: tuple[Definition, ...], starts: list[Start]) -> list[Start]:
    """Some of the workflows are sent back to a step. By a stream of its own: the rest of a seed's plan is as it was before."""
    rng = random.Random(f"rewinds/{seed}")
    steps = {definition.name: [step.name for step in definition.steps] for definition in definitions}
    found = []
    for start in starts:
        count = rng.choice((0, 0, 0, 0, 1, 1, 2))
        rewinds = [
            (start.at_ms + rng.randint(20, 2_500), rng.choice(steps[start.definition]), rng.random() < 0.7)
            for _ in range(count)
        ]
        found.append(replace(start, rewinds=tuple(sorted(rewinds))))
    return found


def _faults(
    rng: random.Random,
    chaos_ms: int,
    engines: int,
    hosts: int,
    *,
    share: float = 0.6,
    counts: tuple[int, int] = (2, 14),
) -> list[Fault]:
    machines = [f"engine-{n}" for n in range(engines)] + [f"host-{n}" for n in range(hosts)]
    weights = {
        Kind.KILL: 6,
        Kind.FREEZE: 4,
        Kind.STOP: 2,
        Kind.OUTAGE: 2,
        Kind.CLOCK_STEP: 2,
        Kind.DRIFT: 1,
        Kind.JOIN: 2,
        Kind.COMPACT: 2,
        Kind.SERVICE_DOWN: 2,
        Kind.REPLAY: 3,
        Kind.FORGE: 2,
        Kind.GARBAGE: 1,
        Kind.STORM: 1,
        Kind.SKIP: 1,
    }
    # Each run is about some of them, so that a rare pair meets often in a few runs rather than never in all.
    kinds = [kind for kind in weights if rng.random() < share] or [Kind.KILL]
    found = []
    for _ in range(rng.randint(*counts)):
        (kind,) = rng.choices(kinds, [weights[kind] for kind in kinds])
        found.append(_fault(rng, kind, rng.randint(200, chaos_ms), machines))
    return sorted(found, key=lambda fault: fault.at_ms)


def _fault(rng: random.Random, kind: Kind, at_ms: int, machines: list[str]) -> Fault:
    machine = rng.choice(machines)
    match kind:
        case Kind.KILL:
            steps = rng.randint(1, 400) if rng.random() < 0.5 else 0
            return Fault(at_ms, kind, machine, rng.choice((50, 1_000, 8_000)), steps)
        case Kind.FREEZE:
            return Fault(at_ms, kind, machine, rng.choice((300, 4_000, 15_000, 30_000)))
        case Kind.STOP:
            return Fault(at_ms, kind, machine, rng.choice((100, 3_000)))
        case Kind.OUTAGE:
            return Fault(at_ms, kind, for_ms=rng.choice((100, 1_000, 5_000, 40_000)))
        case Kind.CLOCK_STEP:
            return Fault(at_ms, kind, machine, amount=rng.choice((-1, 1)) * rng.choice((50, 2_000, 60_000)))
        case Kind.DRIFT:
            return Fault(at_ms, kind, machine, rng.choice((2_000, 10_000)), rng.choice((-30, -2, 2, 30)))
        case Kind.JOIN:
            return Fault(at_ms, kind, for_ms=rng.choice((200, 2_000, 10_000)))
        case Kind.SERVICE_DOWN:
            return Fault(at_ms, kind, rng.choice(("s0", "s1")), rng.choice((500, 3_000, 8_000)))
        case Kind.COMPACT:
            return Fault(at_ms, kind)
        case Kind.SKIP:
            return Fault(at_ms, kind, for_ms=rng.choice((300, 3_000)))
        case Kind.REPLAY | Kind.FORGE | Kind.GARBAGE:
            return Fault(at_ms, kind, amount=rng.randint(1, 30))
        case Kind.STORM:
            return Fault(at_ms, kind, amount=rng.randint(2, 8))


def _log_faults(rng: random.Random) -> dict[str, Any]:
    """For `Faults`. Each run has some of them, from one in a thousand requests to a few in a hundred."""

    def some(kinds: Iterable[Request], most: float) -> dict[Request, float]:
        return {kind: most * rng.random() ** 2 for kind in kinds if rng.random() < 0.4}

    level = rng.choice((0.0, 0.2, 1.0))
    if not level:
        return {}
    return {
        "lost": some(Request, 0.03 * level),
        "answer_lost": some(Request, 0.03 * level),
        "refused": some(FAILING, 0.01 * level),
        "unknown": some(FAILING, 0.01 * level),
        "noticed_late": rng.choice((0.0, 0.1)),
        "slow": some(Request, 0.05 * level),
        "slow_ms": rng.choice(((50, 500), (100, 3_000))),
        "leader_change": rng.choice((0.0, 0.0, 0.01 * level)),
        "rebalance": rng.choice((0.0, 0.0, 0.05 * level)),
        "session_timeout": rng.choice((0.0, 0.0, 0.02 * level)),
    }


def with_projectors(plan: Plan) -> Plan:
    """The plan with a database and what goes wrong with it, from a stream of chance of its own: all else stays as it was."""
    rng = random.Random(f"projection/{plan.seed}")
    projectors = rng.randint(1, 2)
    calm = not plan.faults
    faults = [] if calm else _projection_faults(rng, plan.chaos_ms, projectors)
    return replace(
        plan,
        projectors=projectors,
        faults=tuple(sorted((*plan.faults, *faults), key=lambda fault: fault.at_ms)),
        sql_faults={} if calm else _sql_faults(rng),
    )


def _projection_faults(rng: random.Random, chaos_ms: int, projectors: int) -> list[Fault]:
    machines = [f"projector-{n}" for n in range(projectors)]
    weights = {
        Kind.KILL: 5,
        Kind.FREEZE: 4,
        Kind.STOP: 1,
        Kind.CLOCK_STEP: 1,
        Kind.DATABASE_DOWN: 2,
        Kind.DATABASE_SILENT: 2,
        Kind.DATABASE_EMPTIED: 1,
        Kind.PROJECTOR_JOINS: 3,
        Kind.PROJECTOR_STORM: 2,
        Kind.HEALTH: 4,
    }
    kinds = [kind for kind in weights if rng.random() < 0.6] or [Kind.KILL]
    found = []
    for _ in range(rng.randint(1, 10)):
        (kind,) = rng.choices(kinds, [weights[kind] for kind in kinds])
        at_ms = rng.randint(200, chaos_ms)
        match kind:
            case Kind.DATABASE_DOWN | Kind.DATABASE_EMPTIED:
                fault = Fault(at_ms, kind, for_ms=rng.choice((50, 1_000, 8_000)))
            case Kind.DATABASE_SILENT:
                fault = Fault(at_ms, kind, for_ms=rng.choice((200, 5_000, 20_000)))
            case Kind.PROJECTOR_JOINS:
                fault = Fault(at_ms, kind, for_ms=rng.choice((200, 2_000, 10_000)))
            case Kind.PROJECTOR_STORM:
                fault = Fault(at_ms, kind, amount=rng.randint(2, 8))
            case Kind.HEALTH:
                fault = Fault(at_ms, kind, amount=rng.randint(1, 12))
            case _:
                fault = _fault(rng, kind, at_ms, machines)
        found.append(fault)
    return found


def _sql_faults(rng: random.Random) -> dict[str, Any]:
    """For `SqlFaults`. A transaction is some twenty exchanges and one commit."""

    def some(most: float) -> float:
        return most * rng.random() ** 2 if rng.random() < 0.5 else 0.0

    level = rng.choice((0.0, 0.2, 1.0))
    if not level:
        return {}
    return {
        "refused": some(0.3 * level),
        "lost": some(0.004 * level),
        "answer_lost": some(0.004 * level),
        "commit_lost": some(0.05 * level),
        "commit_answer_lost": some(0.1 * level),
        "left_open": some(0.5),
        "conflict": some(0.004 * level),
        "slow": some(0.02 * level),
        "slow_ms": rng.choice(((20, 200), (100, 3_000))),
    }
