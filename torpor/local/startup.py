"""Waits for the parts of a local stack that start, with the reason when one does not.

Called by `torpor.local.stack`.
"""

import asyncio
import socket
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from eventing.errors import StoreUnavailable, Unavailable
from eventing.redis.connection import connect
from eventing.store.redis_store import RedisStore
from torpor.local.child import Child
from torpor.local.errors import StackError

_START_TIMEOUT_S: Final = 20.0


async def _listens(url: str) -> None:
    """Raises `StoreUnavailable`, without the log line of a store that goes away, while it is only starting."""
    address = urlsplit(url)
    try:
        _, writer = await asyncio.open_connection(address.hostname, address.port)
    except OSError as error:
        raise StoreUnavailable("the store does not answer") from error
    writer.close()
    await writer.wait_closed()


async def wait_for_store(redis_url: str, message: str, child: Child | None = None) -> None:
    """Return once the store accepts writes."""
    store = RedisStore(connect(redis_url, timeout_s=1.0))
    deadline = asyncio.get_running_loop().time() + (_START_TIMEOUT_S if child else 3.0)
    try:
        while True:
            try:
                if child is not None:
                    await _listens(redis_url)
                await store.ping()
            except Unavailable as error:
                is_over = asyncio.get_running_loop().time() > deadline
                if is_over or (child is not None and not child.is_running):
                    words = child.log_tail() if child else ""
                    raise StackError(f"{message}: {error}\n{words}".strip()) from error
                await asyncio.sleep(0.05)
            else:
                return
    finally:
        await store.close()


async def wait_for_answer(url: str, child: Child) -> None:
    """Return once `url` wait_for_answer 200."""
    deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as session:
        while child.is_running and asyncio.get_running_loop().time() < deadline:
            with suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)
    raise StackError(f"the {child.name} did not start: {child.failure()}")


def require_free(host: str, port: int, name: str) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        flag = {"api": "--port", "broker": "--broker-port"}[name]
        reason = f"{host}:{port} cannot be had for the {name} ({error.strerror})"
        raise StackError(f"{reason}; choose another with {flag}") from error
