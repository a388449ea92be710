-- Whose a workflow is, how urgent, by what it is found, and which run of its id it is. Views gain their columns at the end, so that
-- what is built on them and who may read them stays as it was. Rows of before are of no tenant and of the default priority, which
-- is what their starts said; those of open workflows follow with their next record.

ALTER TABLE workflow
    ADD COLUMN tenant text,
    ADD COLUMN priority smallint NOT NULL DEFAULT 5,
    ADD COLUMN attributes jsonb,
    ADD COLUMN run bigint NOT NULL DEFAULT 1,
    ADD COLUMN next jsonb;

CREATE INDEX workflow_tenant ON workflow (tenant, started_at, workflow_id) WHERE tenant IS NOT NULL;
-- For `attributes @> '{"customer": 4711}'`, whatever the names: nobody declares search attributes.
CREATE INDEX workflow_attributes ON workflow USING gin (attributes jsonb_path_ops) WHERE attributes IS NOT NULL;

CREATE OR REPLACE VIEW workflows AS
SELECT workflow_id, name, definition, status, terminal, started_at, updated_at, finished_at, deadline_at, input, output,
       completeness, missing, failure, correlation_id, stopped, withheld, partition, at_offset, paused, signals, usage, tenant,
       priority, attributes, run, next
FROM workflow;
COMMENT ON VIEW workflows IS
    'One row per workflow, running or finished. withheld: commands that are ready but not sent yet, and why. '
    'missing: the manifest of a degraded result. stopped: why a quarantined workflow is stopped. paused: who paused it, when '
    'and why. signals: those that came and that no step has waited for yet. usage: attempts at executing, tokens and cost of a '
    'finished one; null when its agents said nothing about tokens and cost. priority: 0 to 9, the higher first. attributes: '
    'search attributes; ask with @>. run: 1, or which run it is of an id whose start replaced another. next: the start that '
    'replaces it once it has ended.';
