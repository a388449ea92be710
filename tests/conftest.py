"""One integration suite, three stacks: `pytest --stack embedded|containers|external`.

`embedded` starts Kafka and PostgreSQL from wheels and jars, `containers` runs them in containers (testcontainers), `external`
takes SAGALOG_BOOTSTRAP and SAGALOG_POSTGRES. Every test has a prefix of its own, so the stack is shared by the session.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from sagalog.topics.kafka import KafkaLog
from sagalog.topics.provision import provision
from sagalog.topics.specs import Topics, all_specs

PARTITIONS = 4
SESSION_TIMEOUT_MS = 3_000
"""Short, so that a killed member's partitions move while a test waits."""


class Server(Protocol):
    """A server that a test may break. Both keep their address and their data."""

    def kill(self) -> None: ...

    def stop(self) -> None: ...

    def start(self) -> None: ...


class Stack(Protocol):
    """What the tests run against. An external stack has no servers to break: `kafka` and `postgres_server` raise Skipped."""

    @property
    def bootstrap(self) -> str: ...

    @property
    def postgres(self) -> str: ...

    @property
    def kafka(self) -> Server: ...

    @property
    def postgres_server(self) -> Server: ...


class ExternalStack:
    def __init__(self, bootstrap: str, postgres: str) -> None:
        self.bootstrap = bootstrap
        self.postgres = postgres

    @property
    def kafka(self) -> Server:
        pytest.skip("an external Kafka is not ours to break")

    @property
    def postgres_server(self) -> Server:
        pytest.skip("an external PostgreSQL is not ours to break")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stack",
        choices=("embedded", "containers", "external"),
        default="embedded",
        help="what the integration tests run against (default: embedded)",
    )


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Kafka and PostgreSQL, shared by the session."""
    match request.config.getoption("--stack"):
        case "embedded":
            from sagalog.infra.embedded.stack import EmbeddedStack

            with EmbeddedStack() as embedded:
                yield embedded
        case "containers":
            from .containers import ContainerStack

            with ContainerStack() as containers:
                yield containers
        case _:
            missing = [name for name in ("SAGALOG_BOOTSTRAP", "SAGALOG_POSTGRES") if name not in os.environ]
            if missing:
                pytest.exit(f"--stack external needs {' and '.join(missing)} in the environment", returncode=4)
            yield ExternalStack(os.environ["SAGALOG_BOOTSTRAP"], os.environ["SAGALOG_POSTGRES"])


@pytest.fixture
async def topics(stack: Stack) -> AsyncIterator[Topics]:
    """A prefix that no other test has. Its topics are deleted at the end: a broker with thousands of partitions is slow."""
    found = Topics(f"t{uuid.uuid4().hex[:10]}")
    yield found
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.bootstrap)
    await admin.start()
    try:
        if made := [name for name in await admin.list_topics() if name.startswith(found.prefix)]:
            await admin.delete_topics(made)
    finally:
        await admin.close()


@pytest.fixture
async def log(stack: Stack) -> AsyncIterator[KafkaLog]:
    found = KafkaLog(stack.bootstrap, session_timeout_ms=SESSION_TIMEOUT_MS)
    yield found
    await found.close()


@pytest.fixture
def quiet_client() -> Iterator[None]:
    """As the command line sets it: what is said is the project's own."""
    client = logging.getLogger("aiokafka")
    before = client.level
    client.setLevel("CRITICAL")
    yield
    client.setLevel(before)


@pytest.fixture
async def provisioned(log: KafkaLog, topics: Topics) -> Topics:
    """The topics, made."""
    await provision(log, topics, all_specs(), partitions=PARTITIONS, replication=1)
    return topics
