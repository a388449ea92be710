"""The containers stack: Kafka and PostgreSQL in containers (testcontainers), for `pytest --stack containers`.

Images: the official ones when they are here or can be pulled, else the local ones that scripts/images builds; with
neither, or without a Docker daemon, the tests are skipped with the reason.

Rules: published on loopback only; the settings are the embedded stack's, plus what a container needs; an address is
chosen once and stays through kill, stop and start, as the data do (the volumes belong to the container); at the end
the containers go with their volumes. A session that is killed leaves them, unless testcontainers' reaper (Ryuk) could
be had; `docker rm -fv $(docker ps -aq --filter label=org.sagalog.stack)` removes them.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import psycopg
import pytest
import requests
from docker.errors import APIError, ImageNotFound, NotFound
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from sagalog.infra.containers.images import (
    KAFKA,
    KAFKA_CONFIG,
    KAFKA_DATA,
    POSTGRES,
    POSTGRES_PORT,
    VERSION_LABEL,
    Image,
    connect,
)
from sagalog.infra.containers.tree import ImageError
from sagalog.infra.embedded import kafka, ports, postgres
from sagalog.infra.embedded.cluster import Quorum
from sagalog.infra.embedded.kafka_probe import kafka_missing
from sagalog.infra.embedded.runtime import JVM
from sagalog.infra.errors import ProcessStartError

LABELS = {"org.sagalog.stack": "tests"}
BIND_TRIES_MAX = 3  # a free port can be taken between its choice and its use
PORT_TAKEN = ("port is already allocated", "address already in use")
START_S_MAX = 120  # of a machine under load: with eight times as much to do as it has cores, 23 s were measured
STOP_S_MAX = 15  # a clean stop may take this long before the daemon kills the server
END_S_MAX = 30
PROBE_INTERVAL_S = 0.05
CONNECT_S_MAX = 5
LOG_LINES_SHOWN = 15
CONTROLLER_PORT = 9093  # inside the container
# Inside a container these are the image's business: it has a network and a socket directory of its own.
NOT_IN_A_CONTAINER = frozenset({"listen_addresses", "unix_socket_directories"})


class ContainerServer:
    """One server in a container. `make` gives the container for a port of the host, `missing` says what is not ready."""

    def __init__(self, name: str, make: Callable[[int], DockerContainer], missing: Callable[[int], str | None]) -> None:
        self._name = name
        self._make = make
        self._missing = missing
        self._container: DockerContainer | None = None
        self.port = 0

    def create(self) -> None:
        """Makes the container and lets it run; `wait_ready` is to follow."""
        for tries_left in reversed(range(BIND_TRIES_MAX)):
            (self.port,) = ports.free_ports(1)
            self._container = self._make(self.port)
            try:
                self._container.start()
            except APIError as error:
                self.remove()
                if not tries_left or not any(text in str(error) for text in PORT_TAKEN):
                    raise
            else:
                return

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_S_MAX
        while (missing := self._missing(self.port)) is not None:
            self._running.reload()
            if self._running.status != "running":
                raise self._failed("ended before it was ready")
            if time.monotonic() > deadline:
                raise self._failed(f"was not ready within {START_S_MAX} s ({missing})")
            time.sleep(PROBE_INTERVAL_S)  # between two questions; nothing tells us when a server begins to serve

    def kill(self) -> None:
        """Kills the server at once, as a crash does (SIGKILL); returns when nothing of it is left."""
        self._running.kill()
        self._running.wait(timeout=END_S_MAX)

    def stop(self) -> None:
        self._running.stop(timeout=STOP_S_MAX)

    def start(self) -> None:
        """Starts it again, with its address and its data; returns when it can be used."""
        self._running.start()
        self.wait_ready()

    def remove(self) -> None:
        """Removes the container with its volumes; nothing happens when there is none."""
        if self._container is not None:
            container, self._container = self._container, None
            container.stop(force=True, delete_volume=True)

    @property
    def _running(self) -> Any:
        assert self._container is not None, f"{self._name} has no container: the stack was not started"
        return self._container.get_wrapped_container()

    def _failed(self, how: str) -> ProcessStartError:
        lines = self._running.logs(tail=LOG_LINES_SHOWN).decode(errors="replace").splitlines()
        shown = "\n".join(f"    {line}" for line in lines) or "    (the log is empty)"
        image = self._running.image
        return ProcessStartError(f"{self._name} (image {image.tags}) {how}: see the last lines of its log\n{shown}")


class ContainerStack:
    """Kafka and PostgreSQL in containers; skips the test when they cannot be had."""

    def __enter__(self) -> Self:
        try:
            client = connect()
        except ImageError as error:
            pytest.skip(str(error))
        kafka_image, postgres_image = find_image(client, KAFKA), find_image(client, POSTGRES)
        if not _has_image(client, testcontainers_config.ryuk_image):
            _use_ryuk_if_pulled(client, kafka_image)
        password = secrets.token_urlsafe(24)
        self.kafka = ContainerServer(
            kafka.NAME, lambda port: kafka_container(kafka_image, port), lambda port: kafka_missing(ports.HOST, port)
        )
        self.postgres_server = ContainerServer(
            postgres.NAME,
            lambda port: postgres_container(postgres_image, port, password),
            lambda port: postgres_missing(postgres_url(port, password)),
        )
        servers = (self.kafka, self.postgres_server)
        try:
            for server in servers:
                server.create()
            for server in servers:
                server.wait_ready()
        except BaseException:
            self._remove()
            raise
        self.bootstrap = f"{ports.HOST}:{self.kafka.port}"
        self.postgres = postgres_url(self.postgres_server.port, password)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        try:
            self.kafka.remove()
        finally:
            self.postgres_server.remove()


def find_image(client: Any, image: Image) -> str:
    """The name of the image to run: the official one if it is here or can be pulled, else the local one; or skips."""
    official = testcontainers_config.hub_image_name_prefix + image.official
    if _has_image(client, official):
        return official
    why_not = _pull(client, official)
    if why_not is None:
        return official
    try:
        local = client.images.get(image.name)
    except ImageNotFound:
        pytest.skip(
            f"{official} cannot be pulled ({why_not}) and there is no {image.name}: build it with scripts/images"
        )
    found = local.labels.get(VERSION_LABEL)
    if found != image.version:
        pytest.skip(
            f"{image.name} has version {found} but {image.version} is pinned: build it anew with scripts/images"
        )
    return image.name


def _has_image(client: Any, name: str) -> bool:
    try:
        client.images.get(name)
    except ImageNotFound:
        return False
    return True


def _pull(client: Any, name: str) -> str | None:
    """None when the image is here now, otherwise why not. The client's own limit ends a pull that is stuck."""
    try:
        client.images.pull(name)
    except (APIError, NotFound) as error:
        return str(error.explanation)
    except requests.RequestException as error:
        return f"{type(error).__name__}: {error}"
    return None


def _use_ryuk_if_pulled(client: Any, kafka_image: str) -> None:
    """Where Kafka's image had to be a local one, no registry can be reached, and trying again only costs time."""
    if testcontainers_config.ryuk_disabled:
        return
    if kafka_image == KAFKA.name or _pull(client, testcontainers_config.ryuk_image) is not None:
        testcontainers_config.ryuk_disabled = True


def kafka_container(image: str, port: int) -> DockerContainer:
    heap = " ".join(option for option in JVM if option.startswith("-Xm"))
    container = (
        DockerContainer(image)
        .with_env("KAFKA_HEAP_OPTS", heap)  # of the official image; the local one has it built in
        .with_copy_into_container(kafka_properties(port).encode(), KAFKA_CONFIG)
        .with_kwargs(labels=LABELS)
    )
    return _published(container, image, port, port)


def kafka_properties(port: int) -> str:
    """The embedded broker's settings; of a name that is given twice, Java takes the last value."""
    settings = kafka.configuration(port, KAFKA_DATA, Quorum("only formatting needs it", (CONTROLLER_PORT,)))
    # The same port inside and outside, so that the advertised address also leads the broker to itself, which it needs
    # for the markers of transactions.
    return (
        f"{settings}\n"
        f"listeners=PLAINTEXT://0.0.0.0:{port},CONTROLLER://{ports.HOST}:{CONTROLLER_PORT}\n"
        f"advertised.listeners=PLAINTEXT://{ports.HOST}:{port},CONTROLLER://{ports.HOST}:{CONTROLLER_PORT}\n"
    )


def postgres_container(image: str, port: int, password: str) -> DockerContainer:
    container = (
        DockerContainer(image)
        .with_envs(
            POSTGRES_USER=postgres.ROLE,
            POSTGRES_PASSWORD=password,
            POSTGRES_DB=postgres.DATABASE,
            POSTGRES_INITDB_ARGS=" ".join(postgres.INITDB),
        )
        .with_command(postgres_command())
        .with_kwargs(labels=LABELS, stop_signal="SIGINT")  # "fast"; the local image cannot say so itself
    )
    return _published(container, image, POSTGRES_PORT, port)


def postgres_command() -> list[str]:
    settings = {name: value for name, value in postgres.CONFIG.items() if name not in NOT_IN_A_CONTAINER}
    return ["postgres", *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))]


def postgres_url(port: int, password: str) -> str:
    return f"postgresql://{postgres.ROLE}:{password}@{ports.HOST}:{port}/{postgres.DATABASE}"


def postgres_missing(url: str) -> str | None:
    """None when the database can be used, otherwise what is missing."""
    try:
        psycopg.connect(url, connect_timeout=CONNECT_S_MAX).close()
    except psycopg.OperationalError as error:
        return str(error).strip()
    return None


def _published(container: DockerContainer, image: str, inside: int, outside: int) -> DockerContainer:
    container.image = image  # the constructor has put the registry's prefix before it, which a local image has not
    # with_bind_ports would publish on all interfaces, and Kafka asks nobody who they are.
    container.ports[f"{inside}/tcp"] = (ports.HOST, outside)  # type: ignore[assignment]  # what Docker's client takes
    return container
