"""Restate: its server (one node), a process that serves the handler, and a process of clients at the server's ingress.

The server is the binary in the npm package of this platform, which `@restatedev/restate-server` would bring along.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.install import Progress, npm_package, npm_platform, python_packages
from benchmarks.peers.place import Place
from benchmarks.peers.settings import SERVER_READY_MS_MAX, SETUP_SECONDS_MAX
from benchmarks.peers.subjects import Driven, Subject
from benchmarks.settings import Unavailable
from sagalog.infra.embedded import ports
from sagalog.infra.embedded.process import ServerProcess, ServerSpec
from sagalog.infra.embedded.site import Site

SERVER_VERSION = "1.7.12"
VERSION = f"{SERVER_VERSION} (restate-sdk 1.2.0)"
SERVED_BY = "its own log on RocksDB (one node, the log's WAL synced, as is its default)"
REQUEST_SECONDS_MAX = 5
RETRY_SECONDS = 0.25


def prepare(progress: Progress) -> None:
    """Installs server and SDK. Raises Unavailable."""
    python_packages("restate", progress)
    _binary(progress)


def _binary(progress: Progress) -> Path:
    package = npm_package("restate", f"@restatedev/restate-server-{npm_platform()}", SERVER_VERSION, progress)
    return package / "bin/restate-server"


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Subject]:
    """Until the block ends. Raises Unavailable when the server cannot be started or does not take the handler."""
    python = python_packages("restate", lambda line: None)
    directory = place.stack.directory / place.name
    directory.mkdir()
    ingress, admin, node, handler = ports.free_ports(4)
    server = await asyncio.to_thread(_server, place, directory, ingress, admin, node)
    try:
        async with AsyncExitStack() as stack:
            worker = await stack.enter_async_context(place.child("restate_app", {"port": handler}, python))
            await worker.ready()
            await asyncio.to_thread(_register, admin, handler)
            at = {"ingress": f"http://{ports.HOST}:{ingress}"}
            client = await stack.enter_async_context(place.child("restate_client", at, python))
            await client.ready()
            yield Driven(clients=[client], workers=[worker])
    finally:
        # Killed, not stopped: nothing of it is needed any more.
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


def _server(place: Place, directory: Path, ingress: int, admin: int, node: int) -> ServerProcess:
    config = directory / "restate.toml"
    config.write_text(config_of(directory, ingress, admin, node))
    spec = ServerSpec(
        name="Restate",
        # Killed, it leaves folders in TMPDIR, 16 a run; these are to go with the run's own.
        command=(
            "env",
            f"TMPDIR={directory}",
            str(_binary(lambda line: None)),
            "--no-logo",
            "--config-file",
            str(config),
        ),
        log=place.logs / f"{place.name}-server.log",
        site=Site(directory),
    )
    server = ServerProcess.spawn(spec)
    server.wait_ready(lambda: _missing(admin, ingress), SERVER_READY_MS_MAX)
    return server


def config_of(directory: Path, ingress: int, admin: int, node: int) -> str:
    """Everything but addresses, names and what it would tell others is the server's default."""
    return f"""\
node-name = "bench"
base-dir = {json.dumps(str(directory / "data"))}
listen-mode = "tcp"
bind-address = "{ports.HOST}:{node}"
advertised-address = "http://{ports.HOST}:{node}/"
disable-telemetry = true
log-filter = "warn"

[ingress]
bind-address = "{ports.HOST}:{ingress}"

[admin]
bind-address = "{ports.HOST}:{admin}"
disable-web-ui = true
"""


def _missing(admin: int, ingress: int) -> str | None:
    try:
        for url in (f"http://{ports.HOST}:{admin}/health", f"http://{ports.HOST}:{ingress}/restate/health"):
            with urllib.request.urlopen(url, timeout=REQUEST_SECONDS_MAX):
                pass
    except OSError as error:
        return str(error)
    return None


def _register(admin: int, handler: int) -> None:
    """Tells the server where the handler is served; again until it could reach it."""
    request: Any = urllib.request.Request(
        f"http://{ports.HOST}:{admin}/deployments",
        json.dumps({"uri": f"http://{ports.HOST}:{handler}"}).encode(),
        {"content-type": "application/json"},
    )
    until = time.monotonic() + SETUP_SECONDS_MAX
    while True:
        try:
            with urllib.request.urlopen(request, timeout=SETUP_SECONDS_MAX):
                return
        except OSError as error:
            said = error.read().decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else str(error)
            if time.monotonic() > until:
                raise Unavailable(f"its server did not take the handler: {said[:200]}") from None
        time.sleep(RETRY_SECONDS)
