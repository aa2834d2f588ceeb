"""Connections to Redis or Valkey, and the translation of their errors.

Called by everything that opens a store or a queue. Every command has a timeout. Nothing is retried here, because
only the caller knows whether a command may be sent twice.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterCrossSlotError,
    ConnectionError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from eventing.errors import StoreUnavailable
from eventing.process.dependency import Dependency
from eventing.process.store_url import parse_store_url
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.replica import PrimaryConnection, says_replica
from eventing.redis.sentinel import SentinelRefusal, sentinel_pool
from eventing.redis.tls import TlsConnection, tls_failure

_store = Dependency("store", setting="TORPOR_REDIS_URL")
_REFUSED_WRITE: Final = re.compile(
    r"""(?:^|caused error: \(['"]|: -)(?:OOM|MISCONF|NOREPLICAS|CLUSTERDOWN|LOADING|MASTERDOWN) """
)
"""The code stands first, or behind what redis-py says of a pipeline and older servers of a script."""
_CLOSED_BY_UVLOOP = "the handler is closed"


def connect(url: str, *, timeout_s: float = 1.5, max_connections: int = 64) -> SharedRedis:
    """A client for `url`; it connects on first use, and looks the address up again each time: in DNS, or at the
    sentinels.

    Plain commands share one connection (`eventing.redis.multiplexed_connection`). A command that needs a connection
    of its own waits up to `timeout_s` for one of the `max_connections`. (redis-py's plain pool raises at once, so
    that a burst of requests would look like an unavailable store.)
    """
    options: dict[str, Any] = {
        "timeout": timeout_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "max_connections": max_connections,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "protocol": 2,
    }
    where = parse_store_url(url)
    if where.sentinels:
        pool = sentinel_pool(where, timeout_s=timeout_s, **options)
    else:
        pool = BlockingConnectionPool.from_url(where.url, **options)
        if where.is_tls:
            pool.connection_class = TlsConnection
        elif pool.connection_class is Connection:  # and not a Unix socket
            pool.connection_class = PrimaryConnection
    shared: SharedRedis = SharedRedis.from_pool(pool)
    return shared


@asynccontextmanager
async def failures_named(of: Dependency = _store) -> AsyncIterator[None]:
    """Translate a Redis client's exceptions into `StoreUnavailable`, with messages about `of`; a bug of ours passes
    unchanged.

    A pending cancellation is raised here: redis-py sends under `asyncio.wait_for`, which until Python 3.12 swallows
    a cancellation that arrives as the bytes are sent; and a connection that is closed because of one fails in its place
    when closing takes too long. A loop whose cancellation is lost keeps its process alive (F31).
    """
    task = asyncio.current_task()
    asked_before = task.cancelling() if task else 0
    try:
        yield
        if of.is_away:
            of.answered()
        if task and task.cancelling() > asked_before:
            raise asyncio.CancelledError
    except (RedisError, OSError, RuntimeError) as error:
        if task and task.cancelling() > asked_before:
            raise asyncio.CancelledError from error
        named = _named(error, of)
        if named is None:
            raise
        of.failed(named.message)
        raise named from error


async def store_now_ms(redis: Redis) -> int:
    """Store time in milliseconds. Raises `StoreUnavailable`."""
    async with failures_named():
        seconds, microseconds = await redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def _named(error: Exception, of: Dependency) -> StoreUnavailable | None:
    """The error that callers see; None for a bug of ours."""
    it = f"the {of.name}"
    if refusal := _refusal(error, of):
        return StoreUnavailable(refusal, 5.0)
    match error:
        case AskError() | ClusterCrossSlotError():  # MOVED is an ASK to redis-py
            return StoreUnavailable(f"{it} is a Redis Cluster: give a single primary", 5.0)
        case NoScriptError():  # loaded a moment ago, on the server before this one
            return StoreUnavailable(f"{it} was replaced during the call")
        case ResponseError() if _is_refused_write(error):
            return StoreUnavailable(f"{it} takes no writes now (memory, disk or a failover)", 2.0)
        case ResponseError():
            return None
        case MasterNotFoundError():
            return StoreUnavailable(f"no sentinel names a primary of {it}")
        case ConnectionError() | TimeoutError() | OSError():
            return StoreUnavailable(f"{it} does not answer")
        case RedisError():
            return StoreUnavailable(f"{it} failed")
        case _:
            # uvloop's error for a connection that was reset between two steps of redis-py's
            # greeting; asyncio's own loop says OSError. Unnamed, it ended the broker (F17).
            is_closed = _CLOSED_BY_UVLOOP in str(error)
            return StoreUnavailable(f"{it} does not answer") if is_closed else None


def _refusal(error: Exception, of: Dependency) -> str | None:
    """What is wrong with our address, or with our rights; None for another error."""
    it = "a sentinel" if isinstance(error, SentinelRefusal) else f"the {of.name}"
    if failure := tls_failure(error):
        return f"{it}'s {failure} ({of.setting})"
    match error:
        case SentinelRefusal():
            login = "sentinel_username and sentinel_password"
            return f"{it} of the {of.name} refused our password ({of.setting}, {login})"
        case AuthenticationError():
            return f"{it} refused our password ({of.setting})"
        case NoPermissionError():
            return f"{it} says «{error}» ({of.setting})"
        case _:
            return None


def _is_refused_write(error: ResponseError) -> bool:
    text = str(error)
    if isinstance(error, OutOfMemoryError | ReadOnlyError) or says_replica(text):
        return True
    return _REFUSED_WRITE.search(text) is not None
