"""The root file system of a local image, put together from files of this machine and written as one tar.

Rules: the same files give the same bytes (sorted, no owners, no times but those asked for), so a hash tells whether an
image is up to date;
a program takes the libraries along that the loader of this machine gives it, and one that is not found is an error
here and not in the container.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from sagalog.infra.errors import InfraError

LDD_S_MAX = 30
# Opened by the C library by name when it needs them, so no program lists them.
OPENED_BY_NAME = ("libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")


class ImageError(InfraError):
    """An image cannot be built."""


@dataclass
class Tree:
    """Absolute paths in the image, without the leading slash, and what is to be there."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    executable: set[str] = field(default_factory=set)
    timed: set[str] = field(default_factory=set)
    """Files that keep their time, because something compares it."""
    open_directories: set[str] = field(default_factory=lambda: {"tmp"})
    """Where every user may write, as in /tmp."""

    def add(self, path: str, content: Path | bytes, *, executable: bool = False, timed: bool = False) -> None:
        self.files[path] = content
        if executable:
            self.executable.add(path)
        if timed:
            self.timed.add(path)

    def add_directory(self, path: str, source: Path, *, without: Iterable[str] = ()) -> None:
        """All files below `source`, except those that match a pattern of `without` (see Path.match)."""
        patterns = tuple(without)
        for file in source.rglob("*"):
            if file.is_file() and not any(file.match(pattern) for pattern in patterns):
                target = f"{path}/{file.relative_to(source).as_posix()}"
                self.add(target, file, executable=bool(file.stat().st_mode & 0o100))

    def add_libraries_of(self, programs: Iterable[Path]) -> None:
        """What the loader gives to the programs, at the same places; not what is in the tree already."""
        own = {content.resolve() for content in self.files.values() if isinstance(content, Path)}
        own_names = {file.name for file in own}
        libraries: set[Path] = set()
        for program in programs:
            found, missing = _libraries(program)
            # A missing one of ours has been loaded already by the time that this one is: Java's, by its launcher.
            if missing - own_names:
                raise ImageError(
                    f"{program} needs {', '.join(missing - own_names)}, which is not installed here: "
                    f"install the package that has it."
                )
            libraries |= found
        for library in libraries:
            if library.resolve() not in own:
                self._add_library(library)
            if library.name == "libc.so.6":
                for sibling in (library.with_name(name) for name in OPENED_BY_NAME):
                    if sibling.exists():
                        self._add_library(sibling)

    def _add_library(self, library: Path) -> None:
        self.add(str(library).lstrip("/"), library.resolve(), executable=True)

    def write(self, target: IO[bytes]) -> None:
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(self.open_directories):
                directory = tarfile.TarInfo(path)
                directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
                tar.addfile(directory)
            for path, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(path)
                entry.mode = 0o755 if path in self.executable else 0o644
                if isinstance(content, bytes):
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
                else:
                    entry.size = content.stat().st_size
                    if path in self.timed:
                        entry.mtime = int(content.stat().st_mtime)
                    with content.open("rb") as stream:
                        tar.addfile(entry, stream)


def _libraries(program: Path) -> tuple[set[Path], set[str]]:
    """Where the loader finds what the program needs, and the names of what it does not find."""
    try:
        listed = subprocess.run(  # noqa: S603 - a file of ours
            ["ldd", str(program)],  # noqa: S607 - wherever the system has it
            capture_output=True,
            text=True,
            check=True,
            timeout=LDD_S_MAX,
        ).stdout
    except FileNotFoundError as cause:
        raise ImageError("There is no 'ldd' here: local images can be built on Linux with glibc only.") from cause
    except subprocess.SubprocessError as cause:
        raise ImageError(f"'ldd {program}' failed ({cause}): is the file a program for this machine?") from cause
    found, missing = set(), set()
    for line in listed.splitlines():
        name, _, place = line.strip().partition(" => ")
        file = (place or name).split(" (")[0]
        if file == "not found":
            missing.add(name)
        elif file.startswith("/"):  # the others are the kernel's own
            found.add(Path(file))
    return found, missing
