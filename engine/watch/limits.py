"""Limits and times of the watch."""

from __future__ import annotations

from typing import Final

BUCKETS: Final = 12
"""The window's sub-buckets: 5 s each of 60 s."""
HOLD_RATIO: Final = 6
"""A raised alert is cleared after its rate was low for window / HOLD_RATIO: 10 s of 60 s."""
REREAD_MARGIN_MS: Final = 15_000
"""How far before the window a start reads again, to know which outcomes sent again it must not count: an engine's partition is
taken over within its session's 10 s. One that was sent again later than window and margin, to a watch that started in
between, counts as new: at most what an engine folds between two snapshots. More margin costs time: Faust reads some
thousand records a second, and outcomes come at up to ten a second per service and partition of `events`."""
STREAM_RECORDS_MAX: Final = 256
"""Records that wait in a stream, decoded by the client only: a result may have 1 MB."""
REBUILD_TIMEOUT_MS: Final = 60_000
"""How long a start waits for the outcomes it reads again, before it writes with what it has."""
HEALTH_TAIL_RECORDS: Final = 50_000
"""How many of the newest health records a start reads, to know which alerts are raised. A raised one is written every 10 s."""
READ_TIMEOUT_S: Final = 20.0
READ_BATCH_RECORDS: Final = 2_000
POLL_MS: Final = 500
WRITE_TIMEOUT_S: Final = 10.0
START_TIMEOUT_S: Final = 60.0
SESSION_TIMEOUT_S: Final = 10.0
HEARTBEAT_S: Final = 2.5
REBALANCE_TIMEOUT_S: Final = 15.0
REQUEST_TIMEOUT_S: Final = 30.0
COMMIT_INTERVAL_S: Final = 1.0
SESSION_BACKOFF_MS: Final = (500, 30_000)
UNREADABLE_LOG_MS: Final = 10_000
"""At most one line per topic in this time says that records cannot be read; the metric counts them all."""
