-- Queries that make the places where a batch lands before it is merged. They live as long as the session.

-- staging_make --
-- Times are milliseconds here. Emptied by every commit.
CREATE TEMPORARY TABLE IF NOT EXISTS staging_workflow (
    workflow_id text, name text, definition text, status text, terminal boolean, partition integer, at_offset bigint,
    rank smallint, started_ms bigint, updated_ms bigint, finished_ms bigint, deadline_ms bigint, completeness double precision,
    correlation_id text, stopped text, input jsonb, output jsonb, missing jsonb, failure jsonb, withheld jsonb,
    paused jsonb, signals jsonb, usage jsonb, tenant text, priority smallint, attributes jsonb, run bigint, next jsonb,
    migrated jsonb, parent jsonb, forked_from jsonb, rewinds jsonb
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS staging_step (
    workflow_id text, step text, place integer, status text, attempt integer, agent text, started_ms bigint, finished_ms bigint,
    ended_order integer, retry_ms bigint, unknown boolean, stand_in text, output jsonb, failed_attempts integer, failures jsonb,
    until_ms bigint, escalated boolean, item integer, tokens bigint, cost bigint
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS staging_compensation (
    workflow_id text, step text, place integer, status text, attempt integer, undone_order integer, started_ms bigint,
    finished_ms bigint, retry_ms bigint, failed_attempts integer, failures jsonb, item integer
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS staging_circuit (
    service text, partition integer, at_offset bigint, status text, since_ms bigint, updated_ms bigint, opened integer,
    reason text, half_open_ms bigint, probe integer, probe_until_ms bigint, candidates jsonb, calls integer, faults integer,
    policy jsonb
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS staging_review (
    id text, workflow_id text, definition text, name text, step text, kind text, reason text, details jsonb, input jsonb,
    partition integer, at_offset bigint, rank smallint, opened_offset bigint, created_ms bigint, decided_ms bigint, decision text,
    decided_by text, decided_reason text
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS staging_dead_letter (
    id text, workflow_id text, definition text, name text, step text, agent text, direction text, input jsonb, failures jsonb,
    failed_attempts integer, partition integer, at_offset bigint, created_ms bigint
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS staging_definition (
    hash text, name text, agents jsonb, document jsonb
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS staging_agent_health (
    agent text, at_ms bigint, window_ms bigint, ok bigint, failed bigint, error_rate double precision, alert boolean,
    since_ms bigint
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS staging_schedule (
    name text, partition integer, at_offset bigint, status text, definition text, cron text, zone text, overlap text,
    catch_up_ms bigint, jitter_ms bigint, input jsonb, next_ms bigint, started bigint, skipped jsonb, running integer,
    waiting jsonb, runs jsonb, skips jsonb, paused jsonb, removed jsonb, set_by text, set_ms bigint, updated_ms bigint
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE IF NOT EXISTS staging_marker (
    topic text, partition integer, at_offset bigint, epoch bigint, member text, digest text, workflows bigint, definitions jsonb
) ON COMMIT DELETE ROWS;
