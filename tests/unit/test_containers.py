"""How the containers stack chooses its images and settings, and that local images are made the same way twice."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import ImageNotFound, NotFound

from sagalog.infra.containers import tree
from sagalog.infra.containers.images import KAFKA, VERSION_LABEL
from sagalog.infra.containers.tree import ImageError, Tree
from tests.containers import ContainerStack, find_image, kafka_properties, postgres_command


class Images:
    """What a daemon has (name to labels) and what its registry has."""

    def __init__(self, here: dict[str, dict[str, str]], registry: set[str]) -> None:
        self.here = here
        self.registry = registry

    def get(self, name: str) -> Any:
        if name not in self.here:
            raise ImageNotFound(name)
        return SimpleNamespace(labels=self.here[name])

    def pull(self, name: str) -> None:
        if name not in self.registry:
            raise NotFound(name, explanation="no such host")
        self.here[name] = {}


def chosen(here: dict[str, dict[str, str]], registry: set[str]) -> str:
    return find_image(SimpleNamespace(images=Images(here, registry)), KAFKA)


LOCAL = {KAFKA.name: {VERSION_LABEL: KAFKA.version}}


def test_the_official_image_is_preferred() -> None:
    assert chosen({**LOCAL, KAFKA.official: {}}, set()) == KAFKA.official
    assert chosen(dict(LOCAL), {KAFKA.official}) == KAFKA.official


def test_the_local_image_serves_where_nothing_can_be_pulled() -> None:
    assert chosen(dict(LOCAL), set()) == KAFKA.name


def test_without_any_image_the_reason_names_the_script() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"cannot be pulled \(no such host\).*scripts/images"):
        chosen({}, set())


def test_a_local_image_of_another_version_is_not_used() -> None:
    with pytest.raises(
        pytest.skip.Exception, match=rf"has version 3\.9\.0 but {KAFKA.version} is pinned.*scripts/images"
    ):
        chosen({KAFKA.name: {VERSION_LABEL: "3.9.0"}}, set())


def test_without_a_daemon_the_reason_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(pytest.skip.Exception, match=r"No Docker daemon answers.*apt-get install docker\.io"):
        ContainerStack().__enter__()


def test_kafka_is_reached_by_the_port_it_advertises() -> None:
    lines = (line.partition("=") for line in kafka_properties(40123).splitlines())
    settings = {name: value for name, _, value in lines}  # as in Java, the last value counts
    assert settings["listeners"] == "PLAINTEXT://0.0.0.0:40123,CONTROLLER://127.0.0.1:9093"
    assert settings["advertised.listeners"] == "PLAINTEXT://127.0.0.1:40123,CONTROLLER://127.0.0.1:9093"
    assert settings["controller.quorum.voters"] == "1@127.0.0.1:9093"
    assert settings["log.dirs"] == "/var/lib/kafka/data"
    assert settings["auto.create.topics.enable"] == "false"


def test_postgres_listens_where_its_image_says() -> None:
    command = postgres_command()
    assert "fsync=on" in command
    assert not [word for word in command if word.startswith(("listen_addresses", "unix_socket_directories"))]


def written(made: Tree) -> bytes:
    target = io.BytesIO()
    made.write(target)
    return target.getvalue()


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    one, other = Tree(), Tree()
    one.add("b", file, executable=True)
    one.add("a", b"text")
    first = written(one)
    file.touch()
    other.add("a", b"text")
    other.add("b", file, executable=True)
    assert written(other) == first
    with tarfile.open(fileobj=io.BytesIO(first)) as tar:
        found = {entry.name: (entry.mode, entry.uid, entry.mtime) for entry in tar.getmembers()}
    assert found == {"tmp": (0o1777, 0, 0), "a": (0o644, 0, 0), "b": (0o755, 0, 0)}


def test_a_file_whose_time_is_compared_keeps_it(tmp_path: Path) -> None:
    file = tmp_path / "file.jar"
    file.write_bytes(b"content")
    made = Tree()
    made.add("file.jar", file, timed=True)
    with tarfile.open(fileobj=io.BytesIO(written(made))) as tar:
        assert tar.getmember("file.jar").mtime == int(file.stat().st_mtime)


def test_libraries_come_along_and_a_missing_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, own = tmp_path / "libc.so.6", tmp_path / "own" / "libown.so"
    own.parent.mkdir()
    for file in (system, own, tmp_path / "libgcc_s.so.1"):
        file.write_bytes(b"")
    needs: tuple[set[Path], set[str]] = ({system, own}, {"libown.so"})
    monkeypatch.setattr(tree, "_libraries", lambda program: needs)
    made = Tree()
    made.add_directory("opt", own.parent)
    made.add_libraries_of([own])
    assert set(made.files) == {"opt/libown.so", f"{system}"[1:], f"{tmp_path}/libgcc_s.so.1"[1:]}
    needs[1].add("libabsent.so.1")
    with pytest.raises(ImageError, match=r"libown\.so needs libabsent\.so\.1, which is not installed"):
        made.add_libraries_of([own])


def test_a_shell_needs_libraries_that_are_found() -> None:
    made = Tree()
    made.add_libraries_of([Path("/bin/sh")])
    assert any("libc.so" in path for path in made.files)
