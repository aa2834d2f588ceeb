"""Liveness, readiness and metrics.

Called by probes and Prometheus, without a credential. Must not know any tenant.
"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth.address import is_loopback
from api.auth.principal import Scope
from api.front import front_of
from eventing.process.probe import alive, metrics_page, readiness

router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """The process turns."""
    return await alive(request)


@router.get("/health")
@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """The store takes writes. (A broker that is away does not make us unready: polls and streams
    still work, and submits say so themselves.) `/health` is where clients of vLLM ask before they
    begin: nobody needs to be awake for the answer to be yes.
    """
    front = front_of(request)
    return await readiness(front.store, timeout_s=front.settings.store_timeout_s)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text; from elsewhere than this machine for those who may."""
    front = front_of(request)
    client = request.client.host if request.client else ""
    if not front.settings.metrics_open and not is_loopback(client):
        principal = await front.authenticator.principal_of(request)
        principal.require(Scope.METRICS_READ)
    return metrics_page()
