"""Limits by key, as one partition counts them: what it has out, its tokens, and its share of what holds fleet-wide.

Of a limit of N under a key every partition has a fixed share, which it uses at once; the rest is leased: it goes to whoever says
that commands wait (`engine.kernel.leases`), and comes back when others wait, or when it was idle for a while. All shares together
never exceed N. With P partitions the fixed share is N / 2P, rounded down: none at all of a limit below 2P, so that the whole
of it can be where it is needed.

A rate is divided by its burst: who holds k of a burst of b holds k tokens at most, and gets k / b of the rate.

Rules:
- What is given back is not used from that moment on; what was given is used once the lease shows that it answers this owner's
  newest word. Between the two it uses the lesser.
- A bucket of tokens is empty when its owner begins. What is leased to it comes as the lease says: full where it was free for long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sagalog.infra.queues import FairQueue
from sagalog.schemas.records import DemandRecord, LeasePartRecord, LeaseRecord

from .limits import LEASE_IDLE_MS, LEASE_REPEAT_MS, LEASE_TURN_MS

CONCURRENCY: Final = "concurrency"
RATE: Final = "rate"

NEVER_MS: Final = 2**62


@dataclass(frozen=True, slots=True)
class Claim:
    """What a command needs of one limit: a place among those that are out, or a token."""

    kind: str
    scope: str
    limit: str
    key: str
    amount: int
    """Attempts out at once, or the burst."""
    per_second: float = 0.0

    @property
    def bucket(self) -> str:
        return f"{self.kind}/{self.scope}/{self.limit}/{self.key}"


@dataclass(frozen=True, slots=True)
class Claims:
    """All that a command needs, and whose it is."""

    tenant: str = ""
    places: tuple[Claim, ...] = ()
    """In the order in which they are taken: the same for all commands, so that no two wait for each other."""
    tokens: tuple[Claim, ...] = ()


NO_CLAIMS: Final = Claims()


def fixed_share(amount: int, partitions: int) -> int:
    """What each partition may use without asking."""
    return amount if partitions == 1 else amount // (2 * partitions)


@dataclass(slots=True)
class Lease:
    """What this partition is leased of one limit under one key."""

    share: int = 0
    """By the newest lease that was read."""
    keeps: int = 0
    """It uses no more, by its newest word."""
    usable: int = 0
    wanted: int = 0
    """How much others lack."""
    takers: int = 1
    known: bool = False
    """The lease holds something about this partition."""
    full: int = 0
    """Of what it was given, so much came full, by the newest lease that was read."""
    seq: int = 0
    """Of its newest word; 0: it has said nothing since the take-over."""
    answered: bool = True
    needs: int = 0
    """As it said last."""
    said_ms: int = 0
    since_ms: int = 0
    """When it was given more the last time."""
    busy_ms: int = 0
    """When it last needed all it has."""
    used: bool = False
    """Something went out since it was given more."""
    target: int | None = None
    """While it gives back: what is to remain."""
    told: bool = False
    """... and its newest word says so."""


@dataclass(slots=True)
class Bucket:
    """One limit under one key, in this partition."""

    claim: Claim
    partitions: int
    queue: FairQueue[str]
    lease: Lease = field(default_factory=Lease)
    out: int = 0
    """Places that are taken."""
    tokens: float = 0.0
    filled_ms: int = 0
    """When the tokens were counted last, by the monotonic clock."""

    @property
    def fixed(self) -> int:
        return fixed_share(self.claim.amount, self.partitions)

    @property
    def pool(self) -> int:
        """What is leased of the limit, to all partitions together."""
        return self.claim.amount - self.partitions * self.fixed

    @property
    def allowed(self) -> int:
        return self.fixed + min(self.lease.usable, self.pool)

    # --- places

    @property
    def room(self) -> int:
        return self.allowed - self.out

    # --- tokens

    def fill(self, now_ms: int) -> float:
        """The tokens that are there now."""
        gone_ms, self.filled_ms = max(0, now_ms - self.filled_ms), max(now_ms, self.filled_ms)
        allowed = self.allowed
        more = gone_ms / 1000 * self.claim.per_second * allowed / self.claim.amount
        self.tokens = min(float(allowed), self.tokens + more)
        return self.tokens

    def next_token_ms(self) -> int:
        """When the next token is there, if nothing changes; it is to be filled before."""
        if self.allowed == 0 or self.claim.per_second == 0:
            return NEVER_MS
        lacking = max(0.0, 1.0 - self.tokens)
        return self.filled_ms + int(lacking * 1000 * self.claim.amount / (self.claim.per_second * self.allowed)) + 1

    # --- the lease

    def adopt(self, claim: Claim, now_ms: int) -> None:
        """Another version of the definition may have other numbers: the newest command's hold."""
        if claim != self.claim:
            if self.claim.kind == RATE:
                self.fill(now_ms)
            self.claim = claim

    def read(self, record: LeaseRecord | None, partition: int, epoch: int, now_ms: int) -> None:
        """The lease has changed; None: nobody has any of it."""
        if self.claim.kind == RATE:
            self.fill(now_ms)
        lease = self.lease
        part = record["parts"].get(str(partition)) if record is not None else None
        lease.wanted, lease.takers = (record["wanted"], record["takers"]) if record is not None else (0, 0)
        lease.known = part is not None
        lease.share = part["share"] if part is not None else 0
        if part is not None:
            lease.answered = (part["epoch"], part["seq"]) == (epoch, lease.seq)
        elif lease.needs == 0:
            lease.answered = True  # of who needs nothing and holds nothing, nothing is kept
        before = lease.usable
        if not lease.answered:
            lease.usable = min(lease.usable, lease.share, lease.keeps)
        elif lease.target is not None and not lease.told:
            lease.usable = min(lease.target, lease.share)
        else:
            lease.target, lease.usable = None, lease.share
        if lease.usable > before:
            lease.since_ms = lease.busy_ms = now_ms
            lease.used = False
        self._count_full(part, lease.usable - before)

    def _count_full(self, part: LeasePartRecord | None, more: int) -> None:
        """Tokens that came with what was given."""
        lease = self.lease
        full = part["full"] if part is not None else 0
        came = full - lease.full if full >= lease.full else full  # the count began anew
        lease.full = full
        if came > 0 and more > 0 and self.claim.kind == RATE:
            self.tokens += min(came, more)

    @property
    def has_business(self) -> bool:
        """Whether there may be something to say: of thousands of keys few are at their limit."""
        return bool(self.queue) or self.lease.known or not self.lease.answered

    def word(self, now_ms: int, idle_ms: int = LEASE_IDLE_MS) -> tuple[int, int] | None:
        """(needs, keeps) that the partition is to say now; None when there is nothing to say."""
        lease, pool = self.lease, self.pool
        if self.claim.kind == RATE:
            self.fill(now_ms)
            in_use, needs = 0, pool if self.queue else 0
        else:
            in_use = max(0, self.out - self.fixed)
            needs = min(pool, max(0, self.out + len(self.queue) - self.fixed))
        if needs and needs >= lease.usable:
            lease.busy_ms = now_ms
        self._give_back(needs, now_ms, idle_ms)
        keeps = max(in_use, lease.usable)
        gives = keeps < lease.share and (lease.answered or keeps < lease.keeps)
        lacks = needs > lease.usable and lease.target is None
        # Not while an answer is awaited: one that speaks faster than it is answered would never be answered.
        asks = lacks and (lease.answered or lease.seq == 0) and (needs != lease.needs or lease.seq == 0)
        takes_back = lease.answered and needs <= lease.usable and lease.needs > lease.share
        inherited = lease.known and lease.seq == 0
        repeats = (lacks or not lease.answered) and now_ms - lease.said_ms >= LEASE_REPEAT_MS
        return (needs, keeps) if gives or asks or takes_back or inherited or repeats else None

    def say(self, said: tuple[int, int], partition: int, epoch: int, seq: int, now_ms: int) -> DemandRecord:
        """The word, as a record; from now on no more than it says is used."""
        lease = self.lease
        needs, keeps = said
        lease.needs, lease.keeps, lease.seq, lease.said_ms, lease.answered = needs, keeps, seq, now_ms, False
        lease.told = lease.target is not None and keeps <= lease.target
        lease.usable = min(lease.usable, keeps)
        return {
            "bucket": self.claim.bucket,
            "pool": self.pool,
            "partition": partition,
            "epoch": epoch,
            "seq": seq,
            "needs": needs,
            "keeps": keeps,
            "fill_ms": int(self.claim.amount / self.claim.per_second * 1000) + 1 if self.claim.per_second else 0,
        }

    def _give_back(self, needs: int, now_ms: int, idle_ms: int) -> None:
        """What it does not need, or has had for its turn while others wait: no more of that is used."""
        lease = self.lease
        if lease.target is not None and not (lease.answered and lease.share <= lease.target):
            return
        lease.target = None
        if lease.usable > needs:
            if lease.wanted or now_ms - lease.busy_ms >= idle_ms:
                lease.usable = needs
        elif lease.wanted and now_ms - lease.since_ms >= LEASE_TURN_MS:
            if self.claim.kind == RATE and not lease.used:
                return  # its first token has yet to come
            fair = self.pool // max(1, lease.takers)
            if lease.usable > fair:
                lease.target = lease.usable = max(fair, lease.usable - lease.wanted)

    # --- the end

    def idle(self, now_ms: int) -> bool:
        """Whether it would be the same when it is made anew."""
        lease = self.lease
        if self.out or self.queue or lease.known or not lease.answered:
            return False
        return self.claim.kind != RATE or self.fill(now_ms) >= self.allowed
