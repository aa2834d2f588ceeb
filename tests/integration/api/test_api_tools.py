"""Jobs and responses with tools that are run here: what is refused at submit, and where their credentials are."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from redis.asyncio import Redis

from api.settings import ApiSettings
from eventing.job.job import JobId
from eventing.job.tools.sealed import Binding, SealingKeys, unseal
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, chat_line, rig_over
from tests.integration.api.fakes import FakeBroker

CANARY = "sk-canary-91c7"
KEY = base64.b64encode(bytes(range(32)))
TOOLS = {
    "servers": {
        "files": {"url": "http://files.tools/mcp", "approval": "never"},
        "mail": {"url": "http://mail.tools/mcp", "credential": "mail-token"},
        "closed": {"url": "http://closed.tools/mcp", "tenants": ["acme"]},
    },
    "urls": {"tenants": ["*"]},
}
PIPELINES = {
    "agent": {
        "steps": [{"step": "list-tools", "settings": {"servers": ["files"]}}, "tools"],
    },
    "guarded": {
        "steps": [{"step": "list-tools", "settings": {"servers": ["mail"]}}, "tools"],
    },
    "held": {"steps": [{"step": "validate-output", "settings": {"mode": "block"}}]},
}
OWN = {"type": "mcp", "server_label": "own", "server_url": "https://own.example:8443/mcp"}
FILES = {"type": "mcp", "server_label": "files", "require_approval": "never"}


@pytest.fixture
def tool_settings(api_settings: ApiSettings, tmp_path: Path) -> ApiSettings:
    tools, pipelines, key = tmp_path / "tools.yaml", tmp_path / "pipelines.yaml", tmp_path / "key"
    tools.write_text(yaml.safe_dump(TOOLS))
    pipelines.write_text(yaml.safe_dump(PIPELINES))
    key.write_bytes(KEY)
    models = [{"name": name, "context_tokens": 64} for name in ("m", *PIPELINES)]
    files = {"tools_file": tools, "pipelines_file": pipelines, "tool_seal_key_file": key}
    return ApiSettings(**(api_settings.model_dump() | files | {"models": models}))


@pytest.fixture
async def rig(
    tool_settings: ApiSettings, store: RedisStore, broker: FakeBroker, redis: Redis
) -> AsyncIterator[Rig]:
    async with rig_over(tool_settings, store, broker) as made:
        yield made


async def everything_in(redis: Redis) -> bytes:
    """Every key and value of the store."""
    found = []
    async for key in redis.scan_iter(count=1000):
        found.append(key)
        match await redis.type(key):
            case b"hash":
                found += [each for pair in (await redis.hgetall(key)).items() for each in pair]
            case b"stream":
                found += [repr(each).encode() for each in await redis.xrange(key)]
            case b"zset":
                found += await redis.zrange(key, 0, -1)
            case b"list":
                found += await redis.lrange(key, 0, -1)
            case b"set":
                found += list(await redis.smembers(key))
            case _:
                found.append(await redis.get(key) or b"")
    return b"\n".join(found)


async def test_a_credential_is_sealed_and_stands_nowhere_else(
    rig: Rig, redis: Redis, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = {"authorization": CANARY, "headers": {"x-key": f"{CANARY}-2"}}
    line = chat_line()
    line["body"]["tools"] = [OWN | secret, FILES]
    job = await rig.client.post("/v1/jobs", json=line)
    call = {"model": "m", "input": "x", "background": True, "tools": [OWN | secret]}
    response = await rig.client.post("/v1/responses", json=call)
    wrong = await rig.client.post("/v1/responses", json=call | {"max_tool_calls": 0})
    taken = [OWN | secret, {"type": "mcp", "server_label": "mail", **secret}]
    refused = await rig.client.post("/v1/responses", json=call | {"tools": taken})
    job_id, response_id = job.json()["id"], response.json()["id"]
    seen = [
        await rig.client.get(f"/v1/jobs/{job_id}?include=request,timeline"),
        await rig.client.get("/v1/jobs?include=request,result,prompt"),
        await rig.client.get(f"/v1/responses/{response_id}"),
        await rig.client.get(f"/v1/responses/{response_id}/input_items"),
        await rig.client.post(f"/v1/jobs/{job_id}/cancel"),
    ]

    assert (job.status_code, response.status_code) == (202, 200)
    assert (wrong.status_code, refused.status_code) == (400, 400)
    for answer in (job, response, wrong, refused, *seen):
        assert CANARY not in answer.text
    await rig.broker.until_asked_for(job_id)
    assert CANARY not in repr(rig.broker.events)
    assert CANARY.encode() not in await everything_in(redis)
    assert CANARY not in caplog.text
    assert CANARY not in "".join(capsys.readouterr())


async def test_what_was_sealed_opens_for_its_job_and_server_and_is_gone_at_the_end(
    rig: Rig,
) -> None:
    line = chat_line()
    line["body"]["tools"] = [OWN | {"authorization": CANARY}]
    answer = await rig.client.post("/v1/jobs", json=line, headers={"Idempotency-Key": "k"})
    job = await rig.store.get(JobId(answer.json()["id"]))

    assert job is not None
    sealed = orjson.loads(job.sealed)
    keys = SealingKeys((base64.b64decode(KEY),))
    binding = Binding(job.tenant, job.id, "https://own.example:8443")
    assert unseal(keys, binding, sealed["own"]) == {"authorization": f"Bearer {CANARY}"}
    assert job.request.body["tools"] == [OWN]
    again = await rig.client.post("/v1/jobs", json=line, headers={"Idempotency-Key": "k"})
    assert again.json()["id"] == job.id
    await rig.store.cancel(job.id)
    ended = await rig.store.get(job.id)
    assert ended is not None
    assert ended.sealed == ""


async def test_without_a_key_credentials_are_refused(
    api_settings: ApiSettings,
    tool_settings: ApiSettings,
    store: RedisStore,
    broker: FakeBroker,
) -> None:
    settings = ApiSettings(**(tool_settings.model_dump() | {"tool_seal_key_file": None}))
    line = chat_line()
    line["body"]["tools"] = [OWN | {"authorization": CANARY}]
    async with rig_over(settings, store, broker) as rig:
        refused = await rig.client.post("/v1/jobs", json=line)

    assert refused.status_code == 422
    assert "TORPOR_TOOL_SEAL_KEY_FILE" in refused.text
    assert CANARY not in refused.text


async def test_a_job_with_a_server_goes_to_the_step_that_lists_its_tools(rig: Rig) -> None:
    line = chat_line()
    line["body"]["tools"] = [FILES]
    answer = await rig.client.post("/v1/jobs", json=line)
    job = await rig.store.get(JobId(answer.json()["id"]))

    assert job is not None
    assert job.plan is not None
    assert job.plan.names == ("list-tools", "tools")
    assert job.step == "list-tools"
    assert job.plan.steps[1].settings == {"on_approval": "wait", "links": []}


async def test_a_response_ends_where_a_call_needs_approval(rig: Rig) -> None:
    call = {"model": "m", "input": "x", "background": True, "tools": [FILES]}
    answer = await rig.client.post("/v1/responses", json=call | {"parallel_tool_calls": False})
    job = await rig.store.get(JobId(answer.json()["id"].replace("resp_", "job_")))

    assert job is not None
    assert job.plan is not None
    settings = {"on_approval": "end", "limits": {"parallel": 1}, "links": []}
    assert job.plan.steps[1].settings == settings
    assert answer.json()["tools"][0]["server_label"] == "files"


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/chat/completions", {"model": "m", "tools": [FILES]}, "mcp is served by"),
        ("/invocations", {"model": "m", "tools": [FILES]}, "mcp is served by"),
        ("/v1/chat/completions", {"model": "guarded"}, "mail need approval"),
        ("/v1/responses", {"model": "held", "input": "x", "tools": [FILES]}, "hold: whole"),
        (
            "/v1/responses",
            {"model": "m", "input": "x", "tools": [{"type": "mcp", "server_label": "closed"}]},
            "no server closed",
        ),
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    rig: Rig, path: str, body: dict[str, Any], words: str
) -> None:
    messages = {} if "input" in body else {"messages": [{"role": "user", "content": "x"}]}
    answer = await rig.client.post(path, json=body | messages)

    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


async def test_a_chat_completion_is_served_by_a_model_with_tools_of_its_own(rig: Rig) -> None:
    call = {"model": "agent", "messages": [{"role": "user", "content": "x"}]}
    answer = await rig.client.post(
        "/v1/chat/completions", json=call, headers={"Prefer": "respond-async"}
    )
    job = await rig.store.get(JobId(answer.json()["id"]))

    assert answer.status_code == 202
    assert job is not None
    assert job.plan is not None
    assert job.plan.steps[1].settings == {"on_approval": "fail", "links": []}
