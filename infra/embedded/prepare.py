"""Everything that needs to be done only once on a machine, so that later starts are quick and need no network.

`python -m sagalog.infra.embedded.prepare` fetches Kafka's jars and makes the archive (see runtime): it starts a broker
on scratch data, ready and stopped again, has the JVM record what that loaded, and builds the archive from the record.
Some 15 s, once; nothing to do afterwards until Kafka, Java or the options change.

Rule: the archive appears under its name whole or not at all.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from sagalog.infra.embedded.kafka import KafkaServer
from sagalog.infra.embedded.process import ServerProcess, ServerSpec
from sagalog.infra.embedded.runtime import Runtime
from sagalog.infra.embedded.site import Site
from sagalog.infra.errors import os_errors_below
from sagalog.infra.settings import load_settings
from sagalog.schemas.errors import SagalogError

NAME = "The Java archive's build"
ARCHIVES_MAX = 3  # more than one, because several versions of the project may share the cache
BUILD_MS_MAX = 180_000


def prepare(cache_dir: Path | None = None, maven_url: str | None = None) -> Path:
    """Fetches the jars and makes the archive, as far as they are missing; returns the archive."""
    runtime = Runtime.find(cache_dir, maven_url)
    archive = runtime.archive
    if archive.exists():
        return archive
    # The scratch directory lies beside the archive, because the last step is a rename.
    with (
        os_errors_below(archive.parent),
        tempfile.TemporaryDirectory(prefix=".prepare-", dir=archive.parent) as scratch,
    ):
        record = _record(runtime, Path(scratch))
        built = _build(runtime, record, Path(scratch))
        built.rename(archive)
    _forget_oldest(archive.parent)
    return archive


def _forget_oldest(directory: Path) -> None:
    """Removes archives (70 MB each) of runtimes, jars or options that were replaced."""
    newest_first = sorted(directory.glob("kafka-*.aot"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for outdated in newest_first[ARCHIVES_MAX:]:
        outdated.unlink(missing_ok=True)


def _record(runtime: Runtime, scratch: Path) -> Path:
    record = scratch / "kafka.aotconf"
    training = runtime.with_options("-XX:AOTMode=record", f"-XX:AOTConfiguration={record}")
    server = KafkaServer(Site(scratch / "kafka"), training)
    server.start()
    server.stop()
    return record


def _build(runtime: Runtime, record: Path, scratch: Path) -> Path:
    built = scratch / "kafka.aot"
    building = runtime.with_options("-XX:AOTMode=create", f"-XX:AOTConfiguration={record}", f"-XX:AOTCache={built}")
    spec = ServerSpec(name=NAME, command=building.command(), log=scratch / "build.log", site=Site(scratch))
    ServerProcess.spawn(spec).wait_end(BUILD_MS_MAX)
    return built


def main() -> int:
    began = time.monotonic()
    try:
        settings = load_settings()
        archive = prepare(settings.cache_dir, settings.maven_url)
    except SagalogError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"The embedded stack is prepared in {archive.parent} ({time.monotonic() - began:.1f} s).\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
