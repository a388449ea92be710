-- Queries that bring a database's schema up to date. The schema is the first in the search path.

-- migrations_lock --
-- One migration of a schema at a time; released by the end of the transaction.
SELECT pg_advisory_xact_lock(hashtextextended('sagalog/migrations/' || %(schema)s, 0))

-- schema_found --
-- Whether the schema exists.
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %(schema)s) AS found

-- migrations_table_make --
-- What was applied, with the checksum of the text that was applied.
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- migrations_read --
-- In the order in which they were applied.
SELECT version, name, checksum FROM schema_migrations ORDER BY version

-- migrations_note --
-- One more is applied.
INSERT INTO schema_migrations (version, name, checksum) VALUES (%(version)s, %(name)s, %(checksum)s)

-- owner_claim --
-- The first prefix that comes has the schema.
INSERT INTO projection_of (prefix) VALUES (%(prefix)s) ON CONFLICT (one) DO NOTHING

-- owner_read --
-- The prefix whose projection is here.
SELECT prefix FROM projection_of
