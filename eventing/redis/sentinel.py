"""Connections to the server that sentinels name as the primary.

Called by `eventing.redis.connection`. redis-py asks sentinels one after the other and takes the first answer; one that
hangs would then use up the time to connect, and one that was cut off would name a primary that was replaced. Here all
are asked at once, the newest configuration among the answers of a majority counts, and the server itself must say that
it is a primary.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoPermissionError,
    RedisError,
)

from eventing.process.store_url import StoreUrl
from eventing.redis.multiplexed_connection import SharedRedis
from eventing.redis.replica import LeavesReplica
from eventing.redis.tls import TlsConnection, tls_failure

_SHARE: Final = 1 / 3
"""Of the time to connect, what the sentinels may take to answer."""


class SentinelRefusal(ConnectionError):  # type: ignore[misc]  # redis is untyped to us
    """No sentinel named a primary, and one of them refused our password, or its certificate was refused."""


class _Sentinels(Sentinel):  # type: ignore[misc]  # redis is untyped to us
    """Asks all sentinels at once, each over one connection that stays open."""

    def __init__(self, where: StoreUrl, **options: Any) -> None:
        super().__init__([])
        # redis-py leaves a connection whose handshake is cancelled to the collector; ours does not.
        self.sentinels = [
            SharedRedis(host=host, port=port, **options) for host, port in where.sentinels
        ]
        if where.is_tls:
            for each in self.sentinels:
                each.connection_pool.connection_class = TlsConnection

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        asked = [asyncio.ensure_future(each.sentinel_masters()) for each in self.sentinels]
        found: list[Mapping[str, Any]] = []
        refusal: Exception | None = None
        try:
            for answer in asyncio.as_completed(asked):
                try:
                    state = (await answer).get(service_name)
                except (RedisError, OSError) as error:
                    is_login = isinstance(error, AuthenticationError | NoPermissionError)
                    if is_login or tls_failure(error):
                        refusal = error
                else:
                    if state and self.check_master_state(state, service_name):
                        found.append(state)
                    if len(found) > len(asked) // 2:
                        break
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not found and refusal is not None:
            raise SentinelRefusal("a sentinel refused us") from refusal
        if not found:
            raise MasterNotFoundError(f"no sentinel names a primary of {service_name}")
        newest = max(found, key=lambda state: int(state["config-epoch"]))
        return newest["ip"], newest["port"]


class _PrimaryConnection(LeavesReplica, SentinelManagedConnection):  # type: ignore[misc]
    """A server that was replaced answers as a primary until a sentinel reaches it; afterwards it says what it is."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health=check_health)
        # A user of the server's access list who may not ask goes on as the sentinels say.
        with suppress(NoPermissionError):
            await self.send_command("ROLE", check_health=False)
            role = await self.read_response()
            if role[0] != b"master":
                raise ConnectionError("the server that the sentinels name is a replica")


class _PrimaryTlsConnection(_PrimaryConnection, TlsConnection):
    pass


class SentinelPool(SentinelConnectionPool, BlockingConnectionPool):  # type: ignore[misc]
    """A pool of connections to the primary; it waits for a free one as the pool of a single server does."""

    async def aclose(self) -> None:
        """Close the connections to servers and to sentinels."""
        await super().aclose()
        await self.sentinel_manager.aclose()


def sentinel_pool(where: StoreUrl, *, timeout_s: float, **options: Any) -> SentinelPool:
    """A pool for the service of `where`, with redis-py's `options` for each connection to a server."""
    of_server = dict(parse_url(where.url))
    for name in ("host", "port", "connection_class"):
        of_server.pop(name, None)
    of_sentinel = {name: value for name, value in of_server.items() if name.startswith("ssl_")}
    if where.sentinel_password:
        of_sentinel["password"] = where.sentinel_password
        of_sentinel["username"] = where.sentinel_username or None
    sentinels = _Sentinels(
        where,
        ssl=where.is_tls,
        socket_timeout=timeout_s * _SHARE,
        socket_connect_timeout=timeout_s * _SHARE,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        **of_sentinel,
    )
    return SentinelPool(
        where.service,
        sentinels,
        connection_class=_PrimaryTlsConnection if where.is_tls else _PrimaryConnection,
        **(options | of_server),
    )
