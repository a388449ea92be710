"""Ports on the loopback address.

Rule: a free port is only a good guess until the server has bound it, so whoever chose one tries again with another when
the server reports it taken; a port that the user asked for is never replaced.
"""

from __future__ import annotations

import socket

from sagalog.infra.errors import PortTakenError

HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; distinct, because all are held until the last is found."""
    held = [socket.create_server((HOST, 0)) for _ in range(count)]
    try:
        return [server.getsockname()[1] for server in held]
    finally:
        for server in held:
            server.close()


def require_free(what: str, port: int) -> None:
    """Raises PortTakenError when another process listens on the port."""
    try:
        # Like the servers, with SO_REUSEADDR: connections in TIME_WAIT do not count as taken.
        socket.create_server((HOST, port)).close()
    except OSError as cause:
        raise PortTakenError.of(what, port) from cause
