"""What is wanted of the figures and ratios, in two tables: how fast, and how little is noticed of a crash.

A target is beside what was measured, reached or not: a missed one is published as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.peers.settings import P50_SHARE_MAX, TIMES_FASTER_MIN

SPEED: Final = "speed"
NEVER_DOWN: Final = "never down"


@dataclass(frozen=True, slots=True)
class Target:
    """A bound: at most, or at least. What counts of several runs is their median, or the worst of them."""

    table: str
    what: str
    most: float | None = None
    least: float | None = None
    worst: bool = False

    def reached(self, summary: Mapping[str, float]) -> bool:
        """`summary` has min, median and max."""
        if self.most is not None:
            return summary["max" if self.worst else "median"] <= self.most
        assert self.least is not None
        return summary["min" if self.worst else "median"] >= self.least

    @property
    def bound(self) -> str:
        return f"at most {self.most:,g}" if self.most is not None else f"at least {self.least:,g}"


def _speed(what: str, *, most: float | None = None, least: float | None = None) -> Target:
    return Target(SPEED, what, most, least)


def _never_down(what: str, most: float) -> Target:
    return Target(NEVER_DOWN, what, most, worst=True)


TARGETS: Final[Mapping[str, Target]] = {
    "throughput_vs_floor_raw": _speed("steps per second over the bare loop's; the engine and a bare agent", least=0.75),
    "throughput_vs_floor": _speed("the same with the typed host", least=0.5),
    "throughput_vs_floor_projected": _speed("the same with host, projector and PostgreSQL", least=0.3),
    "p50_vs_floor": _speed("median latency of a step over the bare loop's, at a fifth of the load", most=1.5),
    "engine_step_p99": _speed("p99 of a step's latency, ms", most=10),
    "us_per_event": _speed("processor time of the fold per event, us", most=12),
    "cost_at_1000000_vs_1000_open": _speed("cost per event, 1,000,000 open workflows over 1,000", most=1.1),
    "bytes_per_idle_workflow": _speed("checkpoint of an idle workflow of ten finished steps, bytes", most=2_048),
    "resident_bytes_per_idle_workflow": _speed("memory of an idle workflow, bytes", most=2_048),
    "two_partitions_vs_one": _speed("events folded by two processes on a core each, over one", least=1.8),
    "p99_late_ms": _speed("p99 of a timer's lateness, ms", most=50),
    **{
        name: target
        for peer, of in (("dbos", "DBOS"), ("restate", "Restate"), ("temporal", "Temporal"))
        for name, target in (
            (f"throughput_vs_{peer}", _speed(f"steps per second over {of}'s", least=TIMES_FASTER_MIN)),
            (f"p50_vs_{peer}", _speed(f"median latency of a workflow over {of}'s", most=P50_SHARE_MAX)),
        )
    },
    "takeover_ms": _never_down("take-over by a standby, from the group's word to live, ms", 100),
    "seconds_to_first_command": _never_down("kill -9 to the next command, default settings, s", 8),
    "wait_ms_while_restarting": _never_down("planned restart: the longest wait of a workflow, ms", 300),
    "sent_twice_while_restarting": _never_down("planned restart: commands sent twice", 0),
    "snapshot_pause_ms": _never_down("folding held up by a snapshot of 10,000 touched workflows, ms", 5),
    "seconds_recovering": _never_down("cold recovery without a standby, 100,000 open workflows, s", 5),
    "seconds_recovering_1000000_open": _never_down("the same with 1,000,000, s", 45),
}


def rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of what was measured and has a target, in the order of the tables. A ratio is a median alone."""
    found = []
    for name, target in TARGETS.items():
        if name in summaries:
            reached = target.reached(summaries[name])
            found.append({"name": name, "table": target.table, "what": target.what, "target": target.bound}
                | {key: summaries[name][key] for key in ("min", "median", "max")} | {"reached": reached})  # fmt: skip
    return found


def print_tables(found: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Both tables, or those of them of which something was measured."""
    for name in (SPEED, NEVER_DOWN):
        mine = [row for row in found if row["table"] == name]
        if not mine:
            continue
        table = Table(
            title=f"{name}: {sum(row['reached'] for row in mine)} of {len(mine)} reached", title_justify="left"
        )
        table.add_column("what")
        table.add_column("target", justify="right")
        for key in ("min", "median", "max"):
            table.add_column(key, justify="right")
        table.add_column("")
        for row in mine:
            values = (f"{row[key]:,}" for key in ("min", "median", "max"))
            table.add_row(row["what"], row["target"], *values, "reached" if row["reached"] else "missed")
        console.print(table)
