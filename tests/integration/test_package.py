"""The wheel: all that the package needs is in it, nothing else is, and it works where there is no source tree.

It is built from a copy of the files that git knows or would add, so that no leftover of a build is taken in and none is left.
The unpacked wheel is used by an interpreter that skips `.pth` files, and with them the import hook of the editable install.
"""

from __future__ import annotations

import email
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("agents", "engine", "infra", "schemas", "topics")
NOT_PACKAGED = "infra/containers/"
"""A tool for developing, which needs the repository."""
DATA = (
    "agents/invoices/samples/*",
    "infra/embedded/kafka_jars.txt",
    "infra/sql/*.sql",
    "infra/sql/migrations/*.sql",
    *(f"{folder}/py.typed" for folder in FOLDERS),
)
BUILD_S_MAX = 120
RUN_S_MAX = 60

IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sagalog
assert [str(p) for p in sagalog.__path__] == [HERE + "/sagalog"], list(sagalog.__path__)
found = set()
for folder in FOLDERS:
    found.add(f"sagalog.{folder}")
    package = importlib.import_module(f"sagalog.{folder}")
    found |= {m.name for m in pkgutil.walk_packages(package.__path__, f"sagalog.{folder}.")}
for name in sorted(found):
    if not name.endswith("__main__"):
        assert importlib.import_module(name).__file__.startswith(HERE), name
print("\\n".join(sorted(found)))
"""

USE_DATA = """
from sagalog.engine.projection.migrations import load_migrations
from sagalog.engine.projection.sql import queries
from importlib import resources
assert "workflow_get" in queries()
assert "schedules" in [m.name for m in load_migrations()]
samples = resources.files("sagalog.agents.invoices") / "samples"
assert len([one for one in samples.iterdir() if one.name.endswith(".png")]) >= 10
print(len(queries()))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git knows or would add."""
    tree = tmp_path_factory.mktemp("tree")
    for name in listed():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q", "-w", str(place)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(tree), *options], capture_output=True, text=True, timeout=BUILD_S_MAX
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = place.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def listed() -> list[str]:
    """Files that git knows or would add, those deleted left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted({name for name in names if name and (REPOSITORY / name).is_file()})


def wanted(tree: Path) -> set[str]:
    """What belongs into the package: all code of its folders, and the data that the code opens."""
    code = {file for folder in FOLDERS for file in (tree / folder).rglob("*.py")}
    data = {file for pattern in DATA for file in tree.glob(pattern)}
    names = {file.relative_to(tree).as_posix() for file in code | data}
    return {f"sagalog/{name}" for name in names if not name.startswith(NOT_PACKAGED)}


def run(unpacked: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code on the unpacked wheel, in an empty directory. `-S` skips site-packages and their hooks; they come by path."""
    here = sysconfig.get_paths()["purelib"]
    start = f"import sys; sys.path[:0] = [{str(unpacked)!r}]; sys.path.append({here!r})\n"
    start += f"HERE, FOLDERS = {str(unpacked)!r}, {FOLDERS!r}\n"
    empty = unpacked / "empty"
    empty.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + code, *arguments],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
    )


def test_every_pattern_of_data_still_finds_files(tree: Path) -> None:
    """Else a renamed folder would drop out of the package unseen."""
    assert [pattern for pattern in DATA if not list(tree.glob(pattern))] == []


def test_the_wheel_holds_the_package_and_nothing_else(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    held = {name for name in names if ".dist-info/" not in name}
    assert {"missing": sorted(wanted(tree) - held), "unwanted": sorted(held - wanted(tree))} == {
        "missing": [],
        "unwanted": [],
    }


def test_the_wheel_says_how_it_is_called_and_what_it_needs(unpacked: Path) -> None:
    (about,) = unpacked.glob("*.dist-info")
    assert (about / "entry_points.txt").read_text().split() == [
        "[console_scripts]",
        "sagalog",
        "=",
        "sagalog.engine.cli:main",
    ]
    metadata = email.message_from_string((about / "METADATA").read_text())
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == {"embedded", "demo", "dev"}
    assert str(metadata.get_payload()).startswith("# sagalog")


def test_every_module_is_imported_from_the_wheel(tree: Path, unpacked: Path) -> None:
    ended = run(unpacked, IMPORT_ALL)
    assert ended.returncode == 0, ended.stderr
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in wanted(tree)
        if name.endswith(".py")
    }
    assert set(ended.stdout.split()) == modules


def test_the_command_runs_from_the_wheel(unpacked: Path) -> None:
    ended = run(unpacked, "sys.argv[0] = 'sagalog'\nfrom sagalog.engine.cli import main; main()", "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("Usage: sagalog ")
    assert "verify" in ended.stdout


def test_queries_migrations_and_samples_are_found_from_the_wheel(unpacked: Path) -> None:
    ended = run(unpacked, USE_DATA)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 10
