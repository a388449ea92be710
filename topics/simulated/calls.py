"""How the client library asks: what it repeats, what it gives up, and the words in which our adapter says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from aiokafka import errors as kafka_errors

from sagalog.topics.kafka import CLOSE_TIMEOUT_S
from sagalog.topics.log import LogError, LogUnavailable

from .faults import Request
from .network import Connection

if TYPE_CHECKING:
    from .broker import SimulatedKafka

logger = logging.getLogger(__name__)

RETRY_BACKOFF_S: Final = 0.1


def unavailable(error: Exception) -> NoReturn:
    raise LogUnavailable(f"no Kafka broker answers ({error}); the simulated cluster is out of reach") from error


def failed(doing: str, error: Exception) -> LogError:
    return LogError(f"{doing} failed: {type(error).__name__}: {error}")


async def retried(call: Callable[[], asyncio.Future[Any]], timeout_s: float | None = None) -> Any:
    """Asks until there is an answer that is no passing error. Raises what is none, KafkaTimeoutError when time is up.

    The real client has no other bound than its caller's patience where no time-out is given: neither has this one.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                result = await call()
                if not isinstance(result, Exception):
                    return result
                if not is_passing(result):
                    raise result
                await asyncio.sleep(RETRY_BACKOFF_S)
    except TimeoutError as error:
        raise kafka_errors.KafkaTimeoutError(f"no answer in {timeout_s} s") from error


def is_passing(error: Exception) -> bool:
    return bool(getattr(error, "retriable", False))


async def wait_for_topic(kafka: SimulatedKafka, connection: Connection, topic: str) -> None:
    """Until the cluster knows the topic. Raises UnknownTopicOrPartitionError after the request time-out."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + kafka.network.request_timeout_s
    while topic not in await retried(lambda: connection.call(Request.METADATA, kafka.partition_counts, [topic])):
        if loop.time() > until_s:
            raise kafka_errors.UnknownTopicOrPartitionError
        await asyncio.sleep(RETRY_BACKOFF_S)


async def bounded(closing: Awaitable[None], what: str) -> None:
    """Closes within a limit, like the adapter to the real client."""
    try:
        await asyncio.wait_for(closing, CLOSE_TIMEOUT_S)
    except TimeoutError:
        logger.warning("a %s did not close within %s s; it is left to the process's end", what, CLOSE_TIMEOUT_S)
    except kafka_errors.KafkaError as error:
        logger.warning("closing a %s failed: %s: %s", what, type(error).__name__, error)
