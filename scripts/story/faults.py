"""Faults that scenes switch on and off while agents run: one small file, replaced as a whole.

Rule: only the wrappers in `agents` and `reader` look at it; the agents of the saga know nothing of faults.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, TypeAdapter

from sagalog.agents import Context, Retryable

DIRECTORY_VARIABLE: Final = "STORY_DIRECTORY"
"""Where the faults and the state of the demo's own agents lie."""
_NAME: Final = "faults.json"


class Fault(BaseModel):
    """An agent that cannot do its work. `attempts`: only the first so many attempts of a step; None: all."""

    model_config = ConfigDict(frozen=True)

    message: str
    attempts: int | None = None


_FAULTS: Final = TypeAdapter(dict[str, Fault])


def directory() -> Path:
    return Path(os.environ[DIRECTORY_VARIABLE])


def inject(where: Path, faults: dict[str, Fault]) -> None:
    """From now on these agents fail, and no others."""
    fresh = where / f"{_NAME}.new"
    fresh.write_bytes(_FAULTS.dump_json(faults))
    fresh.replace(where / _NAME)


def fail_if_told(agent: str, ctx: Context) -> None:
    """Raises Retryable while the agent has a fault."""
    fault = _FAULTS.validate_json((directory() / _NAME).read_bytes()).get(agent)
    if fault is not None and (fault.attempts is None or ctx.attempt <= fault.attempts):
        raise Retryable(fault.message)
