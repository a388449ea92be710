"""The owner's handle of one server process, which runs below a supervisor (see there).

Rules: all signals go to the supervisor, which is our unreaped child, so no pid is ever guessed; every wait ends when
the process does, and has a named limit.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sagalog.infra.embedded import supervisor
from sagalog.infra.embedded.site import Site
from sagalog.infra.errors import ProcessStartError, ProcessStateError

SPAWN_MS_MAX = 10_000
PROBE_INTERVAL_MS = 20
GRACE_MS = 15_000  # a clean stop may take this long before the server is killed
END_MARGIN_MS = 10_000  # for the kernel to clear away a killed server, on a machine under load
LOG_LINES_SHOWN = 15
LOG_BYTES_READ_MAX = 64 * 1024
LOG_BYTES_MAX = 16 * 1024 * 1024  # a larger log is put aside at the next start
INHERITED = ("PATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Account:
    """Whom to run as: this user, or when `mapped` the one we are, shown as this user (in a user namespace)."""

    uid: int
    gid: int
    mapped: bool = False


@dataclass(frozen=True)
class ServerSpec:
    """What to run. `account` None: as who we are. `stop_signal` is the server's clean stop."""

    name: str
    command: tuple[str, ...]
    log: Path
    site: Site
    stop_signal: signal.Signals = signal.SIGTERM
    account: Account | None = None


class ServerProcess:
    """One run of a server: from `spawn` until it has ended."""

    def __init__(self, spec: ServerSpec, run: subprocess.Popen[bytes], pid: int, log_from: int) -> None:
        self._spec = spec
        self._log_from = log_from
        self._run = run
        self.pid = pid

    @classmethod
    def spawn(cls, spec: ServerSpec) -> ServerProcess:
        """Starts the server; returns when it has a pid, not when it is ready."""
        account = spec.account or Account(-1, -1)
        orders = supervisor.Orders(
            owner_pid=os.getpid(),
            stop_signal=spec.stop_signal,
            grace_ms=GRACE_MS,
            uid=account.uid,
            gid=account.gid,
            mapped=account.mapped,
            log=str(spec.log),
            remove=str(spec.site.remove_root or ""),
            command=spec.command,
        )
        lock_fd = spec.site.lock_fd
        log_from = spec.log.stat().st_size if spec.log.exists() else 0
        with spec.log.open("ab") as log:  # for the supervisor's own troubles; ours may be a pipe that is waited for
            run = subprocess.Popen(  # noqa: S603 - our own interpreter and file
                [sys.executable, "-I", "-S", supervisor.__file__, *orders.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=spec.site.directory,
                env=clean_environment(),
                start_new_session=True,
                pass_fds=() if lock_fd is None else (lock_fd,),
            )
        assert run.stdout is not None
        word, _, value = _first_line(run, spec).partition(" ")
        if word != "pid":
            run.stdout.close()
            run.wait()
            raise ProcessStartError.of(
                spec.name, f"could not be run ({value})", spec.log, last_lines(spec.log, log_from)
            )
        return cls(spec, run, int(value), log_from)

    @property
    def supervisor_pid(self) -> int:
        return self._run.pid

    def is_running(self) -> bool:
        return self._run.poll() is None

    def wait_ready(self, probe: Callable[[], str | None], timeout_ms: int) -> None:
        """Waits until `probe` returns None; what it returns otherwise says what is missing."""
        deadline = time.monotonic() + timeout_ms / 1000
        ended = os.pidfd_open(self._run.pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        try:
            while (missing := probe()) is not None:
                if poll.poll(PROBE_INTERVAL_MS):
                    self._close()
                    self._fail(f"ended with code {self._run.wait()} before it was ready")
                if time.monotonic() > deadline:
                    self.kill()
                    self._fail(f"was not ready within {timeout_ms} ms ({missing})")
        finally:
            os.close(ended)

    def _fail(self, how: str) -> NoReturn:
        raise ProcessStartError.of(self._spec.name, how, self._spec.log, last_lines(self._spec.log, self._log_from))

    def wait_end(self, timeout_ms: int) -> None:
        """Waits for the end of something that ends by itself; raises ProcessStartError unless it succeeds."""
        try:
            code = self._run.wait(timeout_ms / 1000)
        except subprocess.TimeoutExpired:
            self.kill()
            self._fail(f"did not end within {timeout_ms} ms")
        except BaseException:
            self.kill()
            raise
        else:
            self._close()
            if code:
                self._fail(f"failed with code {code}")

    def stop(self) -> int:
        """Stops the server cleanly, or kills it after GRACE_MS; returns its exit code."""
        return self._end(signal.SIGTERM, GRACE_MS + END_MARGIN_MS)

    def kill(self) -> int:
        """Kills the server at once, as a crash does; returns when nothing of it is left."""
        return self._end(signal.SIGUSR1, END_MARGIN_MS)

    def _end(self, how: signal.Signals, timeout_ms: int) -> int:
        self._run.send_signal(how)
        try:
            code = self._run.wait(timeout_ms / 1000)
        except subprocess.TimeoutExpired as cause:
            self._run.kill()  # the kernel then kills the server
            self._run.wait()
            raise ProcessStateError.of(
                self._spec.name, f"still not gone after {timeout_ms} ms", f"look for process {self.pid}"
            ) from cause
        self._close()
        return code

    def _close(self) -> None:
        assert self._run.stdout is not None
        self._run.stdout.close()


def _first_line(run: subprocess.Popen[bytes], spec: ServerSpec) -> str:
    assert run.stdout is not None
    if not select.select([run.stdout], [], [], SPAWN_MS_MAX / 1000)[0]:
        run.kill()
        return f"error no answer from its supervisor within {SPAWN_MS_MAX} ms"
    return run.stdout.readline().decode().strip()


def last_lines(log: Path, log_from: int) -> Sequence[str]:
    """The end of a log, for an error message; not what an earlier run wrote before the offset `log_from`."""
    try:
        with log.open("rb") as file:
            file.seek(max(log_from, log.stat().st_size - LOG_BYTES_READ_MAX))
            return file.read().decode(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
    except FileNotFoundError:
        return []


def rotate(log: Path) -> None:
    """Puts a log that has grown too large aside; the one put aside before is lost."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_name(f"{log.name}.old"))


def clean_environment() -> dict[str, str]:
    """What servers inherit: JAVA_TOOL_OPTIONS, PGPORT and their like would change them behind our back."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
