-- The projection's tables. Names are singular; what people query are the views of 002, whose names are plural.
-- Rules: a row says from which offset of `events` (`at_offset`) it comes, so that an older record never replaces a newer one;
-- nothing here is the truth: the schema can be dropped at any time and is filled again from the topics.

-- Whose projection this is: two prefixes in one schema would overwrite each other's rows.
CREATE TABLE projection_of (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    prefix text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
);

-- Which record of a partition is read next, committed together with the rows that the records before it brought.
CREATE TABLE position (
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    end_offset bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition)
);

-- `rank` decides between records of one offset: 0 a finished workflow's stub, 1 a stub with what an earlier checkpoint of
-- the same batch brought, 2 a checkpoint, 3 a result.
CREATE TABLE workflow (
    workflow_id text PRIMARY KEY,
    name text NOT NULL,
    definition text NOT NULL,
    status text NOT NULL,
    terminal boolean NOT NULL,
    partition integer NOT NULL,
    at_offset bigint NOT NULL,
    rank smallint NOT NULL,
    started_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    finished_at timestamptz,
    deadline_at timestamptz,
    completeness double precision,
    correlation_id text,
    stopped text,
    input jsonb,
    output jsonb,
    missing jsonb,
    failure jsonb,
    withheld jsonb
) WITH (fillfactor = 80);
CREATE INDEX workflow_started ON workflow (started_at, workflow_id);
CREATE INDEX workflow_status ON workflow (status, started_at, workflow_id);
CREATE INDEX workflow_name ON workflow (name, started_at, workflow_id);
-- By hash: a correlation id may be longer than an entry of a B-tree.
CREATE INDEX workflow_correlation ON workflow USING hash (correlation_id) WHERE correlation_id IS NOT NULL;

CREATE TABLE step (
    workflow_id text NOT NULL,
    step text NOT NULL,
    place integer NOT NULL,
    status text NOT NULL,
    attempt integer NOT NULL,
    agent text,
    started_at timestamptz,
    finished_at timestamptz,
    ended_order integer,
    retry_at timestamptz,
    unknown boolean NOT NULL,
    stand_in text,
    output jsonb,
    failed_attempts integer NOT NULL,
    failures jsonb,
    PRIMARY KEY (workflow_id, step)
) WITH (fillfactor = 80);

-- The ledger: what became of undoing each step.
CREATE TABLE compensation (
    workflow_id text NOT NULL,
    step text NOT NULL,
    place integer NOT NULL,
    status text NOT NULL,
    attempt integer NOT NULL,
    undone_order integer,
    started_at timestamptz,
    finished_at timestamptz,
    retry_at timestamptz,
    failed_attempts integer NOT NULL,
    failures jsonb,
    PRIMARY KEY (workflow_id, step)
) WITH (fillfactor = 80);

CREATE TABLE circuit (
    service text PRIMARY KEY,
    partition integer NOT NULL,
    at_offset bigint NOT NULL,
    status text NOT NULL,
    since timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    opened integer NOT NULL,
    reason text,
    half_open_at timestamptz,
    probe integer,
    probe_until timestamptz,
    candidates jsonb,
    calls integer NOT NULL,
    faults integer NOT NULL,
    policy jsonb NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE review (
    id text PRIMARY KEY,
    workflow_id text NOT NULL,
    definition text NOT NULL,
    name text NOT NULL,
    step text,
    kind text NOT NULL,
    reason text NOT NULL,
    details jsonb,
    input jsonb,
    partition integer NOT NULL,
    at_offset bigint NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX review_workflow ON review (workflow_id);
CREATE INDEX review_created ON review (created_at, id);

CREATE TABLE dead_letter (
    id text PRIMARY KEY,
    workflow_id text NOT NULL,
    definition text NOT NULL,
    name text NOT NULL,
    step text NOT NULL,
    agent text NOT NULL,
    direction text NOT NULL,
    input jsonb,
    failures jsonb NOT NULL,
    failed_attempts integer NOT NULL,
    partition integer NOT NULL,
    at_offset bigint NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX dead_letter_workflow ON dead_letter (workflow_id);
CREATE INDEX dead_letter_created ON dead_letter (created_at, id);

CREATE TABLE definition (
    hash text PRIMARY KEY,
    name text NOT NULL,
    agents jsonb NOT NULL,
    document jsonb NOT NULL,
    seen_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX definition_name ON definition (name);

CREATE TABLE agent_health (
    agent text PRIMARY KEY,
    at timestamptz NOT NULL,
    window_ms bigint NOT NULL,
    ok bigint NOT NULL,
    failed bigint NOT NULL,
    error_rate double precision NOT NULL,
    alert boolean NOT NULL,
    since timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What the checkpoints (or circuits) of a partition amount to, as their writer said; `verify` compares by it.
CREATE TABLE marker (
    topic text NOT NULL,
    partition integer NOT NULL,
    at_offset bigint NOT NULL,
    epoch bigint NOT NULL,
    member text NOT NULL,
    digest text NOT NULL,
    workflows bigint NOT NULL,
    definitions jsonb NOT NULL,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);
