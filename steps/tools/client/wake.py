"""Waits until a tool server that may be at zero answers at all, before anything of a call leaves.

What holds requests while it starts (Knative's activator) holds this one: neither does the start use up the time of the
call, nor is a start that fails a call that may have happened. Imported at the first call only.
"""

import asyncio
from typing import Final

import httpx2
from yarl import URL

from eventing.errors import Unavailable
from steps.tools.client.answer import Target
from steps.tools.client.dialler import Exchange, Redirected

_ASLEEP: Final = (502, 503, 504)
_READ_BYTES: Final = 64 * 1024
_PAUSE_S: Final = 0.5


async def until_awake(target: Target, within_s: float) -> None:
    """Return once the server has answered, whatever it said but 502, 503 and 504. Raises `Unavailable`."""
    url = str(URL(target.url).with_path("/readyz"))
    try:
        async with asyncio.timeout(within_s):
            while True:
                if await _answers(target, url):
                    return
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError as error:
        raise Unavailable(f"the tool {target.label} did not wake in {within_s:.0f} s") from error


async def _answers(target: Target, url: str) -> bool:
    exchange = Exchange(
        origin=target.origin, allowed=target.allowed, headers={}, limit_bytes=_READ_BYTES
    )
    try:
        timeout = httpx2.Timeout(None, connect=10.0)
        async with (
            httpx2.AsyncClient(transport=exchange, timeout=timeout, trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            return response.status_code not in _ASLEEP
    except Redirected:
        return True
    except (httpx2.HTTPError, OSError):
        return False
    finally:
        await exchange.aclose()
