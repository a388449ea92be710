-- What people and the engine's waits bring: steps that await something, workflows that are paused or keep signals, reviews that
-- are decided. Views gain their columns at the end, so that what is built on them and who may read them stays as it was.

ALTER TABLE step
    ADD COLUMN until_at timestamptz,
    ADD COLUMN escalated boolean NOT NULL DEFAULT false;

ALTER TABLE workflow
    ADD COLUMN paused jsonb,
    ADD COLUMN signals jsonb;

-- `opened_offset`: of the newest record that opened the review; the details are from there. Null when none has been seen.
-- `rank` decides between records of one offset: 0 closed to be tried anew, 1 opened, 2 closed.
ALTER TABLE review
    ADD COLUMN rank smallint NOT NULL DEFAULT 1,
    ADD COLUMN opened_offset bigint,
    ADD COLUMN decided_at timestamptz,
    ADD COLUMN decision text,
    ADD COLUMN decided_by text,
    ADD COLUMN decided_reason text;
-- Whatever is here came from a record that opens a review: none closed one before.
UPDATE review SET opened_offset = at_offset;
CREATE INDEX review_open ON review (created_at, id) WHERE decided_at IS NULL;

CREATE OR REPLACE VIEW workflows AS
SELECT workflow_id, name, definition, status, terminal, started_at, updated_at, finished_at, deadline_at, input, output,
       completeness, missing, failure, correlation_id, stopped, withheld, partition, at_offset, paused, signals
FROM workflow;
COMMENT ON VIEW workflows IS
    'One row per workflow, running or finished. withheld: commands that are ready but not sent yet, and why. '
    'missing: the manifest of a degraded result. stopped: why a quarantined workflow is stopped. paused: who paused it, when '
    'and why. signals: those that came and that no step has waited for yet.';

CREATE OR REPLACE VIEW steps AS
SELECT s.workflow_id, s.step, s.place, s.status, s.attempt, coalesce(s.agent, d.agents ->> s.step) AS agent, s.started_at,
       s.finished_at, s.ended_order, s.retry_at, s.unknown, s.stand_in, s.output, s.failed_attempts, s.failures, s.until_at,
       s.escalated
FROM step s
LEFT JOIN workflow w ON w.workflow_id = s.workflow_id
LEFT JOIN definition d ON d.hash = w.definition;
COMMENT ON VIEW steps IS
    'One row per step. ended_order: 1 for the step that ended first. unknown: an attempt was lost and may have had its effect. '
    'stand_in: whose the output is, if not the step''s own. failures: the newest 20. agent: null of a step that sleeps, waits '
    'for a signal or is a person''s task. until_at: when a step that awaits something wakes, or has waited long enough. '
    'escalated: nobody decided in time, and the next one was asked.';

CREATE OR REPLACE VIEW reviews AS
SELECT id, workflow_id, definition, name, step, kind, reason, details, input, created_at, partition, at_offset, decided_at,
       decision, decided_by, decided_reason, decided_at IS NULL AS open
FROM review;
COMMENT ON VIEW reviews IS
    'Work that waits for a person, with what they need to decide, and what was decided. One that is opened again is one row: '
    'the newest opening, without the earlier decision.';
