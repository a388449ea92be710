"""What a process serves over HTTP: metrics, and whether it is alive and ready."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from sagalog.engine.cli.serving import MetricsPortError, serve
from sagalog.infra.probes import Answer


class Fixed:
    def live(self) -> Answer:
        return Answer(True, {"problems": []})

    def ready(self) -> Answer:
        return Answer(
            False, {"problems": [{"partition": "events/3", "since_s": 12.5, "why": "it is not live: loading"}]}
        )


def get(address: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def served(capsys: pytest.CaptureFixture[str], probes: Any) -> str:
    registry = CollectorRegistry()
    Counter("things", "Things", registry=registry).inc()
    serve(0, registry, "engine", probes)
    found = re.search(r"http://[0-9.:]+", capsys.readouterr().err)
    assert found is not None
    return found[0]


def test_probes_are_served_beside_the_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    address = served(capsys, Fixed())

    code, kind, body = get(f"{address}/livez")
    assert (code, kind, json.loads(body)) == (200, "application/json", {"ok": True, "problems": []})
    code, kind, body = get(f"{address}/readyz")
    assert (code, kind) == (503, "application/json")
    (problem,) = json.loads(body)["problems"]
    assert problem == {"partition": "events/3", "since_s": 12.5, "why": "it is not live: loading"}
    code, _, body = get(f"{address}/metrics")
    assert (code, "things_total 1.0" in body) == (200, True)


def test_a_port_that_is_taken_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    port = int(served(capsys, None).rsplit(":", 1)[1])

    with pytest.raises(MetricsPortError, match=f"port {port}"):
        serve(port, CollectorRegistry(), "engine")
