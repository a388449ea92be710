"""One PostgreSQL for all tests here that run seeds with projectors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .postgres import served


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[None]:
    with served():
        yield
