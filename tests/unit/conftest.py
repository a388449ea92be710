"""The unit tests' hypothesis profiles: `sagalog` is bounded and repeatable, `hunt` tries 1,000 random examples a test.

SAGALOG_HYPOTHESIS=hunt pytest tests/unit/kernel/test_properties.py
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("sagalog", derandomize=True, deadline=None, max_examples=60, database=None)
settings.register_profile("hunt", deadline=None, max_examples=1_000, database=None, print_blob=True)
settings.load_profile(os.environ.get("SAGALOG_HYPOTHESIS", "sagalog"))
