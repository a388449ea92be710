"""The records on every topic, as types and as JSON."""
