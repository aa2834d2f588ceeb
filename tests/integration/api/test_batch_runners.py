"""Runners that die, stall or meet: no line of a batch is lost, run or told twice."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest
from redis.asyncio import Redis

from api.auth.principal import Principal
from api.batch import run as batch_run
from api.batch import runner as batch_runner
from api.batch import store as batch_store
from api.batch.batch import Batch, BatchStatus, parse_batch
from api.batch.store import BatchStore
from api.job.submission import keyed_job_id, submit_line
from eventing.clock import Clock, SystemClock
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.store.file_store import FileCard, FileStore, new_file_id
from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.fakes import FakeEngine, FakePredictor, chat_result

URL = "/v1/chat/completions"
FINAL = ("completed", "failed", "cancelled", "expired")


def lines(count: int) -> bytes:
    made = (orjson.dumps(chat_line(f"q{n}", custom_id=f"c{n}")) for n in range(1, count + 1))
    return b"\n".join(made)


async def start(rig: Rig, body: bytes, **call: Any) -> str:
    form = {"file": ("in.jsonl", body), "purpose": (None, "batch")}
    uploaded = await rig.client.post("/v1/files", files=form)
    assert uploaded.status_code == 200, uploaded.text
    wanted = {"endpoint": URL, "completion_window": "24h", "input_file_id": uploaded.json()["id"]}
    made = await rig.client.post("/v1/batches", json=wanted | call)
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


@asynccontextmanager
async def running(rig: Rig, clock: Clock | None = None) -> AsyncIterator[None]:
    """One runner, until the block ends; ended as a crash would end it."""
    deps = replace(rig.parts.batches, clock=clock or rig.parts.clock)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(batch_runner.run(deps, turn_s=0.02))
        yield
        task.cancel()


async def look(rig: Rig, batch_id: str) -> dict[str, Any]:
    seen: dict[str, Any] = (await rig.client.get(f"/v1/batches/{batch_id}")).json()
    return seen


async def ended(rig: Rig, batch_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while (seen := await look(rig, batch_id))["status"] not in FINAL:
            await asyncio.sleep(0.05)
    return seen


async def entries(rig: Rig, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    text = (await rig.client.get(f"/v1/files/{file_id}/content")).text
    return [orjson.loads(line) for line in text.splitlines()]


async def told(rig: Rig, batch: dict[str, Any]) -> Counter[str]:
    """How often each line stands in the result files."""
    both = await entries(rig, batch["output_file_id"]) + await entries(rig, batch["error_file_id"])
    return Counter(entry["custom_id"] for entry in both)


def adds_up(batch: dict[str, Any], output: Sequence[Any], errors: Sequence[Any]) -> bool:
    counts = batch["request_counts"]
    return (counts["completed"], counts["failed"]) == (len(output), len(errors))


async def time_passes(rig: Rig) -> None:
    """Until the claims of the dead have lapsed."""
    for member in await rig.store.redis.zrange(keys.ACTIVE_BATCHES, 0, -1):
        await rig.store.redis.zadd(keys.ACTIVE_BATCHES, {member: 1})


async def put_back(redis: Redis, name: str, record: dict[bytes, bytes]) -> None:
    """The record as it was: what a store that lost its last second has."""
    async with redis.pipeline(transaction=True) as pipe:
        await pipe.delete(name).hset(name, mapping=record).execute()


class LateClock(SystemClock):
    """A day and an hour later than everybody else's."""

    def wall_ms(self) -> int:
        return super().wall_ms() + 25 * 3600 * 1000


async def test_a_runner_that_waits_reads_no_prompt_and_no_answer(rig: Rig) -> None:
    megabyte = 1024 * 1024
    line = chat_line("x" * (megabyte - 1000), custom_id="c1")
    await start(rig, orjson.dumps(line))
    redis = rig.store.redis
    async with running(rig), asyncio.timeout(60):
        while not (jobs := (await rig.store.list_jobs("default")).jobs):
            await asyncio.sleep(0.02)
        key = keys.job(jobs[0].id)
        while not await polls(redis):
            await asyncio.sleep(0.02)
        before = int((await redis.info("stats"))["total_net_output_bytes"])
        asked = await polls(redis)
        while await polls(redis) < asked + 5:
            await asyncio.sleep(0.02)
        after = int((await redis.info("stats"))["total_net_output_bytes"])

    assert int(await redis.hstrlen(key, "request")) > megabyte // 2
    assert after - before < megabyte


async def polls(redis: Redis) -> int:
    """How often one field of a record was read."""
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_hget", {"calls": 0})["calls"])


async def test_a_validation_that_takes_longer_than_a_claim_is_not_overtaken(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim of 0.3 s, a validation of 1.5 s, and two runners that would take it."""
    monkeypatch.setattr(batch_store, "CLAIM_MS", 300)
    monkeypatch.setattr(batch_runner, "CLAIM_MS", 300)
    monkeypatch.setattr("api.batch.input_file._READ_BYTES", 64)
    read = FileStore.read

    async def slow(self: FileStore, card: FileCard, start: int, size: int) -> bytes:
        await asyncio.sleep(0.1)
        return await read(self, card, start, size)

    epochs: set[int] = set()
    save = BatchStore.save

    async def noted(self: BatchStore, batch: Batch, epoch: int) -> bool:
        epochs.add(epoch)
        return await save(self, batch, epoch)

    monkeypatch.setattr(FileStore, "read", slow)
    monkeypatch.setattr(BatchStore, "save", noted)
    batch_id = await start(rig, lines(5))
    async with running(rig), running(rig):
        batch = await ended(rig, batch_id)

    assert (batch["status"], len(epochs)) == ("completed", 1)


async def test_a_cancelled_batch_whose_runner_died_is_ended_with_all_that_it_had_submitted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner dies after it submitted lines and before it could write so."""
    save = BatchStore.save

    async def dies(self: BatchStore, batch: Batch, epoch: int) -> bool:
        if batch.running:
            await asyncio.sleep(3600)
        return await save(self, batch, epoch)

    batch_id = await start(rig, lines(4))
    with monkeypatch.context() as patched:
        patched.setattr(BatchStore, "save", dies)
        async with running(rig):
            async with asyncio.timeout(60):
                while not rig.broker.events:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
    submitted = [event.subject for event in rig.broker.events]
    record = await rig.parts.batches.batches.get(batch_id)
    await rig.client.post(f"/v1/batches/{batch_id}/cancel")
    await time_passes(rig)
    async with running(rig):
        batch = await ended(rig, batch_id)

    states = [(await rig.client.get(f"/v1/jobs/{each}")).json()["state"] for each in submitted]
    assert record.running == ()
    assert set(states) == {"cancelled"}
    assert batch["status"] == "cancelled"
    assert await told(rig, batch) == Counter(f"c{n}" for n in range(1, 5))


async def test_a_cancelled_batch_says_of_each_line_what_became_of_it(rig: Rig) -> None:
    batch_id = await start(rig, lines(5))
    async with running(rig):
        while len(rig.broker.events) < 5:
            await asyncio.sleep(0.01)
        done = keyed_job_id("default", f"batch:{batch_id}:1")
        await (await rig.predictor(done)).finish(chat_result("one"))
        broken = keyed_job_id("default", f"batch:{batch_id}:2")
        await (await rig.predictor(broken)).fail("boom")
        await rig.client.post(f"/v1/batches/{batch_id}/cancel")
        batch = await ended(rig, batch_id)

    output = await entries(rig, batch["output_file_id"])
    errors = await entries(rig, batch["error_file_id"])
    assert batch["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
    assert [entry["custom_id"] for entry in output] == ["c1"]
    codes = {e["custom_id"]: e["error"] and e["error"]["code"] for e in errors}
    assert codes == {"c2": None} | dict.fromkeys(("c3", "c4", "c5"), "batch_cancelled")


async def test_a_runner_that_was_overtaken_at_the_very_end_changes_no_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stalls before its files are there. Meanwhile one that stalled longer submits a line, and
    that is answered; the next runner must not tell of it what the files of the first do not.
    """
    stalled, go_on, publish = asyncio.Event(), asyncio.Event(), FileStore.publish

    async def stalls(self: FileStore, card: FileCard) -> None:
        if not stalled.is_set():
            stalled.set()
            await go_on.wait()
        await publish(self, card)

    monkeypatch.setattr(FileStore, "publish", stalls)
    batch_id = await start(rig, lines(3))
    await rig.client.post(f"/v1/batches/{batch_id}/cancel")
    async with running(rig):
        async with asyncio.timeout(60):
            await stalled.wait()
        late = orjson.loads(lines(2).splitlines()[1])
        job = await submit_line(
            rig.parts.submission,
            Principal(tenant="default"),
            late,
            key=f"{batch_id}:2",
            metadata={},
        )
        await (await rig.predictor(job.id)).finish(chat_result("late"))
        await time_passes(rig)
        async with running(rig):
            batch = await ended(rig, batch_id)
        go_on.set()
        await asyncio.sleep(0.2)  # the first one writes what it can

    assert batch["status"] == "cancelled"
    assert await told(rig, batch) == Counter(["c1", "c2", "c3"])
    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 3}


async def test_a_runner_that_stops_at_once_goes_on_behind_the_record(rig: Rig) -> None:
    """A second runner, of a batch that has run out of its time with two lines told before."""
    batch_id = await start(rig, lines(5))
    batches = rig.parts.batches.batches
    ((_, epoch),) = await batches.claim(1)
    record = await batches.get(batch_id)
    end = len(b"\n".join(lines(5).splitlines()[:2])) + 1
    await batches.save(
        replace(record, status=BatchStatus.IN_PROGRESS, line=2, offset=end, total=5, failed=2),
        epoch,
    )
    await time_passes(rig)
    async with running(rig, LateClock()):
        batch = await ended(rig, batch_id)

    assert await told(rig, batch) == Counter(["c3", "c4", "c5"])
    assert batch["request_counts"]["failed"] == 5


async def test_an_expiry_whose_runners_die_reports_each_line_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "WINDOW", 10)
    draw, save = random.Random(3), BatchStore.save

    async def may_die(self: BatchStore, batch: Batch, epoch: int) -> bool:
        if draw.random() < 0.3:
            raise asyncio.CancelledError  # before the record was written
        is_ours = await save(self, batch, epoch)
        if draw.random() < 0.2:
            raise asyncio.CancelledError  # and after
        return is_ours

    batch_id = await start(rig, lines(80))
    monkeypatch.setattr(BatchStore, "save", may_die)
    async with running(rig, LateClock()), asyncio.timeout(40):
        while (await look(rig, batch_id))["status"] not in FINAL:
            await asyncio.sleep(0.05)
            await time_passes(rig)
    monkeypatch.setattr(BatchStore, "save", save)

    batch = await look(rig, batch_id)
    assert batch["status"] == "expired"
    assert await told(rig, batch) == Counter(f"c{n}" for n in range(1, 81))
    assert batch["request_counts"] == {"total": 80, "completed": 0, "failed": 80}


async def test_a_batch_whose_runners_die_all_the_time_answers_each_line_once(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, save = random.Random(4), BatchStore.save

    async def may_die(self: BatchStore, batch: Batch, epoch: int) -> bool:
        if draw.random() < 0.15:
            raise asyncio.CancelledError
        is_ours = await save(self, batch, epoch)
        if draw.random() < 0.15:
            raise asyncio.CancelledError
        return is_ours

    batch_id = await start(rig, lines(60) + b"\n{bad\n" + lines(1))
    monkeypatch.setattr(BatchStore, "save", may_die)
    async with running(rig), running(rig), asyncio.timeout(40):
        while (await look(rig, batch_id))["status"] not in FINAL:
            await asyncio.sleep(0.05)
            await time_passes(rig)
    monkeypatch.setattr(BatchStore, "save", save)

    batch = await look(rig, batch_id)
    output = await entries(rig, batch["output_file_id"])
    errors = await entries(rig, batch["error_file_id"])
    assert batch["status"] == "completed"
    assert Counter(e["custom_id"] for e in output) == Counter(f"c{n}" for n in range(1, 61))
    assert [entry["error"]["line"] for entry in errors] == [61, 62]
    assert adds_up(batch, output, errors)
    assert len({job.id for job in engine.played}) == 60


async def test_a_batch_whose_store_forgets_its_last_saves_answers_each_line_once(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover to a replica that lags, and runners that do not know of it."""
    monkeypatch.setattr(batch_run, "WINDOW", 5)
    draw, save = random.Random(1), BatchStore.save
    older: list[dict[bytes, bytes]] = []

    async def forgets(self: BatchStore, batch: Batch, epoch: int) -> bool:
        name, redis = keys.batch(batch.id), rig.store.redis
        older.append(await redis.hgetall(name))
        is_ours = await save(self, batch, epoch)
        if len(older) > 3 and draw.random() < 0.2 and not batch.status.is_final:
            await put_back(redis, name, older[-draw.randint(1, 3)])
            if draw.random() < 0.5:
                raise asyncio.CancelledError
        return is_ours

    batch_id = await start(rig, lines(60))
    monkeypatch.setattr(BatchStore, "save", forgets)
    async with running(rig), running(rig), asyncio.timeout(40):
        while (await look(rig, batch_id))["status"] not in FINAL:
            await asyncio.sleep(0.05)
            await time_passes(rig)
    monkeypatch.setattr(BatchStore, "save", save)

    batch = await look(rig, batch_id)
    assert batch["status"] == "completed"
    assert await told(rig, batch) == Counter(f"c{n}" for n in range(1, 61))
    assert batch["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
    assert len({job.id for job in engine.played}) == 60


async def submitted(rig: Rig, batch_id: str) -> list[JobId]:
    """The jobs of five lines, once the runner has noted them."""
    async with asyncio.timeout(60):
        while len((record := await rig.parts.batches.batches.get(batch_id)).running) < 5:
            await asyncio.sleep(0.02)
    return [JobId(one.job_id) for one in record.running]


async def forget(rig: Rig, jobs: Sequence[JobId]) -> None:
    """What a failover takes while the runner lives: it goes on with the names of jobs that nobody knows."""
    for job_id in jobs:
        await rig.store.redis.delete(keys.job(job_id), keys.tokens(job_id))


async def test_lines_whose_jobs_the_store_forgot_are_run_again(rig: Rig) -> None:
    batch_id = await start(rig, lines(5))
    async with running(rig), asyncio.TaskGroup() as group:
        jobs = await submitted(rig, batch_id)
        engine = FakeEngine(rig.store, rig.broker, group)
        await forget(rig, jobs[:2])
        for job_id in jobs[2:]:
            await (await FakePredictor(rig.store, job_id).start()).finish(chat_result("there"))
        batch = await ended(rig, batch_id)

    assert await told(rig, batch) == Counter(f"c{n}" for n in range(1, 6))
    assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert {job.id for job in engine.played} == set(jobs[:2])


async def test_lines_whose_jobs_are_gone_with_the_input_file_are_told_so(rig: Rig) -> None:
    batch_id = await start(rig, lines(5))
    async with running(rig):
        jobs = await submitted(rig, batch_id)
        await rig.client.delete(f"/v1/files/{(await look(rig, batch_id))['input_file_id']}")
        await forget(rig, jobs)
        batch = await ended(rig, batch_id)

    errors = await entries(rig, batch["error_file_id"])
    assert [entry["error"]["code"] for entry in errors] == ["result_expired"] * 5


async def test_two_claims_after_a_failover_have_two_epochs(rig: Rig) -> None:
    batches, batch_id = rig.parts.batches.batches, await start(rig, lines(1))
    name = keys.batch(batch_id)
    before = await rig.store.redis.hgetall(name)
    ((_, first),) = await batches.claim(1)
    await put_back(rig.store.redis, name, before)
    await time_passes(rig)
    ((_, second),) = await batches.claim(1)

    record = await batches.get(batch_id)
    assert not await batches.save(record, first)
    assert await batches.save(record, second)


async def test_one_broken_batch_does_not_stop_the_others(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, good = await start(rig, lines(1)), await start(rig, lines(2))
    run = batch_run.BatchRun.run

    async def breaks(self: batch_run.BatchRun) -> None:
        if self._batch.id == broken:
            raise RuntimeError("a bug")
        await run(self)

    monkeypatch.setattr(batch_run.BatchRun, "run", breaks)
    async with running(rig):
        batch = await ended(rig, good)

    assert batch["status"] == "completed"


async def test_batches_of_a_tenant_that_wait_leave_room_for_anothers(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines never end; those of another tenant do."""
    engine_takes = rig.broker.on_event
    rig.broker.on_event = lambda event: None
    monkeypatch.setattr(batch_runner, "_BATCHES_AT_ONCE", 8)
    busy = [await stored(rig, new_batch("busy", await file_of(rig, "busy"))) for _ in range(10)]
    async with running(rig):
        while len(rig.broker.events) < 4:
            await asyncio.sleep(0.01)
        rig.broker.on_event = engine_takes
        other = await stored(rig, new_batch("other", await file_of(rig, "other")))
        async with asyncio.timeout(60):
            while not (await rig.parts.batches.batches.get(other)).status.is_final:
                await asyncio.sleep(0.05)
        waiting = [await rig.parts.batches.batches.get(each) for each in busy]

    assert not any(batch.status.is_final for batch in waiting)


async def file_of(rig: Rig, tenant: str) -> str:
    files = rig.parts.batches.files
    card = files.new_card(tenant, "in", "batch", new_file_id())
    await files.write_part(tenant, card.id, "part", lines(1))
    await files.publish(replace(card, bytes=len(lines(1)), parts=("part",)))
    return card.id


def new_batch(tenant: str, input_file_id: str) -> Batch:
    return Batch(
        id=f"batch_{random.randbytes(12).hex()}",
        tenant=tenant,
        endpoint=URL,
        input_file_id=input_file_id,
        output_file_id=new_file_id(),
        error_file_id=new_file_id(),
        created_at=SystemClock().wall_ms() // 1000,
    )


async def stored(rig: Rig, batch: Batch) -> str:
    return (await rig.parts.batches.batches.create(batch)).id


async def test_a_runner_never_meets_a_batch_that_is_half_recorded(rig: Rig) -> None:
    """Created and claimed at once, many times: each is claimed, none is dropped."""
    batches, claimed = rig.parts.batches.batches, set[str]()

    async def claim() -> None:
        while len(claimed) < 100:
            claimed.update(batch_id for batch_id, _ in await batches.claim(10))

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(claim())
        made = [await stored(rig, new_batch("t", "file")) for _ in range(100)]

    assert claimed == set(made)
    assert len(await batches.list("t")) == 100


async def test_a_list_is_pruned_with_its_records(rig: Rig) -> None:
    batches, index = rig.parts.batches.batches, keys.batches_of("t")
    gone, kept = [await stored(rig, new_batch("t", "file")) for _ in range(2)]
    old = replace(new_batch("t", "file"), created_at=1_600_000_000)
    await stored(rig, old)
    await rig.store.redis.delete(keys.batch(gone))

    await stored(rig, newest := new_batch("t", "file"))
    listed = {batch.id for batch in await batches.list("t")}

    assert listed == {kept, newest.id}
    assert await rig.store.redis.zcard(index) == 2
    assert await rig.store.redis.ttl(index) > 0
    assert await rig.store.redis.ttl(keys.batch(kept)) > 0


async def test_a_cancel_of_a_deleted_batch_leaves_no_record(rig: Rig) -> None:
    batch_id = await stored(rig, new_batch("t", "file"))
    await rig.store.redis.delete(keys.batch(batch_id))

    await rig.parts.batches.batches.ask_to_cancel(batch_id)

    assert not await rig.store.redis.exists(keys.batch(batch_id))


def test_a_record_of_a_newer_version_is_read() -> None:
    record = orjson.loads(replace(new_batch("t", "f"), status=BatchStatus.VALIDATING).to_json())
    record |= {
        "colour": "blue",
        "running": [{"number": 1, "custom_id": "a", "job_id": "j", "x": 1}],
    }

    assert parse_batch(orjson.dumps(record)).running[0].custom_id == "a"


async def test_a_file_of_which_no_line_can_run_is_a_failed_batch(
    rig: Rig, engine: FakeEngine
) -> None:
    body = b"\n".join(orjson.dumps(chat_line(model="nobody", custom_id=f"c{n}")) for n in range(30))
    batch_id = await start(rig, body)
    async with running(rig):
        batch = await ended(rig, batch_id)

    errors = await entries(rig, batch["error_file_id"])
    assert batch["status"] == "failed"
    assert batch["request_counts"] == {"total": 30, "completed": 0, "failed": 30}
    assert [error["line"] for error in batch["errors"]["data"]] == list(range(1, 21))
    assert {error["code"] for error in batch["errors"]["data"]} == {"model_not_found"}
    assert len(errors) == 30


async def test_a_batch_shows_its_model_and_usage(rig: Rig, engine: FakeEngine) -> None:
    batch_id = await start(rig, lines(3))
    async with running(rig):
        batch = await ended(rig, batch_id)

    assert batch["model"] == "m"
    assert batch["usage"] == {
        "input_tokens": 21,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 30,
    }


async def test_a_file_as_excel_writes_it_is_answered_under_its_own_names(
    rig: Rig, engine: FakeEngine
) -> None:
    body = b"\xef\xbb\xbf" + lines(3).replace(b"\n", b"\r\n") + b"\r\n\r\n"
    batch_id = await start(rig, body)
    async with running(rig):
        batch = await ended(rig, batch_id)

    assert batch["status"] == "completed"
    assert await told(rig, batch) == Counter(["c1", "c2", "c3"])


async def test_results_expire_when_the_batch_says(rig: Rig, engine: FakeEngine) -> None:
    wish = {"anchor": "created_at", "seconds": 7200}
    batch_id = await start(rig, lines(1), output_expires_after=wish)
    async with running(rig):
        batch = await ended(rig, batch_id)

    card = (await rig.client.get(f"/v1/files/{batch['output_file_id']}")).json()
    assert card["expires_at"] == card["created_at"] + 7200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        pytest.param({"metadata": {"a": 1}}, "metadata.a", id="a number"),
        pytest.param({"metadata": {"k" * 65: "x"}}, f"metadata.{'k' * 64}", id="a long name"),
        pytest.param({"metadata": {"k": "x" * 513}}, "metadata.k", id="a long text"),
        pytest.param(
            {"output_expires_after": {"anchor": "now", "seconds": 7200}},
            "output_expires_after.anchor",
            id="anchor",
        ),
    ],
)
async def test_a_call_that_can_never_run_names_what_is_wrong(
    rig: Rig, change: dict[str, Any], param: str
) -> None:
    form = {"file": ("in.jsonl", lines(1)), "purpose": (None, "batch")}
    file_id = (await rig.client.post("/v1/files", files=form)).json()["id"]
    call = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}

    answer: httpx.Response = await rig.client.post("/v1/batches", json=call | change)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def responses(*bodies: dict[str, Any]) -> bytes:
    return b"\n".join(
        orjson.dumps({"custom_id": f"c{n}", "url": "/v1/responses", "body": {"model": "m"} | body})
        for n, body in enumerate(bodies, 1)
    )


async def test_a_batch_of_responses_gives_response_objects(rig: Rig, engine: FakeEngine) -> None:
    wanted = {"input": "hi", "instructions": "be brief", "metadata": {"a": "1"}}
    batch_id = await start(rig, responses(wanted, {"input": "ho"}), endpoint="/v1/responses")
    async with running(rig):
        batch = await ended(rig, batch_id)

    bodies = {
        entry["custom_id"]: entry["response"]["body"]
        for entry in await entries(rig, batch["output_file_id"])
    }
    first = bodies["c1"]
    assert (batch["status"], batch["model"], len(bodies)) == ("completed", "m", 2)
    assert (first["object"], first["status"], first["instructions"]) == (
        "response",
        "completed",
        "be brief",
    )
    assert first["metadata"] == {"a": "1"}
    assert first["output"][-1]["content"][0]["text"] == engine.answer
    assert (await rig.client.get(f"/v1/responses/{first['id']}")).json() == first


async def test_a_batchs_response_goes_on_from_an_earlier_one(rig: Rig, engine: FakeEngine) -> None:
    earlier = await rig.client.post("/v1/responses", json={"model": "m", "input": "one"})
    body = responses({"input": "two", "previous_response_id": earlier.json()["id"]})
    batch_id = await start(rig, body, endpoint="/v1/responses")
    async with running(rig):
        await ended(rig, batch_id)

    said = [message["content"] for message in engine.played[-1].request.body["messages"]]
    assert said == ["one", engine.answer, "two"]


async def test_a_response_that_can_never_run_names_the_field_of_its_line(
    rig: Rig, engine: FakeEngine
) -> None:
    unknown = {"input": "x", "previous_response_id": "resp_" + "0" * 24}
    body = responses({"input": "ok"}, {"input": 7}, unknown, {"input": "x", "metadata": {"a": 1}})
    batch_id = await start(rig, body, endpoint="/v1/responses")
    async with running(rig):
        batch = await ended(rig, batch_id)

    refused = await entries(rig, batch["error_file_id"])
    assert {entry["custom_id"]: entry["error"]["param"] for entry in refused} == {
        "c2": "body.input",
        "c3": "body.previous_response_id",
        "c4": "body.metadata.a",
    }
