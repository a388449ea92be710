"""`sagalog schedules` where no server is needed: durations, the coming times of an expression, what is refused."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sagalog.engine.cli import app
from sagalog.engine.cli.schedules import duration_ms
from sagalog.schemas.errors import InvalidRecord


@pytest.mark.parametrize(
    ("text", "ms"), [("500ms", 500), ("90s", 90_000), ("10m", 600_000), ("1h", 3_600_000), (" 2d ", 172_800_000)]
)
def test_a_duration_has_a_unit(text: str, ms: int) -> None:
    assert duration_ms(text, "catch_up") == ms


@pytest.mark.parametrize("text", ["", "1", "1 h", "h", "-1s", "1.5h", "1w", "9999999999999s", "\u0661s"])
def test_what_is_no_duration_is_refused_with_the_field(text: str) -> None:
    with pytest.raises(InvalidRecord) as refused:
        duration_ms(text, "catch_up")
    assert refused.value.field == "catch_up"


def test_the_coming_times_are_shown_in_the_zone() -> None:
    call = ["schedules", "next", "30 2 * * *", "--zone", "Asia/Tokyo", "--count", "3"]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert len(lines) == 3 and all(line.endswith("T02:30:00+09:00") for line in lines)

    found = json.loads(CliRunner().invoke(app, [*call, "--json"]).output)
    assert [one["due"] for one in found] == lines
    assert found[1]["due_ms"] - found[0]["due_ms"] == 86_400_000


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["next", "61 * * * *"], "cron"),
        (["next", "1 * * * *", "--zone", "Moon"], "zone"),
        (["set", "daily", "--definition", "d", "--cron", "1 * * * *", "--catch-up", "soon"], "--catch-up"),
        (["set", "daily", "--definition", "d", "--cron", "1 * * * *", "-i", "{"], "--input"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(arguments: list[str], field: str) -> None:
    ended = CliRunner().invoke(app, ["schedules", *arguments])
    assert isinstance(ended.exception, InvalidRecord)
    assert ended.exception.field == field
