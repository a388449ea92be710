-- What maps and budgets bring: a row for each item of a step that maps, and what attempts used. Views gain their columns at the
-- end, so that what is built on them and who may read them stays as it was. Rows of before have what is new with their next
-- record; for those of finished workflows, drop the schema to have it filled again.

-- `item` is null in a step's own row. An item's `step` is its name, `read[3]`; its `place` is that of its step. The rounds of a
-- step that repeats are its items.
ALTER TABLE step
    ADD COLUMN item integer,
    ADD COLUMN tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN cost bigint NOT NULL DEFAULT 0;

ALTER TABLE compensation ADD COLUMN item integer;

ALTER TABLE workflow ADD COLUMN usage jsonb;

CREATE OR REPLACE VIEW workflows AS
SELECT workflow_id, name, definition, status, terminal, started_at, updated_at, finished_at, deadline_at, input, output,
       completeness, missing, failure, correlation_id, stopped, withheld, partition, at_offset, paused, signals, usage
FROM workflow;
COMMENT ON VIEW workflows IS
    'One row per workflow, running or finished. withheld: commands that are ready but not sent yet, and why. '
    'missing: the manifest of a degraded result. stopped: why a quarantined workflow is stopped. paused: who paused it, when '
    'and why. signals: those that came and that no step has waited for yet. usage: attempts at executing, tokens and cost of a '
    'finished one; null when its agents said nothing about tokens and cost.';

CREATE OR REPLACE VIEW steps AS
SELECT s.workflow_id, s.step, s.place, s.status, s.attempt,
       coalesce(s.agent, d.agents ->> CASE WHEN s.item IS NULL THEN s.step ELSE split_part(s.step, '[', 1) END) AS agent,
       s.started_at, s.finished_at, s.ended_order, s.retry_at, s.unknown, s.stand_in, s.output, s.failed_attempts, s.failures,
       s.until_at, s.escalated, s.item, s.tokens, s.cost
FROM step s
LEFT JOIN workflow w ON w.workflow_id = s.workflow_id
LEFT JOIN definition d ON d.hash = w.definition;
COMMENT ON VIEW steps IS
    'One row per step, and one per item of a step that maps, or round of one that repeats; order by place, item NULLS FIRST. '
    'ended_order: 1 for what ended first. unknown: an attempt was lost and may have had its effect. stand_in: whose the output '
    'is, if not the step''s own. failures: the newest 20. agent: null of a step that sleeps, waits for a signal or is a '
    'person''s task. until_at: when a step that awaits something wakes, or has waited long enough. escalated: nobody decided '
    'in time, and the next one was asked. tokens, cost: what attempts at executing used; of a step with items, in their rows.';

CREATE OR REPLACE VIEW compensations AS
SELECT workflow_id, step, place, status, attempt, undone_order, started_at, finished_at, retry_at, failed_attempts, failures,
       item
FROM compensation;
COMMENT ON VIEW compensations IS
    'The ledger: what became of undoing each step, and each item of a step that maps. undone_order: 1 for what was asked to be '
    'undone first.';
