"""HTTP behaviour that every resource has: HEAD where GET is, a complete Allow header, a hint for a mistyped path.

Called by `api.app`. Must not know any route by name.
"""

import re
from collections.abc import Iterable

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.sse import RAW_SEND


class _HeadSent(Exception):
    """The response to a HEAD was sent; the rest of the handler's output is discarded."""


class HeadAsGet:
    """ASGI middleware: a HEAD is handled as a GET and answered without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        got, is_sent = {**scope, "method": "GET"}, False

        async def send_head(message: Message) -> None:
            nonlocal is_sent
            scope["route"] = got.get("route")
            is_sent = True
            await send(message)
            await send({"type": "http.response.body"})
            raise _HeadSent

        got[RAW_SEND] = send_head
        try:
            await self._app(got, receive, send_head)
        except Exception:
            if not is_sent:
                raise


def allowed_methods(routes: Iterable[BaseRoute], scope: Scope) -> list[str]:
    """The methods that the path of `scope` supports."""
    found: set[str] = set()
    for route in routes:
        if scope["type"] == "http" and route.matches(dict(scope))[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    if "GET" in found:
        found.add("HEAD")
    return sorted(found | {"OPTIONS"}) if found else []


def path_meant(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """The existing path that a client with a wrong base URL probably meant; empty for none."""
    every = list(routes)
    plain = re.sub(r"/{2,}", "/", scope["path"]).rstrip("/")
    bare = re.sub(r"^(/v1)+(?=/|$)", "", plain)
    # Behind a gateway's prefix, in capitals, or as Azure has it (`/openai/deployments/NAME/chat/completions`).
    behind = re.match(r".*/(?:v1|deployments/[^/]+|engines/[^/]+)(/.+)$", plain, re.IGNORECASE)
    tail = behind[1] if behind else ""
    for path in (plain, f"/v1{bare}", f"/v1{tail}", f"/v1{tail.lower()}"):
        if path != scope["path"] and allowed_methods(every, {**scope, "path": path}):
            return path
    return ""
