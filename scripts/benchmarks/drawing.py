"""Runs in the plots' own environment: `drawing.py PLOT FILE` draws horizontal bars with their range. PLOT is JSON, see `plots`."""

from __future__ import annotations

import json
import sys
from typing import Any

import matplotlib as mpl

mpl.use("svg")
# The same figures make the same file.
mpl.rcParams.update({"svg.hashsalt": "sagalog", "svg.fonttype": "none", "font.size": 9})

from matplotlib import pyplot  # noqa: E402


def draw(plot: dict[str, Any], path: str) -> None:
    bars = plot["bars"][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.32 * len(bars)))
    places = range(len(bars))
    middles = [median for _, _, median, _ in bars]
    ranges = [[m - low for _, low, m, _ in bars], [high - m for _, _, m, high in bars]]
    if plot["line"] is None:
        # From zero: the length of a bar is what it says.
        axes.barh(places, middles, xerr=ranges, color="#4c78a8", ecolor="#222222", height=0.6)
    else:
        axes.set_xscale("log", subs=[2, 5])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        colours = ["#2a9d5c" if median >= plot["line"] else "#c8553d" for median in middles]
        axes.errorbar(middles, places, xerr=ranges, fmt="none", ecolor="#666666")
        axes.scatter(middles, places, c=colours, zorder=3)
        axes.axvline(plot["line"], color="#222222", linewidth=1)
    for place, median in zip(places, middles, strict=True):
        axes.annotate(
            f"{median:,.3g}" if median < 1_000 else f"{median:,.0f}",
            (median, place),
            (6, 5),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_yticks(list(places), [label for label, *_ in bars])
    axes.set_xlabel(plot["unit"])
    axes.set_title(plot["title"], loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(sys.argv[1]), sys.argv[2])
