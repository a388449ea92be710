"""What the watch asks Faust's consumer: here of a broker whose partitions grow with each question."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sagalog.engine.watch.compat import WatchConsumer
from sagalog.topics.log import TopicPartition

PARTITION = TopicPartition("outcomes", 0)


class GrowingLog(WatchConsumer):
    """One partition; `times` are those of its records, and every question is answered before one more is written."""

    def __init__(self, times: list[int]) -> None:
        self.times = times
        self._thread: Any = SimpleNamespace(call_thread=self._call, _ensure_consumer=lambda: self)

    async def _call(self, question: Callable[..., Any], *arguments: Any) -> Any:
        return question(*arguments)

    def _write(self) -> None:
        self.times.append(1_000)

    def offsets_for_times(self, wanted: dict[Any, int]) -> dict[Any, Any]:
        found = {
            partition: next((SimpleNamespace(offset=n) for n, time in enumerate(self.times) if time >= at_ms), None)
            for partition, at_ms in wanted.items()
        }
        self._write()
        return found

    async def highwaters(self, *partitions: Any) -> dict[Any, int]:  # type: ignore[override]
        found = dict.fromkeys(partitions, len(self.times))
        self._write()
        return found


@pytest.mark.parametrize(("times", "latest"), [([], 0), ([10, 20], 2), ([10, 900], 1), ([900], 0)])
async def test_a_record_written_between_two_questions_is_read(times: list[int], latest: int) -> None:
    found = await GrowingLog(times).offsets_from({PARTITION: 500})
    assert found[PARTITION] <= latest
