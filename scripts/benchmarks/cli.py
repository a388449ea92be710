"""The command line of `scripts/bench`: arguments, the embedded broker, and an end in order, also on Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console

from benchmarks import environment, pipeline
from benchmarks.children import last_words
from benchmarks.fold import fold
from benchmarks.recovery import recovery
from benchmarks.report import Report, merged
from benchmarks.settings import (
    LATENCY_RATE_MIN,
    LATENCY_SECONDS,
    LATENCY_SHARE,
    BenchError,
    PipelineSettings,
    RecoverySettings,
)
from benchmarks.start import start
from benchmarks.system import PAYLOAD_FRAME
from sagalog.infra.embedded.stack import EmbeddedStack
from sagalog.schemas.errors import SagalogError

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM)

DESCRIPTION: Final = """\
Measures sagalog on an embedded Kafka of its own, which is gone afterwards.

  floor     a bare aiokafka loop without logic: events in, commands out, agent back (batches, idempotent producers)
  engine    the real engine and agent host, in turn with the floor; ratios are taken within neighbouring pairs
  recovery  kill -9 with many open workflows: seconds until the first command goes out again
  start     seconds until the embedded servers answer
  fold      the fold without a broker: processor time per event, bytes per idle workflow
  all       engine, recovery, start and fold
"""
EXAMPLES: Final = """\
examples:
  scripts/bench engine                        under two minutes with the defaults
  scripts/bench engine --json | jq .ratios
  scripts/bench floor --runs 5 --in-flight 8000
  scripts/bench engine --agent raw            without the agent host: what the engine alone costs
  scripts/bench fold --open 1000 1000000      whether the cost stays flat
  scripts/bench recovery --workflows 100000 --session-timeout-ms 6000

A figure is min, median and max over the runs. Compare figures of one machine only, and ratios across machines.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 measured, 1 could not be measured, 2 wrong arguments, 130 interrupted."""
    options = _parser().parse_args(arguments)
    # SIGTERM ends a bench as Ctrl-C does, with nothing left behind; a shell starts background jobs deaf to SIGINT.
    for number in INTERRUPTS:
        signal.signal(number, signal.default_int_handler)
    try:
        report = _measure(options)
    except (BenchError, SagalogError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("bench: interrupted; everything it started has ended", file=sys.stderr)
        return EXIT_INTERRUPTED
    if options.json:
        report.print_json()
    else:
        report.print_table(Console())
    return 0


def _measure(options: argparse.Namespace) -> Report:
    say = Console(stderr=True, highlight=False).print
    if options.name == "fold":
        return _fold(options, environment.describe(None), lambda line: say(line, style="dim"))
    say("starting a Kafka …", style="dim")
    with (
        EmbeddedStack(postgres=False) as stack,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        # In there they go with the stack, even when this process is killed.
        logs = stack.directory / "bench"
        logs.mkdir()
        found = environment.describe(stack)
        try:
            report = runner.run(_run(options, stack, logs, found, lambda line: say(line, style="dim")))
        except BenchError:
            say(last_words(logs), style="dim")
            raise
    if options.name in ("start", "all"):
        # After the broker above has ended: it would slow down those that are measured.
        started = start(options.runs, found, lambda line: say(line, style="dim"))
        report = started if report is None else merged(options.name, [report, started])
    if options.name == "all":
        assert report is not None
        report = merged(options.name, [report, _fold(options, found, lambda line: say(line, style="dim"))])
    assert report is not None
    return report


def _fold(options: argparse.Namespace, found: Mapping[str, Any], progress: Callable[[str], None]) -> Report:
    return fold(options.runs, options.sagas, sorted(options.open), options.payload_bytes, found, progress)


async def _run(
    options: argparse.Namespace,
    stack: EmbeddedStack,
    logs: Path,
    found: Mapping[str, Any],
    progress: Callable[[str], None],
) -> Report | None:
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
        agent=options.agent,
    )
    recovering = RecoverySettings(
        runs=options.runs,
        workflows=options.workflows,
        partitions=options.partitions,
        payload_bytes=options.payload_bytes,
        session_timeout_ms=options.session_timeout_ms,
    )
    reports = []
    if options.name == "floor":
        reports.append(await pipeline.floor(stack.bootstrap, pipelined, found, logs, progress))
    if options.name in ("engine", "all"):
        reports.append(await pipeline.engine(stack.bootstrap, pipelined, found, logs, progress))
    if options.name in ("recovery", "all"):
        reports.append(await recovery(stack.bootstrap, recovering, found, logs, progress))
    if not reports:
        return None
    return reports[0] if len(reports) == 1 else merged(options.name, reports)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    pipelined, recovering = PipelineSettings(), RecoverySettings()
    parser.add_argument(
        "name", metavar="NAME", choices=("floor", "engine", "recovery", "start", "fold", "all"), help="see above"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add = parser.add_argument
    add("--runs", type=_whole(1, 100), default=pipelined.runs, help="runs, or pairs of runs (default: %(default)s)")
    add("--partitions", type=_whole(1, 64), default=pipelined.partitions, help="(default: %(default)s)")
    add(
        "--payload-bytes",
        type=_whole(PAYLOAD_FRAME + 1, 100_000),
        default=pipelined.payload_bytes,
        help="of every input and output (default: %(default)s)",
    )
    throughput = parser.add_argument_group("floor, engine")
    throughput.add_argument(
        "--seconds", type=_seconds, default=pipelined.seconds, help="length of the window (default: %(default)s)"
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
        "--agent", choices=("host", "raw"), default=pipelined.agent, help="beside the engine (default: %(default)s)"
    )
    crash = parser.add_argument_group("recovery")
    crash.add_argument(
        "--workflows", type=_whole(1, 1_000_000), default=recovering.workflows, help="open ones (default: %(default)s)"
    )
    crash.add_argument(
        "--session-timeout-ms",
        type=_whole(1_000, 300_000),
        default=recovering.session_timeout_ms,
        help="of the engine (default: %(default)s)",
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


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0.5 <= value <= 600.0:
        raise argparse.ArgumentTypeError(f"{text} is not within 0.5 to 600")
    return value
