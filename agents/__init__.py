"""The SDK for agents: declare a typed function as an agent, and host it.

    from sagalog.agents import Context, Retryable, agent

    @agent("ledger", concurrency=8)
    async def post(invoice: Invoice, ctx: Context) -> Posting: ...

A host (`AgentHost`) runs it as a member of the consumer group of its command topic. May import `sagalog.schemas`,
`sagalog.topics` and the clock; never the engine.
"""

from .agent import Agent, AnyAgent, DidNotHappen, Happened, Undo, agent
from .context import Context
from .errors import AgentError, NeedsReview, Refused, Retryable, Terminal
from .host import AgentHost
from .loading import load_agents

__all__ = [
    "Agent",
    "AgentError",
    "AgentHost",
    "AnyAgent",
    "Context",
    "DidNotHappen",
    "Happened",
    "NeedsReview",
    "Refused",
    "Retryable",
    "Terminal",
    "Undo",
    "agent",
    "load_agents",
]
