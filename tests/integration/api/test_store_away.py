"""What callers get while the store is away: a 503 that says when to come back, from a ready api."""

from pathlib import Path

import httpx
import pytest

from api.__main__ import build
from api.settings import AnonymousAccess, ApiSettings
from eventing.settings import ModelCard
from tests.integration.api.conftest import chat_line
from tests.integration.api.fakes import serving
from tests.integration.api.test_api_process import restored_collector
from tests.redis_server import RedisServer

__all__ = ["restored_collector"]


@pytest.mark.usefixtures("restored_collector")
async def test_a_running_api_stays_ready_and_answers_503_while_its_store_is_away(
    tmp_path: Path,
) -> None:
    server = RedisServer(tmp_path / "redis")
    settings = ApiSettings(
        redis_url=server.url,
        broker_url="http://127.0.0.1:9/",
        files_url=f"file://{tmp_path}",
        models=(ModelCard(name="m"),),
        anonymous_access=AnonymousAccess.LOOPBACK,
    )
    app, _ = build(settings)
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/readyz")).status_code == 503  # it never saw its store
        server.start()
        assert (await client.get("/readyz")).status_code == 200
        server.kill()

        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/health")).status_code == 503
        refused = await client.post("/v1/jobs", json=chat_line())

    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
