"""`torpor promote` looks at what Prometheus says of model and canary, and does what follows."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.integration.deploy.api_server import ApiServer
from tests.integration.deploy.conftest import Run
from tests.integration.deploy.test_commands import ready_at_once, said

Figures = dict[str, tuple[float, float, float]]  # version -> requests, errors, seconds a token
USUAL = (1000.0, 5.0, 0.05)


@pytest.fixture
async def canary(run: Run, server: ApiServer, overlay: Path) -> None:
    """A model with a canary beside it."""
    server.on_apply = lambda item: ready_at_once(server, item)
    await run("deploy", overlay, "--yes", "--no-wait")
    await run("deploy", overlay, "--yes", "--canary", "10", "--image", "new:2", "--no-wait")


async def prometheus(figures: Figures) -> TestServer:
    """A Prometheus that knows these figures."""

    async def query(request: web.Request) -> web.Response:
        asked = request.query["query"]
        version = "thinker-canary" if "thinker-canary-predictor" in asked else "thinker"
        requests, errors, seconds = figures[version]
        value = seconds if "quantile" in asked else requests if "completed" in asked else errors
        result = [{"metric": {}, "value": [0, str(value)]}]
        return web.json_response({"status": "success", "data": {"result": result}})

    app = web.Application()
    app.router.add_get("/api/v1/query", query)
    server = TestServer(app)
    await server.start_server()
    return server


@pytest.mark.usefixtures("canary")
@pytest.mark.parametrize(
    ("fresh", "image", "is_left", "words"),
    [
        pytest.param((100, 1, 0.05), "new:2", False, "promote", id="as good: it takes over"),
        pytest.param((100, 40, 0.05), "old", False, "40 of 100 failed", id="errors: withdrawn"),
        pytest.param((100, 0, 0.09), "old", False, "1.80 times", id="slow: withdrawn"),
        pytest.param((20, 0, 0.05), "old", True, "too early", id="few: it stays as it is"),
    ],
)
async def test_a_canary_is_promoted_withdrawn_or_left(
    run: Run,
    server: ApiServer,
    fresh: tuple[float, float, float],
    image: str,
    is_left: bool,
    words: str,
) -> None:
    asked = await prometheus({"thinker": USUAL, "thinker-canary": fresh})

    result = await run("promote", "thinker", "--prometheus", asked.make_url("/"), "--timeout", "5")
    await asked.close()

    service = server.find("InferenceService", "thinker")
    now = service["spec"]["predictor"]["containers"][0]["image"]
    assert (now == "new:2") == (image == "new:2")
    assert ("thinker-canary" in server.names("InferenceService")) == is_left
    assert result.exit_code == (0 if image == "new:2" else 1)
    assert words in said(result)
