"""What a bench found: one JSON object, or a table. Later benches keep this form."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import targets


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity, a value a run."""

    unit: str
    values: Sequence[float]

    def summary(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "min": _rounded(min(self.values)),
            "median": _rounded(statistics.median(self.values)),
            "max": _rounded(max(self.values)),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """One bench. `ratios` are medians of the ratios within pairs; `notes` are for the table only."""

    bench: str
    environment: Mapping[str, Any]
    runs: int
    figures: Mapping[str, Figure]
    ratios: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        figures = {name: figure.summary() for name, figure in self.figures.items()}
        ratios = {name: _rounded(ratio) for name, ratio in self.ratios.items()}
        document = {
            "bench": self.bench,
            "environment": dict(self.environment),
            "runs": self.runs,
            "figures": figures,
            "ratios": ratios,
        }
        return document | {"targets": targets.rows(measured_in(document))}

    def print_json(self) -> None:
        print(json.dumps(self.document(), indent=2), flush=True)

    def print_table(self, console: Console) -> None:
        table = Table(title=f"bench {self.bench}, {self.runs} runs", title_justify="left")
        table.add_column("figure")
        for name in ("min", "median", "max"):
            table.add_column(name, justify="right")
        table.add_column("unit")
        for name, figure in self.figures.items():
            summary = figure.summary()
            table.add_row(name, *(f"{summary[key]:,}" for key in ("min", "median", "max")), figure.unit)
        console.print(table)
        for name, ratio in self.ratios.items():
            console.print(f"{name} = {ratio:.3f}")
        targets.print_tables(self.document()["targets"], console)
        console.print(", ".join(f"{name} {value}" for name, value in self.environment.items()), style="dim")
        for note in self.notes:
            console.print(note, style="dim")


def measured_in(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """All that targets are about in a report's document, by name. A ratio is the median of those of pairs, and that alone."""
    ratios = {name: dict.fromkeys(("min", "median", "max"), ratio) for name, ratio in document["ratios"].items()}
    return {**document["figures"], **ratios}


def merged(bench: str, reports: Sequence[Report]) -> Report:
    """Several benches as one; their figures' names must differ."""
    environment: dict[str, Any] = {}
    figures: dict[str, Figure] = {}
    ratios: dict[str, float] = {}
    notes: list[str] = []
    for report in reports:
        assert not figures.keys() & report.figures.keys(), "two benches have a figure of the same name"
        environment |= report.environment
        figures |= report.figures
        ratios |= report.ratios
        notes += report.notes
    return Report(bench, environment, min(report.runs for report in reports), figures, ratios, notes)


def _rounded(value: float) -> float:
    """Four significant digits: more would be made up. Whole numbers from 1,000 on."""
    if abs(value) >= 1_000:
        return round(value)
    return float(f"{value:.4g}")
