"""The command line of `scripts/bench`: arguments, the embedded broker, and an end in order, also on Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console

from benchmarks import environment, pipeline, plots, size, targets
from benchmarks.children import last_words
from benchmarks.cluster import BROKERS, cluster
from benchmarks.fold import fold
from benchmarks.overload import overload
from benchmarks.peers.bench import peers, prepared
from benchmarks.peers.settings import PEERS, PeersSettings
from benchmarks.recovery import recovery
from benchmarks.report import Report, measured_in, merged
from benchmarks.settings import (
    LATENCY_RATE_MIN,
    LATENCY_SECONDS,
    LATENCY_SHARE,
    VARIANTS,
    BenchError,
    ClusterSettings,
    OverloadSettings,
    PipelineSettings,
    RecoverySettings,
    TimerSettings,
)
from benchmarks.sizing import Demand
from benchmarks.snapshot import snapshot
from benchmarks.start import start
from benchmarks.system import PAYLOAD_FRAME
from benchmarks.takeover import takeover
from benchmarks.timers import timers
from sagalog.infra.embedded.stack import EmbeddedStack
from sagalog.schemas.errors import SagalogError

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM)

NAMES: Final = (
    "floor",
    "engine",
    "recovery",
    "takeover",
    "snapshot",
    "timers",
    "cluster",
    "overload",
    "peers",
    "size",
    "start",
    "fold",
    "all",
    "tables",
    "plots",
)
ALL: Final = ("engine", "fold", "timers", "takeover", "recovery", "snapshot", "peers", "start")
"""What `all` runs, one after the other."""
ALL_SCALE: Final[Mapping[str, Mapping[str, Any]]] = {
    "engine": {"agents": VARIANTS},
    "timers": {"pending": 1_000_000, "due_per_second": 5_000},
    "takeover": {"workflows": (200_000,), "partitions": 2},
    "recovery": {"workflows": (100_000, 1_000_000)},
}
"""As the targets are worded; what is said on the command line goes before."""
DEFAULTS: Final[Mapping[str, Any]] = {
    "runs": PipelineSettings().runs,
    "seconds": PipelineSettings().seconds,
    "agents": PipelineSettings().agents,
    "partitions": PipelineSettings().partitions,
    "workflows": RecoverySettings().workflows,
    "pending": TimerSettings().pending,
    "due_per_second": TimerSettings().due_per_second,
}
"""Of what some bench, or `all`, sets otherwise."""
OWN_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "overload": {"runs": OverloadSettings().runs, "seconds": OverloadSettings().seconds},
}
FIGURES: Final = Path("docs/figures")
DESCRIPTION: Final = """\
Measures sagalog on an embedded Kafka of its own, which is gone afterwards.

  floor     a bare aiokafka loop without logic: events in, commands out, agent back (batches, idempotent producers)
  engine    the real engine and agent host, in turn with the floor; ratios are taken within neighbouring pairs
  recovery  kill -9 with many open workflows: seconds until the first command goes out again
  takeover  two engines that stand by for each other, among many open workflows: one is killed, one restarted
  snapshot  many workflows that changed: for how long at a time nothing else is done while they are written
  timers    many workflows that sleep, some of which wake: how late
  cluster   kill -9 one of three brokers under load: the longest time without a result
  overload  ten times the load that the engine can sustain: what is refused, what that does to the rest, how soon it is over
  size      how many partitions, processes and bytes so many workflows a day need, from measured costs
  peers     the same saga on DBOS, Faust, Restate and Temporal, in turn with the engine; what cannot be had is said to be missing
  start     seconds until the embedded servers answer
  fold      the fold without a broker: processor time per event, bytes per idle workflow
  all       engine with each agent, fold, timers, takeover, recovery, snapshot, peers and start, as large as the targets say;
            about an hour
  tables    the two tables of targets, from reports that --save has kept
  plots     the same, drawn
"""
EXAMPLES: Final = """\
examples:
  scripts/bench engine                        under two minutes with the defaults
  scripts/bench engine --json | jq .ratios
  scripts/bench floor --runs 5 --in-flight 8000
  scripts/bench engine --agents raw           without the agent host: what the engine alone costs
  scripts/bench engine --agents raw host projected
  scripts/bench fold --open 1000 1000000      whether the cost stays flat
  scripts/bench size --workflows-per-day 1000000 --steps 6 --payload-bytes 2000
  scripts/bench size --measure --check        this machine's costs, and how well they predict a run
  scripts/bench peers --only dbos faust --runs 5
  scripts/bench recovery --workflows 100000 1000000
  scripts/bench takeover --workflows 200000 --partitions 2
  scripts/bench overload --seconds 20         a short trial; five minutes by default
  scripts/bench overload --seconds 20 --start-wait-ms-max 0 --start-lag-records-max 1000
  scripts/bench timers --pending 1000000 --due-per-second 5000
  scripts/bench all --runs 5 --save docs/figures

A figure is min, median and max over the runs. Compare figures of one machine only, and ratios across machines.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, 1 could not be measured, 2 wrong arguments, 130 interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.name == "takeover" and len(options.workflows or ()) > 1:
        parser.error("argument --workflows: of takeover one number")
    # SIGTERM ends a bench as Ctrl-C does, with nothing left behind; a shell starts background jobs deaf to SIGINT.
    for number in INTERRUPTS:
        signal.signal(number, signal.default_int_handler)
    try:
        if options.name == "size":
            _size(options)
            return 0
        if options.name in ("tables", "plots"):
            return _kept(options)
        reports = []
        for report in _measured(options):
            reports.append(report)
            if options.save is not None:
                _keep(report, options.save)
    except (BenchError, SagalogError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: interrupted; everything it started has ended", file=sys.stderr)
        return EXIT_INTERRUPTED
    if options.json:
        merged(options.name, reports).print_json()
        return 0
    console = Console()
    for report in reports:
        report.print_table(console)
    if len(reports) > 1:
        targets.print_tables(merged(options.name, reports).document()["targets"], console)
    return 0


def _measured(options: argparse.Namespace) -> Iterator[Report]:
    """One report, or one after the other."""
    for name in ALL if options.name == "all" else (options.name,):
        yield _measure(_chosen(options, name))


def _chosen(options: argparse.Namespace, name: str) -> argparse.Namespace:
    """Of that bench: what was said, else its own default (in `all`: as the targets are worded), else the common one."""
    chosen = argparse.Namespace(**vars(options))
    chosen.name = name
    scale = ALL_SCALE.get(name, {}) if options.name == "all" else {}
    for key, value in {**DEFAULTS, **OWN_DEFAULTS.get(name, {}), **scale}.items():
        if getattr(options, key) is None:
            setattr(chosen, key, value)
    return chosen


def _measure(options: argparse.Namespace) -> Report:
    say = Console(stderr=True, highlight=False).print

    def progress(line: str) -> None:
        say(line, style="dim")

    if options.name == "fold":
        return _fold(options, environment.describe(None), progress)
    if options.name == "peers":
        return _peers(options, progress)
    if options.name == "start":
        return start(options.runs, environment.describe(None), progress)
    projected = options.name == "engine" and "projected" in options.agents
    with _broker(BROKERS if options.name == "cluster" else 1, postgres=projected) as (stack, runner, logs):
        return runner.run(_run(options, stack, logs, environment.describe(stack), progress))


def _keep(report: Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{report.bench}.json").write_text(json.dumps(report.document(), indent=2) + "\n")


def _kept(options: argparse.Namespace) -> int:
    """Tables or plots of reports that were kept."""
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(options.figures.glob("*.json"))}
    if not kept:
        raise BenchError(f"there is no report in {options.figures}; make some with --save {options.figures}")
    if options.name == "plots":
        say = Console(stderr=True, highlight=False).print
        for path in plots.draw(options.figures, kept, lambda line: say(line, style="dim")):
            print(path)
        return 0
    found = targets.rows({name: row for document in kept.values() for name, row in measured_in(document).items()})
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        targets.print_tables(found, Console())
    return 0


def _peers(options: argparse.Namespace, progress: Callable[[str], None]) -> Report:
    settings = PeersSettings(
        runs=options.runs,
        seconds=options.seconds,
        in_flight=options.clients,
        partitions=options.partitions,
        payload_bytes=options.payload_bytes,
        workflows_per_second=options.pace,
        peers=tuple(options.only),
    )
    # Before anything is started: a build takes minutes of both cores, and outside of the loop Ctrl-C ends it at once.
    missing = prepared(settings.peers, progress)
    with _broker(1, postgres=True) as (stack, runner, logs):
        return runner.run(peers(stack, settings, missing, environment.describe(stack), logs, progress))


def _size(options: argparse.Namespace) -> None:
    """Prints by itself: a plan is no figure that was measured."""
    if not (options.measure or options.check):
        demand = Demand(
            options.workflows_per_day,
            options.steps,
            options.payload_bytes,
            options.peak,
            options.open_hours,
            options.replication,
            options.engine_memory_gib,
        )
        size.print_plan(demand, size.read_costs(options.costs), as_json=options.json)
        return
    say = Console(stderr=True, highlight=False).print

    def progress(line: str) -> None:
        say(line, style="dim")

    with _broker(1) as (stack, runner, logs):
        found = environment.describe(stack)
        if options.measure:
            costs = runner.run(size.measure(stack, found, logs, progress))
            size.write_costs(costs, options.costs)
            progress(f"written to {options.costs}")
        else:
            costs = size.read_costs(options.costs)
        if options.check:
            rows = runner.run(
                size.check(stack, costs, options.checked_workflows, options.payload_bytes, logs, progress)
            )
            size.print_check(rows, costs, found, as_json=options.json)
        elif options.json:
            print(json.dumps(costs.document(), indent=2))


@contextmanager
def _broker(brokers: int, *, postgres: bool = False) -> Iterator[tuple[EmbeddedStack, asyncio.Runner, Path]]:
    """A Kafka, a loop, and a directory for the children's logs, which are shown when the bench fails."""
    say = Console(stderr=True, highlight=False).print
    say("starting a Kafka …", style="dim")
    with (
        EmbeddedStack(postgres=postgres, brokers=brokers) as stack,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        # In there they go with the stack, even when this process is killed.
        logs = stack.directory / "bench"
        logs.mkdir()
        try:
            yield stack, runner, logs
        except BenchError:
            say(last_words(logs), style="dim")
            raise


def _fold(options: argparse.Namespace, found: Mapping[str, Any], progress: Callable[[str], None]) -> Report:
    return fold(options.runs, options.sagas, sorted(options.open), options.payload_bytes, found, progress)


async def _run(
    options: argparse.Namespace,
    stack: EmbeddedStack,
    logs: Path,
    found: Mapping[str, Any],
    progress: Callable[[str], None],
) -> Report:
    task = asyncio.current_task()
    assert task is not None
    for number in INTERRUPTS:
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    pipelined = PipelineSettings(
        runs=options.runs,
        seconds=options.seconds,
        in_flight=options.in_flight,
        partitions=options.partitions,
        payload_bytes=options.payload_bytes,
        latency_steps_per_second=options.latency_rate,
        agents=tuple(options.agents),
    )
    recovering = RecoverySettings(
        runs=options.runs,
        workflows=tuple(options.workflows),
        partitions=options.partitions,
        payload_bytes=options.payload_bytes,
        session_timeout_ms=options.session_timeout_ms,
    )
    sleeping = TimerSettings(
        runs=options.runs,
        pending=options.pending,
        due_per_second=options.due_per_second,
        partitions=options.partitions,
    )
    killing = ClusterSettings(
        runs=options.runs,
        partitions=options.partitions,
        payload_bytes=options.payload_bytes,
        workflows_per_second=options.workflows_per_second,
        session_timeout_ms=options.session_timeout_ms,
    )
    overloading = OverloadSettings(
        runs=options.runs,
        seconds=options.seconds,
        times=options.times,
        partitions=options.partitions,
        steps=options.overload_steps,
        start_lag_records_max=options.start_lag_records_max,
        start_wait_ms_max=options.start_wait_ms_max,
    )
    match options.name:
        case "floor":
            return await pipeline.floor(stack.bootstrap, pipelined, found, logs, progress)
        case "engine":
            postgres = stack.postgres if "projected" in options.agents else None
            return await pipeline.engine(stack.bootstrap, postgres, pipelined, found, logs, progress)
        case "recovery":
            return await recovery(stack.bootstrap, recovering, found, logs, progress)
        case "takeover":
            return await takeover(stack.bootstrap, recovering, found, logs, progress)
        case "snapshot":
            return await snapshot(stack.bootstrap, options.runs, found, progress)
        case "timers":
            return await timers(stack.bootstrap, sleeping, found, logs, progress)
        case "cluster":
            return await cluster(stack, killing, found, logs, progress)
        case "overload":
            return await overload(stack.bootstrap, overloading, found, logs, progress)
        case other:
            raise AssertionError(f"{other} is no bench that a broker is for")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    pipelined, recovering, overloading = PipelineSettings(), RecoverySettings(), OverloadSettings()
    parser.add_argument(
        "name",
        metavar="NAME",
        choices=NAMES,
        help="see above",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--save", type=Path, metavar="DIR", help="also keep each report there, as NAME.json")
    parser.add_argument(
        "--figures", type=Path, metavar="DIR", default=FIGURES, help="of tables and plots (default: %(default)s)"
    )
    add = parser.add_argument
    runs_help = f"runs, or pairs of runs (default: {pipelined.runs}; of overload: {overloading.runs})"
    add("--runs", type=_whole(1, 100), help=runs_help)
    add("--partitions", type=_whole(1, 64), help=f"(default: {pipelined.partitions})")
    add(
        "--payload-bytes",
        type=_whole(PAYLOAD_FRAME + 1, 100_000),
        default=pipelined.payload_bytes,
        help=f"of every input and output (default: %(default)s); of overload always {overloading.payload_bytes}",
    )
    throughput = parser.add_argument_group("floor, engine")
    throughput.add_argument(
        "--seconds",
        type=_number(0.5, 600),
        help=f"length of the window (default: {pipelined.seconds:g}; of overload: {overloading.seconds:g})",
    )
    throughput.add_argument(
        "--in-flight",
        type=_whole(1, 100_000),
        default=pipelined.in_flight,
        help="workflows kept in flight at saturation (default: %(default)s)",
    )
    throughput.add_argument(
        "--latency-rate",
        type=_whole(LATENCY_RATE_MIN, 1_000_000),
        metavar="STEPS_PER_SECOND",
        help=f"load for {LATENCY_SECONDS:g} s while the latency is measured, the same for floor and engine "
        f"(default: {LATENCY_SHARE:.0%} of what the slower does at most)".replace("%", "%%"),
    )
    throughput.add_argument(
        "--agents",
        choices=VARIANTS,
        nargs="+",
        metavar="AGENT",
        help="beside the engine, each in its turn: a raw loop, the typed host, or host, projector and PostgreSQL (`projected`; "
        f"default: {' '.join(pipelined.agents)})",
    )
    beside = parser.add_argument_group("peers; also --seconds")
    comparing = PeersSettings()
    beside.add_argument(
        "--clients",
        type=_whole(1, 100_000),
        default=comparing.in_flight,
        help="workflows kept in flight, the same for all (default: %(default)s)",
    )
    beside.add_argument(
        "--pace",
        type=_number(0.5, 10_000),
        metavar="WORKFLOWS_PER_SECOND",
        default=comparing.workflows_per_second,
        help="load while the latency is measured, the same for all (default: %(default)s)",
    )
    beside.add_argument(
        "--only", choices=PEERS, nargs="+", metavar="PEER", default=PEERS, help=f"of {', '.join(PEERS)} (default: all)"
    )
    killing = parser.add_argument_group("cluster")
    killing.add_argument(
        "--workflows-per-second",
        type=_whole(1, 2_000),
        default=ClusterSettings().workflows_per_second,
        help="started steadily (default: %(default)s)",
    )
    over = parser.add_argument_group("overload; also --seconds")
    add = over.add_argument
    add("--times", type=_number(1, 100), default=overloading.times, help="the sustainable load (default: %(default)g)")
    add(
        "--overload-steps",
        type=_whole(1, 500),
        default=overloading.steps,
        help="of a workflow (default: %(default)s): many, so that one process can attempt as many starts as it takes",
    )
    add(
        "--start-lag-records-max",
        type=_whole(0, 1_000_000_000),
        default=overloading.start_lag_records_max,
        help="the client's limit of the same name; 0: none (default: %(default)s)",
    )
    add(
        "--start-wait-ms-max",
        type=_whole(0, 3_600_000),
        default=overloading.start_wait_ms_max,
        help="the client's limit of the same name; 0: none (default: %(default)s)",
    )
    crash = parser.add_argument_group("recovery, takeover; the session time-out also of cluster")
    crash.add_argument(
        "--workflows",
        type=_whole(1, 10_000_000),
        nargs="+",
        metavar="N",
        help=f"open ones; of recovery also several numbers, one after the other (default: {recovering.workflows[0]})",
    )
    crash.add_argument(
        "--session-timeout-ms",
        type=_whole(1_000, 300_000),
        default=recovering.session_timeout_ms,
        help="of the engine (default: %(default)s)",
    )
    sleeping = parser.add_argument_group("timers")
    add = sleeping.add_argument
    asleep = TimerSettings()
    add("--pending", type=_whole(0, 10_000_000), help=f"timers beside (default: {asleep.pending})")
    add("--due-per-second", type=_whole(1, 50_000), help=f"(default: {asleep.due_per_second})")
    sizing = parser.add_argument_group("size")
    demand = Demand(1_000_000)
    add = sizing.add_argument
    add("--workflows-per-day", type=_whole(1, 10**12), default=demand.workflows_per_day, help="(default: %(default)s)")
    add("--steps", type=_whole(1, 1_000), default=demand.steps, help="of a workflow (default: %(default)s)")
    add("--peak", type=_number(1, 1_000), default=demand.peak, help="over the average (default: %(default)s)")
    add("--open-hours", type=_number(0, 100_000), default=demand.open_hours, help="a workflow's (default: %(default)s)")
    add("--replication", type=_whole(1, 9), default=demand.replication, help="(default: %(default)s)")
    add(
        "--engine-memory-gib",
        type=_number(0.1, 1_000),
        default=demand.engine_memory_gib,
        help="that one engine may use (default: %(default)s)",
    )
    add("--costs", type=Path, default=size.COSTS_FILE, help="file of measured costs (default: %(default)s)")
    add("--measure", action="store_true", help="measure them here and write the file")
    add("--check", action="store_true", help="run, and compare with what the costs predict")
    add(
        "--checked-workflows",
        type=_whole(1_000, 1_000_000),
        default=size.CHECKED_WORKFLOWS,
        help="of that run (default: %(default)s)",
    )
    folding = parser.add_argument_group("fold")
    folding.add_argument(
        "--sagas", type=_whole(100, 1_000_000), default=10_000, help="four-step sagas a run (default: %(default)s)"
    )
    folding.add_argument(
        "--open",
        type=_whole(1, 10_000_000),
        nargs="+",
        metavar="N",
        default=[1_000, 100_000, 1_000_000],
        help="idle open workflows beside them (default: 1000 100000 1000000)",
    )
    return parser


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value:,} is not within {least:,} to {most:,}")
        return value

    return parse


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not within {least:g} to {most:,g}")
        return value

    return parse
