"""OpenAI's vector stores, asked by the official client, unmodified; the test indexes files as the steps do."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from redis.asyncio import Redis

from eventing.redis import keys
from eventing.store.vector_store.note import ADDED, CHANGED, REMOVED, Note, note_of
from eventing.store.vector_store.record import FileError, FileStatus
from eventing.store.vector_store.text_object import text_object_name
from tests.integration.api.conftest import Rig

TENANT = "default"


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def upload(client: AsyncOpenAI, name: str = "a.md", text: str = "# A\n") -> str:
    file = await client.files.create(file=(name, text.encode()), purpose="assistants")
    return file.id


async def index(
    rig: Rig,
    store_id: str,
    file_id: str,
    status: FileStatus = FileStatus.COMPLETED,
    error: FileError | None = None,
    text: str = "text",
) -> bool:
    """End a file as the steps do."""
    deps = rig.parts.vector_stores
    store = await deps.stores.get(TENANT, store_id)
    file = await deps.stores.file(store, file_id)
    note = Note(store_id=store_id, file_id=file_id, tenant=TENANT)
    if not await deps.stores.begin(note, file.generation):
        return False
    await deps.texts.write(text_object_name(store_id, file_id, file.generation), text.encode())
    return await deps.stores.end(note, file.generation, status, usage_bytes=len(text), error=error)


def told(rig: Rig) -> list[tuple[str, str]]:
    """Type and file of every event about vector stores so far."""
    events = [each for each in rig.broker.events if "vectorstore" in each.type]
    return [(each.type, note_of(each).file_id) for each in events]


async def test_a_store_is_created_listed_changed_and_deleted(
    rig: Rig, client: AsyncOpenAI, redis: Redis
) -> None:
    made = await client.vector_stores.create(name="docs", metadata={"team": "ads"})
    again = await client.vector_stores.retrieve(made.id)

    assert (made.object, made.status, made.name) == ("vector_store", "completed", "docs")
    assert made.file_counts.total == made.usage_bytes == 0
    assert again == made
    renamed = await client.vector_stores.update(
        made.id, name="handbook", expires_after={"anchor": "last_active_at", "days": 2}
    )
    assert (renamed.name, renamed.metadata) == ("handbook", {"team": "ads"})
    assert renamed.expires_at == (renamed.last_active_at or 0) + 2 * 24 * 3600
    deleted = await client.vector_stores.delete(made.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "vector_store.deleted")
    with pytest.raises(openai.NotFoundError):
        await client.vector_stores.retrieve(made.id)
    assert [kind for kind, _ in told(rig)] == [REMOVED]
    assert await redis.keys(f"*{made.id}*") == []


async def test_stores_are_listed_in_pages_both_ways(client: AsyncOpenAI) -> None:
    ids = [(await client.vector_stores.create(name=str(n))).id for n in range(5)]

    newest = await client.vector_stores.list(limit=2)
    assert [each.id for each in newest.data] == [ids[4], ids[3]]
    assert [each.id async for each in client.vector_stores.list(limit=2)] == ids[::-1]
    oldest = client.vector_stores.list(limit=2, order="asc")
    assert [each.id async for each in oldest] == ids
    before = await client.vector_stores.list(before=ids[1], limit=2)
    assert [each.id for each in before.data] == [ids[3], ids[2]]
    with pytest.raises(openai.BadRequestError, match="after"):
        await client.vector_stores.list(after="vs_" + "0" * 24)


async def test_a_file_is_added_indexed_and_read(rig: Rig, client: AsyncOpenAI) -> None:
    store = await client.vector_stores.create()
    file_id = await upload(client)

    added = await client.vector_stores.files.create(
        vector_store_id=store.id, file_id=file_id, attributes={"lang": "en", "page": 3, "ok": True}
    )
    assert (added.id, added.status, added.last_error) == (file_id, "in_progress", None)
    assert added.attributes == {"lang": "en", "page": 3, "ok": True}
    assert told(rig) == [(ADDED, file_id)]
    assert (await client.vector_stores.retrieve(store.id)).status == "in_progress"

    await index(rig, store.id, file_id, text="x" * 10_000)

    polled = await client.vector_stores.files.poll(file_id, vector_store_id=store.id)
    assert (polled.status, polled.usage_bytes) == ("completed", 10_000)
    whole = await client.vector_stores.retrieve(store.id)
    assert (whole.status, whole.file_counts.completed) == ("completed", 1)
    assert whole.usage_bytes == 10_000
    content = await client.vector_stores.files.content(file_id, vector_store_id=store.id)
    assert "".join(each.text or "" for each in content.data) == "x" * 10_000


async def test_a_file_that_could_not_be_indexed_says_why(rig: Rig, client: AsyncOpenAI) -> None:
    file_id = await upload(client)
    store = await client.vector_stores.create(file_ids=[file_id])
    await index(
        rig, store.id, file_id, FileStatus.FAILED, FileError(code="invalid_file", message="no PDF")
    )

    found = await client.vector_stores.files.retrieve(file_id, vector_store_id=store.id)

    assert found.status == "failed"
    assert found.last_error is not None
    assert (found.last_error.code, found.last_error.message) == ("invalid_file", "no PDF")
    failed = await client.vector_stores.files.list(store.id, filter="failed")
    assert [each.id for each in failed.data] == [file_id]
    assert (await client.vector_stores.files.list(store.id, filter="completed")).data == []
    again = await client.vector_stores.files.create(vector_store_id=store.id, file_id=file_id)
    assert (again.status, again.last_error) == ("in_progress", None)
    counts = (await client.vector_stores.retrieve(store.id)).file_counts
    assert (counts.in_progress, counts.failed, counts.total) == (1, 0, 1)


async def test_adding_a_file_twice_indexes_it_once(rig: Rig, client: AsyncOpenAI) -> None:
    store, file_id = await client.vector_stores.create(), await upload(client)
    for _ in range(3):
        await client.vector_stores.files.create(vector_store_id=store.id, file_id=file_id)
    (file,) = (await client.vector_stores.files.list(store.id)).data
    assert {event.id for event in rig.broker.events if event.type == ADDED} == {
        rig.broker.events[0].id
    }

    assert await index(rig, store.id, file_id)
    assert not await index(rig, store.id, file_id)

    counts = (await client.vector_stores.retrieve(store.id)).file_counts
    assert (counts.completed, counts.total) == (1, 1)
    assert file.id == file_id


async def test_attributes_change_and_the_steps_are_told(rig: Rig, client: AsyncOpenAI) -> None:
    file_id = await upload(client)
    store = await client.vector_stores.create(file_ids=[file_id])
    await index(rig, store.id, file_id)

    changed = await client.vector_stores.files.update(
        file_id, vector_store_id=store.id, attributes={"lang": "de"}
    )

    assert changed.attributes == {"lang": "de"}
    assert changed.status == "completed"
    assert told(rig) == [(ADDED, file_id), (CHANGED, file_id)]


async def test_a_removed_file_leaves_the_counts_and_the_steps_are_told(
    rig: Rig, client: AsyncOpenAI
) -> None:
    file_id = await upload(client)
    store = await client.vector_stores.create(file_ids=[file_id])
    await index(rig, store.id, file_id)

    await client.vector_stores.files.delete(file_id, vector_store_id=store.id)

    assert (await client.vector_stores.files.list(store.id)).data == []
    whole = await client.vector_stores.retrieve(store.id)
    assert (whole.file_counts.total, whole.usage_bytes) == (0, 0)
    assert told(rig) == [(ADDED, file_id), (CHANGED, file_id)]
    assert (await client.files.retrieve(file_id)).id == file_id


async def test_a_deleted_file_leaves_every_store(rig: Rig, client: AsyncOpenAI) -> None:
    file_id = await upload(client)
    stores = [await client.vector_stores.create(file_ids=[file_id]) for _ in range(2)]

    await client.files.delete(file_id)

    for store in stores:
        assert (await client.vector_stores.files.list(store.id)).data == []
    assert [kind for kind, _ in told(rig)].count(CHANGED) == 2


async def test_a_batch_counts_its_files_and_can_be_cancelled(rig: Rig, client: AsyncOpenAI) -> None:
    ids = [await upload(client, f"{n}.md") for n in range(4)]
    store = await client.vector_stores.create()
    batch = await client.vector_stores.file_batches.create(store.id, file_ids=ids)
    assert (batch.status, batch.file_counts.in_progress) == ("in_progress", 4)

    await index(rig, store.id, ids[0])
    await index(
        rig, store.id, ids[1], FileStatus.FAILED, FileError(code="server_error", message="x")
    )
    cancelled = await client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)

    counts = cancelled.file_counts
    assert cancelled.status == "cancelled"
    assert (counts.completed, counts.failed, counts.cancelled) == (1, 1, 2)
    assert not await index(rig, store.id, ids[2])
    files = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    assert {each.id async for each in files} == set(ids)
    only = await client.vector_stores.file_batches.list_files(
        batch.id, vector_store_id=store.id, filter="cancelled"
    )
    assert {each.id for each in only.data} == {ids[2], ids[3]}


async def test_a_batch_ends_with_its_last_file_also_one_it_shares(
    rig: Rig, client: AsyncOpenAI
) -> None:
    shared, own = await upload(client, "1.md"), await upload(client, "2.md")
    store = await client.vector_stores.create(file_ids=[shared])
    first = await client.vector_stores.file_batches.create(store.id, file_ids=[shared])
    second = await client.vector_stores.file_batches.create(
        store.id, files=[{"file_id": shared}, {"file_id": own, "attributes": {"n": 2}}]
    )
    for file_id in (shared, own):
        await index(rig, store.id, file_id)

    for batch, total in ((first, 1), (second, 2)):
        polled = await client.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id)
        assert (polled.status, polled.file_counts.completed) == ("completed", total)
    found = await client.vector_stores.files.retrieve(own, vector_store_id=store.id)
    assert found.attributes == {"n": 2}


async def test_the_sweep_sends_what_a_dead_process_did_not(
    rig: Rig, client: AsyncOpenAI, redis: Redis
) -> None:
    store, file_id = await client.vector_stores.create(), await upload(client)
    rig.broker.is_down = True
    await client.vector_stores.files.create(vector_store_id=store.id, file_id=file_id)
    assert told(rig) == []
    rig.broker.is_down = False
    for member in await redis.zrange(keys.UNINDEXED, 0, -1):
        await redis.zadd(keys.UNINDEXED, {member: 1})

    await rig.parts.vector_stores.events.send(*await rig.parts.vector_stores.stores.due(10))

    assert told(rig) == [(ADDED, file_id)]


async def test_an_expired_store_is_emptied_and_says_so(
    rig: Rig, client: AsyncOpenAI, redis: Redis
) -> None:
    file_id = await upload(client)
    store = await client.vector_stores.create(
        file_ids=[file_id], expires_after={"anchor": "last_active_at", "days": 1}
    )
    await index(rig, store.id, file_id)
    await redis.hincrby(keys.vector_store(store.id), "active_ms", -25 * 3600 * 1000)
    await redis.zadd(keys.UNINDEXED, {f"{store.id}  {TENANT}": 1})

    await rig.parts.vector_stores.events.send(*await rig.parts.vector_stores.stores.due(10))

    found = await client.vector_stores.retrieve(store.id)
    assert (found.status, found.file_counts.total, found.usage_bytes) == ("expired", 0, 0)
    assert told(rig)[-1] == (REMOVED, "")
    assert (await client.vector_stores.files.list(store.id)).data == []


async def test_a_store_that_is_used_does_not_expire(
    rig: Rig, client: AsyncOpenAI, redis: Redis
) -> None:
    store = await client.vector_stores.create(expires_after={"anchor": "last_active_at", "days": 1})
    await redis.zadd(keys.UNINDEXED, {f"{store.id}  {TENANT}": 1})

    await rig.parts.vector_stores.events.send(*await rig.parts.vector_stores.stores.due(10))

    assert told(rig) == []
    due_ms = await redis.zscore(keys.UNINDEXED, f"{store.id}  {TENANT}")
    assert due_ms == (store.expires_at or 0) * 1000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({"name": 7}, "name", id="a number for a name"),
        pytest.param({"file_ids": ["file-x"]}, "file_ids[0]", id="no id"),
        pytest.param({"file_ids": ["file-" + "0" * 24]}, "file_ids[0]", id="another's file"),
        pytest.param({"file_ids": "x"}, "file_ids", id="no list"),
        pytest.param({"expires_after": {"days": 1}}, "expires_after.anchor", id="no anchor"),
        pytest.param(
            {"expires_after": {"anchor": "last_active_at", "days": 0}},
            "expires_after.days",
            id="no days",
        ),
        pytest.param({"chunking_strategy": {"type": "x"}}, "chunking_strategy.type", id="strategy"),
        pytest.param(
            {
                "chunking_strategy": {
                    "type": "static",
                    "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51},
                }
            },
            "chunking_strategy.static.chunk_overlap_tokens",
            id="overlap over half",
        ),
        pytest.param({"metadata": {"a": 1}}, "metadata.a", id="a number in metadata"),
    ],
)
async def test_an_invalid_store_names_its_field(rig: Rig, body: dict[str, Any], field: str) -> None:
    answer = await rig.client.post("/v1/vector_stores", json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("attributes", "field"),
    [
        pytest.param({"a": None}, "attributes.a", id="null"),
        pytest.param({"a": []}, "attributes.a", id="a list"),
        pytest.param({"a": "x" * 513}, "attributes.a", id="a long text"),
        pytest.param({str(n): n for n in range(17)}, "attributes", id="too many"),
    ],
)
async def test_invalid_attributes_name_their_field(
    rig: Rig, client: AsyncOpenAI, attributes: dict[str, Any], field: str
) -> None:
    store, file_id = await client.vector_stores.create(), await upload(client)
    body = {"file_id": file_id, "attributes": attributes}

    answer = await rig.client.post(f"/v1/vector_stores/{store.id}/files", json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


async def test_files_added_at_once_are_all_counted(rig: Rig, client: AsyncOpenAI) -> None:
    ids = [await upload(client, f"{n}.md") for n in range(6)]
    store = await client.vector_stores.create()
    files = client.vector_stores.files
    await asyncio.gather(*(files.create(vector_store_id=store.id, file_id=each) for each in ids))
    await asyncio.gather(*(index(rig, store.id, each) for each in ids))

    counts = (await client.vector_stores.retrieve(store.id)).file_counts
    assert (counts.completed, counts.in_progress, counts.total) == (6, 0, 6)
