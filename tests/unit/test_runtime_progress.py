"""What a long take-over says in the log."""

from __future__ import annotations

from sagalog.engine.runtime.progress import Progress


def test_it_speaks_every_two_seconds_and_says_how_long_it_still_takes() -> None:
    progress = Progress(1_000, 1_001_000, now_ms=5_000)
    assert progress.at(100_000, 6_999) is None
    assert progress.at(251_000, 7_000) == "250,000 of 1,000,000 records (25%), about 6 s left"
    assert progress.at(300_000, 8_999) is None
    assert progress.at(501_000, 9_000) == "500,000 of 1,000,000 records (50%), about 4 s left"


def test_without_any_progress_it_promises_nothing() -> None:
    assert Progress(0, 10, now_ms=0).at(0, 2_000) == "0 of 10 records (0%)"
