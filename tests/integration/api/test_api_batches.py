"""OpenAI's files and batches, asked by the official client, unmodified."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from openai import AsyncOpenAI

from api.batch import result_file
from api.batch import run as batch_run
from api.batch import runner as batch_runner
from api.batch.batch import Batch
from api.batch.store import BatchStore
from api.job.submission import keyed_job_id
from api.settings import ApiSettings
from eventing.api_key import RedisKeys, mint
from eventing.clock import Clock, SystemClock
from eventing.job.job import JobId
from eventing.outbox.outbox import sweep_once
from eventing.redis import keys
from eventing.store.redis_store import RedisStore
from tests.integration.api.conftest import Rig, chat_line, rig_over
from tests.integration.api.fakes import FakeBroker, FakeEngine, chat_result

URL = "/v1/chat/completions"


@pytest.fixture
async def client(rig: Rig) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@asynccontextmanager
async def running(rig: Rig, clock: Clock | None = None) -> AsyncIterator[None]:
    """One runner, until the block ends; ended as a crash would end it."""
    deps = replace(rig.parts.batches, clock=clock or rig.parts.clock)
    async with asyncio.TaskGroup() as group:
        runner = group.create_task(batch_runner.run(deps, turn_s=0.05))
        try:
            yield
        finally:
            runner.cancel()


@pytest.fixture
async def runner(rig: Rig, engine: FakeEngine) -> AsyncIterator[None]:
    async with running(rig):
        yield


def lines(count: int) -> list[bytes]:
    return [orjson.dumps(chat_line(f"q{n}", custom_id=f"c{n}")) for n in range(1, count + 1)]


async def upload(client: AsyncOpenAI, content: Sequence[bytes]) -> str:
    body = b"\n".join(content) + b"\n"
    return (await client.files.create(file=("in.jsonl", body), purpose="batch")).id


async def start(client: AsyncOpenAI, content: Sequence[bytes], **more: Any) -> Any:
    return await client.batches.create(
        input_file_id=await upload(client, content),
        endpoint=URL,
        completion_window="24h",
        **more,
    )


async def final(client: AsyncOpenAI, batch_id: str) -> Any:
    async with asyncio.timeout(60):
        while (batch := await client.batches.retrieve(batch_id)).status not in (
            "completed",
            "failed",
            "cancelled",
            "expired",
        ):
            await asyncio.sleep(0.05)
    return batch


async def content(client: AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    """The entries of a result file by their line's own name."""
    assert file_id is not None
    text = (await client.files.content(file_id)).text
    entries = [orjson.loads(line) for line in text.splitlines()]
    return {str(entry["custom_id"]): entry for entry in entries}


async def test_a_file_comes_back_as_it_was_sent(client: AsyncOpenAI) -> None:
    body = bytes(range(256)) * 4096
    made = await client.files.create(file=("x.bin", body), purpose="user_data")

    assert (await client.files.content(made.id)).content == body
    assert ((await client.files.retrieve(made.id)).bytes, made.filename) == (len(body), "x.bin")


async def test_files_are_listed_by_purpose(client: AsyncOpenAI) -> None:
    batch = await upload(client, lines(1))
    await client.files.create(file=("x", b"x"), purpose="user_data")

    assert [file.id async for file in client.files.list(purpose="batch")] == [batch]


async def test_a_deleted_file_is_gone(client: AsyncOpenAI) -> None:
    file_id = await upload(client, lines(1))
    await client.files.delete(file_id)

    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file_id)


@pytest.mark.parametrize("file_id", ["file-x", "..%2f..%2fetc", "file-" + "0" * 24])
async def test_an_id_that_is_no_file_is_not_found(rig: Rig, file_id: str) -> None:
    assert (await rig.client.get(f"/v1/files/{file_id}/content")).status_code == 404


async def test_an_upload_over_the_limit_is_refused(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> None:
    files = {"file": ("x", b"x" * 2000), "purpose": (None, "batch")}
    small = api_settings.model_copy(update={"file_limit_bytes": 1024})

    async with rig_over(small, store, broker) as rig:
        assert (await rig.client.post("/v1/files", files=files)).status_code == 413


async def test_every_line_of_a_batch_is_answered(
    client: AsyncOpenAI, runner: None, engine: FakeEngine
) -> None:
    batch = await start(client, lines(30), metadata={"night": "1"})

    ended = await final(client, batch.id)
    answers = await content(client, ended.output_file_id)

    assert ended.status == "completed"
    assert (ended.request_counts.total, ended.request_counts.completed) == (30, 30)
    assert ended.metadata == {"night": "1"}
    assert sorted(answers) == sorted(f"c{n}" for n in range(1, 31))
    body = answers["c7"]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == engine.answer


async def test_a_line_of_a_batch_may_ask_for_no_fallback(
    rig: Rig, client: AsyncOpenAI, runner: None, engine: FakeEngine
) -> None:
    asking = [orjson.dumps(chat_line("q", custom_id="c1") | {"fallback": "none"}), *lines(2)[1:]]
    await final(client, (await start(client, asking)).id)

    carried = [event.extensions.get("fallback", "") for event in rig.broker.events]
    assert sorted(carried) == ["", "none"]


async def test_a_line_asks_no_model_that_the_batchs_key_may_not_use(
    api_settings: ApiSettings, store: RedisStore, broker: FakeBroker
) -> None:
    key, text = mint("acme", now_s=int(SystemClock().wall_ms() / 1000), models=["another"])
    await RedisKeys(store.redis).put(key)
    settings = api_settings.model_copy(update={"keys_source": "redis"})
    async with (
        rig_over(settings, store, broker) as rig,
        AsyncOpenAI(base_url=f"{rig.url}/v1", api_key=text, max_retries=0) as client,
        running(rig),
    ):
        ended = await final(client, (await start(client, lines(2))).id)
        errors = await content(client, ended.error_file_id)

    assert (ended.request_counts.total, ended.request_counts.failed) == (2, 2)
    assert {entry["error"]["code"] for entry in errors.values()} == {"model_not_allowed"}


async def test_an_invalid_line_fails_alone_with_its_number(
    client: AsyncOpenAI, runner: None
) -> None:
    good = lines(6)
    bad = [
        b"{not json",
        orjson.dumps(chat_line("x", custom_id="unknown-model", model="nobody")),
        orjson.dumps(chat_line("x", custom_id="c1")),
        orjson.dumps(chat_line("x") | {"url": "/v1/completions", "custom_id": "other-url"}),
    ]
    batch = await start(client, [good[0], bad[0], good[1], b"", *bad[1:], *good[2:]])

    ended = await final(client, batch.id)
    errors = await content(client, ended.error_file_id)

    counts = ended.request_counts
    assert (counts.total, counts.completed, counts.failed) == (10, 6, 4)
    assert {name: entry["error"]["line"] for name, entry in errors.items()} == {
        "None": 2,
        "unknown-model": 5,
        "c1": 6,
        "other-url": 7,
    }


async def test_a_batch_that_lost_its_runner_is_finished_by_another(
    rig: Rig, client: AsyncOpenAI, engine: FakeEngine
) -> None:
    batch = await start(client, lines(40))
    async with running(rig):
        while len(engine.played) < 10:
            await asyncio.sleep(0.01)
    await time_passes(rig, "torpor:batches:active")

    async with running(rig), sweeping(rig):  # a line's submit may have been cut off half-way
        ended = await final(client, batch.id)

    answers = await content(client, ended.output_file_id)
    assert len(answers) == 40
    assert len({job.id for job in engine.played}) == 40


@asynccontextmanager
async def sweeping(rig: Rig) -> AsyncIterator[None]:
    """The outbox is looked after, in quick motion."""

    async def sweep() -> None:
        while True:
            await time_passes(rig, keys.UNPUBLISHED)
            await sweep_once(rig.store, rig.broker)
            await asyncio.sleep(0.3)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(sweep())
        try:
            yield
        finally:
            task.cancel()


async def time_passes(rig: Rig, *indexes: str) -> None:
    """Until whatever waits in these is due, holds of the dead included."""
    for index in indexes:
        for member in await rig.store.redis.zrange(index, 0, -1):
            await rig.store.redis.zadd(index, {member: 1})


async def test_a_cancelled_batch_keeps_what_was_done(rig: Rig, client: AsyncOpenAI) -> None:
    batch = await start(client, lines(3))
    async with running(rig):
        while len(rig.broker.events) < 3:
            await asyncio.sleep(0.01)
        done = keyed_job_id("default", f"batch:{batch.id}:1")
        await (await rig.predictor(done)).finish(chat_result("one"))
        asked = await client.batches.cancel(batch.id)
        ended = await final(client, batch.id)

    assert asked.status == "cancelling"
    assert ended.status == "cancelled"
    assert list(await content(client, ended.output_file_id)) == ["c1"]
    other = await rig.store.get(JobId(keyed_job_id("default", f"batch:{batch.id}:2")))
    assert other is not None
    assert other.state == "cancelled"


class LateClock(SystemClock):
    """A day and an hour later than everybody else's."""

    def wall_ms(self) -> int:
        return super().wall_ms() + 25 * 3600 * 1000


async def test_a_batch_whose_window_closed_says_what_was_not_run(
    rig: Rig, client: AsyncOpenAI
) -> None:
    batch = await start(client, lines(3))
    async with running(rig, LateClock()):
        ended = await final(client, batch.id)

    errors = await content(client, ended.error_file_id)
    assert ended.status == "expired"
    assert {entry["error"]["code"] for entry in errors.values()} == {"batch_expired"}
    assert len(errors) == 3


async def test_an_overtaken_runner_writes_nothing_more(rig: Rig, client: AsyncOpenAI) -> None:
    batches = BatchStore(rig.store.redis)
    batch = await start(client, lines(1))
    ((batch_id, epoch),) = await batches.claim(1)
    await time_passes(rig, "torpor:batches:active")
    ((_, newer),) = await batches.claim(1)
    record = await batches.get(batch_id)

    assert not await batches.save(replace(record, total=7), epoch)
    assert await batches.save(replace(record, total=8), newer)
    assert (await batches.get(batch.id)).total == 8


async def test_a_batch_waits_behind_people(rig: Rig, client: AsyncOpenAI, runner: None) -> None:
    batch = await start(client, lines(1))
    await final(client, batch.id)

    assert rig.broker.events[0].extensions["priority"] == "batch"


async def test_a_file_without_lines_is_a_failed_batch(client: AsyncOpenAI, runner: None) -> None:
    batch = await start(client, [b"", b""])

    ended = await final(client, batch.id)

    assert ended.status == "failed"
    assert ended.errors is not None


async def test_batches_are_listed_newest_first(client: AsyncOpenAI) -> None:
    first = await start(client, lines(1))
    await asyncio.sleep(1.1)
    second = await start(client, lines(1))

    assert [batch.id async for batch in client.batches.list(limit=1)] == [second.id, first.id]


async def test_a_key_makes_one_file_and_one_batch(rig: Rig) -> None:
    key = {"idempotency-key": "k"}
    files = {"file": ("in.jsonl", lines(1)[0]), "purpose": (None, "batch")}
    uploads = [await rig.client.post("/v1/files", files=files, headers=key) for _ in range(2)]
    body = {
        "input_file_id": uploads[0].json()["id"],
        "endpoint": URL,
        "completion_window": "24h",
    }
    made = [await rig.client.post("/v1/batches", json=body, headers=key) for _ in range(2)]
    other = await rig.client.post("/v1/batches", json=body | {"metadata": {"a": "b"}}, headers=key)

    assert uploads[0].json() == uploads[1].json()
    assert made[0].json()["id"] == made[1].json()["id"]
    assert other.status_code == 409


@pytest.mark.parametrize(
    ("change", "param"),
    [
        pytest.param({"endpoint": "/v1/nothing"}, "endpoint", id="endpoint"),
        pytest.param({"completion_window": "1h"}, "completion_window", id="window"),
        pytest.param({"input_file_id": "file-1"}, "input_file_id", id="file"),
        pytest.param({"input_file_id": 7}, "input_file_id", id="no text"),
        pytest.param({"metadata": [1]}, "metadata", id="metadata"),
    ],
)
async def test_a_batch_that_can_never_run_names_its_parameter(
    rig: Rig, client: AsyncOpenAI, change: dict[str, Any], param: str
) -> None:
    body = {
        "input_file_id": await upload(client, lines(1)),
        "endpoint": URL,
        "completion_window": "24h",
    }

    answer = await rig.client.post("/v1/batches", json=body | change)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_five_hundred_lines_become_a_few_parts_and_an_invalid_one_fails_alone(
    rig: Rig, client: AsyncOpenAI, runner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50,000 in `bench/api/batch.py`."""
    monkeypatch.setattr(result_file, "KEPT_MERGED_S", 0)
    content = lines(500)
    content[249] = b'{"custom_id": "c250", "url": "/v1/chat/completions", "body": {"model": "m"}}'
    batch = await final(client, (await start(client, content)).id)

    output = (await client.files.content(batch.output_file_id)).text.splitlines()
    errors = (await client.files.content(batch.error_file_id)).text.splitlines()
    assert {orjson.loads(line)["custom_id"] for line in output} == {
        f"c{n}" for n in range(1, 501) if n != 250
    }
    assert [orjson.loads(line)["error"]["line"] for line in errors] == [250]
    card = await rig.parts.batches.files.card("default", batch.output_file_id)
    assert len(card.parts) <= 3
    folder = rig.parts.settings.files_url.removeprefix("file://")
    on_disk = {path.name for path in Path(folder).glob(f"*/{batch.output_file_id}/part-*")}
    assert on_disk == set(card.parts)


async def test_a_file_of_bad_lines_only_is_written_as_it_is_read(
    rig: Rig, client: AsyncOpenAI, runner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They used to pile up until the last was read, and the hold ran out meanwhile."""
    monkeypatch.setattr(batch_run, "WINDOW", 32)
    saved: list[int] = []
    save = BatchStore.save

    async def noted(self: BatchStore, batch: Batch, epoch: int) -> bool:
        saved.append(batch.failed)
        return await save(self, batch, epoch)

    monkeypatch.setattr(BatchStore, "save", noted)
    batch = await final(client, (await start(client, [b"{}"] * 200)).id)

    assert batch.request_counts.failed == 200
    assert max(b - a for a, b in pairwise(saved)) <= 32
