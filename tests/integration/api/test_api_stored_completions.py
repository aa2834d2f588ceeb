"""Chat completions that are kept, asked for by OpenAI's client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from api.settings import ApiSettings
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, rig_over
from tests.integration.api.fakes import FakeBroker, FakeEngine

ASKED: list[Any] = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


async def kept(client: AsyncOpenAI, **metadata: str) -> Any:
    return await client.chat.completions.create(
        model="m", messages=ASKED, store=True, metadata=metadata
    )


async def test_a_kept_completion_is_found_by_its_id(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = await kept(client, team="a")

    found: Any = await client.chat.completions.retrieve(made.id)

    assert found.choices == made.choices
    assert (found.usage, found.metadata) == (made.usage, {"team": "a"})
    assert "store" not in engine.played[0].request.body


async def test_a_streamed_one_is_kept_too(client: AsyncOpenAI, engine: FakeEngine) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=ASKED, store=True, stream=True
    )
    names = {chunk.id async for chunk in stream}

    found = await client.chat.completions.retrieve(names.pop())

    assert found.choices[0].message.content == engine.answer


async def test_what_was_not_to_be_kept_is_not_found(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = await client.chat.completions.create(model="m", messages=ASKED)

    with pytest.raises(NotFoundError):
        await client.chat.completions.retrieve(made.id)
    assert [each.id async for each in client.chat.completions.list()] == []


async def test_kept_completions_are_listed_by_age_over_pages(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = [(await kept(client)).id for _ in range(5)]

    oldest_first = [each.id async for each in client.chat.completions.list(limit=2)]
    newest_first = [each.id async for each in client.chat.completions.list(limit=2, order="desc")]

    assert oldest_first == made
    assert newest_first == made[::-1]


async def test_a_list_is_narrowed_by_model_and_metadata(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = [(await kept(client, team=team)).id for team in ("a", "b", "a")]

    ours = client.chat.completions.list(metadata={"team": "a"})
    other = client.chat.completions.list(model="nobody")

    assert [each.id async for each in ours] == [made[0], made[2]]
    assert [each.id async for each in other] == []


async def test_a_completion_is_given_other_metadata(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = await kept(client, team="a")

    changed: Any = await client.chat.completions.update(made.id, metadata={"team": "b"})

    assert changed.metadata == {"team": "b"}
    assert [each.id async for each in client.chat.completions.list(metadata={"team": "b"})] == [
        made.id
    ]


async def test_metadata_that_are_none_are_refused_by_name(
    client: AsyncOpenAI, engine: FakeEngine
) -> None:
    made = await kept(client)

    with pytest.raises(BadRequestError) as refusal:
        await client.chat.completions.update(made.id, metadata={"n": 1})  # type: ignore[dict-item]

    assert refusal.value.param == "metadata.n"


async def test_a_deleted_completion_is_gone_with_its_job(
    rig: Rig, client: AsyncOpenAI, engine: FakeEngine
) -> None:
    first, second = await kept(client), await kept(client)

    gone = await client.chat.completions.delete(first.id)

    assert (gone.deleted, gone.id, gone.object) == (True, first.id, "chat.completion.deleted")
    with pytest.raises(NotFoundError):
        await client.chat.completions.retrieve(first.id)
    job = await rig.client.get(f"/v1/jobs/{first.id.replace('chatcmpl-', 'job_')}")
    assert job.status_code == 404
    assert [each.id async for each in client.chat.completions.list()] == [second.id]


async def test_the_messages_of_the_call_are_listed(client: AsyncOpenAI, engine: FakeEngine) -> None:
    made = await kept(client)

    listed = [each async for each in client.chat.completions.messages.list(made.id, limit=1)]

    assert [(each.role, each.content) for each in listed] == [
        ("system", "be kind"),
        ("user", "hi"),
    ]


async def test_one_that_has_not_ended_is_not_there_yet(rig: Rig, client: AsyncOpenAI) -> None:
    calling = asyncio.create_task(kept(client))
    while not rig.broker.events:
        await asyncio.sleep(0.01)
    name = rig.broker.events[0].subject.replace("job_", "chatcmpl-")

    with pytest.raises(NotFoundError):
        await client.chat.completions.retrieve(name)
    assert [each.id async for each in client.chat.completions.list()] == []
    calling.cancel()


@pytest.mark.parametrize("name", ["chatcmpl-x", "job_1", f"chatcmpl-{'0' * 24}"])
async def test_an_id_of_none_is_a_404_in_openais_form(rig: Rig, name: str) -> None:
    answer = await rig.client.get(f"/v1/chat/completions/{name}")

    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_another_tenants_completion_is_not_found(
    api_settings: ApiSettings,
    store: RedisStore,
    broker: FakeBroker,
    acme: dict[str, str],
    other: dict[str, str],
) -> None:
    settings = api_settings.model_copy(update={"keys_source": "redis"})
    async with rig_over(settings, store, broker) as rig, asyncio.TaskGroup() as group:
        FakeEngine(store, broker, group)
        call = {"model": "m", "messages": ASKED, "store": True}
        made = await rig.client.post("/v1/chat/completions", json=call, headers=acme)
        path = f"/v1/chat/completions/{made.json()['id']}"

        statuses = [
            (await rig.client.get(path, headers=whose)).status_code for whose in (acme, other)
        ]
        listed = (await rig.client.get("/v1/chat/completions", headers=other)).json()

    assert statuses == [200, 404]
    assert listed["data"] == []
