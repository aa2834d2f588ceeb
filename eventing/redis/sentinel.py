"""Connections to the server that sentinels name as the primary.

Called by `eventing.redis.connection`. redis-py asks sentinels one after the other and takes the first answer; one that
hangs would then use up the time to connect, and one that was cut off would name a primary that was replaced. Here all
are asked at once, the newest configuration counts, no sentinel may be in the midst of a failover, and the server itself
must say that it is a primary.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
_MOMENT_S: Final = 0.1
"""How long the others are waited for once a majority has answered."""


class SentinelRefusal(ConnectionError):  # type: ignore[misc]  # redis is untyped to us
    """No sentinel named a primary, and one of them refused our password, or its certificate was refused."""


@dataclass(frozen=True)
class Named:
    """The primary as one sentinel names it."""

    address: tuple[str, int]
    epoch: int
    is_down: bool
    is_failing_over: bool


def primary_of(answers: Sequence[Named | Exception], service_name: str) -> tuple[str, int]:
    """Host and port of the primary, by what sentinels answered. Raises redis-py's error where none can tell."""
    named = [each for each in answers if not isinstance(each, Exception)]
    if not named:
        for error in (each for each in answers if isinstance(each, Exception)):
            if isinstance(error, AuthenticationError | NoPermissionError) or tls_failure(error):
                raise SentinelRefusal("a sentinel refused us") from error
        raise MasterNotFoundError(f"no sentinel names a primary of {service_name}")
    if any(each.is_failing_over for each in named):
        raise MasterNotFoundError(f"a sentinel is replacing the primary of {service_name}")
    reached = [each for each in named if not each.is_down]
    if not reached:
        raise MasterNotFoundError(f"no sentinel reaches the primary of {service_name}")
    return max(reached, key=lambda each: each.epoch).address


def parsed(state: Mapping[str, str], address: tuple[str, int]) -> Named:
    """What `SENTINEL MASTER` and `SENTINEL GET-MASTER-ADDR-BY-NAME` of one sentinel say. While replicas are led to a
    new primary, only the second gives its address: the first has the old one still, under the new epoch, and without
    the mark of a server that is down if the old one came back.
    """
    flags = set(state["flags"].split(","))
    is_old = address == (state["ip"], int(state["port"]))
    return Named(
        address=address,
        epoch=int(state["config-epoch"]),
        is_down=is_old and not flags.isdisjoint({"s_down", "o_down"}),
        is_failing_over=is_old and "failover_in_progress" in flags,
    )


async def _asked(sentinel: SharedRedis, service_name: str) -> Named | Exception:
    """An error is an answer: of a sentinel that does not answer, or knows no such service."""
    try:
        table, (host, port) = await sentinel.send(
            [
                ("SENTINEL", "MASTER", service_name),
                ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service_name),
            ]
        )
    except (RedisError, OSError) as error:
        return error
    words = [word.decode() for word in table]
    return parsed(dict(zip(words[::2], words[1::2], strict=True)), (host.decode(), int(port)))


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
        return primary_of(await self._answers(service_name), service_name)

    async def _answers(self, service_name: str) -> list[Named | Exception]:
        """Of all sentinels; once a majority has named a primary, of those that answer within a moment. The sentinel
        that replaces a primary knows the next one first, and the others may take seconds to hear of it.
        """
        asked = [asyncio.ensure_future(_asked(each, service_name)) for each in self.sentinels]
        open_, answers, until_s = set(asked), list[Named | Exception](), None
        clock = asyncio.get_running_loop().time
        try:
            while open_:
                left_s = None if until_s is None else max(0.0, until_s - clock())
                ended, open_ = await asyncio.wait(
                    open_, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
                if not ended:
                    break
                answers += [each.result() for each in ended]
                count = sum(isinstance(each, Named) for each in answers)
                if until_s is None and count > len(asked) // 2:
                    until_s = clock() + _MOMENT_S
        finally:
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return answers


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
