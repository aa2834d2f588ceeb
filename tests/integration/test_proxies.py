"""A proxy of the environment is asked for what is outside, and never for this machine or the cluster."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from api.auth.oidc import fetch_json
from eventing.cloudevent.event import Event
from eventing.cloudevent.publisher import HttpPublisher
from eventing.telemetry.trace_export import collector_session
from tests.redis_server import free_port

OUTSIDE = "http://provider.example.com"


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, list[str]]]:
    """An address that answers whatever it is asked, as a service or as a proxy, and what it was asked."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.url}")
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield f"http://127.0.0.1:{port}", asked
    await runner.cleanup()


def proxy_is(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, address)


async def test_what_is_inside_is_never_asked_by_a_proxy(
    server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    proxy_is(monkeypatch, f"http://127.0.0.1:{free_port()}")  # nobody listens there
    publisher = HttpPublisher(f"{url}/broker")

    await fetch_json(f"{url}/jwks")
    await publisher.publish(Event(id="1", source="/s", type="t"))
    await publisher.close()
    with collector_session(url) as session:
        await asyncio.to_thread(session.post, f"{url}/v1/traces", data=b"")

    assert asked == [f"GET {url}/jwks", f"POST {url}/broker", f"POST {url}/v1/traces"]


async def test_an_identity_provider_and_a_collector_outside_are_asked_by_the_proxy(
    server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    proxy_is(monkeypatch, url)

    await fetch_json(f"{OUTSIDE}/jwks")
    with collector_session(OUTSIDE) as session:
        await asyncio.to_thread(session.post, f"{OUTSIDE}/v1/traces", data=b"")

    assert asked == [f"GET {OUTSIDE}/jwks", f"POST {OUTSIDE}/v1/traces"]
