"""Every limit of the agents' host, in one place. Sizes are bytes, times are milliseconds, unless the name says otherwise."""

from typing import Final

CONCURRENCY_DEFAULT: Final = 8
CONCURRENCY_MAX: Final = 1_000

OPEN_COMMANDS_MIN: Final = 1_000
"""Commands that may be open (delivered, their result not durable yet), whatever the concurrency: enough to keep the
producer's batches full while the handlers are quick."""
OPEN_COMMANDS_FACTOR: Final = 4
"""... and this many times the concurrency, where that is more."""
OPEN_BYTES_MAX: Final = 64 * 1024 * 1024
SPAN_RECORDS_MAX: Final = 1_000_000
"""How far the work in a partition may run ahead of its oldest unfinished command."""
POLL_RECORDS_MAX: Final = 1_000

POLL_TIMEOUT_MS: Final = 500
PAUSE_AFTER_MS: Final = 1_000
"""How long the host stops polling when it is full, before it pauses its partitions and polls on. Pausing makes the client
drop what it has fetched (up to 4 MiB a partition, to be fetched again), so a short wait is cheaper."""
TOPIC_CHECK_MS: Final = 30_000
"""How often a silent host asks whether its topic still exists: a deleted one gives empty polls for ever."""

GATHER_ANSWERS: Final = 256
GATHER_MS: Final = 10
"""While handlers end in every turn of the event loop, so many answers are gathered, or for so long, before they are sent. With
bursts of 24 commands and a concurrency of 8 that made one request of three, and halved the time until the last answer."""

COMMIT_INTERVAL_MS: Final = 200
COMMIT_TIMEOUT_MS: Final = 5_000
METADATA_BYTES_MAX: Final = 4_000
"""Of a commit. The broker's own limit is 4,096."""

DELIVERIES_MAX_DEFAULT: Final = 5
TRIAL_RECORDS_MIN: Final = 64
"""After a crash, at least this many of the commands that may have been in flight are worked off one at a time."""
TRIAL_WINDOW_MS: Final = 30_000
"""How long a suspect has the host to itself. On its last trial it has it until it ends."""

HEARTBEAT_DEFAULT_MS: Final = 5_000
"""Interval of the heartbeats of a command that names no heartbeat timeout."""
HEARTBEAT_MIN_MS: Final = 500
"""Handlers may beat as often as they like; this is how often it is sent, at most (a third of the timeout, if that is less)."""
PROGRESS_BYTES_MAX: Final = 16_384

REMEMBERED_COMMANDS_MAX: Final = 10_000
REMEMBERED_BYTES_MAX: Final = 32 * 1024 * 1024
"""Results kept to be sent again when their command comes again."""
REMEMBERED_UNDONE_MAX: Final = 100_000
"""Idempotency keys whose compensation has come, and whose execution is refused from then on."""

GRACE_DEFAULT_MS: Final = 10_000
FLUSH_TIMEOUT_MS: Final = 5_000
CANCEL_TIMEOUT_MS: Final = 2_000
"""How long cancelled handlers may take to end before the host leaves without them."""
EVENTS_WAIT_MS: Final = 30_000
EVENTS_WAIT_STEP_MS: Final = 250
BACKOFF_BASE_MS: Final = 100
BACKOFF_CAP_MS: Final = 5_000
