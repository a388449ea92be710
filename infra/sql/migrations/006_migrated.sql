-- What a migration brings: the moves of a workflow to another hash of its definition. A view of their own, a row for each.

ALTER TABLE workflow ADD COLUMN migrated jsonb;

CREATE VIEW migrations AS
SELECT w.workflow_id, w.name, m.number, to_timestamp((m.move ->> 'at_ms')::bigint / 1000.0) AS at,
       m.move ->> 'before' AS before, m.move ->> 'after' AS after, m.move ->> 'who' AS who, m.move ->> 'reason' AS reason
FROM workflow w
CROSS JOIN LATERAL jsonb_array_elements(w.migrated) WITH ORDINALITY AS m (move, number)
WHERE w.migrated IS NOT NULL;
COMMENT ON VIEW migrations IS
    'One row per move of a workflow to another hash of its definition, the newest 10 of each; order by number. before, after: the '
    'hashes.';
