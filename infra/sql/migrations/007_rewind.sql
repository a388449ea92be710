-- What rewinding, forking and redriving bring. Both follow from the log: a fork names its original, and what asked for a rewinding
-- or a fork names the dead letter that it is about. Views gain their columns at the end, so that what is built on them and who may
-- read them stays as it was.

ALTER TABLE workflow
    ADD COLUMN forked_from jsonb,
    ADD COLUMN rewinds jsonb;
CREATE INDEX workflow_forked_from ON workflow USING hash ((forked_from ->> 'workflow_id')) WHERE forked_from IS NOT NULL;

CREATE INDEX workflow_redriven ON workflow USING hash ((forked_from ->> 'dead_letter')) WHERE forked_from ? 'dead_letter';
-- Few workflows are ever rewound: a look for those must not read all.
CREATE INDEX workflow_rewound ON workflow (workflow_id) WHERE rewinds IS NOT NULL;

CREATE VIEW lineage AS
SELECT workflow_id, forked_from, rewinds
FROM workflow;
COMMENT ON VIEW lineage IS
    'One row per workflow. forked_from: {workflow_id, at_offset, dead_letter, who, reason} of a fork. rewinds: {step, undo, who, '
    'reason, at_ms, dead_letter} each, the oldest first.';

CREATE VIEW redrives AS
SELECT forked_from ->> 'dead_letter' AS dead_letter, workflow_id, 'fork' AS how, forked_from ->> 'who' AS who,
       forked_from ->> 'reason' AS reason
FROM workflow
WHERE forked_from ? 'dead_letter'
UNION ALL
SELECT r.value ->> 'dead_letter', w.workflow_id, 'rewind', r.value ->> 'who', r.value ->> 'reason'
FROM workflow w, jsonb_array_elements(w.rewinds) AS r
WHERE w.rewinds IS NOT NULL AND r.value ? 'dead_letter';
COMMENT ON VIEW redrives IS
    'Dead letters that were tried again. workflow_id: in which workflow; the same one for a rewind, another one for a fork.';

CREATE OR REPLACE VIEW dead_letters AS
SELECT id, workflow_id, definition, name, step, agent, direction, input, failures, failed_attempts, created_at, partition,
       at_offset,
       (SELECT min(r.workflow_id) FROM redrives r WHERE r.dead_letter = dead_letter.id) AS redriven_by
FROM dead_letter;
COMMENT ON VIEW dead_letters IS
    'Commands that failed for good, with the attempts. redriven_by: the workflow in which it was tried again.';
