"""A tenant sees its own things only: every call that names a thing, with another's name in it."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from api.audit.store import AuditStore
from eventing.cloudevent.event import Event, build_binary
from eventing.cloudevent.job_event import REQUESTED
from eventing.job.job import JobId
from eventing.job.pipelines.audit import AuditRule
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from eventing.store.vector_store.note import Note
from eventing.store.vector_store.record import FileStatus
from eventing.store.vector_store.text_object import text_object_name
from tests.integration.api.api_with_jobs import ApiWithJobs, api_with_jobs, settings_for
from tests.integration.api.conftest import chat_line, headers_of
from tests.integration.api.fakes import FakePredictor

LISTS = (
    "/v1/jobs",
    "/v1/files",
    "/v1/batches",
    "/v1/dead-letters",
    "/v1/webhook_endpoints",
    "/v1/webhook_deliveries",
    "/v1/chat/completions",
    "/v1/vector_stores",
)
OPEN_TO_ALL = {"/v1/models/{model}"}
"""Names that are the same for everybody."""
UNKNOWN = "0" * 24
TOOLS = "server-" + "a" * 24
"""The label of a tool server that only acme may use."""


@dataclass(frozen=True)
class Owned:
    """A thing of each kind, all of the tenant acme."""

    job: str
    letter: str
    response: str
    file: str
    batch: str
    endpoint: str
    delivery: str
    completion: str
    conversation: str
    item: str
    vector_store: str
    file_batch: str
    key: str
    answer: str
    audit: str

    def url_for(self, path: str, id_: str = "") -> str:
        """The path with the ids in it, the first of them `id_` if that is set."""
        inner = {"{item_id}": self.item, "{file_id}": self.file, "{batch_id}": self.file_batch}
        for name, each in inner.items():
            path = path.replace(name, each)
        return path.replace("{label}", "{id}").replace("{id}", id_ or self.id_for(path))

    def id_for(self, path: str) -> str:
        """The id that a call on `path` takes."""
        kinds = {
            "/v1/jobs": self.job,
            "/v1/dead-letters": self.letter,
            "/v1/responses": self.response,
            "/v1/chat/completions": self.completion,
            "/v1/files": self.file,
            "/v1/batches": self.batch,
            "/v1/webhook_endpoints": self.endpoint,
            "/v1/webhook_deliveries": self.delivery,
            "/v1/conversations": self.conversation,
            "/v1/vector_stores": self.vector_store,
            "/v1/keys": self.key,
            "/v1/cache/entries": self.answer,
            "/v1/audits": self.audit,
            "/v1/tools": TOOLS,
        }
        return kinds[path.partition("/{")[0]]


@pytest.fixture
async def api(
    redis_url: str, store: RedisStore, redis: Redis, tmp_path: Path
) -> AsyncIterator[ApiWithJobs]:
    tools = tmp_path / "tools.yaml"
    server = {"url": "http://tools.example/mcp", "tenants": ["acme"]}
    tools.write_text(json.dumps({"servers": {TOOLS: server}}))
    settings = settings_for(
        redis_url, keys_source="redis", delivery_token="b" * 24, tools_file=tools
    )
    async with api_with_jobs(settings, store) as made:
        yield made


@pytest.fixture
async def owned(api: ApiWithJobs, acme: dict[str, str]) -> Owned:
    async def made(path: str, **fields: Any) -> dict[str, Any]:
        headers = acme | ({"prefer": fields.pop("prefer")} if "prefer" in fields else {})
        answer = await api.client.post(path, headers=headers, **fields)
        assert answer.status_code in (200, 201, 202), answer.text
        found: dict[str, Any] = answer.json()
        return found

    hook = await made("/v1/webhook_endpoints", json={"url": "https://127.0.0.1:9/"})
    file = await made("/v1/files", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "batch"})
    window = {"completion_window": "24h", "endpoint": "/v1/chat/completions"}
    batch = await made("/v1/batches", json=window | {"input_file_id": file["id"]})
    stores = await made("/v1/vector_stores", json={"file_ids": [file["id"]]})
    added = f"/v1/vector_stores/{stores['id']}/file_batches"
    file_batch = await made(added, json={"file_ids": [file["id"]]})
    await index(api, stores["id"], file["id"])
    response = await made("/v1/responses", json={"model": "m", "input": "x", "background": True})
    chat = {"model": "m", "messages": [{"role": "user", "content": "x"}], "store": True}
    kept = await made("/v1/chat/completions", json=chat, prefer="respond-async")
    await api.answer(kept["id"])
    letter = await api.submit("poison", headers=acme)
    await (await FakePredictor(api.store, letter).start()).fail("it_broke")
    await api.deliver(letter, "b" * 24)
    log = await api.client.get("/v1/webhook_deliveries", headers=acme)
    said = [{"role": "user", "content": "mine"}]
    conversation = (await made("/v1/conversations", json={"items": said}))["id"]
    items = await api.client.get(f"/v1/conversations/{conversation}/items", headers=acme)
    return Owned(
        job=await api.submit("mine", headers=acme),
        letter=letter,
        response=response["id"],
        file=file["id"],
        batch=batch["id"],
        endpoint=hook["id"],
        delivery=log.json()["data"][0]["id"],
        completion=kept["id"].replace("job_", "chatcmpl-"),
        conversation=conversation,
        item=items.json()["first_id"],
        vector_store=stores["id"],
        file_batch=file_batch["id"],
        key=acme["authorization"].split("_")[1],
        answer=await kept_answer(api),
        audit=await audited(api, JobId(kept["id"])),
    )


async def kept_answer(api: ApiWithJobs) -> str:
    """An entry of acme's cache."""
    name = "a" * 24
    await api.store.redis.hset(keys.cache_entry("acme", name), "model", "m")
    return name


async def audited(api: ApiWithJobs, job_id: JobId) -> str:
    """An audit of acme's that waits for its critic."""
    job = await api.store.get(job_id)
    assert job is not None
    assert await AuditStore(api.store.redis, 3600).sample(job, "m", AuditRule(critic="m"))
    return f"audit_{job_id.removeprefix('job_')}"


async def index(api: ApiWithJobs, store_id: str, file_id: str) -> None:
    """Index a file as the steps do."""
    assert api.parts is not None
    deps = api.parts.vector_stores
    store = await deps.stores.get("acme", store_id)
    file = await deps.stores.file(store, file_id)
    await deps.texts.write(text_object_name(store_id, file_id, file.generation), b"text")
    note = Note(store_id=store_id, file_id=file_id, tenant="acme")
    assert await deps.stores.end(note, file.generation, FileStatus.COMPLETED)


def named_things(api: ApiWithJobs) -> list[tuple[str, str]]:
    """Method and path of every call that names a thing, as the OpenAPI document has them."""
    assert api.app is not None
    return [
        (method.upper(), path)
        for path, methods in api.app.openapi()["paths"].items()
        for method in methods
        if "{" in path and path not in OPEN_TO_ALL
    ]


def body_for(path: str) -> dict[str, Any]:
    if path.endswith("/accept"):
        return {"digest": UNKNOWN}
    if path.endswith("/test"):
        return {"event_type": "response.completed"}
    if path == "/v1/conversations/{id}/items":
        return {"items": [{"role": "user", "content": "theirs"}]}
    if path.endswith("/file_batches"):
        return {"file_ids": ["file-" + UNKNOWN]}
    if path.startswith("/v1/vector_stores"):
        is_file = path.endswith("/files")
        return {"file_id": "file-" + UNKNOWN} if is_file else {"attributes": {}}
    is_update = path.startswith(("/v1/chat/completions", "/v1/conversations"))
    return {"metadata": {}} if is_update else {}


async def test_a_guess_of_anothers_id_is_the_same_404_as_an_id_that_never_was(
    api: ApiWithJobs, owned: Owned, other: dict[str, str]
) -> None:
    calls = named_things(api)
    wrong = {}
    for method, path in calls:
        answers = []
        for id_ in (owned.id_for(path), owned.id_for(path)[:-24] + UNKNOWN):
            body = body_for(path) if method == "POST" else None
            url = owned.url_for(path, id_)
            answer = await api.client.request(method, url, headers=other, json=body)
            answers.append((answer.status_code, answer.text.replace(id_, "")))
        if answers[0][0] != 404 or answers[0] != answers[1]:
            wrong[f"{method} {path}"] = answers

    assert wrong == {}
    assert len(calls) > 20


async def test_a_tenant_cannot_delete_another_tenants_objects(
    api: ApiWithJobs, owned: Owned, acme: dict[str, str], other: dict[str, str]
) -> None:
    for method, path in named_things(api):
        if method != "GET":
            await api.client.request(method, owned.url_for(path), headers=other)

    missing = [
        path
        for method, path in named_things(api)
        # The first never ends; the second is there once the job has ended.
        if method == "GET" and not path.endswith(("/events", "/result"))
        if (await api.client.get(owned.url_for(path), headers=acme)).status_code != 200
    ]
    assert missing == []


@pytest.mark.parametrize("path", LISTS)
async def test_a_list_holds_only_ones_own(
    api: ApiWithJobs, owned: Owned, acme: dict[str, str], other: dict[str, str], path: str
) -> None:
    mine = (await api.client.get(path, headers=acme)).json()["data"]
    theirs = (await api.client.get(path, headers=other)).json()["data"]

    assert mine != []
    assert theirs == []


async def test_a_tenant_named_like_an_index_key_sees_no_batches(
    api: ApiWithJobs, owned: Owned, redis: Redis
) -> None:
    active = await headers_of(redis, "active")

    assert (await api.client.get("/v1/batches", headers=active)).json()["data"] == []


async def test_a_socket_on_anothers_job_is_a_404(
    api: ApiWithJobs, owned: Owned, other: dict[str, str]
) -> None:
    url = f"{api.url.replace('http', 'ws')}/v1/jobs/{owned.job}/ws"

    with pytest.raises(InvalidStatus) as refused:
        async with connect(url, additional_headers=other):
            pass

    assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(
            "/v1/batches",
            {
                "completion_window": "24h",
                "endpoint": "/v1/chat/completions",
                "input_file_id": "{file}",
            },
            id="a batch of another's file",
        ),
        pytest.param(
            "/v1/responses",
            {"model": "m", "input": "x", "previous_response_id": "{response}"},
            id="a response that goes on from another's",
        ),
        pytest.param(
            "/v1/responses",
            {"model": "m", "input": "x", "conversation": "{conversation}"},
            id="a response in another's conversation",
        ),
    ],
)
async def test_anothers_thing_cannot_be_named_in_a_body(
    api: ApiWithJobs, owned: Owned, other: dict[str, str], path: str, body: dict[str, str]
) -> None:
    async def refusal(**named: str) -> httpx.Response:
        filled = {n: t.format(**named) for n, t in body.items()}
        return await api.client.post(path, json=filled, headers=other)

    guessed = await refusal(
        file=owned.file, response=owned.response, conversation=owned.conversation
    )
    unknown = await refusal(
        file=f"file-{UNKNOWN}", response=f"resp_{UNKNOWN}", conversation=f"conv_{UNKNOWN}"
    )

    assert 400 <= guessed.status_code < 500
    assert guessed.status_code == unknown.status_code
    assert owned.job not in guessed.text


@pytest.mark.parametrize("text", ["mine", "yours"], ids=["the same body", "another body"])
async def test_the_same_event_of_another_tenant_reveals_nothing_of_the_job(
    api: ApiWithJobs, acme: dict[str, str], other: dict[str, str], text: str
) -> None:
    def event(text: str) -> tuple[dict[str, str], bytes]:
        data = orjson.dumps(chat_line(text))
        return build_binary(Event(id="1", source="/app", type=REQUESTED, data=data))

    headers, data = event("mine")
    first = await api.client.post("/v1/events", content=data, headers=headers | acme)
    headers, data = event(text)
    second = await api.client.post("/v1/events", content=data, headers=headers | other)

    job_id = first.json()["id"]
    seen = await api.client.get(f"/v1/jobs/{job_id}", headers=other)
    assert first.status_code == 202
    assert job_id not in second.text
    assert seen.status_code == 404


async def test_the_cost_of_all_tenants_needs_more_than_a_tenants_admin_scope(
    api: ApiWithJobs, redis: Redis
) -> None:
    admin = await headers_of(redis, "acme", "admin", "jobs:read")

    assert (await api.client.get("/v1/usage", headers=admin)).status_code == 403
