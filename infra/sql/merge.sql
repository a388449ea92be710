-- Queries that merge a staged batch into the tables. The order of rows in INSERT is that of keys, so that two projectors with
-- different topics of one partition lock rows in the same order.

-- workflow_lock_earlier_run --
-- Whoever brings the end of the run before, from another topic, comes wholly before what follows or wholly after it. A statement
-- of its own, because the next one has to see what was committed while this one waited.
SELECT w.workflow_id
FROM staging_workflow s
JOIN workflow w ON w.workflow_id = s.workflow_id
WHERE w.started_at < to_timestamp(s.started_ms / 1000.0) AND s.at_offset >= w.at_offset
ORDER BY w.workflow_id
FOR UPDATE OF w

-- workflow_forget_earlier_run --
-- An id can be used again once it is forgotten, or by a start that replaces. Steps of the run before must not stay beside those
-- of the new one, which began later, if only by a millisecond.
WITH gone AS (
    SELECT s.workflow_id
    FROM staging_workflow s
    JOIN workflow w ON w.workflow_id = s.workflow_id
    WHERE w.started_at < to_timestamp(s.started_ms / 1000.0) AND s.at_offset >= w.at_offset
), compensations AS (
    DELETE FROM compensation c USING gone WHERE c.workflow_id = gone.workflow_id
)
DELETE FROM step s USING gone WHERE s.workflow_id = gone.workflow_id

-- workflow_merge --
-- The newer offset wins, at one offset the later run, then the higher rank. A bare stub (rank 0) brings the end but not what the
-- workflow was about: that is kept. What is left in staging afterwards was accepted: steps and compensations of the rest do not count.
WITH accepted AS (
    INSERT INTO workflow AS w (
        workflow_id, name, definition, status, terminal, partition, at_offset, rank, started_at, updated_at, finished_at,
        deadline_at, completeness, correlation_id, stopped, input, output, missing, failure, withheld, paused, signals,
        usage, tenant, priority, attributes, run, next, migrated, parent, forked_from, rewinds
    )
    SELECT workflow_id, name, definition, status, terminal, partition, at_offset, rank,
           to_timestamp(started_ms / 1000.0), to_timestamp(updated_ms / 1000.0), to_timestamp(finished_ms / 1000.0),
           to_timestamp(deadline_ms / 1000.0), completeness, correlation_id, stopped, input, output, missing, failure, withheld,
           paused, signals, usage, tenant, priority, attributes, run, next, migrated, parent, forked_from, rewinds
    FROM staging_workflow
    ORDER BY workflow_id
    ON CONFLICT (workflow_id) DO UPDATE SET
        name = excluded.name,
        definition = excluded.definition,
        status = excluded.status,
        terminal = excluded.terminal,
        partition = excluded.partition,
        at_offset = excluded.at_offset,
        rank = excluded.rank,
        started_at = excluded.started_at,
        updated_at = excluded.updated_at,
        finished_at = excluded.finished_at,
        correlation_id = excluded.correlation_id,
        withheld = excluded.withheld,
        paused = excluded.paused,
        signals = excluded.signals,
        run = excluded.run,
        parent = excluded.parent,
        next = excluded.next,
        tenant = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.tenant ELSE excluded.tenant END,
        priority = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.priority ELSE excluded.priority END,
        attributes = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.attributes
                          ELSE excluded.attributes END,
        deadline_at = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.deadline_at
                           ELSE excluded.deadline_at END,
        completeness = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.completeness
                            ELSE excluded.completeness END,
        stopped = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.stopped ELSE excluded.stopped END,
        input = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.input ELSE excluded.input END,
        output = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.output ELSE excluded.output END,
        missing = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.missing ELSE excluded.missing END,
        failure = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.failure ELSE excluded.failure END,
        usage = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.usage ELSE excluded.usage END,
        migrated = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.migrated ELSE excluded.migrated END,
        forked_from = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.forked_from
                           ELSE excluded.forked_from END,
        rewinds = CASE WHEN excluded.rank = 0 AND w.started_at = excluded.started_at THEN w.rewinds ELSE excluded.rewinds END
    WHERE (excluded.at_offset, excluded.started_at, excluded.rank) >= (w.at_offset, w.started_at, w.rank)
    RETURNING w.workflow_id
)
DELETE FROM staging_workflow s WHERE NOT EXISTS (SELECT FROM accepted a WHERE a.workflow_id = s.workflow_id)

-- step_forget_removed --
-- A workflow that moved to another definition may have steps less, and a rewinding drops items and entries of the ledger. Its
-- record has all that it has now, and a bare stub, which has none, says nothing of either. Of compensations those that are there
-- now come back with the next query.
WITH compensations AS (
    DELETE FROM compensation c
    USING staging_workflow s
    WHERE (s.migrated IS NOT NULL OR s.rewinds IS NOT NULL) AND c.workflow_id = s.workflow_id
      AND NOT EXISTS (SELECT FROM staging_compensation n WHERE n.workflow_id = c.workflow_id AND n.step = c.step)
)
DELETE FROM step t
USING staging_workflow s
WHERE (s.migrated IS NOT NULL OR s.rewinds IS NOT NULL) AND t.workflow_id = s.workflow_id
  AND NOT EXISTS (SELECT FROM staging_step n WHERE n.workflow_id = t.workflow_id AND n.step = t.step)

-- step_merge --
-- Steps and items that did not change are not written again: most checkpoints move one of several. `item` follows from the
-- name, which is the key: it never changes.
INSERT INTO step AS t (
    workflow_id, step, place, status, attempt, agent, started_at, finished_at, ended_order, retry_at, unknown, stand_in, output,
    failed_attempts, failures, until_at, escalated, item, tokens, cost
)
SELECT s.workflow_id, s.step, s.place, s.status, s.attempt, s.agent, to_timestamp(s.started_ms / 1000.0),
       to_timestamp(s.finished_ms / 1000.0), s.ended_order, to_timestamp(s.retry_ms / 1000.0), s.unknown, s.stand_in, s.output,
       s.failed_attempts, s.failures, to_timestamp(s.until_ms / 1000.0), s.escalated, s.item, s.tokens, s.cost
FROM staging_step s
WHERE EXISTS (SELECT FROM staging_workflow w WHERE w.workflow_id = s.workflow_id)
ON CONFLICT (workflow_id, step) DO UPDATE SET
    place = excluded.place,
    status = excluded.status,
    attempt = excluded.attempt,
    agent = excluded.agent,
    started_at = excluded.started_at,
    finished_at = excluded.finished_at,
    ended_order = excluded.ended_order,
    retry_at = excluded.retry_at,
    unknown = excluded.unknown,
    stand_in = excluded.stand_in,
    output = excluded.output,
    failed_attempts = excluded.failed_attempts,
    failures = excluded.failures,
    until_at = excluded.until_at,
    escalated = excluded.escalated,
    tokens = excluded.tokens,
    cost = excluded.cost
WHERE (t.status, t.attempt, t.failed_attempts, t.unknown, t.place, t.escalated, t.tokens, t.cost)
          IS DISTINCT FROM (excluded.status, excluded.attempt, excluded.failed_attempts, excluded.unknown, excluded.place,
                            excluded.escalated, excluded.tokens, excluded.cost)
   OR (t.agent, t.started_at, t.finished_at, t.ended_order, t.retry_at, t.until_at, t.stand_in, t.output, t.failures)
          IS DISTINCT FROM (excluded.agent, excluded.started_at, excluded.finished_at, excluded.ended_order, excluded.retry_at,
                            excluded.until_at, excluded.stand_in, excluded.output, excluded.failures)

-- compensation_merge --
-- As steps.
INSERT INTO compensation AS t (
    workflow_id, step, place, status, attempt, undone_order, started_at, finished_at, retry_at, failed_attempts, failures,
    item
)
SELECT s.workflow_id, s.step, s.place, s.status, s.attempt, s.undone_order, to_timestamp(s.started_ms / 1000.0),
       to_timestamp(s.finished_ms / 1000.0), to_timestamp(s.retry_ms / 1000.0), s.failed_attempts, s.failures, s.item
FROM staging_compensation s
WHERE EXISTS (SELECT FROM staging_workflow w WHERE w.workflow_id = s.workflow_id)
ON CONFLICT (workflow_id, step) DO UPDATE SET
    place = excluded.place,
    status = excluded.status,
    attempt = excluded.attempt,
    undone_order = excluded.undone_order,
    started_at = excluded.started_at,
    finished_at = excluded.finished_at,
    retry_at = excluded.retry_at,
    failed_attempts = excluded.failed_attempts,
    failures = excluded.failures
WHERE (t.place, t.status, t.attempt, t.undone_order, t.started_at, t.finished_at, t.retry_at, t.failed_attempts, t.failures)
      IS DISTINCT FROM (excluded.place, excluded.status, excluded.attempt, excluded.undone_order, excluded.started_at,
                        excluded.finished_at, excluded.retry_at, excluded.failed_attempts, excluded.failures)

-- circuit_merge --
-- The newer offset of `outcomes` wins.
INSERT INTO circuit AS t (
    service, partition, at_offset, status, since, updated_at, opened, reason, half_open_at, probe, probe_until, candidates,
    calls, faults, policy
)
SELECT service, partition, at_offset, status, to_timestamp(since_ms / 1000.0), to_timestamp(updated_ms / 1000.0), opened,
       reason, to_timestamp(half_open_ms / 1000.0), probe, to_timestamp(probe_until_ms / 1000.0), candidates, calls, faults,
       policy
FROM staging_circuit
ORDER BY service
ON CONFLICT (service) DO UPDATE SET
    partition = excluded.partition,
    at_offset = excluded.at_offset,
    status = excluded.status,
    since = excluded.since,
    updated_at = excluded.updated_at,
    opened = excluded.opened,
    reason = excluded.reason,
    half_open_at = excluded.half_open_at,
    probe = excluded.probe,
    probe_until = excluded.probe_until,
    candidates = excluded.candidates,
    calls = excluded.calls,
    faults = excluded.faults,
    policy = excluded.policy
WHERE excluded.at_offset >= t.at_offset

-- circuit_forget --
-- Services whose circuit was deleted.
DELETE FROM circuit WHERE service = ANY(%(keys)s)

-- review_merge --
-- What a person is asked is of the newest record that opened the review: one that closes it does not repeat that, and brings its
-- own only while none that opens has been seen. Whether it is decided is of the newest record of all. So the order of arrival
-- does not matter, and what was sent twice counts once. Offsets are -1 or more: -2 is less than any.
INSERT INTO review AS t (
    id, workflow_id, definition, name, step, kind, reason, details, input, partition, at_offset, rank, opened_offset, created_at,
    decided_at, decision, decided_by, decided_reason
)
SELECT id, workflow_id, definition, name, step, kind, reason, details, input, partition, at_offset, rank, opened_offset,
       to_timestamp(created_ms / 1000.0), to_timestamp(decided_ms / 1000.0), decision, decided_by, decided_reason
FROM staging_review
ORDER BY id
ON CONFLICT (id) DO UPDATE SET
    (workflow_id, definition, name, step, kind, reason, details, input, partition, opened_offset, created_at) = (
        SELECT c.workflow_id, c.definition, c.name, c.step, c.kind, c.reason, c.details, c.input, c.partition, c.opened_offset,
               c.created_at
        FROM (VALUES
            (0, t.workflow_id, t.definition, t.name, t.step, t.kind, t.reason, t.details, t.input, t.partition,
             t.opened_offset, t.created_at, t.at_offset),
            (1, excluded.workflow_id, excluded.definition, excluded.name, excluded.step, excluded.kind, excluded.reason,
             excluded.details, excluded.input, excluded.partition, excluded.opened_offset, excluded.created_at,
             excluded.at_offset)
        ) AS c (late, workflow_id, definition, name, step, kind, reason, details, input, partition, opened_offset, created_at,
                at_offset)
        ORDER BY coalesce(c.opened_offset, -2) DESC, c.at_offset DESC, c.late DESC
        LIMIT 1
    ),
    (at_offset, rank, decided_at, decision, decided_by, decided_reason) = (
        SELECT c.at_offset, c.rank, c.decided_at, c.decision, c.decided_by, c.decided_reason
        FROM (VALUES
            (0, t.at_offset, t.rank, t.decided_at, t.decision, t.decided_by, t.decided_reason),
            (1, excluded.at_offset, excluded.rank, excluded.decided_at, excluded.decision, excluded.decided_by,
             excluded.decided_reason)
        ) AS c (late, at_offset, rank, decided_at, decision, decided_by, decided_reason)
        ORDER BY c.at_offset DESC, c.rank DESC, c.late DESC
        LIMIT 1
    )
WHERE (excluded.at_offset, excluded.rank) >= (t.at_offset, t.rank)
   OR coalesce(excluded.opened_offset, -2) > coalesce(t.opened_offset, -2)

-- dead_letter_merge --
-- A dead letter that was sent twice is one.
INSERT INTO dead_letter AS t (
    id, workflow_id, definition, name, step, agent, direction, input, failures, failed_attempts, partition, at_offset, created_at
)
SELECT id, workflow_id, definition, name, step, agent, direction, input, failures, failed_attempts, partition, at_offset,
       to_timestamp(created_ms / 1000.0)
FROM staging_dead_letter
ORDER BY id
ON CONFLICT (id) DO UPDATE SET
    workflow_id = excluded.workflow_id,
    definition = excluded.definition,
    name = excluded.name,
    step = excluded.step,
    agent = excluded.agent,
    direction = excluded.direction,
    input = excluded.input,
    failures = excluded.failures,
    failed_attempts = excluded.failed_attempts,
    partition = excluded.partition,
    at_offset = excluded.at_offset,
    created_at = excluded.created_at
WHERE excluded.at_offset >= t.at_offset

-- definition_merge --
-- A hash stands for one content: the first that is seen stays.
INSERT INTO definition (hash, name, agents, document)
SELECT hash, name, agents, document FROM staging_definition ORDER BY hash
ON CONFLICT (hash) DO NOTHING

-- agent_health_merge --
-- The newer time wins: health has no offset in `events`.
INSERT INTO agent_health AS t (agent, at, window_ms, ok, failed, error_rate, alert, since)
SELECT agent, to_timestamp(at_ms / 1000.0), window_ms, ok, failed, error_rate, alert, to_timestamp(since_ms / 1000.0)
FROM staging_agent_health
ORDER BY agent
ON CONFLICT (agent) DO UPDATE SET
    at = excluded.at,
    window_ms = excluded.window_ms,
    ok = excluded.ok,
    failed = excluded.failed,
    error_rate = excluded.error_rate,
    alert = excluded.alert,
    since = excluded.since
WHERE excluded.at >= t.at

-- agent_health_forget --
-- Agents whose health was deleted.
DELETE FROM agent_health WHERE agent = ANY(%(keys)s)

-- schedule_merge --
-- The newer offset wins.
INSERT INTO schedule AS t (
    name, partition, at_offset, status, definition, cron, zone, overlap, catch_up_ms, jitter_ms, input, next_at, started, skipped,
    running, waiting, runs, skips, paused, removed, set_by, set_at, updated_at
)
SELECT name, partition, at_offset, status, definition, cron, zone, overlap, catch_up_ms, jitter_ms, input,
       to_timestamp(next_ms / 1000.0), started, skipped, running, waiting, runs, skips, paused, removed, set_by,
       to_timestamp(set_ms / 1000.0), to_timestamp(updated_ms / 1000.0)
FROM staging_schedule
ORDER BY name
ON CONFLICT (name) DO UPDATE SET
    partition = excluded.partition,
    at_offset = excluded.at_offset,
    status = excluded.status,
    definition = excluded.definition,
    cron = excluded.cron,
    zone = excluded.zone,
    overlap = excluded.overlap,
    catch_up_ms = excluded.catch_up_ms,
    jitter_ms = excluded.jitter_ms,
    input = excluded.input,
    next_at = excluded.next_at,
    started = excluded.started,
    skipped = excluded.skipped,
    running = excluded.running,
    waiting = excluded.waiting,
    runs = excluded.runs,
    skips = excluded.skips,
    paused = excluded.paused,
    removed = excluded.removed,
    set_by = excluded.set_by,
    set_at = excluded.set_at,
    updated_at = excluded.updated_at
WHERE excluded.at_offset >= t.at_offset

-- schedule_forget --
-- Schedules that were removed a while ago.
DELETE FROM schedule WHERE name = ANY(%(keys)s)

-- marker_merge --
-- The newer offset wins.
INSERT INTO marker AS t (topic, partition, at_offset, epoch, member, digest, workflows, definitions)
SELECT topic, partition, at_offset, epoch, member, digest, workflows, definitions
FROM staging_marker
ORDER BY topic, partition
ON CONFLICT (topic, partition) DO UPDATE SET
    at_offset = excluded.at_offset,
    epoch = excluded.epoch,
    member = excluded.member,
    digest = excluded.digest,
    workflows = excluded.workflows,
    definitions = excluded.definitions
WHERE excluded.at_offset >= t.at_offset
