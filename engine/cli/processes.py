"""Commands that run until they are stopped: dev, engine, agent, project, watch. SIGTERM and SIGINT end them cleanly."""

from __future__ import annotations

import asyncio
import json as json_module
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from prometheus_client import REGISTRY

from sagalog.engine.runtime.engine import Engine
from sagalog.engine.runtime.metrics import EngineMetrics
from sagalog.infra.clock import SystemClock, SystemRng
from sagalog.infra.probes import LoopProbes
from sagalog.infra.settings import Settings, load_settings
from sagalog.schemas.definitions import Definition
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.provision import provision
from sagalog.topics.specs import all_specs

from .context import (
    DEV_FILE,
    WAIT_S_MAX,
    bootstrap_of,
    dev_directory,
    open_log,
    postgres_of,
    reached,
    run_until_stopped,
    security_of,
    set_up_logging,
    settings,
    topics_of,
)
from .output import err, out
from .serving import serve
from .setup import load_definition

if TYPE_CHECKING:
    from sagalog.agents.agent import AnyAgent


AgentNames = Annotated[
    list[str], typer.Argument(help="module:name of an agent, or of a list of agents; several allowed.")
]
WaitS = Annotated[
    float,
    typer.Option(
        "--wait",
        min=0,
        max=WAIT_S_MAX,
        help="Seconds to keep trying, with back-off, while Kafka does not answer at the start.",
    ),
]


def register(app: typer.Typer) -> None:
    for command in (dev, engine, agent, project, watch):
        app.command(command.__name__)(command)


def engine(wait: WaitS = 0.0) -> None:
    """Run an engine: it folds its share of the partitions. Start several to share the work.

    Example: SAGALOG_BOOTSTRAP=kafka:9092 SAGALOG_METRICS_PORT=9100 sagalog engine --wait 60
    """
    found = settings()
    set_up_logging(found.log_level)

    async def work(stop: asyncio.Event) -> None:
        async with open_log(found) as log:
            if await reached(lambda: _provision(log, found), wait, stop):
                await _run_engine(log, found, stop, found.metrics_port)

    run_until_stopped(work)


def agent(names: AgentNames, wait: WaitS = 0.0) -> None:
    """Run agents: each consumes the commands of its topic.

    Example: sagalog agent sagalog.agents.invoices.saga:agents
    """
    found = settings()
    set_up_logging(found.log_level)
    loaded = _load_agents(names)

    async def work(stop: asyncio.Event) -> None:
        async with open_log(found) as log:
            if await reached(lambda: _answers(log, found), wait, stop):
                await _run_agents(log, found, loaded, stop, found.metrics_port)

    run_until_stopped(work)


def project(wait: WaitS = 0.0) -> None:
    """Run a projector: it keeps the rows in PostgreSQL up to date. Start several to share the partitions.

    Example: SAGALOG_POSTGRES=postgresql://user@db/sagalog sagalog project
    """
    found = settings()
    set_up_logging(found.log_level)

    async def work(stop: asyncio.Event) -> None:
        async with open_log(found) as log:
            if await reached(lambda: _answers(log, found), wait, stop):
                await _run_projector(log, found, stop, found.metrics_port)

    run_until_stopped(work)


def watch(wait: WaitS = 0.0) -> None:
    """Run the watch: it keeps an error rate per agent and raises an alert when it is too high.

    Example: SAGALOG_BOOTSTRAP=kafka:9092 sagalog watch
    """
    found = settings()
    set_up_logging(found.log_level)

    async def work(stop: asyncio.Event) -> None:
        async with open_log(found) as log:
            if not await reached(lambda: _answers(log, found), wait, stop):
                return
        await _run_watch(found, stop, found.metrics_port)

    run_until_stopped(work)


def dev(
    agents: Annotated[list[str] | None, typer.Option("--agent", help="Also run these agents (module:name).")] = None,
    definitions: Annotated[list[str] | None, typer.Option("--definition", help="Register this definition.")] = None,
) -> None:
    """Run everything in one process, with an embedded Kafka and PostgreSQL where none is named.

    Other commands in this directory find it by themselves.

    \b
    Example: sagalog dev --agent sagalog.agents.invoices.saga:agents \\
                 --definition sagalog.agents.invoices.saga:definition
    """
    found = load_settings()
    set_up_logging("WARNING" if found.log_level == "INFO" else found.log_level)
    # First of all: who names them wrongly should not wait for servers to start.
    loaded = _Loaded(_load_agents(agents or []), [load_definition(source) for source in definitions or []])
    from sagalog.infra.embedded.stack import EmbeddedStack

    needs_kafka, needs_postgres = found.bootstrap is None, found.postgres is None
    directory = dev_directory(found)
    directory.mkdir(parents=True, exist_ok=True)
    if not needs_kafka and not needs_postgres:
        _dev(found, directory, loaded)
        return
    out.print("Starting the embedded servers…", style="dim")
    with EmbeddedStack(
        directory / "stack",
        kafka=needs_kafka,
        postgres=needs_postgres,
        cache_dir=found.cache_dir,
        maven_url=found.maven_url,
    ) as stack:
        addresses = {}
        if needs_kafka:
            addresses["bootstrap"] = stack.bootstrap
        if needs_postgres:
            addresses["postgres"] = stack.postgres
        _dev(load_settings(**addresses), directory, loaded)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What `dev` was asked to run besides its own."""

    agents: list[AnyAgent]
    definitions: list[Definition]


def _load_agents(names: list[str]) -> list[AnyAgent]:
    # Imported here: the commands that run no agents should not wait for them.
    from sagalog.agents import load_agents

    return [one for name in names for one in load_agents(name)]


def _dev(found: Settings, directory: Path, loaded: _Loaded) -> None:
    async def work(stop: asyncio.Event) -> None:
        from sagalog.engine.client import Client

        async with open_log(found) as log:
            await _provision(log, found)
            tasks: dict[str, Callable[[asyncio.Event], Awaitable[None]]] = {
                "engine": lambda stop: _run_engine(log, found, stop, found.metrics_port),
                "projector": lambda stop: _run_projector(log, found, stop, None),
                "watch": lambda stop: _run_watch(found, stop, None),
            }
            if loaded.agents:
                tasks["agents"] = lambda stop: _run_agents(log, found, loaded.agents, stop, None)
            if loaded.definitions:
                async with Client(log, topics_of(found)) as client:
                    for definition in loaded.definitions:
                        out.print(
                            f"definition  {definition.name}@{await client.register(definition)}",
                            markup=False,
                        )
            _announce(found, directory)
            try:
                await _together(tasks, stop)
            finally:
                (directory / DEV_FILE).unlink(missing_ok=True)

    run_until_stopped(work)


def _announce(found: Settings, directory: Path) -> None:
    """Leaves the addresses for other commands, and prints them."""
    document = {"pid": os.getpid(), "bootstrap": bootstrap_of(found), "postgres": postgres_of(found)}
    file = directory / DEV_FILE
    fresh = file.with_suffix(".new")
    fresh.write_text(json_module.dumps(document))
    fresh.chmod(0o600)  # the address of PostgreSQL holds a password
    fresh.rename(file)
    out.print(f"Kafka       {found.bootstrap}", markup=False)
    out.print(f"PostgreSQL  {found.postgres}", markup=False)
    out.print("Everything runs; stop it with Ctrl-C. Try: sagalog start, sagalog list, sagalog verify", style="dim")


async def _together(tasks: dict[str, Callable[[asyncio.Event], Awaitable[None]]], stop: asyncio.Event) -> None:
    """Runs all until `stop`; the first that fails ends the others, and its error is raised."""

    async def guarded(name: str, work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        try:
            await work(stop)
        except BaseException:
            err.print(f"{name} failed; stopping the rest", style="red")
            raise
        finally:
            stop.set()

    running = [asyncio.create_task(guarded(name, work)) for name, work in tasks.items()]
    done = await asyncio.gather(*running, return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, BaseException):
            raise outcome


async def _answers(log: KafkaLog, found: Settings) -> None:
    """Asks the broker something. Whether the topics are there is the business of those who need them."""
    await log.partitions(topics_of(found).events)


async def _provision(log: KafkaLog, found: Settings) -> None:
    await provision(
        log,
        topics_of(found),
        all_specs(),
        partitions=found.partitions,
        replication=found.replication,
        min_insync_replicas=found.min_insync_replicas,
    )


async def _run_engine(log: KafkaLog, found: Settings, stop: asyncio.Event, metrics_port: int | None) -> None:
    running = Engine(
        log,
        topics_of(found),
        clock=SystemClock(),
        rng=SystemRng(),
        snapshot_interval_ms=found.snapshot_interval_ms,
        metrics=EngineMetrics(REGISTRY),
        standbys=found.standbys,
        rack=found.rack,
        tenant_weights=found.weights,
    )
    serve(metrics_port, REGISTRY, "engine", running.health)
    await running.run(stop)


async def _run_agents(
    log: KafkaLog, found: Settings, agents: list[AnyAgent], stop: asyncio.Event, metrics_port: int | None
) -> None:
    from sagalog.agents import AgentHost

    host = AgentHost(agents, log, topics_of(found), clock=SystemClock(), rng=SystemRng())
    probes = LoopProbes(SystemClock(), host.unready)
    serve(metrics_port, REGISTRY, "agent host", probes)
    await _beating(probes, host.run(stop))


async def _run_projector(log: KafkaLog, found: Settings, stop: asyncio.Event, metrics_port: int | None) -> None:
    from sagalog.engine.projection.metrics import ProjectionMetrics
    from sagalog.engine.projection.postgres import PostgresSql
    from sagalog.engine.projection.projector import Projector

    metrics = ProjectionMetrics(REGISTRY)
    sql = PostgresSql(postgres_of(found), prefix=found.prefix)
    projector = Projector(log, sql, topics_of(found), clock=SystemClock(), rng=SystemRng(), metrics=metrics)
    probes = LoopProbes(SystemClock(), projector.unready)
    serve(metrics_port, REGISTRY, "projector", probes)
    await _beating(probes, projector.run(stop))


async def _run_watch(found: Settings, stop: asyncio.Event, metrics_port: int | None) -> None:
    from sagalog.engine.watch.app import run_watch
    from sagalog.engine.watch.metrics import WatchMetrics

    serve(metrics_port, REGISTRY, "watch")
    metrics = WatchMetrics(REGISTRY)
    await run_watch(bootstrap_of(found), found.prefix, stop, security=security_of(found), metrics=metrics)


async def _beating(probes: LoopProbes, work: Coroutine[Any, Any, None]) -> None:
    """The work, with the pulse by which another thread sees that the loop turns."""
    beat = asyncio.create_task(probes.beat_on())
    try:
        await work
    finally:
        beat.cancel()
