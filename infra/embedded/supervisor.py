"""Runs one server for one owner, and never lets the server outlive the owner.

It is a process of its own between the owner and the server:

    owner --pidfd--> supervisor --parent-death signal--> server (--subreaper--> what the server forked)

Why not the parent-death signal alone: the kernel binds it to the *thread* that forked, so a server started in a worker
thread would be killed when that thread ends, and a change of user clears it. This process has one thread, watches the
owner by a pidfd (which no fork can leak, unlike the write end of a pipe), and sets the signal on the server after the
change of user. So whoever of the two is killed, by whatever signal, the server goes too:

- the owner ends in any way: the server is stopped (killed, when its directory is to be removed anyway);
- this process is killed: the kernel kills the server;
- the server ends: this process kills what the server forked and left, then exits with its code.

Rules: standard library only and no import of the project (it runs with `python -I -S`, in a few milliseconds); it holds
the directory's lock (an inherited descriptor) until it exits, so nobody can start in a directory that is still in use.
All signals to the server go through here, where its pid cannot have been reused: SIGTERM stops it, SIGUSR1 kills it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWUSER = 0x10000000
LOOK_AGAIN_S = 0.05
EXIT_CANNOT_RUN = 127
HELD_NAME = "supervised"


@dataclass(frozen=True)
class Orders:
    """What to run and how; handed over as arguments, see `arguments`."""

    owner_pid: int
    stop_signal: int
    grace_ms: int
    uid: int  # -1: stay who we are
    gid: int
    mapped: bool  # uid and gid are what the server is shown (see _map), not what it becomes
    log: str
    remove: str  # temporary directory of the whole stack, to be removed when the owner died; '' for none
    command: tuple[str, ...]

    def arguments(self) -> list[str]:
        return [
            str(self.owner_pid),
            str(self.stop_signal),
            str(self.grace_ms),
            str(self.uid),
            str(self.gid),
            str(int(self.mapped)),
            self.log,
            self.remove,
            *self.command,
        ]

    @classmethod
    def parse(cls, arguments: list[str]) -> Orders:
        owner_pid, stop_signal, grace_ms, uid, gid, mapped = (int(word) for word in arguments[:6])
        log, remove, *command = arguments[6:]
        return cls(owner_pid, stop_signal, grace_ms, uid, gid, bool(mapped), log, remove, tuple(command))


def main(arguments: list[str]) -> int:
    orders = Orders.parse(arguments)
    signals = _watch_signals()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    owner = os.pidfd_open(orders.owner_pid)
    if os.getppid() != orders.owner_pid:  # the owner died before it could be watched
        return EXIT_CANNOT_RUN
    held = _hold(orders.remove)
    try:
        server = _spawn(orders, libc)
    except (OSError, subprocess.SubprocessError) as error:
        _say(f"error {error}")
        return EXIT_CANNOT_RUN
    _say(f"pid {server.pid}")
    owner_died = _supervise(server, owner, signals, orders)
    _end_rest(signals)
    if owner_died and held is not None:
        _remove_if_last(orders.remove, held)
    code = server.returncode
    return code if code >= 0 else 128 - code


def _say(line: str) -> None:
    # The owner may be gone already; its death is noticed by the pidfd, not by this pipe.
    try:
        os.write(1, f"{line}\n".encode())
    except BrokenPipeError:
        return


def _watch_signals() -> int:
    """Makes the signals of interest readable from the returned descriptor, one byte each."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    # A terminal's Ctrl-C is the owner's business, who then stops us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # an owner that waits for signals has them blocked, and so had we
    return read


def _spawn(orders: Orders, libc: ctypes.CDLL) -> subprocess.Popen[bytes]:
    me = os.getpid()
    becomes = orders.uid >= 0 and not orders.mapped

    def bind_to_me() -> None:
        if orders.mapped:
            _map(orders, libc)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != me:  # killed between the fork and the line above
            os._exit(EXIT_CANNOT_RUN)

    log = os.open(orders.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603 - the command comes from our own parent
            orders.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            user=orders.uid if becomes else None,
            group=orders.gid if becomes else None,
            extra_groups=[] if becomes else None,
            preexec_fn=bind_to_me,  # safe: this process has one thread
        )
    finally:
        os.close(log)


def _map(orders: Orders, libc: ctypes.CDLL) -> None:
    """Enters a user namespace in which we are shown as another user, without any capability after the next exec."""
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "no user namespace can be made")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{orders.uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{orders.gid} {gid} 1")


def _supervise(server: subprocess.Popen[bytes], owner: int, signals: int, orders: Orders) -> bool:
    """Waits until the server has ended, stopping it when told to; says whether the owner died."""
    poll = select.poll()
    poll.register(owner, select.POLLIN)
    poll.register(signals, select.POLLIN)
    owner_died = stopping = False
    kill_at: float | None = None
    while server.poll() is None:
        left_ms = None if kill_at is None else max(0, int((kill_at - time.monotonic()) * 1000))
        ready = dict(poll.poll(left_ms))
        told = os.read(signals, 64) if signals in ready else b""
        if owner in ready:
            poll.unregister(owner)
            owner_died = True
        if signal.SIGUSR1 in told or (owner_died and orders.remove) or left_ms == 0:
            server.kill()
            kill_at, stopping = None, True
        elif not stopping and (owner_died or signal.SIGTERM in told):
            server.send_signal(orders.stop_signal)
            kill_at, stopping = time.monotonic() + orders.grace_ms / 1000, True
    return owner_died


def _end_rest(signals: int) -> None:
    """Kills what the server forked and left, which is ours by now; returns when nothing of it is left.

    After a clean stop that is nothing. After a crash a backend in the middle of a query may not notice for minutes.
    """
    while _has_children():
        for child in _children():
            os.kill(child, signal.SIGKILL)
        if select.select([signals], [], [], LOOK_AGAIN_S)[0]:  # a child's end makes it readable
            os.read(signals, 64)


def _has_children() -> bool:
    """Reaps the children that have ended; says whether others are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return False
    return True


def _children() -> list[int]:
    me = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()]


def _hold(root: str) -> int | None:
    """A shared lock that says that a server may still be writing below the temporary directory `root`."""
    if not root:
        return None
    held = os.open(Path(root) / HELD_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


def _remove_if_last(root: str, held: int) -> None:
    """Removes the temporary directory in the place of its dead owner, unless another supervisor still holds it.

    Of several that come here at once exactly one gets the lock: a refused upgrade gives up the shared lock as well.
    """
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
