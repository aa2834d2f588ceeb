"""The figures of a canary come from Prometheus, and from nowhere when it is away."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from knative.deploy.errors import ClusterUnreachable
from knative.deploy.rollout.verdict import FAULTS, measure, queries
from tests.manifests.conftest import ROOT

ANSWERS = {"increase(torpor_attempts_total": "100", "histogram_quantile": "0.05"}


@pytest.fixture
async def prometheus() -> AsyncIterator[str]:
    """A Prometheus that answers by what is asked."""

    async def query(request: web.Request) -> web.Response:
        asked = request.query["query"]
        value = next(v for part, v in ANSWERS.items() if part in asked)
        if "completed" not in asked and "attempts" in asked:
            value = "3"
        empty = "nobody" in asked
        result = [] if empty else [{"metric": {}, "value": [0, value]}]
        return web.json_response({"status": "success", "data": {"result": result}})

    app = web.Application()
    app.router.add_get("/api/v1/query", query)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def test_a_sample_is_requests_errors_and_seconds_a_token(prometheus: str) -> None:
    found = await measure(prometheus, "thinker", "15m")

    assert (found.requests, found.errors, found.p95_s) == (100, 3, 0.05)


async def test_a_version_without_traffic_is_an_empty_sample(prometheus: str) -> None:
    found = await measure(prometheus, "nobody", "15m")

    assert (found.requests, found.errors, found.p95_s) == (0, 0, None)


async def test_a_prometheus_that_is_away_is_one_clear_line() -> None:
    with pytest.raises(ClusterUnreachable, match="--prometheus"):
        await measure("http://127.0.0.1:9", "thinker", "15m")


def test_the_families_and_outcomes_are_what_the_predictor_counts() -> None:
    source = "".join(path.read_text() for path in (ROOT / "predictor").rglob("*.py"))

    names = re.findall(r"torpor_[a-z_]+?(?:_total|_seconds)", str(queries("x", "1m")))

    assert names
    assert [each for each in [*names, *FAULTS.split("|")] if f'"{each}"' not in source] == []
