"""What a process serves over HTTP, by threads beside its loop: `/metrics`, `/livez`, `/readyz`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from sagalog.infra.errors import InfraError
from sagalog.infra.probes import Answer, Probes

from .output import err

ADDRESS: Final = "0.0.0.0"  # noqa: S104 - whoever scrapes and supervises is on other machines
REQUEST_TIMEOUT_S: Final = 10
"""How long a client may take for its request."""
OK: Final = "200 OK"
NOT_OK: Final = "503 Service Unavailable"

StartResponse = Callable[[str, list[tuple[str, str]]], Any]
App = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


class MetricsPortError(InfraError):
    """Metrics cannot be served where the settings say."""


def serve(port: int | None, registry: CollectorRegistry, what: str, probes: Probes | None = None) -> None:
    """Serves Prometheus metrics, and the answers of `probes`, on a port of this host; 0 takes a free one, None serves nothing.

    Raises MetricsPortError.
    """
    if port is None:
        return
    try:
        server = make_server(ADDRESS, port, make_app(registry, probes), _Server, _Handler)
    except OSError as error:
        raise MetricsPortError(
            f"metrics of the {what} cannot be served on port {port} ({error.strerror}): "
            "set SAGALOG_METRICS_PORT to another one, to 0 for a free one, or leave it out"
        ) from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    err.print(f"metrics of the {what}: http://127.0.0.1:{server.server_port}/metrics", style="dim", markup=False)


def make_app(registry: CollectorRegistry, probes: Probes | None) -> App:
    """What is no probe's path gives the metrics."""
    metrics: App = make_wsgi_app(registry)
    answers = {"/livez": probes.live, "/readyz": probes.ready} if probes is not None else {}

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        ask = answers.get(environ["PATH_INFO"])
        return metrics(environ, start_response) if ask is None else _json(ask(), start_response)

    return app


def _json(answer: Answer, start_response: StartResponse) -> Iterable[bytes]:
    body = json.dumps({"ok": answer.ok, **answer.body}).encode() + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    start_response(OK if answer.ok else NOT_OK, headers)
    return [body]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """A line for each scrape would hide what matters."""
