"""The api shows a Knative Broker the token that Kubernetes projects, and follows its rotation."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from eventing.cloudevent.event import Event
from eventing.cloudevent.publisher import HttpPublisher
from eventing.errors import BrokerUnavailable

EVENT = Event(id="job_1", source="/torpor/api", type="dev.torpor.inference.requested.v1")


async def test_a_rotated_token_is_used_for_the_next_event(tmp_path: Path) -> None:
    seen = []

    async def take(request: web.Request) -> web.Response:
        seen.append(request.headers.get("authorization"))
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/", take)
    token = tmp_path / "token"
    async with TestServer(app) as broker:
        publisher = HttpPublisher(str(broker.make_url("/")), token_file=token)
        for text in ("first\n", "second\n"):
            token.write_text(text)
            await publisher.publish(EVENT)
        await publisher.close()

    assert seen == ["Bearer first", "Bearer second"]


async def test_a_token_that_is_not_there_fails_closed(tmp_path: Path) -> None:
    publisher = HttpPublisher("http://127.0.0.1:9/", token_file=tmp_path / "none")

    with pytest.raises(BrokerUnavailable):
        await publisher.publish(EVENT)
    await publisher.close()
