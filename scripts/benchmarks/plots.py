"""`bench plots`: draws kept reports. matplotlib does it, in an environment of its own: the project does not depend on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import targets
from benchmarks.install import Progress, python_packages, run
from benchmarks.peers.settings import OURS, PEERS
from benchmarks.report import measured_in
from benchmarks.settings import BenchError, Unavailable

DRAWING: Final = Path(__file__).with_name("drawing.py")
DRAW_SECONDS_MAX: Final = 120.0
ENGINES: Final = {
    "floor_steps_per_second": "bare loop",
    "engine_raw_steps_per_second": "engine, bare agent",
    "engine_steps_per_second": "engine, typed host",
    "engine_projected_steps_per_second": "engine, host, projector",
}


def draw(directory: Path, kept: Mapping[str, Mapping[str, Any]], progress: Progress) -> list[Path]:
    """Writes the plots of what is there into the directory, as SVG. Raises BenchError when matplotlib cannot be had."""
    found = {name: row for document in kept.values() for name, row in measured_in(document).items()}
    wanted = {path: plot for path, plot in _plots(found).items() if plot["bars"]}
    try:
        python = python_packages("plots", progress)
        for name, plot in wanted.items():
            run(
                f"drawing {name}",
                [str(python), str(DRAWING), json.dumps(plot), str(directory / name)],
                DRAW_SECONDS_MAX,
            )
    except Unavailable as reason:
        raise BenchError(str(reason)) from None
    return [directory / name for name in wanted]


def _plots(found: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is drawn, by the file's name: bars of (label, min, median, max), and where a line is that they are compared with."""
    steps, latencies = (
        {f"{name}{figure}": name for name in (OURS, *PEERS)} for figure in ("_steps_per_second", "_workflow_p50")
    )
    return {
        "targets.svg": _plot(
            "Reached over wanted: right of the line is better than wanted", "times", over_targets(found), line=1.0
        ),
        "throughput.svg": _plot("Steps per second at saturation", "steps/s", _bars(found, ENGINES)),
        "peers.svg": _plot("Steps per second beside other engines", "steps/s", _bars(found, steps)),
        "latency.svg": _plot("Median latency of a workflow, at a low load", "ms", _bars(found, latencies)),
    }


def _plot(title: str, unit: str, bars: list[list[Any]], line: float | None = None) -> dict[str, Any]:
    return {"title": title, "unit": unit, "bars": bars, "line": line}


def _bars(found: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]) -> list[list[Any]]:
    return [
        [label, *(found[name][key] for key in ("min", "median", "max"))]
        for name, label in labels.items()
        if name in found
    ]


def over_targets(found: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    bars = []
    for row in targets.rows(found):
        target = targets.TARGETS[row["name"]]
        values = [row[key] for key in ("min", "median", "max")]
        if target.most:  # of none at all no share can be drawn
            bars.append([row["what"], *(target.most / value for value in reversed(values) if value)])
        elif target.least:
            bars.append([row["what"], *(value / target.least for value in values)])
    return [bar for bar in bars if len(bar) == len(("label", "min", "median", "max"))]
