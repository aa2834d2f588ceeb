"""The api trusts a Knative Broker's own authority where it is told to, and no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from eventing.cloudevent.event import Event
from eventing.cloudevent.publisher import HttpPublisher
from eventing.errors import BrokerUnavailable
from tests.integration.deploy.certificate import certificate, serving

EVENT = Event(id="job_1", source="/torpor/api", type="dev.torpor.inference.requested.v1")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[str]:
    """The address of an https ingress whose certificate is `broker.crt`."""

    async def take(_: web.Request) -> web.Response:
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/", take)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=serving(certificate(tmp_path, "broker")))
    yield str(server.make_url("/"))
    await server.close()


async def sent(broker: str, authority: Path | None) -> None:
    """Publish one event."""
    publisher = HttpPublisher(broker, ca_file=authority)
    try:
        await publisher.publish(EVENT)
    finally:
        await publisher.close()


async def test_the_brokers_own_authority_is_trusted(broker: str, tmp_path: Path) -> None:
    await sent(broker, tmp_path / "broker.crt")


async def test_another_authority_is_not(broker: str, tmp_path: Path) -> None:
    other = certificate(tmp_path, "other")

    with pytest.raises(BrokerUnavailable):
        await sent(broker, other)


async def test_without_one_a_cluster_certificate_is_not_trusted(broker: str) -> None:
    with pytest.raises(BrokerUnavailable):
        await sent(broker, None)


async def test_an_authority_that_is_not_there_fails_closed(broker: str, tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable):
        await sent(broker, tmp_path / "none.crt")
