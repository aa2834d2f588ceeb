"""Supervises the process's background loops: one that fails is logged and restarted.

Called by `api.__main__`. Must not know the loops.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

_PAUSE_S: Final = 1.0
_log = structlog.get_logger()


async def forever(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run `loop` until cancelled, again whenever it ends. A bug in one loop must not stop the others, nor leave a
    process that answers calls but does not sweep.
    """
    while True:
        try:
            await loop()
            _log.error("a loop ended", action=name)
        except Exception as error:
            _log.error("a loop failed", action=name, error=type(error).__name__, exc_info=True)
        await asyncio.sleep(_PAUSE_S)
