"""The running system: an embedded Kafka and PostgreSQL, the project's processes, and a client.

Everything lies in one temporary directory, which is gone afterwards; nothing touches the user's own sagalog.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sagalog.agents.invoices import agents as invoices
from sagalog.agents.invoices.ledger import SqliteLedger
from sagalog.engine.cli.context import DEV_DIR, DEV_FILE
from sagalog.engine.client import Client, WaitTimeout
from sagalog.engine.projection.postgres import PostgresSql
from sagalog.infra.embedded.stack import EmbeddedStack
from sagalog.infra.settings import load_settings
from sagalog.schemas.definitions import Definition
from sagalog.schemas.records import ResultRecord
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.provision import provision
from sagalog.topics.specs import Topics, all_specs
from story import faults
from story.children import Child, Children
from story.settings import ENGINE_SESSION_TIMEOUT_MS, REPOSITORY, RESULT_S_MAX, StoryError

READER: Final = "story.reader:agents"
OTHERS: Final = "story.agents:agents"


class System:
    """Use `async with System(definitions)`. Raises InfraError when a server does not start, StoryError for the rest."""

    def __init__(self, definitions: Sequence[Definition]) -> None:
        self._definitions = definitions
        self._settings = load_settings()
        self._exits = AsyncExitStack()
        self.keep_files = False
        """Whether the directory, with the processes' logs, stays: for finding out why something went wrong."""
        self.directory = Path(tempfile.mkdtemp(prefix="sagalog-demo-"))
        self.topics = Topics(self._settings.prefix)
        self.partitions = self._settings.partitions
        self.ledger = SqliteLedger(self.directory / "ledger.sqlite")
        self.stack = EmbeddedStack(cache_dir=self._settings.cache_dir, maven_url=self._settings.maven_url)
        self.log: KafkaLog
        self.client: Client
        self.children: Children
        self.engine: Child
        self.sql: PostgresSql

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def _start(self) -> None:
        self._exits.callback(self._remove)
        faults.inject(self.directory, {})
        # The stop waits for a start that was cancelled half-way.
        self._exits.push_async_callback(asyncio.to_thread, self.stack.stop)
        await asyncio.to_thread(self.stack.start)
        self.log = KafkaLog(self.stack.bootstrap)
        self._exits.push_async_callback(self.log.close)
        self.children = Children(self.directory, self._environment())
        self._exits.push_async_callback(self.children.stop)
        # First, because it loads the OCR models; like the other agents it waits for the topics.
        self.children.start("reader", "agent", READER)
        await provision(self.log, self.topics, all_specs(), partitions=self.partitions, replication=1)
        self.engine = self.children.start(
            "engine", "engine", environment={"SAGALOG_SESSION_TIMEOUT_MS": str(ENGINE_SESSION_TIMEOUT_MS)}
        )
        self.children.start("agents", "agent", OTHERS)
        self.children.start("projector", "project")
        self.client = await self._exits.enter_async_context(Client(self.log, self.topics))
        for definition in self._definitions:
            await self.client.register(definition)
        self.sql = PostgresSql(self.stack.postgres, prefix=self.topics.prefix)
        await self.sql.open()
        self._exits.push_async_callback(self.sql.close)

    def _remove(self) -> None:
        if not self.keep_files:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        return {
            "SAGALOG_BOOTSTRAP": self.stack.bootstrap,
            "SAGALOG_POSTGRES": self.stack.postgres,
            "SAGALOG_PREFIX": self.topics.prefix,
            "SAGALOG_PARTITIONS": str(self.partitions),
            # ONNX Runtime reports its use to its maker over the network, and leaves an id in the temporary directory.
            "ORT_DISABLE_TELEMETRY": "1",
            "TMPDIR": str(self.directory),
            "PYTHONPATH": str(REPOSITORY / "scripts"),
            faults.DIRECTORY_VARIABLE: str(self.directory),
            invoices.LEDGER_VARIABLE: str(self.directory / "ledger.sqlite"),
            invoices.OUTBOX_VARIABLE: str(self.directory / "outbox.sqlite"),
            invoices.ORDERS_VARIABLE: "",
        }

    @contextmanager
    def faulty(self, agent: str, fault: faults.Fault) -> Iterator[None]:
        """The agent fails for as long as the block lasts."""
        faults.inject(self.directory, {agent: fault})
        try:
            yield
        finally:
            faults.inject(self.directory, {})

    async def result(self, workflow_id: str, timeout_s: float = RESULT_S_MAX) -> ResultRecord:
        """The result of a workflow that this client started. Raises StoryError."""
        try:
            # Not `wait`: it would read the whole results topic for every workflow that has not ended yet.
            return (await self.client.wait_all([workflow_id], timeout_s=timeout_s))[workflow_id]
        except (WaitTimeout, TimeoutError):
            raise StoryError(f"workflow {workflow_id} has not ended within {timeout_s:g} s") from None

    @asynccontextmanager
    async def results(
        self, workflow_ids: Iterable[str], timeout_s: float = RESULT_S_MAX
    ) -> AsyncIterator[Iterator[asyncio.Future[ResultRecord]]]:
        """Their results, to be awaited one after the other as they end."""
        tasks = [asyncio.create_task(self.result(one, timeout_s)) for one in workflow_ids]
        try:
            yield asyncio.as_completed(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @contextmanager
    def announced(self) -> Iterator[Path | None]:
        """Leaves the addresses where `sagalog` looks for them when it is called in the repository; None if they are taken."""
        file = REPOSITORY / DEV_DIR / DEV_FILE
        if _in_use(file):
            yield None
            return
        file.parent.mkdir(exist_ok=True)
        document = {"pid": os.getpid(), "bootstrap": self.stack.bootstrap, "postgres": self.stack.postgres}
        fresh = file.with_suffix(".new")
        fresh.touch(mode=0o600)  # the address of PostgreSQL holds a password
        fresh.write_text(json.dumps(document))
        fresh.replace(file)
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)


def _in_use(file: Path) -> bool:
    """Whether another process that lives has left its addresses there."""
    try:
        os.kill(int(json.loads(file.read_text())["pid"]), 0)
    except (FileNotFoundError, ProcessLookupError, ValueError, KeyError):
        return False
    except PermissionError:
        return True
    return True
