"""The golden logs fold today as when they were written: effects and checkpoints, byte for byte."""

from __future__ import annotations

import pytest

from .golden_logs import FOLDER, STORIES, fold_again, path, tell


@pytest.mark.parametrize("name", STORIES)
def test_a_golden_log_folds_as_it_did(name: str) -> None:
    lines = path(name).read_bytes().splitlines()

    for told, found in zip(lines, fold_again(lines), strict=True):
        assert found == told


@pytest.mark.parametrize("name", STORIES)
def test_a_story_is_still_told_as_its_golden_log(name: str) -> None:
    assert tell(name) == path(name).read_bytes().splitlines()


def test_every_golden_log_has_its_story() -> None:
    assert {file.stem for file in FOLDER.glob("*.jsonl")} == set(STORIES)
