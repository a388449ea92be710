"""Temporal: its server on PostgreSQL, all services in one process, and two processes of workers and clients.

Its makers publish no binaries of the server as a package, so it is built from its Go modules, at the newest version that the
toolchain here takes. The limits on requests that guard a shared server are lifted; the number of shards is raised from the 4 of
its example, with which it did half as many steps here.

What can be searched for ("visibility") is kept in memory instead: its tables need an extension, btree_gin, which the embedded
PostgreSQL does not have. No workflow depends on it, and it costs Temporal less so.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.install import Progress, go_programs, python_packages, run
from benchmarks.peers.place import Place
from benchmarks.peers.settings import SERVER_READY_MS_MAX, SETUP_SECONDS_MAX
from benchmarks.peers.subjects import Driven, Subject, spread
from sagalog.infra.embedded import ports
from sagalog.infra.embedded.process import ServerProcess, ServerSpec
from sagalog.infra.embedded.site import Site
from sagalog.infra.errors import PortTakenError

SERVER_VERSION: Final = "1.32.1"
VERSION = f"{SERVER_VERSION} (temporalio 1.35.0)"
SERVED_BY = "PostgreSQL (fsync on, synchronous_commit on; its search index in memory)"
PROGRAMS: Final = ("go.temporal.io/server/cmd/server", "go.temporal.io/server/cmd/tools/sql")
PROCESSES: Final = 2
SHARDS: Final = 64
CONNECTIONS: Final = 20
"""Of each of the four services; PostgreSQL takes 100."""
SERVICES: Final = ("frontend", "matching", "history", "worker")
LOW_PORTS: Final = (12_000, 32_000)
NO_LIMIT: Final = 1_000_000


def prepare(progress: Progress) -> None:
    """Installs the SDK and builds the server, which takes minutes at first. Raises Unavailable."""
    python_packages("temporal", progress)
    _programs(progress)


def _programs(progress: Progress) -> Path:
    return go_programs("temporal", PROGRAMS, f"v{SERVER_VERSION}", progress)


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Subject]:
    """Until the block ends. Raises Unavailable or ProcessStartError when the server cannot be started."""
    python = python_packages("temporal", lambda line: None)
    directory = place.stack.directory / place.name
    directory.mkdir(mode=0o700)  # its configuration has the database's password
    address = f"{ports.HOST}:{{}}"
    try:
        await asyncio.to_thread(_make_schema, place)
        frontend, *others = low_ports(2 * len(SERVICES))
        server = await asyncio.to_thread(_server, place, directory, [frontend, *others])
        try:
            async with AsyncExitStack() as stack:
                children = []
                for share in spread(place.settings.in_flight, PROCESSES):
                    arguments = {"address": address.format(frontend), "in_flight": share}
                    child = await stack.enter_async_context(place.child("temporal_app", arguments, python))
                    await child.ready()
                    children.append(child)
                yield Driven(clients=children, workers=children)
        finally:
            # Killed, not stopped: nothing of it is needed any more.
            await asyncio.to_thread(server.kill)
    finally:
        await asyncio.to_thread(place.drop_database, place.name)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def low_ports(count: int) -> list[int]:
    """Free ports of which Temporal can take note: its table of members has 15 bits for one."""
    found: list[int] = []
    for port in range(random.randrange(*LOW_PORTS), LOW_PORTS[-1] + 1):
        if len(found) == count:
            break
        try:
            ports.require_free("Temporal", port)
        except PortTakenError:
            continue
        found.append(port)
    return found


def _make_schema(place: Place) -> None:
    url = urllib.parse.urlsplit(place.new_database(place.name))
    tool = _programs(lambda line: None) / "sql"
    common = [str(tool), "--plugin", "postgres12", "--endpoint", str(url.hostname), "--port", str(url.port)]
    common += ["--user", str(url.username), "--database", place.name]
    for command in (["setup-schema", "-v", "0.0"], ["update-schema", "--schema-name", "postgresql/v12/temporal"]):
        # The password goes by the environment: arguments are everybody's to read.
        run(
            f"Temporal's {command[0]}",
            [*common, *command],
            SETUP_SECONDS_MAX,
            {"SQL_PASSWORD": urllib.parse.unquote(str(url.password))},
        )


def _server(place: Place, directory: Path, free: list[int]) -> ServerProcess:
    limits = directory / "limits.yaml"
    limits.write_text(json.dumps(dynamic_config()))  # JSON is YAML, too
    config = directory / "temporal.yaml"
    config.write_text(json.dumps(config_of(place.stack.postgres, place.name, free, limits)))
    command = (str(_programs(lambda line: None) / "server"), "--config-file", str(config), "--allow-no-auth", "start")
    server = ServerProcess.spawn(
        ServerSpec("Temporal", command, place.logs / f"{place.name}-server.log", Site(directory))
    )
    # Its clients wait until it can be used; here it is only seen to listen.
    server.wait_ready(lambda: _missing(free[0]), SERVER_READY_MS_MAX)
    return server


def _missing(port: int) -> str | None:
    try:
        socket.create_connection((ports.HOST, port), timeout=1).close()
    except OSError as error:
        return str(error)
    return None


def dynamic_config() -> dict[str, list[dict[str, Any]]]:
    """No limits on requests, and no question to its makers whether there is a newer version."""
    lifted = [f"{service}.persistenceMaxQPS" for service in ("frontend", "history", "matching")]
    lifted += ["frontend.rps", "frontend.namespaceRPS", "history.rps", "matching.rps"]
    values: dict[str, Any] = {**dict.fromkeys(lifted, NO_LIMIT), "frontend.enableServerVersionCheck": False}
    return {name: [{"value": value}] for name, value in values.items()}


def config_of(postgres: str, database: str, free: list[int], limits: Path) -> dict[str, Any]:
    """As the server's own example for PostgreSQL on one machine, but for the shards, addresses and names."""
    url = urllib.parse.urlsplit(postgres)
    stores = {
        "temporal": {
            "sql": {
                "pluginName": "postgres12",
                "databaseName": database,
                "connectAddr": f"{url.hostname}:{url.port}",
                "connectProtocol": "tcp",
                "user": url.username,
                "password": urllib.parse.unquote(str(url.password)),
                "maxConns": CONNECTIONS,
                "maxIdleConns": CONNECTIONS,
                "maxConnLifetime": "1h",
            }
        },
        "visibility": {
            "sql": {
                "pluginName": "sqlite",
                "databaseName": "visibility",
                "connectAddr": "localhost",
                "connectProtocol": "tcp",
                "connectAttributes": {"mode": "memory", "cache": "private"},
                "maxConns": 1,
                "maxIdleConns": 1,
                "maxConnLifetime": "1h",
            }
        },
    }
    address = f"{ports.HOST}:{free[0]}"
    return {
        "log": {"stdout": True, "level": "error"},
        "persistence": {
            "defaultStore": "temporal",
            "visibilityStore": "visibility",
            "numHistoryShards": SHARDS,
            "datastores": stores,
        },
        "global": {"membership": {"maxJoinDuration": "30s", "broadcastAddress": ports.HOST}},
        "services": {
            service: {"rpc": {"grpcPort": grpc, "membershipPort": member, "bindOnLocalHost": True}}
            for service, grpc, member in zip(SERVICES, free[: len(SERVICES)], free[len(SERVICES) :], strict=True)
        },
        "clusterMetadata": {
            "enableGlobalNamespace": False,
            "failoverVersionIncrement": 10,
            "masterClusterName": "active",
            "currentClusterName": "active",
            "clusterInformation": {
                "active": {
                    "enabled": True,
                    "initialFailoverVersion": 1,
                    "rpcName": "frontend",
                    "rpcAddress": address,
                }
            },
        },
        "dcRedirectionPolicy": {"policy": "noop"},
        "publicClient": {"hostPort": address},
        "dynamicConfigClient": {"filepath": str(limits), "pollInterval": "60s"},
    }
