"""The kernel's tests: the check of the tables is the folder's last test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TABLES = "test_tables.py"
LEFT_OUT = pytest.StashKey[bool]()
WHOLE_FOLDER = pytest.StashKey[bool]()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Notes that a test of this folder was left out (-k, -m, --lf, --deselect)."""
    for item in items:
        if item.path.parent == HERE:
            item.config.stash[LEFT_OUT] = True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the check of the tables behind all others, and says whether the whole folder runs before it."""
    last = [item for item in items if item.path.parent == HERE and item.path.name == TABLES]
    items[:] = [item for item in items if item not in last] + last
    # `pytest file.py` leaves files out, `pytest file.py::test` tests; only a run of all of them can check the tables.
    named = any("::" in argument for argument in config.args)
    files = {item.path for item in items if item.path.parent == HERE}
    whole = files >= set(HERE.glob("test_*.py"))
    config.stash[WHOLE_FOLDER] = whole and not named and not config.stash.get(LEFT_OUT, False)


@pytest.fixture
def whole_folder(request: pytest.FixtureRequest) -> bool:
    """Whether all tests of this folder ran, none left out and none failed."""
    return request.config.stash[WHOLE_FOLDER] and not request.session.testsfailed
