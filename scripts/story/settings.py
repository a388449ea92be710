"""Every limit and choice of the demo, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sagalog.schemas.errors import SagalogError

REPOSITORY: Final = Path(__file__).resolve().parents[2]
SAMPLES: Final = REPOSITORY / "agents" / "invoices" / "samples"
SAMPLES_LEFT_OUT: Final = frozenset({"falcon-chairs.png", "olivo-lines-wrong.png", "molenaar-no-date.png"})
"""Shipped invoices that show no further layout, language, currency: each takes about two seconds of processor time to read."""

ENGINE_SESSION_TIMEOUT_MS: Final = 3_000
"""After so long without a sign of life a killed engine's partitions are given to another: short, as people watch."""

CRASH_WORKFLOWS: Final = 200
CRASH_KILL_AFTER: Final = 40
"""The engine is killed once so many of them have ended."""
CRASH_UNFINISHED_MIN: Final = 50
"""With fewer left it would not have been killed in the middle."""
PARKED_WORKFLOWS: Final = 8
RETRIED_FAILURES: Final = 2

RESULT_S_MAX: Final = 120.0
"""How long a scene waits for a workflow."""
DOCUMENT_S_MAX: Final = 180.0
"""What one document may take on top of that: a long scan on a busy machine, tried more than once."""
CIRCUIT_S_MAX: Final = 60.0
ROWS_S_MAX: Final = 30.0
VERIFY_S_MAX: Final = 120.0
STOP_S_MAX: Final = 5.0
POLL_S: Final = 0.1
LOG_TAIL_LINES: Final = 25


class StoryError(SagalogError):
    """The demo cannot go on. The message says why."""
