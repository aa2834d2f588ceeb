"""Where direct routes are off, a scraper at the container's own port still sees metrics."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from predictor.serving.direct_access import DirectAccess, DirectRules


async def page(_: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


APP = Starlette(routes=[Route("/metrics", page), Route("/v1/models", page)])


@pytest.mark.parametrize(
    ("address", "path", "status"),
    [
        ("10.0.0.7", "/metrics", 200),
        ("10.0.0.7", "/v1/models", 403),
        ("127.0.0.1", "/metrics", 403),  # queue-proxy's, for whoever came by the gateway
        ("::1", "/metrics", 403),
        ("::ffff:127.0.0.1", "/metrics", 403),
        ("", "/metrics", 403),
    ],
)
async def test_metrics_are_for_callers_that_did_not_pass_queue_proxy(
    address: str, path: str, status: int
) -> None:
    app = DirectAccess(APP, rules=DirectRules(is_on=False))
    transport = httpx.ASGITransport(app=app, client=(address, 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
        assert (await client.get(path)).status_code == status
