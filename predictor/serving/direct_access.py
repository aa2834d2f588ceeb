"""ASGI middleware: access control and body limit of the direct routes.

Used by `predictor.server`, behind the event route, which has a token of its own. Direct routes are all that answer
a caller immediately: OpenAI's calls, KServe's predict and infer, models, metrics. Probes stay open: kubelet and
Knative's queue-proxy send no token. Behind queue-proxy every caller has a loopback address, so a loopback address
gives no rights.
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import orjson
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PROBES: Final = re.compile(
    r"/|/healthz|/readyz|/health|/ping|/v2/health/(live|ready)|/v2/models/[^/]+/ready|/v1/models/[^/]+"
)
_BEARER: Final[Mapping[str, str]] = {"www-authenticate": "Bearer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectRules:
    """The operator's settings. `token` is empty when none is required."""

    token: str = ""
    is_on: bool = True
    body_limit_bytes: int = 8 * 1024 * 1024


class DirectAccess:
    """Answers 403 when direct routes are off, 401 without the token, 413 over the body limit."""

    def __init__(self, app: ASGIApp, *, rules: DirectRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_probe(scope) or self._is_scrape(scope):
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(Headers(scope=scope))) is not None:
            await refusal(scope, receive, send)
            return
        body = await _read(receive, self._rules.body_limit_bytes)
        if body is None:
            limit = self._rules.body_limit_bytes
            answer = _failure(413, f"the body is over {limit} bytes", "body_too_large")
            await answer(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), send)

    def _is_scrape(self, scope: Scope) -> bool:
        """True for a scraper at the container's own port, when direct routes are off: a request through Knative's
        gateway has passed queue-proxy, and so comes from a loopback address.
        """
        if self._rules.is_on or (scope["method"], scope["path"]) != ("GET", "/metrics"):
            return False
        host = (scope.get("client") or ("127.0.0.1", 0))[0]
        try:
            address = ip_address(host)
            return not (getattr(address, "ipv4_mapped", None) or address).is_loopback
        except ValueError:
            return False

    def _refusal(self, headers: Headers) -> Response | None:
        rules = self._rules
        if not rules.is_on:
            words = "direct routes are off here: send jobs to the api, or set TORPOR_DIRECT_TOKEN"
            return _failure(403, words, "direct_routes_off")
        if rules.token and not carries(headers.get("authorization", ""), rules.token):
            words = "direct routes need the bearer token of TORPOR_DIRECT_TOKEN"
            return _failure(401, words, "invalid_api_key", _BEARER)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > rules.body_limit_bytes:
            words = f"the body is over {rules.body_limit_bytes} bytes"
            return _failure(413, words, "body_too_large")
        return None


def carries(authorization: str, token: str) -> bool:
    """True when the header's value is this bearer token."""
    return hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode())


def _is_probe(scope: Scope) -> bool:
    return bool(_PROBES.fullmatch(scope["path"])) and (
        scope["method"] in ("GET", "HEAD") or scope["path"] == "/ping"
    )


async def _read(receive: Receive, limit_bytes: int) -> bytes | None:
    """The whole body; None when it is over the limit. Also empty when the client has disconnected."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit_bytes:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, and then the following messages (the disconnect)."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _failure(
    status: int, message: str, code: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An error in OpenAI's form."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return Response(orjson.dumps({"error": error}), status, headers, media_type="application/json")
