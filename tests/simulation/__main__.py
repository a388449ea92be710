"""The command line of the simulation.

python -m tests.simulation simulate --seeds N [--first S] [--hours H] [--plant BUG] [--as-is]
python -m tests.simulation replay SEED [--plant BUG] [--as-is] [--lines N]
python -m tests.simulation planted [--seeds N] [BUG ...]

All take `--projected some|all|none`: which seeds have projectors and a real PostgreSQL, and `--rolled some|all|none`: in which
engines are restarted one after the other, and nothing else goes wrong.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

if os.environ.get("PYTHONHASHSEED") != "0":
    # Sets of strings are ordered by their hash: a seed means the same run only under the same one.
    os.execve(
        sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"}
    )


def main() -> int:
    from . import commands

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs deaf to it
    parser = argparse.ArgumentParser(prog="scripts/test", description="Deterministic simulation.")
    tasks = parser.add_subparsers(dest="task", required=True)
    simulate = tasks.add_parser("simulate", help="run many seeds")
    simulate.add_argument("--seeds", type=int, default=100)
    simulate.add_argument("--first", type=int, default=1)
    simulate.add_argument("--hours", type=float, default=None, help="go on with further seeds for so long")
    simulate.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    replay = tasks.add_parser("replay", help="run one seed and show its trace")
    replay.add_argument("seed", type=int)
    replay.add_argument("--lines", type=int, default=60)
    replay.add_argument("--shrink", action="store_true", help="leave out what the failure does not need")
    planted = tasks.add_parser("planted", help="show that planted bugs are found")
    planted.add_argument("bugs", nargs="*")
    planted.add_argument("--seeds", type=int, default=1_000, help="at most so many per bug")
    planted.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    for task in (simulate, replay, planted):
        task.add_argument(
            "--projected",
            choices=("some", "all", "none"),
            default="some",
            help="which seeds have projectors and a real PostgreSQL (default: one in five)",
        )
        task.add_argument(
            "--rolled",
            choices=("some", "all", "none"),
            default="some",
            help="in which seeds only rolling restarts go on (default: one in eight)",
        )
    for task in (simulate, replay):
        task.add_argument("--plant", default=None, help="the name of a bug to plant")
        task.add_argument("--as-is", action="store_true", help="leave known bugs unmended")
    arguments = parser.parse_args()
    match arguments.task:
        case "simulate":
            return commands.simulate(arguments)
        case "replay":
            return commands.replay(arguments)
        case _:
            return commands.planted(arguments)


if __name__ == "__main__":
    sys.exit(main())
