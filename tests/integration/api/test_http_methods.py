"""HTTP behaviour that clients and browsers expect of every server: HEAD, Allow, CORS, a hint for a mistyped path."""

from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis

from eventing.store.redis_store import RedisStore
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import Rig, chat_line, headers_of

PAGE = "http://localhost:3000"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-retry-count",
}


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/healthz",
        "/readyz",
        "/metrics",
        "/v1/models",
        "/docs",
        "/openapi.json",
        "/console",
    ],
)
async def test_a_head_is_answered_as_the_get_without_its_body(rig: Rig, path: str) -> None:
    got, head = await rig.client.get(path), await rig.client.head(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


async def test_the_head_of_a_stream_ends_at_once(rig: Rig) -> None:
    job_id = await rig.submit()
    answer = await rig.client.head(f"/v1/jobs/{job_id}/events")

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (await rig.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/jobs/x", "/v1/models", "/v1/jobs"])
async def test_allow_lists_every_method_of_the_path(rig: Rig, path: str) -> None:
    refused, asked = await rig.client.patch(path), await rig.client.options(path)
    methods = set(refused.headers["allow"].split(", "))

    assert (refused.status_code, asked.status_code) == (405, 204)
    assert asked.headers["allow"] == refused.headers["allow"]
    for method in ("GET", "HEAD", "POST", "DELETE", "PUT"):
        status = (await rig.client.request(method, path)).status_code
        assert (status != 405) == (method in methods), method


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1//chat/completions", "/v1/chat/completions"),
        ("/responses", "/v1/responses"),
        ("/openai/v1/chat/completions", "/v1/chat/completions"),
        ("/api/V1/Chat/Completions", "/v1/chat/completions"),
        ("/openai/deployments/gpt/chat/completions", "/v1/chat/completions"),
        ("/v1/engines/m/completions", "/v1/completions"),
    ],
)
async def test_a_404_names_the_path_that_was_probably_meant(
    rig: Rig, path: str, meant: str
) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(rig.url + path, json=chat_line()["body"])

    assert answer.status_code == 404
    assert f"did you mean {meant}?" in answer.json()["error"]["message"]


async def test_a_path_that_is_nothing_names_the_document(rig: Rig) -> None:
    answer = await rig.client.get("/no/such")

    assert (answer.status_code, answer.json()["title"]) == (404, "Not Found")
    assert "/docs" in answer.json()["detail"]


async def test_the_root_leads_to_the_console(rig: Rig) -> None:
    answer = await rig.client.get("/")

    assert (answer.status_code, answer.headers["location"]) == (307, "/console")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain; version=0.0.4"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text; version=1.0.0",
        ),
    ],
    ids=["nothing asked", "Prometheus 2", "OpenMetrics"],
)
async def test_metrics_come_in_the_form_that_is_asked_for(rig: Rig, accept: str, kind: str) -> None:
    answer = await rig.client.get("/metrics", headers={"accept": accept})

    assert answer.headers["content-type"].startswith(kind)
    assert answer.text.endswith("# EOF\n") == kind.startswith("application/openmetrics")


@pytest.fixture(params=["anonymous", "with keys"])
async def browsed(
    request: pytest.FixtureRequest, redis_url: str, store: RedisStore, redis: Redis
) -> AsyncIterator[ApiWithJobs]:
    source = "redis" if request.param == "with keys" else ""
    settings = settings_for(redis_url, cors_origins=(PAGE,), keys_source=source)
    async with api_with_jobs(settings, store) as made:
        made.client.headers.update(await headers_of(redis, "acme"))
        yield made


async def test_a_preflight_of_an_allowed_page_is_answered_without_a_key(
    browsed: ApiWithJobs,
) -> None:
    async with httpx.AsyncClient(base_url=browsed.url) as stranger:
        answer = await stranger.options("/v1/chat/completions", headers=PREFLIGHT)

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-retry-count" in answer.headers["access-control-allow-headers"]


async def test_an_allowed_page_reads_answers_errors_and_streams(browsed: ApiWithJobs) -> None:
    origin = {"origin": PAGE}
    answer = await browsed.client.post("/v1/jobs", json=chat_line(), headers=origin)
    error = await browsed.client.get("/v1/jobs/nope", headers=origin)
    events = f"/v1/jobs/{answer.json()['id']}/events"
    async with browsed.client.stream("GET", events, headers=origin) as stream:
        shown = [answer, error, stream]

    assert [one.status_code for one in shown] == [202, 404, 200]
    assert {one.headers["access-control-allow-origin"] for one in shown} == {PAGE}
    assert "torpor-job-id" in answer.headers["access-control-expose-headers"]


async def test_a_page_that_is_not_allowed_gets_no_leave(browsed: ApiWithJobs) -> None:
    headers = PREFLIGHT | {"origin": "https://evil.example"}
    answer = await browsed.client.options("/v1/chat/completions", headers=headers)

    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


async def test_an_options_request_is_answered_with_the_allowed_origin(
    redis_url: str, store: RedisStore
) -> None:
    settings = settings_for(redis_url, event_origins=("eventgrid.azure.net",))
    async with api_with_jobs(settings, store) as api:
        allowed, refused = [
            await api.client.options("/v1/events", headers={"webhook-request-origin": origin})
            for origin in ("eventgrid.azure.net", "evil.example")
        ]

    assert allowed.status_code == refused.status_code == 200
    assert allowed.headers["webhook-allowed-origin"] == "eventgrid.azure.net"
    assert "webhook-allowed-origin" not in refused.headers


async def test_a_slash_behind_the_models_is_named(rig: Rig) -> None:
    answer = await rig.client.get("/v1/models/")

    assert answer.status_code == 404
    assert "did you mean /v1/models?" in answer.json()["error"]["message"]
