"""`sagalog` as tests call it: as a process of its own in a directory, or, where no process is needed, as `main` in this one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sagalog.engine import cli
from sagalog.topics.specs import Topics

SAGALOG = Path(sys.executable).with_name("sagalog")
COMMAND_S_MAX = 60.0
"""No command takes more than a few seconds on an idle machine."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    def json(self) -> Any:
        assert len(self.out.splitlines()) == 1, self.out
        return json.loads(self.out)

    def one_sentence(self) -> str:
        """What is on standard error, which must be all there is."""
        assert self.out == ""
        assert self.err.startswith("Error: ")
        assert len(self.err.splitlines()) == 1, self.err
        return self.err


@dataclass
class Place:
    """A user's directory, with the settings of one system."""

    directory: Path
    settings: dict[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SAGALOG_")}
        return {**clean, "NO_COLOR": "1", "COLUMNS": "200", **self.settings, **more}

    def sagalog(self, *arguments: str, stdin: str = "", **environment: str) -> Ended:
        began = time.monotonic()
        ended = subprocess.run(
            [str(SAGALOG), *arguments],
            cwd=self.directory,
            env=self.environment(**environment),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return Ended(ended.returncode, ended.stdout, ended.stderr, time.monotonic() - began)

    def done(self, *arguments: str) -> str:
        """The output of a command that succeeds and has nothing to say on standard error."""
        ended = self.sagalog(*arguments)
        assert (ended.code, ended.err) == (0, ""), ended
        return ended.out

    def run(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """A process that runs until it is stopped; what it says is in `<command>.out`."""
        with (self.directory / f"{arguments[0]}.out").open("wb") as output:
            return subprocess.Popen(
                [str(SAGALOG), *arguments],
                cwd=self.directory,
                env=self.environment(**environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self, command: str) -> str:
        return (self.directory / f"{command}.out").read_text()

    @property
    def topics(self) -> Topics:
        return Topics(self.settings["SAGALOG_PREFIX"])

    @property
    def dev_file(self) -> Path:
        return self.directory / ".sagalog" / "dev.json"


def until(condition: Callable[[], Any], timeout_s: float, problem: Callable[[], str]) -> Any:
    """Polls a system of other processes; fails with `problem` when the condition does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {problem()}"
        time.sleep(0.05)
    return found


def call(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
    **environment: str,
) -> Ended:
    """A command in this process: a second faster, for what depends neither on a fresh interpreter nor on signals."""
    root = logging.getLogger()
    handlers, level, path = list(root.handlers), root.level, list(sys.path)
    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.chdir(place.directory)
        for name in [name for name in os.environ if name.startswith("SAGALOG_")]:
            patch.delenv(name)
        for name, value in {**place.settings, **environment}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["sagalog", *arguments])
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            # The command set them for a process of its own.
            root.handlers[:], sys.path[:] = handlers, path
            root.setLevel(level)
    out, err = capsys.readouterr()
    code = ended.value.code
    return Ended(code if isinstance(code, int) else 0, out, err, time.monotonic() - began)
