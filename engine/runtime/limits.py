"""Every limit of the runtime, in one place. Milliseconds and records, unless the name says otherwise."""

from typing import Final

POLL_RECORDS_MAX: Final = 500
"""Records folded before timers, sends and snapshots get their turn: 20 ms of them."""
POLL_MS_MAX: Final = 50
"""How long the loop waits for records when no timer is due earlier."""
PENDING_RECORDS_MAX: Final = 20_000
"""Records sent and not acknowledged; past it fetching is paused (back-pressure), nothing is dropped."""

IN_FLIGHT_MAX: Final = 1_000
"""Commands of one agent that one partition may have out; further ones are withheld."""
BUCKETS_MAX: Final = 10_000
"""(limit, key) that one partition counts at a time; commands of further keys are withheld until others are idle."""
BUCKET_SWEEP_MS: Final = 1_000
"""How often idle ones are dropped."""
LEASE_TURN_MS: Final = 1_000
"""How long a partition uses what it was leased of a limit before it gives some back to others that wait for it."""
LEASE_IDLE_MS: Final = 10_000
"""How long it keeps what it does not use and nobody else wants: the next command then need not ask."""
LEASE_REPEAT_MS: Final = 30_000
"""How often a partition repeats what it needs and was not given, or has had no answer to."""
RAMP_MS: Final = 100
"""After a circuit closes, parked commands go out in steps of this length, each twice as large as the one before."""
RAMP_FIRST: Final = 4
PARKED_ANNOUNCE_MS: Final = 1_000
"""How often a partition repeats that commands of a service wait in it."""

OUTCOME_FLUSH_MS: Final = 100
LOSS_TICK_MS: Final = 1_000
LOSS_GRACE_MS: Final = 2_000
"""On top of an attempt's own timeout, which its host enforces: the way there and back."""

TAKEOVER_BACKOFF_MS: Final = (200, 5_000)
"""First and longest wait before a partition that failed is taken over again."""
LIVE_MS_TO_FORGIVE: Final = 30_000
"""How long a partition must have been live for its failures before to count no more."""
SESSION_BACKOFF_MS: Final = (200, 5_000)
"""First and longest wait before an engine that lost its broker starts over."""
PROGRESS_MS: Final = 2_000
"""How often something that takes long says how far it is."""
LOAD_POLL_MS: Final = 1_000
"""How long a read of checkpoints waits for what must be there."""
FOLLOW_POLL_MS: Final = 1_000
"""How long a standby's read waits for new checkpoints; a promotion does not wait for it."""
CUT_WORKFLOWS: Final = 64
"""Checkpoints encoded for a snapshot at a time: 2 ms, between which records are folded."""
CUT_PAUSE_S: Final = 0.0
"""How long between them; 0 is one turn of the event loop."""
SUCCESSION_TIMEOUT_S: Final = 2.0
"""How long a new owner waits for the last marker of one that hands over, before it sends again what that one may have sent."""
MEMBER_POLL_MS: Final = 10_000
LINGER_MS: Final = 120_000
"""How long an owner whose partition was given to another member goes on until that one claims it."""
LEAVE_TIMEOUT_S: Final = 5.0
"""How long an engine that stops waits for others to take its partitions over."""
CLAIMS_MAX: Final = 20
"""Claims of one take-over that others may win before it starts over."""
ACK_TIMEOUT_S: Final = 40.0
"""How long a snapshot waits for the acknowledgement of what it covers."""
TOPIC_CHECK_MS: Final = 5_000
"""How often the engine asks whether its topics still exist: a deleted topic only gives empty polls."""
EVENT_REASON_CHARS_MAX: Final = 500

HEALTH_LOOK_MS: Final = 1_000
"""How often the engine looks whether its partitions move on."""
END_ASK_MS: Final = 2_000
"""How often it asks the broker where they end."""
END_TIMEOUT_S: Final = 5.0
END_UNKNOWN_MS: Final = 10_000
"""How long the broker may not say so before the engine is not ready."""
STUCK_MS: Final = 5_000
"""A partition that has something to do and has not advanced for so long is stuck; with the intervals above, told within 10 s."""
STUCK_RESTART_MS: Final = 300_000
"""One that stands still for so long without a known cause makes the process not live: whoever supervises it may restart it."""
