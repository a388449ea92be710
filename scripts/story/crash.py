"""The scene in which the engine is killed with SIGKILL in the middle of many workflows, and nothing is lost."""

from __future__ import annotations

import time
from collections import Counter
from itertools import cycle, islice

from sagalog.schemas.statuses import WorkflowStatus
from story import sagas
from story.report import Outcome
from story.run import Files, Run
from story.scenes import sound_samples
from story.settings import CRASH_KILL_AFTER, CRASH_UNFINISHED_MIN, CRASH_WORKFLOWS, RESULT_S_MAX, SAMPLES


async def killed(run: Run) -> None:
    """200 workflows, one kill -9, one restart."""
    screen = run.screen
    screen.scene(
        f"kill -9 of the engine in the middle of {CRASH_WORKFLOWS} workflows",
        "Their documents were read before and come from the reader's memory: what is shown here is the engine.",
    )
    names = islice(cycle(sound_samples()), CRASH_WORKFLOWS)
    files = {f"crash-{n:03d}": SAMPLES / name for n, name in enumerate(names, 1)}
    found: list[Outcome] = []
    killed_ms = 0
    back_s: float | None = None
    with screen.bar("workflows", len(files)) as bar:
        await run.start(sagas.invoice.name, files)
        screen.line(f"{len(files)} workflows are started")
        async with run.system.results(files, RESULT_S_MAX) as results:
            for result in results:
                found.append(run.note(files, await result))
                bar.advance()
                if not killed_ms and len(found) == CRASH_KILL_AFTER:
                    pid = run.system.engine.pid
                    await run.system.engine.kill()
                    killed_ms = time.time_ns() // 1_000_000
                    run.system.engine.start()
                    screen.line(
                        f"kill -9 {pid}: {len(found)} have ended, the others are under way. "
                        f"A new engine starts at once (process {run.system.engine.pid})",
                        style="red",
                    )
                elif killed_ms and back_s is None and found[-1].result["finished_ms"] > killed_ms:
                    back_s = time.time() - killed_ms / 1000
                    screen.line(
                        f"{back_s:.1f} s after the kill the first workflow ends under the new engine", style="green"
                    )
    unfinished = sum(outcome.result["finished_ms"] > killed_ms for outcome in found)
    screen.expect(
        f"the engine was killed in the middle: {unfinished} workflows ended after it",
        unfinished >= CRASH_UNFINISHED_MIN,
        f"fewer than {CRASH_UNFINISHED_MIN}",
    )
    completed = sum(outcome.status == WorkflowStatus.COMPLETED for outcome in found)
    screen.expect(f"none is lost: {completed} of {len(files)} completed", completed == len(files))
    postings = _postings(run, files)
    screen.expect(
        f"none is posted twice: {sum(postings.values())} postings in the ledger",
        postings == dict.fromkeys(files, 1),
        f"{[key for key in files if postings.get(key) != 1]}",
    )


def _postings(run: Run, workflow_ids: Files) -> dict[str, int]:
    """How often each of them was posted: every posting has exactly one entry at the payables."""
    found: Counter[str] = Counter()
    for entry in run.system.ledger.entries():
        workflow_id = entry.key.rpartition("/")[0]
        if workflow_id in workflow_ids and entry.account == "payables":
            found[workflow_id] += 1
    return dict(found)
