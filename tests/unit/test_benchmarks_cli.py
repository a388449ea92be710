"""What a bench is run with, from what was said and what was not."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.cli import _chosen, _parser, main
from benchmarks.recovery import AGENTS_MAX, PER_AGENT_AND_PARTITION_MAX, of_agents
from benchmarks.settings import OverloadSettings, PipelineSettings, RecoverySettings


@pytest.mark.parametrize(
    ("arguments", "name", "wanted"),
    [
        (["overload"], "overload", {"runs": OverloadSettings().runs, "seconds": 300.0}),
        (["overload", "--seconds", "20", "--runs", "2"], "overload", {"runs": 2, "seconds": 20.0}),
        (["engine"], "engine", {"runs": PipelineSettings().runs, "seconds": 4.0}),
        (["recovery"], "recovery", {"workflows": RecoverySettings().workflows}),
        (["recovery", "--workflows", "5", "7"], "recovery", {"workflows": [5, 7]}),
        (["all", "--runs", "5"], "recovery", {"runs": 5, "workflows": (100_000, 1_000_000)}),
        (["all"], "takeover", {"workflows": (200_000,), "partitions": 2}),
        (["all", "--workflows", "9"], "takeover", {"workflows": [9], "partitions": 2}),
    ],
)
def test_what_was_not_given_is_the_benchs_own(arguments: list[str], name: str, wanted: dict[str, Any]) -> None:
    chosen = vars(_chosen(_parser().parse_args(arguments), name))

    assert {key: chosen[key] for key in wanted} == wanted


def test_a_takeover_is_of_one_number_of_workflows(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["takeover", "--workflows", "1", "2"])

    assert ended.value.code == 2
    assert "of takeover one number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("partitions", "workflows", "wanted"), [(8, 100_000, 100_000), (8, 1_000_000, 120_000), (1, 20_000, 15_000)]
)
def test_no_partition_is_asked_for_more_commands_than_it_lets_out(partitions: int, workflows: int, wanted: int) -> None:
    """Past the engine's limit of commands out per agent and partition the bench would wait for the others for ever."""
    found = of_agents(workflows, partitions)

    assert found == wanted
    assert -(-found // (partitions * PER_AGENT_AND_PARTITION_MAX)) <= AGENTS_MAX
