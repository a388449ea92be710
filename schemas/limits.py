"""Every limit of the records, in one place. Sizes are bytes, times are milliseconds, unless the name says otherwise.

A limit is part of the contract: a client refuses what exceeds it, and the fold rejects what another client wrote anyway.
"""

from typing import Final

WORKFLOW_ID_BYTES_MAX: Final = 255
NAME_CHARS_MAX: Final = 63

JSON_DEPTH_MAX: Final = 64
"""orjson loads deeper documents than it dumps: what could not be written again is refused at the door."""
EVENT_DEPTH_MAX: Final = JSON_DEPTH_MAX + 6
"""An event's value: a payload of JSON_DEPTH_MAX and what is around it."""
RECORD_DEPTH_MAX: Final = 250
"""The engine's own records, in which bindings may have put payloads deeper; orjson dumps 254."""
JSON_INTEGER_MAX: Final = 2**63 - 1
JSON_INTEGER_MIN: Final = -(2**63)

PAYLOAD_BYTES_MAX: Final = 262_144
"""One workflow input or one step output, encoded."""
STATE_BYTES_MAX: Final = 500_000
"""Payloads and failures that one workflow's state may hold: its checkpoint must fit into one record of RECORD_BYTES_MAX."""
RECORD_BYTES_MAX: Final = 1_000_000
"""One record with key and headers. A larger one would be refused by the broker and kill the idempotent producer."""

DEFINITION_BYTES_MAX: Final = 262_144
STEPS_MAX: Final = 100
CHILD_DEPTH_MAX: Final = 8
"""Workflows within workflows: a start deeper down is rejected, so that one that starts itself comes to an end."""
NEEDS_MAX: Final = 50
ITEMS_MAX: Final = 1_000
"""Items of all steps of one workflow that map. Each keeps its own state, and all must fit into one checkpoint; larger lists go
to an agent in pieces."""
ATTEMPTS_MAX: Final = 100
TIMEOUT_MS_MAX: Final = 7 * 24 * 3600 * 1000
DEADLINE_MS_MAX: Final = 366 * 24 * 3600 * 1000
FALLBACKS_MAX: Final = 10
USAGE_MAX: Final = 10**12
"""Tokens, or units of cost, of one attempt; what an agent reports beyond is cut."""
BUDGET_MAX: Final = 10**15
TIME_MS_MAX: Final = 253_402_300_799_999
"""The end of the year 9999, the last that dates of most languages and databases hold."""
BACKOFF_MS_MAX: Final = 24 * 3600 * 1000

LIMITS_MAX: Final = 20
"""Limits of one definition."""
STEP_LIMITS_MAX: Final = 5
"""Limits that one step takes part in."""
CONCURRENCY_MAX: Final = 10_000
BURST_MAX: Final = 10_000
PER_SECOND_MIN: Final = 1 / 86_400
"""Once a day."""
PER_SECOND_MAX: Final = 100_000.0
LIMIT_KEY_CHARS_MAX: Final = 100
"""A longer key of a limit is hashed."""

CONDITION_CHARS_MAX: Final = 1_000
CONDITION_MACROS_MAX: Final = 2
"""Loops (`all`, `exists`, `map`, `filter`) in one condition: each nested one multiplies the cost by the length of its list."""
TEXT_CHARS_MAX: Final = 500
"""A title, an assignee, a reason that a person gave."""

SIGNALS_KEPT_MAX: Final = 100
"""Signals that a workflow keeps until a step waits for them; further ones are ignored."""
SIGNAL_KEEP_MS: Final = 7 * 24 * 3600 * 1000
"""How long a signal is kept for a step to wait for it."""
HEARD_KEPT_MAX: Final = 100
"""Ids of signals, actions and decisions that a workflow remembers, the newest, so that one that was sent twice counts once."""

MIGRATIONS_KEPT_MAX: Final = 10
"""Moves to another definition that a workflow's state remembers, the newest; the log has them all."""
CRON_CHARS_MAX: Final = 200
ZONE_CHARS_MAX: Final = 100
SCHEDULES_MAX: Final = 1_000
"""Schedules in one partition; a further one is ignored. Each is in memory for as long as it exists."""
CATCH_UP_MS_DEFAULT: Final = 60_000
CATCH_UP_MS_MIN: Final = 10_000
"""Less would leave out what is merely late: a take-over, or a clock that lags."""
CATCH_UP_MS_MAX: Final = 366 * 24 * 3600 * 1000
JITTER_MS_MAX: Final = 24 * 3600 * 1000
FIRST_DUE_AGO_MS_MAX: Final = 24 * 3600 * 1000
"""How long before it was set a schedule's first due time may lie: the writer may have waited for the broker."""
DUE_TIMES_MAX: Final = 500
"""Due times in one event; after a longer outage several events follow one another."""
CATCH_UP_RUNS_MAX: Final = 100
"""Runs that one such event starts, for the newest due times; the older ones are missed."""
RUNS_GOING_MAX: Final = 100
"""Runs of one schedule that go on side by side."""
RUNS_KEPT_MAX: Final = 20
"""Runs that have ended, and due times without a run, that a schedule remembers, the newest of each."""
REWINDS_MAX: Final = 10
"""How often one workflow may be rewound; a fork begins a new count."""
LETTER_ID_CHARS_MAX: Final = 400
"""The id of a dead letter: a workflow's, a step's, an attempt and a direction."""

FAILURE_MESSAGE_CHARS_MAX: Final = 500
FAILURE_DETAILS_BYTES_MAX: Final = 16_384
ERROR_TYPE_CHARS_MAX: Final = 100
CORRELATION_ID_CHARS_MAX: Final = 255
TENANT_CHARS_MAX: Final = 100
PRIORITY_MAX: Final = 9
"""The least is 0; the higher goes first."""
PRIORITY_DEFAULT: Final = 5
ATTRIBUTES_MAX: Final = 20
"""Search attributes of one workflow."""
ATTRIBUTE_CHARS_MAX: Final = 255
"""Of one attribute's text."""
ATTRIBUTES_BYTES_MAX: Final = 4_096
"""All search attributes of one workflow, encoded; beside the payload and the envelope of its start."""
STARTS_KEPT_MAX: Final = 50
"""Starts that came under one id before the run that is on, and that are recognised when they come again: the newest."""
SEED_BYTES_MAX: Final = 64
"""A longer event id is hashed before it becomes a workflow's seed."""
TRACE_BYTES_MAX: Final = 128
ENVELOPE_BYTES_MAX: Final = 1_024
"""What an event's value may hold beside its payload, on top of PAYLOAD_BYTES_MAX."""
FAILURES_KEPT_MAX: Final = 20
"""Failures kept per step and direction, the newest; the log has them all and the state counts them."""

UNSETTLED_KEPT_MAX: Final = 20
"""Attempts whose late result is recognised after the end of their workflow."""
REMEMBER_MS: Final = 7 * 24 * 3600 * 1000
"""How long the id of a finished workflow is remembered, so that a second start with it is recognised."""
DEFINITION_WAIT_MS: Final = 10_000
"""How long a start waits for a definition that its partition has not seen yet, before it is rejected."""

WINDOW_CALLS_MAX: Final = 1_000
"""Calls that a circuit's window holds; the oldest go first."""
OUTCOME_CALLS_MAX: Final = 500
"""Calls in one record of the outcomes topic."""
QUARANTINE_VALUE_BYTES_MAX: Final = 65_536
"""How much of a record that could not be read is kept beside its origin."""
