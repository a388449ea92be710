"""Where a bench ran: without this a figure means nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from sagalog.infra.embedded.stack import EmbeddedStack


def describe(stack: EmbeddedStack | None) -> dict[str, Any]:
    """Versions and machine. The load average tells whether the bench had the machine to itself. No stack: no broker is used."""
    return {
        "sagalog": version("sagalog"),
        "python": platform.python_version(),
        **({} if stack is None else _clients(stack)),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _clients(stack: EmbeddedStack) -> dict[str, Any]:
    return {
        "aiokafka": version("aiokafka"),
        "kafka": str(stack.kafka.describe()["version"]),
        "uvloop": version("uvloop"),
    }
