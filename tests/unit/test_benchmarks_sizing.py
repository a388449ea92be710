"""The sizing model: what it multiplies, what it rounds, which limit it says binds; and that its defaults are the docs' figures."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.size import PERFORMANCE
from benchmarks.sizing import BUSY_SHARE_MAX, GIB, Costs, Demand, Linear, bytes_per_workflow, plan

DOCS = Path(__file__).resolve().parents[2] / "docs"

COSTS = Costs(
    source="a test",
    engine_us_per_step=Linear(50.0, 0.1),
    agent_us_per_step=Linear(20.0),
    broker_us_per_step=Linear(30.0),
    bytes_per_event=Linear(200.0, 1.0),
    command_bytes_per_step=Linear(400.0, 1.0),
    checkpoint_bytes_per_step=Linear(300.0, 1.0),
    result_bytes_per_workflow=Linear(900.0, 6.0),
    stub_bytes=400.0,
    memory_bytes_per_idle_workflow=2_000.0,
    memory_bytes_per_stub=500.0,
    load_us_per_workflow=15.0,
)
DAY = 86_400


def test_a_cost_is_a_line_through_two_payloads() -> None:
    line = Linear.through((500, 70.0), (2_000, 100.0))

    assert line == Linear(60.0, 0.02)
    assert (line.at(500), line.at(2_000), line.at(10_000)) == (70.0, 100.0, 260.0)


def test_a_cost_that_falls_with_the_payload_is_noise() -> None:
    assert Linear.through((500, 70.0), (2_000, 60.0)) == Linear(65.0)


def test_processors_are_the_peak_times_the_cost() -> None:
    # 1,000 workflows a second on average, 4 steps, twice that at the peak: 8,000 steps.
    found = plan(Demand(1_000 * DAY, steps=4, payload_bytes=100, peak=2.0, engine_memory_gib=1_000.0), COSTS)

    assert found.peak_steps_per_second == pytest.approx(8_000)
    assert found.engine_cores == pytest.approx(8_000 * 60e-6)
    assert found.agent_cores == pytest.approx(8_000 * 20e-6)
    assert found.broker_cores == pytest.approx(3 * 8_000 * 30e-6)
    assert (found.engines, found.hosts, found.engines_limited_by) == (1, 1, "processor")
    assert found.engine_cores / found.engines <= BUSY_SHARE_MAX


@pytest.mark.parametrize(("per_second", "engines"), [(1, 1), (10_000, 1), (10_001, 2), (20_000, 2), (100_000, 10)])
def test_an_engine_is_never_busier_than_its_share(per_second: int, engines: int) -> None:
    costs = replace(COSTS, engine_us_per_step=Linear(60.0), memory_bytes_per_stub=0.0)

    found = plan(Demand(per_second * DAY, steps=1, payload_bytes=0, peak=1.0, open_hours=0.0), costs)

    assert found.engines == engines


def test_bytes_of_a_workflow_are_its_events_and_its_steps() -> None:
    assert bytes_per_workflow(4, 500, COSTS) == {
        "events": 5 * 700,
        "commands": 4 * 900,
        "checkpoints": 4 * 800,
        "results": 900 + 6 * 500,
    }


def test_disk_is_what_is_written_for_as_long_as_it_is_kept_times_the_replicas() -> None:
    found = plan(Demand(1_000_000, replication=2, open_hours=24.0), COSTS)

    assert found.written_gib_per_day["events"] == pytest.approx(2 * 1e6 * 3_500 / GIB)
    assert found.kept_gib["events"] == pytest.approx(365 * found.written_gib_per_day["events"])
    assert found.kept_gib["results"] == pytest.approx(365 * found.written_gib_per_day["results"])
    assert found.kept_gib["commands"] == pytest.approx(7 * found.written_gib_per_day["commands"])
    # Compaction leaves one record for each workflow: a day's are open, a week's ids are remembered.
    assert found.kept_gib["checkpoints"] == pytest.approx(2 * (1e6 * 800 + 7e6 * 400) / GIB)
    assert found.written_gib_per_day_in_all == pytest.approx(sum(found.written_gib_per_day.values()))
    assert found.kept_gib_in_all == pytest.approx(sum(found.kept_gib.values()))


def test_memory_may_bind_before_the_processor_does() -> None:
    found = plan(Demand(10_000_000, open_hours=24.0, engine_memory_gib=8.0), COSTS)

    assert found.engine_memory_gib == pytest.approx((1e7 * 2_000 + 7e7 * 500) / GIB)  # 51.2
    assert (found.engines, found.engines_limited_by) == (7, "memory")


def test_partitions_leave_room_and_load_in_time() -> None:
    assert plan(Demand(10_000), COSTS).partitions == 8
    slow = plan(Demand(10_000_000, open_hours=0.0, engine_memory_gib=1_000.0), COSTS)

    # 70 million ids of 15 us each are 1,050 s: 105 partitions for 10 s, and the next round number.
    assert (slow.engines, slow.partitions_wanted, slow.partitions) == (1, 105, 128)
    assert slow.load_seconds_per_partition == pytest.approx(1_050 / 128)


def test_more_than_the_most_partitions_is_said() -> None:
    found = plan(Demand(1_000_000_000), COSTS)

    assert found.partitions == 1_000
    assert found.partitions_wanted > 1_000


def test_more_workflows_never_need_less() -> None:
    sizes = [plan(Demand(10**power), COSTS) for power in range(3, 10)]

    for less, more in pairwise(sizes):
        assert less.partitions <= more.partitions
        assert less.engines <= more.engines
        assert less.hosts <= more.hosts
        assert less.kept_gib_in_all < more.kept_gib_in_all


def test_costs_survive_their_file() -> None:
    assert Costs.parse(PERFORMANCE.document()) == PERFORMANCE


@pytest.mark.parametrize("change", [{"unheard_of": 1.0}, {"engine_us_per_step": {"slope": 1.0}}])
def test_another_file_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"not a file of costs .*scripts/bench size --measure"):
        Costs.parse({**PERFORMANCE.document(), **change})


def test_the_defaults_are_the_figures_of_the_docs() -> None:
    text = (DOCS / "performance.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.,]+(?: \+ [\d.,]+ per byte)?) \|", text, re.MULTILINE))
    expected = {}
    for name, cost in asdict(PERFORMANCE).items():
        if isinstance(cost, dict):
            expected[name] = f"{cost['base']:g} + {cost['per_byte']:g} per byte"
        elif name not in ("source", "load_us_per_workflow"):
            expected[name] = f"{cost:,g}"

    assert {name: found for name, found in rows.items() if name in expected} == expected
    # Loading is of the section about recovery: 0.31 s for 20,000 workflows.
    assert "20,000 open ones, 0.29 / 0.31 / 0.33 s" in text
    assert PERFORMANCE.load_us_per_workflow == pytest.approx(0.31 / 20_000 * 1e6)
