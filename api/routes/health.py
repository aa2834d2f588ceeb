"""Liveness, readiness and metrics.

Called by probes and Prometheus, without a credential. Must not know any tenant.
"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth.principal import Authenticator, Scope
from eventing.process.address import is_loopback
from eventing.process.probe import Pinged, ReadyOnceStarted, alive, metrics_page, readiness


def router(
    authenticator: Authenticator,
    store: Pinged,
    *,
    store_timeout_s: float,
    is_metrics_open: bool,
    is_local: bool,
) -> APIRouter:
    """The routes that a platform asks. `is_local`: we listen on loopback only. Where we do not, a caller
    there may be a sidecar (queue-proxy, a mesh) that hands on everybody's calls.
    """
    made = APIRouter(include_in_schema=False)

    @made.get("/healthz")
    async def healthz(request: Request) -> Response:
        """The process turns."""
        return await alive(request)

    started = ReadyOnceStarted(store, timeout_s=store_timeout_s)

    @made.get("/readyz")
    async def readyz(request: Request) -> Response:
        """Calls are answered, with a 503 and when to come back while the store or broker is away."""
        return await started.answer()

    @made.get("/health")
    async def health(request: Request) -> Response:
        """The store takes writes. Where clients of vLLM ask before they begin: nobody needs to be
        awake for the answer to be yes.
        """
        return await readiness(store, timeout_s=store_timeout_s)

    @made.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus text; for those who may; for this machine where no other can call."""
        client = request.client.host if request.client else ""
        if not is_metrics_open and not (is_local and is_loopback(client)):
            principal = await authenticator.principal_of(request)
            principal.require(Scope.METRICS_READ)
        return metrics_page(request)

    return made
