"""The records of every topic, as types and as JSON: the contract between engine, agents, clients and projections.

Nothing here knows Kafka, a clock or a database. Records are read with `decode` (bounded in depth and integer width) and
written with `encode`; shapes are checked by pydantic at the edge where a record comes in.
"""
