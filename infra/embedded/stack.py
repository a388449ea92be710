"""A real Kafka and a real PostgreSQL for one process: nothing to install, nothing left behind.

    with EmbeddedStack() as stack:          # or EmbeddedStack(Path("data")) to keep the data
        stack.bootstrap                     # "127.0.0.1:40123"
        stack.postgres                      # "postgresql://sagalog:…@127.0.0.1:40124/sagalog"
        stack.kafka.kill(); stack.kafka.start()   # a crash and a restart: same address, same data

From asyncio: `await asyncio.to_thread(stack.start)`, and `stop` likewise; any thread will do.

`EmbeddedStack(brokers=3)` runs a Kafka cluster (see cluster): `stack.brokers[1].kill()` is the crash of one node.

Rules: both servers start side by side, and when one fails neither stays; a directory has one owner at a time (lock);
the servers end with the owner, however it ends (supervisor); a temporary directory goes with them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from sagalog.infra.embedded.cluster import HEAP, Quorum
from sagalog.infra.embedded.kafka import KafkaServer
from sagalog.infra.embedded.lock import DirectoryLock
from sagalog.infra.embedded.postgres import PostgresServer
from sagalog.infra.embedded.runtime import Runtime
from sagalog.infra.embedded.site import Site
from sagalog.infra.errors import DiskFullError, ProcessStateError, os_errors_below

NAME = "The embedded stack"
FREE_BYTES_MIN = 500 * 2**20

T = TypeVar("T")


class _Server(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


class EmbeddedStack:
    """Kafka and PostgreSQL in `directory`, or in a temporary one that is removed at the end.

    A port of None means a free one. `brokers` is the number of Kafka's nodes; with several, `kafka_port` is the first one's,
    and each gets a smaller heap. `kafka_settings` and `postgres_settings` come on top of the servers' own. `cache_dir` holds
    Kafka's jars (default: the user's cache directory), `maven_url` names a mirror to fetch them from. Raises the subclasses of
    InfraError, each of which says what to do.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        kafka: bool = True,
        postgres: bool = True,
        brokers: int = 1,
        kafka_port: int | None = None,
        postgres_port: int | None = None,
        kafka_settings: Mapping[str, str] | None = None,
        postgres_settings: Mapping[str, str] | None = None,
        cache_dir: Path | None = None,
        maven_url: str | None = None,
    ) -> None:
        self._asked_directory = directory
        self._with_kafka = kafka
        self._with_postgres = postgres
        self._nodes = brokers
        self._kafka_port = kafka_port
        self._postgres_port = postgres_port
        self._kafka_settings = kafka_settings
        self._postgres_settings = postgres_settings
        self._cache_dir = cache_dir
        self._maven_url = maven_url
        self._turn = threading.Lock()
        self._directory: Path | None = None
        self._lock: DirectoryLock | None = None
        self._brokers: tuple[KafkaServer, ...] = ()
        self._postgres: PostgresServer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def directory(self) -> Path:
        return _started(self._directory)

    @property
    def kafka(self) -> KafkaServer:
        """The broker; of a cluster its first."""
        return _started(self._brokers[0] if self._brokers else None)

    @property
    def brokers(self) -> Sequence[KafkaServer]:
        """Kafka's nodes, in the order of their ids."""
        return self._brokers

    @property
    def postgres_server(self) -> PostgresServer:
        return _started(self._postgres)

    @property
    def bootstrap(self) -> str:
        """Kafka's address for clients, `host:port`; of a cluster all of them, separated by commas."""
        _started(self._lock)
        return ",".join(broker.bootstrap for broker in (self.kafka, *self._brokers[1:]))

    @property
    def postgres(self) -> str:
        """PostgreSQL's address for clients, a URL with the password."""
        return self.postgres_server.url

    def start(self) -> None:
        """Starts both and waits until they can be used."""
        with self._turn:
            self._start()

    def stop(self) -> None:
        """Stops both and gives the directory back; nothing happens when they are not running.

        Called while another thread still starts (a cancelled `asyncio.to_thread`), it waits for that.
        """
        with self._turn:
            self._stop()

    def _start(self) -> None:
        if self._lock is not None:
            raise ProcessStateError.of(NAME, f"already started in {self._directory}", "stop it first")
        # Before anything is made: fetching the jars can take long, and be interrupted.
        runtime = Runtime.find(self._cache_dir, self._maven_url) if self._with_kafka else None
        directory = self._make_directory()
        try:
            self._lock = DirectoryLock.take(directory)
        except BaseException:
            self._remove_if_temporary(directory)
            raise
        self._directory = directory
        temporary = directory if self._asked_directory is None else None
        lock_fd = self._lock.descriptor

        def site(name: str) -> Site:
            return Site(directory / name, lock_fd, temporary)

        if runtime is not None:
            self._brokers = self._make_brokers(runtime, site)
        if self._with_postgres:
            self._postgres = PostgresServer(
                site("postgres"), port=self._postgres_port, settings=self._postgres_settings
            )
        try:
            with os_errors_below(directory):
                _side_by_side([server.start for server in self._servers])
        except BaseException:
            self._stop()
            raise

    def _make_brokers(self, runtime: Runtime, site: Callable[[str], Site]) -> tuple[KafkaServer, ...]:
        if self._nodes == 1:
            return (KafkaServer(site("kafka"), runtime, port=self._kafka_port, settings=self._kafka_settings),)
        numbers = range(1, self._nodes + 1)
        sites = [site(f"kafka-{number}") for number in numbers]
        quorum = Quorum.of(self._nodes, [one.directory / "data" for one in sites])
        small = runtime.with_options(*runtime.options, *HEAP)
        first, *rest = sites
        return (
            KafkaServer(first, small, port=self._kafka_port, quorum=quorum, settings=self._kafka_settings),
            *(
                KafkaServer(one, small, quorum=quorum, node_id=number, settings=self._kafka_settings)
                for number, one in enumerate(rest, 2)
            ),
        )

    def _stop(self) -> None:
        if self._lock is None:
            return
        try:
            _side_by_side([server.stop for server in self._servers])
        finally:
            assert self._directory is not None
            self._remove_if_temporary(self._directory)
            self._lock.release()
            self._lock = self._directory = self._postgres = None
            self._brokers = ()

    def describe(self) -> dict[str, object]:
        """What somebody else needs to connect, and where to look: addresses, pids, directories, versions."""
        return {
            "directory": str(self.directory),
            "temporary": self._asked_directory is None,
            "owner_pid": os.getpid(),
            "kafka": self._brokers[0].describe() if self._brokers else None,
            "postgres": self._postgres.describe() if self._postgres else None,
        }

    @property
    def _servers(self) -> Sequence[_Server]:
        return [*self._brokers, *([self._postgres] if self._postgres else [])]

    def _make_directory(self) -> Path:
        if self._asked_directory is None:
            directory = Path(tempfile.mkdtemp(prefix="sagalog-")).resolve()
            directory.chmod(0o711)  # PostgreSQL may run as another user, who must get in but need not look around
        else:
            directory = self._asked_directory.expanduser().resolve()
            with os_errors_below(directory):
                directory.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(directory).free
        if free_bytes < FREE_BYTES_MIN:
            self._remove_if_temporary(directory)
            raise DiskFullError.of(directory, free_bytes, FREE_BYTES_MIN)
        return directory

    def _remove_if_temporary(self, directory: Path) -> None:
        if self._asked_directory is None:
            shutil.rmtree(directory, ignore_errors=True)


def _started(value: T | None) -> T:
    if value is None:
        raise ProcessStateError.of(NAME, "not started, or without this server", "call start() first")
    return value


def _side_by_side(actions: Sequence[Callable[[], None]]) -> None:
    """Runs all of the actions to their end, each in a thread; then raises the first error, in the order given."""
    if not actions:
        return
    with ThreadPoolExecutor(len(actions), thread_name_prefix="embedded") as pool:
        futures = [pool.submit(action) for action in actions]
    for future in futures:
        future.result()
