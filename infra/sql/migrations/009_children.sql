-- Workflows that do a step of another one, and runs of schedules: whose they are. A view of their own.

-- {"workflow_id", "root", "step"}; of a run, `workflow_id` is the schedule's key.
ALTER TABLE workflow ADD COLUMN parent jsonb;

CREATE INDEX workflow_parent ON workflow ((parent ->> 'workflow_id')) WHERE parent IS NOT NULL;
CREATE INDEX workflow_root ON workflow ((parent ->> 'root')) WHERE parent IS NOT NULL;

CREATE VIEW children AS
SELECT w.parent ->> 'workflow_id' AS parent, w.parent ->> 'step' AS step, w.workflow_id, w.parent ->> 'root' AS root, w.name,
       w.status, w.terminal, w.started_at, w.finished_at
FROM workflow w
WHERE w.parent IS NOT NULL;
COMMENT ON VIEW children IS
    'One row per workflow that does a step of another one, or is a run of a schedule (parent: @schedule/NAME). step: which step, or '
    'item. root: the workflow that nobody''s step started.';
