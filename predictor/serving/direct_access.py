"""ASGI middleware: access control and body limit of the direct routes.

Used by `predictor.server`, behind the event route, which has a token of its own. Direct routes are all that answer
a caller immediately: OpenAI's calls, KServe's predict and infer, models, metrics. Probes stay open: kubelet and
Knative's queue-proxy send no token. Behind queue-proxy every caller has a loopback address, so a loopback address
gives no rights.
"""

import hmac
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventing.errors import TorporError, Unavailable
from eventing.process.body import BodyReader

_PROBES: Final = re.compile(
    r"/|/healthz|/readyz|/health|/ping|/v2/health/(live|ready)|/v2/models/[^/]+/ready|/v1/models/[^/]+"
)
_OF_THE_CODED: Final = (b"content-encoding", b"content-length")
_BEARER: Final[Mapping[str, str]] = {"www-authenticate": "Bearer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectRules:
    """The operator's settings. `token` is empty when none is required."""

    token: str = ""
    is_on: bool = True


class DirectAccess:
    """Answers 403 when direct routes are off, 401 without the token, 413 over the body limit, 408 for a body that
    stops arriving.
    """

    def __init__(self, app: ASGIApp, *, rules: DirectRules, bodies: BodyReader) -> None:
        self._app = app
        self._rules = rules
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_probe(scope) or self._is_scrape(scope):
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(Headers(scope=scope))) is not None:
            await refusal(scope, receive, send)
            return
        try:
            body = await self._bodies.read(Request(scope, receive))
        except TorporError as error:
            answer = _failure(error.status, error.message, error.code, headers_of(error))
            await answer(scope, receive, send)
            return
        await self._app(_decoded(scope, len(body)), _replayed(body, receive), send)

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
        return None


def headers_of(error: TorporError) -> dict[str, str]:
    """The headers of the response for `error`."""
    if isinstance(error, Unavailable):
        return {**error.headers, "retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    return dict(error.headers)


def carries(authorization: str, token: str) -> bool:
    """True when the header's value is this bearer token."""
    return hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode())


def _is_probe(scope: Scope) -> bool:
    return bool(_PROBES.fullmatch(scope["path"])) and (
        scope["method"] in ("GET", "HEAD") or scope["path"] == "/ping"
    )


def _decoded(scope: Scope, size: int) -> Scope:
    """The scope of the body as it was read: without its content coding."""
    if b"content-encoding" not in dict(scope["headers"]):
        return scope
    kept = [pair for pair in scope["headers"] if pair[0] not in _OF_THE_CODED]
    return {**scope, "headers": [*kept, (b"content-length", str(size).encode())]}


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
