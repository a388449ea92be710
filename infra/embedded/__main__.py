"""Runs the embedded stack in the foreground: python -m sagalog.infra.embedded [--dir DIRECTORY] [--json].

It prints the addresses once both servers can be used, and stops them on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from sagalog.infra.embedded.stack import EmbeddedStack
from sagalog.infra.settings import load_settings
from sagalog.schemas.errors import SagalogError


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        settings = load_settings()
        stack = EmbeddedStack(
            options.dir or settings.data_dir,
            kafka_port=options.kafka_port,
            postgres_port=options.postgres_port,
            cache_dir=settings.cache_dir,
            maven_url=settings.maven_url,
        )
        with stack:
            sys.stdout.write(json.dumps(stack.describe()) + "\n" if options.json else _text(stack))
            sys.stdout.flush()
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except SagalogError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sagalog.infra.embedded", description="Kafka and PostgreSQL, here.")
    parser.add_argument("--dir", type=Path, help="keep the data there (default: data_dir of the settings, or nowhere)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--kafka-port", type=int, help="a fixed port for Kafka (default: a free one)")
    parser.add_argument("--postgres-port", type=int, help="a fixed port for PostgreSQL (default: a free one)")
    return parser.parse_args(arguments)


def _text(stack: EmbeddedStack) -> str:
    return (
        f"SAGALOG_BOOTSTRAP={stack.bootstrap}\n"
        f"SAGALOG_POSTGRES={stack.postgres}\n"
        f"# data in {stack.directory}; Ctrl-C stops both\n"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
