"""Packages of peers, and of the plots, outside of the repository: in the user's cache, each in a folder of its own,
at pinned versions.

They are no dependencies of this project and never touch its environment. A folder that was made whole is used again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import platformdirs

from benchmarks.settings import BUILD_SECONDS_MAX, INSTALL_SECONDS_MAX, REASON_CHARS_MAX, Unavailable

REQUIREMENTS: Final = Path(__file__).with_name("requirements")
COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
STAMP: Final = ".stamp"
PIP: Final = ("-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-q", "--no-deps", "-r")
CPUS: Final = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}

Progress = Callable[[str], None]


def home(name: str) -> Path:
    """Where the packages lie."""
    return Path(platformdirs.user_cache_path("sagalog")) / "peers" / name


def python_packages(name: str, progress: Progress) -> Path:
    """The interpreter of an environment that holds what `requirements/NAME.txt` says. Raises Unavailable."""
    listed = REQUIREMENTS / f"{name}.txt"
    directory = home(name) / "python"

    def make() -> None:
        run(f"making an environment for {name}", [sys.executable, "-m", "venv", str(directory)], INSTALL_SECONDS_MAX)
        run(f"installing {name}", [str(directory / "bin/python"), *PIP, str(listed)], INSTALL_SECONDS_MAX)

    _once(directory, f"{sys.version} {listed.read_text()}", make, progress)
    return directory / "bin/python"


def npm_package(name: str, package: str, version: str, progress: Progress) -> Path:
    """The folder of an npm package, installed without running any script of it. Raises Unavailable."""
    directory = home(name) / "npm"

    def make() -> None:
        directory.mkdir(parents=True)
        npm = [_program("npm", "Node.js"), "install", "--ignore-scripts", "--no-audit", "--no-fund"]
        run(
            f"installing {package} {version}",
            [*npm, "--prefix", str(directory), f"{package}@{version}"],
            INSTALL_SECONDS_MAX,
        )

    _once(directory, f"{package}@{version}", make, progress)
    return directory / "node_modules" / package


def go_programs(name: str, packages: Sequence[str], version: str, progress: Progress) -> Path:
    """The folder of programs that are built from Go modules, at one version. Takes minutes at first. Raises Unavailable."""
    directory = home(name) / "go"

    def make() -> None:
        directory.mkdir(parents=True)
        wanted = [f"{package}@{version}" for package in packages]
        for one in wanted:
            progress(f"building {one} from source, which takes minutes …")
            run(
                f"building {one}",
                [_program("go", "the Go toolchain"), "install", one],
                BUILD_SECONDS_MAX,
                {"GOBIN": str(directory)},
            )

    _once(directory, f"{version} {' '.join(packages)}", make, progress)
    return directory


def npm_platform() -> str:
    """This machine as npm packages name it, e.g. `linux-x64`. Raises Unavailable for one that is not among them."""
    cpu = CPUS.get(platform.machine().lower())
    if sys.platform not in ("linux", "darwin") or cpu is None:
        raise Unavailable(f"there is no build for {sys.platform} on {platform.machine()}")
    return f"{sys.platform}-{cpu}"


def run(what: str, command: Sequence[str], seconds: float, more: Mapping[str, str] | None = None) -> None:
    """Runs a command to its end. Raises Unavailable, with the last that it said, when it fails or takes longer."""
    try:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(more or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"{what} failed: {error}") from None
    with process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            # All of it: what a build has started itself would go on, and in a session of its own no Ctrl-C reaches it.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Unavailable(f"{what} did not end within {seconds:g} s") from None
            raise
    if process.returncode:
        raise Unavailable(f"{what} failed: {last_line(said.decode(errors='replace'))}")


def last_line(said: str) -> str:
    """The last line that says something, without colours, cut to what a report can take."""
    lines = [line.strip() for line in COLOURS.sub("", said).splitlines() if line.strip()]
    return lines[-1][:REASON_CHARS_MAX] if lines else "it said nothing"


def _program(name: str, of: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed, which comes with {of}")
    return found


def _once(directory: Path, wanted: str, make: Callable[[], None], progress: Progress) -> None:
    """Makes the directory unless it was made whole from the same list before."""
    stamp = hashlib.sha256(wanted.encode()).hexdigest()
    marker = directory / STAMP
    if marker.is_file() and marker.read_text() == stamp:
        return
    progress(f"installing into {directory} (once) …")
    shutil.rmtree(directory, ignore_errors=True)
    try:
        make()
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    marker.write_text(stamp)
