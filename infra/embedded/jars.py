"""Kafka's jars: pinned by name and SHA-256, fetched once with jgo, kept in a cache in Maven's layout.

Rules: a jar is put on the classpath only after its bytes were found to be the pinned ones; with the cache filled, no
resolver runs and no network is touched; a file appears in the cache whole and checked or not at all.

`python -m sagalog.infra.embedded.jars --pin` resolves VERSION anew and writes kafka_jars.txt, whose lines also are what
`sha256sum -c` takes (run in the cache directory).
"""

from __future__ import annotations

import fcntl
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import platformdirs

from sagalog.infra.errors import ChecksumError, MissingExtraError, NoNetworkError, os_errors_below
from sagalog.schemas.errors import SagalogError

VERSION = "4.4.0"
SCALA = "2.13"
PINS = Path(__file__).with_name("kafka_jars.txt")
FETCH_TIMEOUT_S = 30
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Pin:
    """One jar: its path in Maven's layout (group/artifact/version/file) and the SHA-256 of its bytes."""

    sha256: str
    path: str

    @property
    def coordinates(self) -> tuple[str, str, str]:
        """(group, artifact, version)"""
        *group, artifact, version, _ = self.path.split("/")
        return ".".join(group), artifact, version


def default_cache_dir() -> Path:
    return Path(platformdirs.user_cache_path("sagalog"))


def read_pins(file: Path = PINS) -> tuple[Pin, ...]:
    """The pinned jars, in classpath order."""
    lines = (line.split() for line in file.read_text().splitlines() if line and not line.startswith("#"))
    return tuple(Pin(sha256, path) for sha256, path in lines)


def ensure_jars(cache_dir: Path | None = None, maven_url: str | None = None) -> tuple[Path, ...]:
    """The paths of all pinned jars, every one checked; those that are missing are fetched first.

    Raises ChecksumError for a jar that is not the pinned one, NoNetworkError when one cannot be fetched.
    """
    jars_dir = (cache_dir or default_cache_dir()) / "jars"
    pins = read_pins()
    missing = [pin for pin in pins if not (jars_dir / pin.path).exists()]
    if missing:
        with os_errors_below(jars_dir), _only_one(jars_dir):
            _fetch(missing, jars_dir, maven_url)
    for pin in pins:
        _check(jars_dir / pin.path, pin)
    return tuple(jars_dir / pin.path for pin in pins)


def _fetch(missing: Sequence[Pin], jars_dir: Path, maven_url: str | None) -> None:
    """Fetches into a scratch directory, checks there, and moves each file into the cache by one rename."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=jars_dir) as scratch:
        context = _context(Path(scratch), maven_url)
        for pin in missing:
            target = jars_dir / pin.path
            if target.exists():  # another process fetched it while we waited for the lock
                continue
            group, artifact, version = pin.coordinates
            try:
                fetched: Path = context.project(group, artifact).at_version(version).artifact().resolve()
            except (OSError, RuntimeError) as cause:  # jgo's: requests' errors are OSErrors
                repository = ", ".join(context.remote_repos.values())
                raise NoNetworkError.of(target.name, repository, jars_dir, cause) from cause
            _check(fetched, pin)
            target.parent.mkdir(parents=True, exist_ok=True)
            fetched.replace(target)


def _check(file: Path, pin: Pin) -> None:
    found = sha256_of(file)
    if found != pin.sha256:
        raise ChecksumError.of(file, pin.sha256, found)


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Lets one process at a time fetch into the cache."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _context(repo_cache: Path, maven_url: str | None) -> Any:
    try:
        maven = import_module("jgo.maven")
    except ModuleNotFoundError as cause:
        raise MissingExtraError.of("jgo", "embedded") from cause
    repos = {"mirror": maven_url} if maven_url else None
    return maven.MavenContext(repo_cache=repo_cache, remote_repos=repos, timeout=FETCH_TIMEOUT_S)


def pin(file: Path = PINS) -> int:
    """Resolves Kafka VERSION with all it needs, and writes the pins; returns how many."""
    with tempfile.TemporaryDirectory(prefix="sagalog-pin-") as scratch:
        context = _context(Path(scratch), None)
        # Without kafka-clients at the broker's version the resolver takes an older one, with which the broker dies.
        roots = [f"org.apache.kafka:kafka_{SCALA}:{VERSION}", f"org.apache.kafka:kafka-clients:{VERSION}"]
        resolved = _resolve(context, roots)
        # Kafka logs through slf4j and leaves the binding out of its dependencies; it must match log4j's version. Only
        # its jar is taken: resolved with the others, its parent's managed versions would lower Jackson's.
        log4j = next(dep.version for dep in resolved if dep.artifactId == "log4j-core")
        resolved.append(context.create_dependency(f"org.apache.logging.log4j:log4j-slf4j-impl:{log4j}"))
        lines = []
        for dependency in resolved:
            jar: Path = dependency.artifact.resolve()
            lines.append(f"{sha256_of(jar)}  {jar.relative_to(scratch).as_posix()}\n")
    lines.sort(key=lambda line: line.split()[1])
    file.write_text("".join(lines))
    return len(lines)


def _resolve(context: Any, coordinates: Sequence[str]) -> list[Any]:
    inputs, transitive = context.resolver.resolve([context.create_dependency(text) for text in coordinates])
    return [*inputs, *transitive]


def main(arguments: Sequence[str]) -> int:
    if list(arguments) != ["--pin"]:
        sys.stderr.write("usage: python -m sagalog.infra.embedded.jars --pin\n")
        return 2
    try:
        count = pin()
    except SagalogError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{count} jars of Kafka {VERSION} pinned in {PINS}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
