-- Queries about how far the projection has come. `topics`, `partitions`, ... are arrays of equal length.

-- positions_make --
-- Rows for partitions that are new here, at their beginning.
INSERT INTO position (topic, partition, next_offset, end_offset)
SELECT topic, partition, 0, -1 FROM unnest(%(topics)s::text[], %(partitions)s::integer[]) AS n (topic, partition)
ORDER BY topic, partition
ON CONFLICT (topic, partition) DO NOTHING

-- positions_read --
-- Where to read on.
SELECT p.topic, p.partition, p.next_offset
FROM position p
JOIN unnest(%(topics)s::text[], %(partitions)s::integer[]) AS n (topic, partition)
    ON p.topic = n.topic AND p.partition = n.partition
ORDER BY p.topic, p.partition

-- positions_advance --
-- Moves positions on, each only from where its projector believes it to be. Fewer rows than asked for: somebody else has moved.
UPDATE position p
SET next_offset = n.next_offset,
    end_offset = greatest(p.end_offset, n.end_offset, n.next_offset),
    updated_at = clock_timestamp()
FROM unnest(
    %(topics)s::text[], %(partitions)s::integer[], %(expected)s::bigint[], %(next)s::bigint[], %(ends)s::bigint[]
) AS n (topic, partition, expected, next_offset, end_offset)
WHERE p.topic = n.topic AND p.partition = n.partition AND p.next_offset = n.expected AND n.next_offset >= n.expected
