"""The command line, `sagalog`. Tables for people, `--json` for programs.

Exit codes: 0 done; 1 the answer is no (a workflow failed, `verify` found a difference); 2 the call or its input is wrong;
3 Kafka or PostgreSQL cannot be reached or refuse; 4 a wait timed out; 5 not found; 6 refused, try again later; 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from sagalog.engine.backlog import Overloaded
from sagalog.engine.client import DuplicateStart, TopicsMissing, UnknownDefinition, WaitTimeout
from sagalog.engine.originals import UnknownOriginal
from sagalog.schemas.errors import InvalidRecord, SagalogError
from sagalog.topics.log import LogError

from . import audit, migrating, people, processes, rewind, schedules, setup, workflows
from .context import NotFound
from .output import error_line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="sagalog: an event-sourced saga engine on Kafka.",
    epilog="Exit codes: 0 done, 1 the answer is no, 2 wrong call or input, 3 Kafka or PostgreSQL unreachable, "
    "4 timed out, 5 not found, 6 refused: try again later. "
    "Settings: SAGALOG_BOOTSTRAP, SAGALOG_POSTGRES, SAGALOG_PREFIX, ... or sagalog.toml.",
)
processes.register(app)
workflows.register(app)
people.register(app)
schedules.register(app)
rewind.register(app)
audit.register(app)
migrating.register(app)
setup.register(app)


def main() -> None:
    """The entry point: errors become one clear sentence on standard error, and an exit code."""
    try:
        app(standalone_mode=True)
    except SagalogError as error:
        error_line(str(error))
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)


def exit_code(error: SagalogError) -> int:
    """The documented exit code of an error."""
    # Imported here: psycopg is slow to load, and most errors are not its.
    from sagalog.engine.projection.sql import SqlError
    from sagalog.infra.errors import InfraError

    match error:
        case DuplicateStart():
            return 1
        case WaitTimeout():
            return 4
        case NotFound() | UnknownOriginal():
            return 5
        case Overloaded():
            return 6
        case InvalidRecord() | UnknownDefinition():
            return 2
        case LogError() | SqlError() | InfraError() | TopicsMissing():
            return 3
        case _:
            return 2
