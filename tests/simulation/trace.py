"""What happened, for whoever has to understand a failing seed: log lines, faults and sends, with simulated time and process."""

from __future__ import annotations

import logging
from collections import Counter, deque
from hashlib import blake2b
from typing import Final

from sagalog.infra.simulation import SimulationLoop, current_process
from sagalog.schemas.errors import SagalogError

LINES_KEPT: Final = 4_000
EXPECTED_SHOWN_MAX: Final = 300


class Trace(logging.Handler):
    """Collects the project's log records. An exception that is none of the project's own is a bug, and kept as one."""

    def __init__(self, loop: SimulationLoop) -> None:
        super().__init__(logging.INFO)
        self._loop = loop
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.bugs: list[str] = []
        self.counts: Counter[str] = Counter()
        self._hash = blake2b(digest_size=8)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        message = record.getMessage()
        if error is not None:
            message += f" [{type(error).__name__}: {error}]"
            if record.levelno >= logging.ERROR and not isinstance(error, SagalogError):
                self.bugs.append(f"{record.name}: {message} {_where(error)}")
        self.note(f"{record.levelname.lower()} {record.name.removeprefix('sagalog.')}: {message}")

    def note(self, text: str) -> None:
        process = current_process()
        line = f"{self._loop.time():10.4f} {process.name if process is not None else '-':14} {text}"
        self.lines.append(line)
        self._hash.update(line.encode())

    def hash(self) -> str:
        return self._hash.hexdigest()

    def __enter__(self) -> Trace:
        self._logger = logging.getLogger("sagalog")
        self._before = self._logger.level, self._logger.propagate
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before[0])
        self._logger.propagate = self._before[1]


def _where(error: BaseException) -> str:
    """The innermost place of the project's own code."""
    found = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        found = f"at {code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return found
