"""`bench peers`: sagalog and each peer in turn, run after run; ratios are those of one turn.

A peer that cannot be installed, started or measured to the end is not available, with the reason: it has no figures, not even those
of the runs before. sagalog has to run.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, cast

import psycopg
from rich.markup import escape

from benchmarks.children import last_words
from benchmarks.install import Progress
from benchmarks.peers import dbos, faust, ours, restate, temporal
from benchmarks.peers.place import Place
from benchmarks.peers.settings import OURS, P50_SHARE_MAX, PEERS, RUN_SECONDS_MAX, TIMES_FASTER_MIN, PeersSettings
from benchmarks.peers.subjects import Run, Subject, measure
from benchmarks.report import Figure, Report
from benchmarks.settings import REASON_CHARS_MAX, STEPS, BenchError, Unavailable
from sagalog.infra.embedded.stack import EmbeddedStack
from sagalog.schemas.errors import SagalogError


class Peer(Protocol):
    """What the module of a peer has."""

    VERSION: str
    SERVED_BY: str
    """What keeps its work, and how safely, in a few words."""

    def prepare(self, progress: Progress) -> None: ...

    def start(self, place: Place) -> AbstractAsyncContextManager[Subject]: ...


MODULES: Final = {
    name: cast("Peer", module) for name, module in zip(PEERS, (dbos, faust, restate, temporal), strict=True)
}


def prepared(names: Sequence[str], progress: Progress) -> dict[str, str]:
    """Installs these peers; the reasons of those that cannot be had."""
    missing = {}
    for name in names:
        try:
            MODULES[name].prepare(progress)
        except Unavailable as reason:
            missing[name] = in_words(reason)
            progress(f"{name}: not available: {missing[name]}")
    return missing


async def peers(
    stack: EmbeddedStack,
    settings: PeersSettings,
    unprepared: Mapping[str, str],
    environment: Mapping[str, Any],
    logs: Path,
    progress: Progress,
) -> Report:
    """`unprepared` is what `prepared` gave. Raises BenchError when sagalog itself cannot be measured."""
    missing = dict(unprepared)
    # Does not count: a fresh broker is slow until its code is compiled.
    await _run(ours.start, Place(stack, logs, replace(settings, latency_seconds=1), "bench-warm-up"))
    found: dict[str, list[Run]] = {OURS: [], **{name: [] for name in settings.peers if name not in missing}}
    for number in range(settings.runs):
        for name in [name for name in found if name not in missing]:
            start = ours.start if name == OURS else MODULES[name].start
            place = Place(stack, logs, settings, f"bench-{name}-{number}")
            try:
                run = await _run(start, place)
            except (Unavailable, BenchError, SagalogError, OSError, psycopg.Error) as error:
                if name == OURS:
                    raise
                missing[name] = f"run {number + 1} of {settings.runs} failed: {in_words(error)}"
                progress(f"{name}: not available: {missing[name]}\n{escape(last_words(logs, place.name))}")
                continue
            found[name].append(run)
            progress(f"{name} {number + 1}/{settings.runs}: {_line(run)}")
    return assembled(
        settings, environment, {name: runs for name, runs in found.items() if name not in missing}, missing
    )


async def _run(start: Callable[[Place], AbstractAsyncContextManager[Subject]], place: Place) -> Run:
    try:
        async with asyncio.timeout(RUN_SECONDS_MAX), start(place) as subject:
            return await measure(subject, place.settings)
    except TimeoutError:
        raise BenchError(f"the run did not end within {RUN_SECONDS_MAX:g} s") from None


def in_words(error: Exception) -> str:
    """One line, cut to what a report can take, and without the brackets that its printing would take for markup."""
    return " ".join(str(error).split()).replace("[", "(").replace("]", ")")[:REASON_CHARS_MAX]


def _line(run: Run) -> str:
    return f"{run.steps_per_second:,.0f} steps/s, p50 {run.p50_ms:.1f} ms, p99 {run.p99_ms:.1f} ms"


def assembled(
    settings: PeersSettings,
    environment: Mapping[str, Any],
    found: Mapping[str, Sequence[Run]],
    missing: Mapping[str, str],
) -> Report:
    """The report. `found` has our runs and those of each peer that is there, in the same turns; `missing` says why one is not."""
    there = [name for name in found if name != OURS]
    figures = {}
    for name, runs in found.items():
        figures[f"{name}_steps_per_second"] = Figure("steps/s", [run.steps_per_second for run in runs])
        figures[f"{name}_workflow_p50"] = Figure("ms", [run.p50_ms for run in runs])
        figures[f"{name}_workflow_p99"] = Figure("ms", [run.p99_ms for run in runs])
    ratios = {}
    for name in there:
        pairs = list(zip(found[OURS], found[name], strict=True))
        ratios[f"throughput_vs_{name}"] = statistics.median(
            we.steps_per_second / they.steps_per_second for we, they in pairs
        )
        ratios[f"p50_vs_{name}"] = statistics.median(we.p50_ms / they.p50_ms for we, they in pairs)
    return Report(
        "peers",
        {
            **environment,
            **_settings(settings),
            **{name: MODULES[name].VERSION for name in there},
            # In the document, too: a figure that is not there must not look forgotten.
            **{name: f"not available: {reason}" for name, reason in missing.items()},
        },
        settings.runs,
        figures,
        ratios,
        [
            *(f"{name}: not available: {reason}" for name, reason in missing.items()),
            HOW,
            "Kept by: " + "; ".join(f"{name}, {_served_by(name)}" for name in found) + ".",
            targets(ratios, there),
        ],
    )


HOW: Final = (
    "steps_per_second: with in_flight workflows in flight, warm-up excluded. workflow_p50/p99: from before the client asks for the "
    "start until it holds the result, at workflows_per_second. The same four steps, payload, workflows in flight and rate for all, "
    "one after the other on this machine. Ratios: ours over theirs, median over the runs."
)


def targets(ratios: Mapping[str, float], there: Sequence[str]) -> str:
    """What is wanted of the ratios, and whether it is so."""
    wanted = (
        f"Targets: at least {TIMES_FASTER_MIN:g} times the steps per second of the fastest peer, a p50 of at most "
        f"{P50_SHARE_MAX:g} of the best peer's."
    )
    if not there:
        return f"{wanted} No peer is here to compare with."
    throughput, fastest = min((ratios[f"throughput_vs_{name}"], name) for name in there)
    p50, quickest = max((ratios[f"p50_vs_{name}"], name) for name in there)
    return (
        f"{wanted} Here: {throughput:.3g} times {fastest}'s ({_verdict(throughput >= TIMES_FASTER_MIN)}), "
        f"{p50:.3g} of {quickest}'s ({_verdict(p50 <= P50_SHARE_MAX)})."
    )


def _verdict(reached: bool) -> str:
    return "reached" if reached else "not reached"


def _served_by(name: str) -> str:
    return ours.SERVED_BY if name == OURS else MODULES[name].SERVED_BY


def _settings(settings: PeersSettings) -> dict[str, Any]:
    return {
        "partitions": settings.partitions,
        "payload_bytes": settings.payload_bytes,
        "steps_per_workflow": STEPS,
        "in_flight": settings.in_flight,
        "seconds": settings.seconds,
        "workflows_per_second": settings.workflows_per_second,
    }
