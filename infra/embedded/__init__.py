"""A real Kafka and a real PostgreSQL from wheels and pinned jars alone; see stack.EmbeddedStack."""

from sagalog.infra.embedded.stack import EmbeddedStack

__all__ = ["EmbeddedStack"]
