-- What people query. Columns are only ever added to these; the tables below them may change.

CREATE VIEW workflows AS
SELECT workflow_id, name, definition, status, terminal, started_at, updated_at, finished_at, deadline_at, input, output,
       completeness, missing, failure, correlation_id, stopped, withheld, partition, at_offset
FROM workflow;
COMMENT ON VIEW workflows IS
    'One row per workflow, running or finished. withheld: commands that are ready but not sent yet, and why. '
    'missing: the manifest of a degraded result. stopped: why a quarantined workflow is stopped.';

CREATE VIEW steps AS
SELECT s.workflow_id, s.step, s.place, s.status, s.attempt, coalesce(s.agent, d.agents ->> s.step) AS agent, s.started_at,
       s.finished_at, s.ended_order, s.retry_at, s.unknown, s.stand_in, s.output, s.failed_attempts, s.failures
FROM step s
LEFT JOIN workflow w ON w.workflow_id = s.workflow_id
LEFT JOIN definition d ON d.hash = w.definition;
COMMENT ON VIEW steps IS
    'One row per step. ended_order: 1 for the step that ended first. unknown: an attempt was lost and may have had its effect. '
    'stand_in: what stands in for the output of a degraded step. failures: the newest 20.';

CREATE VIEW compensations AS
SELECT workflow_id, step, place, status, attempt, undone_order, started_at, finished_at, retry_at, failed_attempts, failures
FROM compensation;
COMMENT ON VIEW compensations IS
    'The ledger: what became of undoing each step. undone_order: 1 for the step that was asked to be undone first.';

CREATE VIEW circuits AS
SELECT service, status, since, updated_at, opened, reason, half_open_at, probe, probe_until, candidates, calls, faults, policy,
       partition, at_offset
FROM circuit;
COMMENT ON VIEW circuits IS
    'One row per external service. opened: how often. probe: the partition that may send one command while half open. '
    'calls, faults: in the window.';

CREATE VIEW reviews AS
SELECT id, workflow_id, definition, name, step, kind, reason, details, input, created_at, partition, at_offset
FROM review;
COMMENT ON VIEW reviews IS 'Work that waits for a person, with what they need to decide.';

CREATE VIEW dead_letters AS
SELECT id, workflow_id, definition, name, step, agent, direction, input, failures, failed_attempts, created_at, partition,
       at_offset
FROM dead_letter;
COMMENT ON VIEW dead_letters IS 'Commands that failed for good, with the attempts.';

CREATE VIEW definitions AS
SELECT hash, name, document, seen_at
FROM definition;
COMMENT ON VIEW definitions IS 'Every definition that was registered, by its hash.';

CREATE VIEW health AS
SELECT agent, at AS updated_at, window_ms, ok, failed, error_rate, alert, since
FROM agent_health;
COMMENT ON VIEW health IS 'One row per agent: its error rate in a sliding window, and whether an alert is raised.';

CREATE VIEW markers AS
SELECT topic, partition, at_offset, epoch, member, digest, workflows, definitions
FROM marker;
COMMENT ON VIEW markers IS 'What the checkpoints of each partition amount to, as the engine said.';

CREATE VIEW projection_lag AS
SELECT topic, partition, next_offset - 1 AS applied_offset, end_offset, greatest(end_offset - next_offset, 0) AS lag_records,
       updated_at, extract(epoch FROM clock_timestamp() - updated_at)::double precision AS age_s
FROM position;
COMMENT ON VIEW projection_lag IS
    'How far the projection is behind its topics. end_offset: the end at the last look (-1: not looked yet); age_s: seconds '
    'since a projector last wrote this row; it grows when no projector works on the partition.';
