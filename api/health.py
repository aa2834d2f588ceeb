"""Liveness, readiness and metrics.

Called by probes and Prometheus, without a credential. Must not know any tenant.
"""

import asyncio

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from api.auth_address import is_loopback
from api.front import front_of
from api.principal import Scope
from eventing.errors import StoreUnavailable

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """The process turns."""
    return PlainTextResponse("ok")


@router.get("/health")
@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """The store takes writes. (A broker that is away does not make us unready: polls and streams
    still work, and submits say so themselves.) `/health` is where clients of vLLM ask before they
    begin: nobody needs to be awake for the answer to be yes.
    """
    front = front_of(request)
    try:
        async with asyncio.timeout(front.settings.store_timeout_s):
            await front.store.ping()
    except (StoreUnavailable, TimeoutError):
        return PlainTextResponse("store unavailable", status_code=503, headers={"retry-after": "1"})
    return PlainTextResponse("ready")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text; from elsewhere than this machine for those who may."""
    front = front_of(request)
    client = request.client.host if request.client else ""
    if not front.settings.metrics_open and not is_loopback(client):
        principal = await front.authenticator.principal_of(request)
        principal.require(Scope.METRICS_READ)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
