"""The rows as `verify` reads them: compared, partition by partition, with what the fold makes of the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sagalog.engine.audit import RowDifferences
from sagalog.schemas.records import SCHEDULE_KEY

from .compare import (
    WorkflowRows,
    differences,
    expected_rows,
    expected_schedule,
    fetch_rows,
    fetch_schedules,
    schedule_differences,
)
from .postgres import PostgresSql

PAGE: Final = 1_000
DIFFERENCES_MAX: Final = 20


class ProjectedRows:
    """Rows of one projection. Rows of another moment than the fold went to are counted, not compared."""

    def __init__(self, sql: PostgresSql) -> None:
        self._sql = sql

    async def differences(self, expected: Mapping[str, Mapping[str, Any]], partition: int) -> RowDifferences:
        """Compares the rows of the workflows in `expected` (workflow id to checkpoint or result), and of the schedules."""
        report = RowDifferences()
        await self._compare_schedules(expected, partition, report)
        ids = [key for key in expected if not key.startswith(SCHEDULE_KEY)]
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            found = await fetch_rows(self._sql, page)
            for workflow_id in page:
                wanted = expected_rows(workflow_id, expected[workflow_id], partition)
                self._compare(workflow_id, wanted, found.get(workflow_id), report)
        return report

    async def _compare_schedules(
        self, expected: Mapping[str, Mapping[str, Any]], partition: int, report: RowDifferences
    ) -> None:
        keys = [key for key in expected if key.startswith(SCHEDULE_KEY)]
        found = await fetch_schedules(self._sql, [key.removeprefix(SCHEDULE_KEY) for key in keys]) if keys else {}
        for key in keys:
            wanted, row = expected_schedule(expected[key], partition), found.get(key.removeprefix(SCHEDULE_KEY))
            if row is None or row["at_offset"] < wanted["at_offset"]:
                report.behind += 1
            elif row["at_offset"] > wanted["at_offset"]:
                report.newer += 1
            elif lines := schedule_differences(wanted, row):
                if len(report.differences) < DIFFERENCES_MAX:
                    report.differences.append(f"schedule {wanted['name']}: its row differs: {lines[0]}")
            else:
                report.compared += 1

    def _compare(
        self, workflow_id: str, wanted: WorkflowRows, found: WorkflowRows | None, report: RowDifferences
    ) -> None:
        at_offset = wanted.workflow["at_offset"]
        if found is None or found.workflow["at_offset"] < at_offset:
            report.behind += 1
        elif found.workflow["at_offset"] > at_offset:
            report.newer += 1
        else:
            lines = differences(wanted, found)
            if not lines:
                report.compared += 1
            elif len(report.differences) < DIFFERENCES_MAX:
                report.differences.append(f"workflow {workflow_id}: its rows differ: {lines[0]}")

    async def close(self) -> None:
        await self._sql.close()


async def open_rows(conninfo: str, prefix: str) -> ProjectedRows:
    """Connects. Raises SqlError."""
    sql = PostgresSql(conninfo, prefix=prefix)
    await sql.open()
    return ProjectedRows(sql)
