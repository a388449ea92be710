"""What every command needs: settings, where Kafka and PostgreSQL are, and a loop that stops on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import uvloop

from sagalog.engine.client import Client
from sagalog.infra.clock import SystemRng, wait_for_stop
from sagalog.infra.settings import Settings, load_settings
from sagalog.infra.tuning import tune_garbage_collector
from sagalog.schemas.errors import SagalogError
from sagalog.topics.kafka import KafkaLog, KafkaSecurity
from sagalog.topics.log import LogError
from sagalog.topics.specs import Topics

if TYPE_CHECKING:
    from sagalog.engine.projection.postgres import PostgresSql

logger = logging.getLogger(__name__)

T = TypeVar("T")

STOP_TIMEOUT_S: Final = 30.0

WAIT_S_MAX: Final = 86_400.0
"""How long a process may be told to wait for its broker."""
WAIT_BACKOFF_S: Final = (0.5, 10.0)
"""First and longest wait before a broker that does not answer is asked again."""

PID_MAX: Final = 1 << 22
"""Linux gives no process a larger id."""

DEV_DIR: Final = Path(".sagalog")
DEV_FILE: Final = "dev.json"
"""Where `sagalog dev` leaves its addresses for the other commands."""


class NotFound(SagalogError):
    """What was asked for is not there."""


class NoAddress(SagalogError):
    """Nobody said where a server is."""


def settings() -> Settings:
    """This process's settings; addresses that are not set are those of a running `sagalog dev`. Raises SettingsError."""
    found = load_settings()
    dev = _dev_addresses(found)
    overrides = {key: dev[key] for key in ("bootstrap", "postgres") if getattr(found, key) is None and key in dev}
    return load_settings(**overrides) if overrides else found


def dev_directory(found: Settings) -> Path:
    return found.data_dir or DEV_DIR


def _dev_addresses(found: Settings) -> dict[str, str]:
    """What a running `sagalog dev` left. Without one, or with a file that is not its: nothing, and the command says what to set."""
    file = dev_directory(found) / DEV_FILE
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or not _runs(document.get("pid")):
        return {}
    return {key: str(document[key]) for key in ("bootstrap", "postgres") if key in document}


def _runs(pid: object) -> bool:
    # Zero and negative numbers are groups of processes, ours among them.
    if not isinstance(pid, int) or not 0 < pid <= PID_MAX:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # as another user
    return True


def bootstrap_of(found: Settings) -> str:
    if found.bootstrap is None:
        raise NoAddress(
            "no Kafka is named: set SAGALOG_BOOTSTRAP=host:port, or run `sagalog dev` in this directory for an embedded one"
        )
    return found.bootstrap


def postgres_of(found: Settings) -> str:
    if found.postgres is None:
        raise NoAddress(
            "no PostgreSQL is named: set SAGALOG_POSTGRES=postgresql://user:password@host:port/database, or run `sagalog dev` "
            "in this directory for an embedded one"
        )
    return found.postgres


def security_of(found: Settings) -> KafkaSecurity:
    return KafkaSecurity(
        protocol=found.security_protocol,
        mechanism=found.sasl_mechanism or "PLAIN",
        username=found.sasl_username,
        password=found.sasl_password.get_secret_value() if found.sasl_password else None,
        cafile=str(found.ssl_cafile) if found.ssl_cafile else None,
    )


def make_log(found: Settings) -> KafkaLog:
    return KafkaLog(bootstrap_of(found), security=security_of(found), session_timeout_ms=found.session_timeout_ms)


def topics_of(found: Settings) -> Topics:
    return Topics(found.prefix)


@contextlib.asynccontextmanager
async def open_log(found: Settings) -> AsyncIterator[KafkaLog]:
    log = make_log(found)
    try:
        yield log
    finally:
        await log.close()


async def reached(ask: Callable[[], Awaitable[None]], wait_s: float, stop: asyncio.Event) -> bool:
    """Asks until there is an answer; for `wait_s` seconds no answer, and no for one, is no reason to give up. False: stopped.

    Raises the last LogError.
    """
    rng, until_s, backoff_s = SystemRng(), time.monotonic() + wait_s, WAIT_BACKOFF_S[0]
    while True:
        try:
            await ask()
        except LogError as error:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise
            pause_s = min(left_s, rng.uniform(0.5, 1.0) * backoff_s)
            backoff_s = min(2 * backoff_s, WAIT_BACKOFF_S[1])
            logger.warning("%s; trying again in %.1f s, for %.0f s more", error, pause_s, left_s)
            await wait_for_stop(stop, pause_s)
            if stop.is_set():
                return False
        else:
            return True


@contextlib.asynccontextmanager
async def open_client(found: Settings) -> AsyncIterator[Client]:
    async with (
        open_log(found) as log,
        Client(
            log,
            topics_of(found),
            start_lag_records_max=found.start_lag_records_max,
            start_wait_ms_max=found.start_wait_ms_max,
        ) as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def open_sql(found: Settings) -> AsyncIterator[PostgresSql]:
    """The projection, for reading."""
    # psycopg takes a while to load; commands that talk to the log alone should not wait for it.
    from sagalog.engine.projection.postgres import PostgresSql

    sql = PostgresSql(postgres_of(found), prefix=found.prefix)
    await sql.open()
    try:
        yield sql
    finally:
        await sql.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a command's coroutine on uvloop. What its clients log about retries is not the user's business."""
    set_up_logging("WARNING")
    return uvloop.run(work)


def run_until_stopped(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Runs a long-lived process until SIGTERM or SIGINT; a second signal ends it at once."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_signal(number: int) -> None:
            if stop.is_set():
                os._exit(128 + number)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        tune_garbage_collector()
        await _bounded_stop(work, stop)

    uvloop.run(main())


async def _bounded_stop(work: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event) -> None:
    """Runs the work; once `stop` is set it has STOP_TIMEOUT_S. A client whose broker is gone may otherwise wait for it."""
    task = asyncio.ensure_future(work(stop))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    done, _ = await asyncio.wait({task}, timeout=STOP_TIMEOUT_S)
    if not done:
        logger.error("the process did not stop within %g s and ends as it is; the log has everything", STOP_TIMEOUT_S)
        os._exit(1)
    task.result()


def set_up_logging(level: str) -> None:
    """Lines on standard error. The Kafka client reports what it retries by itself as warnings: only its errors are shown."""
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S", force=True
    )
    logging.getLogger("aiokafka").setLevel("DEBUG" if level == "DEBUG" else "CRITICAL")
