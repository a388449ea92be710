-- Queries for people: the command line, the console, verify. They read the views.

-- workflows_list --
-- Newest first, a page at a time. `after_*` are the last row of the page before.
SELECT workflow_id, name, definition, status, terminal, started_at, updated_at, finished_at, completeness, correlation_id,
       failure ->> 'kind' AS failure_kind, failure ->> 'message' AS failure_message,
       withheld IS NOT NULL AS withheld, tenant, priority, attributes
FROM workflows
WHERE (%(status)s::text IS NULL OR status = %(status)s)
  AND (%(name)s::text IS NULL OR name = %(name)s)
  AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
  AND (%(where)s::jsonb IS NULL OR attributes @> %(where)s::jsonb)
  AND (%(after_started)s::timestamptz IS NULL
       OR (started_at, workflow_id) < (%(after_started)s::timestamptz, %(after_id)s::text))
ORDER BY started_at DESC, workflow_id DESC
LIMIT %(limit)s

-- workflow_get --
-- One workflow, whole.
SELECT * FROM workflows WHERE workflow_id = %(workflow_id)s

-- workflow_lineage --
-- Where a workflow comes from, how often it was rewound, and what was forked from it.
SELECT forked_from, rewinds,
       (SELECT array_agg(f.workflow_id ORDER BY f.workflow_id) FROM lineage f
        WHERE f.forked_from ->> 'workflow_id' = l.workflow_id) AS forks
FROM lineage l
WHERE workflow_id = %(workflow_id)s

-- workflow_steps --
-- In the definition's order; the items of a step that maps follow it.
SELECT * FROM steps WHERE workflow_id = %(workflow_id)s ORDER BY place, item NULLS FIRST

-- workflow_compensations --
-- In the order in which they were undone; those that were not, last.
SELECT * FROM compensations WHERE workflow_id = %(workflow_id)s
ORDER BY undone_order NULLS LAST, place, item NULLS FIRST

-- workflow_migrations --
-- Oldest first.
SELECT * FROM migrations WHERE workflow_id = %(workflow_id)s ORDER BY number

-- workflow_children --
-- Those that do its steps, oldest first; at most 200.
SELECT * FROM children WHERE parent = %(workflow_id)s ORDER BY started_at, workflow_id LIMIT 200

-- workflow_parent --
-- Whose step it does.
SELECT * FROM children WHERE workflow_id = %(workflow_id)s

-- workflow_reviews --
-- Oldest first.
SELECT * FROM reviews WHERE workflow_id = %(workflow_id)s ORDER BY created_at, id

-- workflow_dead_letters --
-- Oldest first.
SELECT * FROM dead_letters WHERE workflow_id = %(workflow_id)s ORDER BY created_at, id

-- definition_get --
-- One definition, by its hash.
SELECT document FROM definitions WHERE hash = %(hash)s

-- workflows_counts --
-- How many are in which status.
SELECT status, count(*) AS workflows FROM workflows GROUP BY status ORDER BY status

-- lag_list --
-- Per partition.
SELECT * FROM projection_lag ORDER BY topic, partition

-- circuits_list --
-- By service.
SELECT * FROM circuits ORDER BY service

-- schedules_list --
-- By name; `name` NULL: all.
SELECT * FROM schedules
WHERE %(name)s::text IS NULL OR name = %(name)s::text
ORDER BY name LIMIT %(limit)s

-- reviews_list --
-- Newest first.
SELECT * FROM reviews
WHERE NOT %(open_only)s::boolean OR open
ORDER BY created_at DESC, id DESC LIMIT %(limit)s

-- dead_letters_list --
-- Newest first.
SELECT * FROM dead_letters ORDER BY created_at DESC, id DESC LIMIT %(limit)s

-- dead_letters_open --
-- Those that somebody may try again and nobody has yet, the newest first.
SELECT * FROM dead_letters d
WHERE d.direction = 'execute'
  AND (%(name)s::text IS NULL OR d.name = %(name)s)
  AND (%(since)s::timestamptz IS NULL OR d.created_at >= %(since)s::timestamptz)
  AND NOT EXISTS (SELECT FROM redrives r WHERE r.dead_letter = d.id)
ORDER BY created_at DESC, id DESC LIMIT %(limit)s

-- health_list --
-- By agent.
SELECT * FROM health ORDER BY agent

-- rows_workflows --
-- For verify, a page of ids at a time; `ids` NULL: all.
SELECT workflow_id, name, definition, status, terminal, partition, at_offset, rank, started_at, updated_at, finished_at,
       deadline_at, completeness, correlation_id, stopped, input, output, missing, failure, withheld, paused, signals, usage, tenant,
       priority, attributes, run, next, migrated, parent, forked_from, rewinds
FROM workflow
WHERE (%(ids)s::text[] IS NULL OR workflow_id = ANY(%(ids)s::text[])) AND workflow_id > %(after)s
ORDER BY workflow_id
LIMIT %(limit)s

-- rows_steps --
-- Of one page of workflows.
SELECT workflow_id, step, place, status, attempt, agent, started_at, finished_at, ended_order, retry_at, unknown, stand_in,
       output, failed_attempts, failures, until_at, escalated, item, tokens, cost
FROM step
WHERE workflow_id = ANY(%(ids)s::text[])

-- rows_schedules --
-- For verify, by name.
SELECT name, partition, at_offset, status, definition, cron, zone, overlap, catch_up_ms, jitter_ms, input, next_at, started,
       skipped, running, waiting, runs, skips, paused, removed, set_by, set_at, updated_at
FROM schedule
WHERE name = ANY(%(names)s::text[])

-- rows_compensations --
-- Of one page of workflows.
SELECT workflow_id, step, place, status, attempt, undone_order, started_at, finished_at, retry_at, failed_attempts, failures,
       item
FROM compensation
WHERE workflow_id = ANY(%(ids)s::text[])
