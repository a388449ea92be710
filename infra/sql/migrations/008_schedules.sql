-- Schedules: what starts workflows by the clock.

-- A row goes when the engine forgets a removed schedule. The runs are workflows of their own; `runs` holds the newest, without what
-- their reports are believed by.
CREATE TABLE schedule (
    name text PRIMARY KEY,
    partition integer NOT NULL,
    at_offset bigint NOT NULL,
    status text NOT NULL,
    definition text NOT NULL,
    cron text NOT NULL,
    zone text NOT NULL,
    overlap text NOT NULL,
    catch_up_ms bigint NOT NULL,
    jitter_ms bigint NOT NULL,
    input jsonb,
    next_at timestamptz,
    started bigint NOT NULL,
    skipped jsonb,
    running integer NOT NULL,
    waiting jsonb,
    runs jsonb,
    skips jsonb,
    paused jsonb,
    removed jsonb,
    set_by text NOT NULL,
    set_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);

CREATE VIEW schedules AS
SELECT name, status, definition, cron, zone, overlap, next_at, running, started, skipped, waiting, runs, skips, paused, removed,
       input, catch_up_ms, jitter_ms, set_by, set_at, updated_at, partition, at_offset
FROM schedule;
COMMENT ON VIEW schedules IS
    'One row per schedule. next_at: its next due time, null while it is removed or when there is none. running: how many of its '
    'workflows go on. started: runs since it was first set. skipped: due times without a run, counted by why. runs: those that go '
    'on and the newest 20 that ended, as {id, due_ms, started_ms, status, finished_ms, triggered_by}. skips: the newest 20 due '
    'times without a run. waiting: the run that waits for the end of another. paused, removed: by whom, why and when.';
