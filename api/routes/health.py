"""Liveness, readiness and metrics.

Called by probes and Prometheus, without a credential. Must not know any tenant.
"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth.principal import Authenticator, Scope
from eventing.process.address import is_loopback
from eventing.process.probe import ReadyOnceStarted, SupportsPing, alive, metrics_page, readiness


def router(
    authenticator: Authenticator,
    store: SupportsPing,
    *,
    store_timeout_s: float,
    is_metrics_open: bool,
    is_local: bool,
) -> APIRouter:
    """Routes of the platform's probes and scrapers. `is_local`: the server listens on loopback only. Otherwise a
    caller on loopback may be a sidecar (queue-proxy, a mesh) that forwards calls of others.
    """
    made = APIRouter(include_in_schema=False)

    @made.get("/healthz")
    async def healthz(request: Request) -> Response:
        """200: the event loop runs."""
        return await alive(request)

    started = ReadyOnceStarted(store, timeout_s=store_timeout_s)

    @made.get("/readyz")
    async def readyz(request: Request) -> Response:
        """200 once the store has answered; calls are answered 503 with Retry-After while store or broker are
        unavailable.
        """
        return await started.answer()

    @made.get("/health")
    async def health(request: Request) -> Response:
        """200 while the store accepts writes. Clients of vLLM ask here before they begin; a model at zero counts as
        healthy.
        """
        return await readiness(store, timeout_s=store_timeout_s)

    @made.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus text, with the scope metrics:read, or from this host when the server listens on loopback."""
        client = request.client.host if request.client else ""
        if not is_metrics_open and not (is_local and is_loopback(client)):
            principal = await authenticator.principal_of(request)
            principal.require(Scope.METRICS_READ)
        return metrics_page(request)

    return made
