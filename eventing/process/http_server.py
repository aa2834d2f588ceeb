"""Runs an ASGI application until it is stopped; signals are handled elsewhere.

Called by processes that do more than serve (broker, steps, activator).
"""

import asyncio
import socket
import sys
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
import uvloop

from eventing.errors import first_of
from eventing.process.http_protocol import HttpProtocol


class _QuietServer(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """The process handles signals itself, not the HTTP server."""
        yield


async def listen(
    app: Any, *, host: str, port: int, stopping: asyncio.Event, grace_s: int = 5
) -> None:
    """Serve `app` until `stopping`, then let open requests end for `grace_s`.

    Raises `OSError` when the port cannot be bound.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        http=HttpProtocol,
        lifespan="off",
        proxy_headers=False,  # client addresses are not used
        timeout_graceful_shutdown=grace_s,
    )
    server = _QuietServer(config)
    listener = socket.create_server((host, port), backlog=2048)
    # asyncio sets it only for sockets that it makes itself. Without, the body of an answer waits
    # for the ACK of its head, which a client on a kept-alive connection sends 40 ms later.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listener]))
        await stopping.wait()
        server.should_exit = True


def run(name: str, serving: Coroutine[Any, Any, None], *, host: str, port: int) -> int:
    """Run a process to its end; exit status 1, and a line that says so, when it cannot listen."""
    try:
        uvloop.run(serving)
    except (OSError, ExceptionGroup) as failure:
        cause = first_of(failure)
        if not isinstance(cause, OSError):
            raise
        sys.stderr.write(f"torpor {name}: cannot listen on {host}:{port}: {cause}\n")
        return 1
    return 0
