"""One real Kafka broker (KRaft, broker and controller in one process) from pinned jars and a Java runtime in a wheel.

It is a cluster of its own, or with a Quorum one of several (see cluster).

Rules: loopback only; the data directory belongs to this class alone; a restart keeps address and data; `start` returns
when the broker serves groups and transactions (see kafka_probe), so no client of it has to wait or retry.

    kafka = KafkaServer(Site(Path("…/kafka")), Runtime.find())
    kafka.start(); kafka.bootstrap; kafka.kill(); kafka.start(); kafka.stop()

Most users want EmbeddedStack (see stack), which runs this beside PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sagalog.infra.embedded import jars, ports
from sagalog.infra.embedded.cluster import Quorum
from sagalog.infra.embedded.kafka_probe import kafka_missing
from sagalog.infra.embedded.process import ServerProcess, ServerSpec, rotate
from sagalog.infra.embedded.runtime import Runtime
from sagalog.infra.embedded.site import Site
from sagalog.infra.errors import PortTakenError, ProcessStartError, ProcessStateError

NAME = "Kafka"
START_MS_MAX = 60_000  # cached it takes 3 to 4 s; this is for a machine under load, or a long log to recover
FORMAT_MS_MAX = 60_000
BIND_TRIES_MAX = 3  # a free port can be taken between its choice and its use
ADDRESS_IN_USE = "Address already in use"

CONFIG = """\
process.roles=broker,controller
node.id={node_id}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
log.dirs={data}

# Topics are declared; one made by a typing error would take its records and nobody would read them.
auto.create.topics.enable=false
num.partitions=8
default.replication.factor={replicas}
min.insync.replicas={in_sync_min}

# The internal topics have few partitions, because each is a directory to make and to recover.
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync_min}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync_min}
share.coordinator.state.topic.num.partitions=1

# The first member of a group need not wait for others, and a dead one is noticed in a second where a client asks so.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# After a kill the broker may register again only once its old session has expired: 9 s by default. Shorter than 3 s, a
# stalled disk would fence a live broker.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000

# What a topic's settings say of retention and compaction happens soon, as they are often short here.
log.retention.check.interval.ms=1000
log.cleaner.backoff.ms=1000

# Sized for two cores and a small heap.
num.network.threads=2
num.io.threads=4
background.threads=4
num.recovery.threads.per.data.dir=2
log.cleaner.dedupe.buffer.size=33554432
"""

LOGGING = """\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={log}
appender.file.filePattern={log}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{yyyy-MM-dd HH:mm:ss,SSS}} %p %c{{1}}: %m%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=3
rootLogger.level=warn
# The readiness probe asks for coordinators until they are there, and each question tries to make their topic.
logger.internal.name=org.apache.kafka.server.DefaultAutoTopicCreationManager
logger.internal.level=error
rootLogger.appenderRef.file.ref=file
"""


def configuration(port: int, data: Path | str, quorum: Quorum, node_id: int = 1) -> str:
    """The properties of one node."""
    return CONFIG.format(
        host=ports.HOST,
        port=port,
        node_id=node_id,
        controller_port=quorum.controller_ports[node_id - 1],
        voters=quorum.voters,
        replicas=quorum.replicas,
        in_sync_min=quorum.in_sync_min,
        data=data,
    )


class KafkaServer:
    """The broker of one directory. Not safe for use from several threads at once.

    `quorum` and `node_id` (from 1): the cluster that it is a part of; none: it is alone. `settings` come on top of CONFIG.
    """

    def __init__(
        self,
        site: Site,
        runtime: Runtime,
        *,
        port: int | None = None,
        quorum: Quorum | None = None,
        node_id: int = 1,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._site = site
        self._runtime = runtime
        self._port = port
        self._quorum = quorum
        self.node_id = node_id
        self._settings = dict(settings or {})
        self._process: ServerProcess | None = None

    @property
    def port(self) -> int:
        if self._port is None:
            raise ProcessStateError.of(NAME, "not started yet, so it has no address", "call start() first")
        return self._port

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients; stays the same from the first start on."""
        return f"{ports.HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.is_running() else None

    @property
    def log(self) -> Path:
        return self._site.directory / "kafka.log"

    @property
    def data(self) -> Path:
        return self._site.directory / "data"

    def start(self) -> None:
        """Starts the broker and waits until it is ready.

        Raises PortTakenError or ProcessStartError.
        """
        if self.pid is not None:
            raise ProcessStateError.of(NAME, f"already running as process {self.pid}", "stop it first")
        self._prepare()
        if self._port is not None:
            ports.require_free(NAME, self._port)
            self._start_on(self._port)
        else:
            self._start_on_free()

    def stop(self) -> None:
        """Stops the broker cleanly; nothing happens when it is not running."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Kills the broker at once, as a crash does (SIGKILL)."""
        if self._process is None:
            raise ProcessStateError.of(NAME, "not running", "start it before you kill it")
        self._process.kill()
        self._process = None

    def describe(self) -> dict[str, object]:
        return {
            "version": jars.VERSION,
            "bootstrap": self.bootstrap,
            "pid": self.pid,
            "data": str(self.data),
            "log": str(self.log),
        }

    def _prepare(self) -> None:
        for directory in (self._site.directory, self._temporary):
            directory.mkdir(parents=True, exist_ok=True)
        self._logging.write_text(LOGGING.format(log=self.log))
        rotate(self.log)
        if not (self.data / "meta.properties").exists():
            quorum = self._quorum or Quorum.of(1)
            (port,) = ports.free_ports(1)
            self._write_config(port, quorum)
            self._format(quorum.cluster_id)

    def _format(self, cluster_id: str) -> None:
        tool = ("kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", str(self._config))
        spec = ServerSpec(
            name=f"{NAME}'s formatting of {self.data}",
            # It runs for half a second: compiling well does not pay.
            command=self._runtime.command(self._temporary_option, "-XX:TieredStopAtLevel=1", *tool),
            log=self._site.directory / "format.log",
            site=self._site,
        )
        ServerProcess.spawn(spec).wait_end(FORMAT_MS_MAX)

    def _start_on_free(self) -> None:
        for tries_left in reversed(range(BIND_TRIES_MAX)):
            (port,) = ports.free_ports(1)
            try:
                self._start_on(port)
            except PortTakenError:
                if not tries_left:
                    raise
            else:
                self._port = port
                return

    def _start_on(self, port: int) -> None:
        # The controller's address is nobody's business but that of its cluster: a lone one's may change with every start.
        self._write_config(port, self._quorum or Quorum.of(1))
        options = (
            self._temporary_option,
            f"-Dlog4j2.configurationFile=file:{self._logging}",
            f"-XX:ErrorFile={self._site.directory}/hs_err.log",
        )
        spec = ServerSpec(
            name=NAME,
            command=self._runtime.command(*options, "kafka.Kafka", str(self._config)),
            log=self.log,
            site=self._site,
        )
        process = ServerProcess.spawn(spec)
        self._process = process
        try:
            process.wait_ready(lambda: kafka_missing(ports.HOST, port), START_MS_MAX)
        except ProcessStartError as cause:
            self._process = None
            if ADDRESS_IN_USE in str(cause):
                raise PortTakenError.of(NAME, port) from cause
            raise
        except BaseException:  # an interrupt must not leave a server behind that nobody has a handle of
            self.kill()
            raise

    def _write_config(self, port: int, quorum: Quorum) -> None:
        # Of a property that stands there twice the last counts.
        more = "".join(f"{name}={value}\n" for name, value in self._settings.items())
        self._config.write_text(configuration(port, self.data, quorum, self.node_id) + more)

    @property
    def _config(self) -> Path:
        return self._site.directory / "server.properties"

    @property
    def _logging(self) -> Path:
        return self._site.directory / "log4j2.properties"

    @property
    def _temporary(self) -> Path:
        return self._site.directory / "tmp"

    @property
    def _temporary_option(self) -> str:
        """Native libraries are unpacked there, and so are removed with the rest."""
        return f"-Djava.io.tmpdir={self._temporary}"
